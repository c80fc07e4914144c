"""Base models that were distilled for few steps, and what to do instead of training them. No torch here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trainer.models.base_model import index_of
from trainer.models.families.facts import FLOW, GUIDANCE
from trainer.options.config import Config

NAMES = re.compile(r"turbo|schnell|lightning|distill", re.IGNORECASE)  # what their files are called
UNDISTILLED = re.compile(r"de-?_?turbo|un-?_?distill|de-?_?distill", re.IGNORECASE)


def remarks(config: Config, path: Path) -> list[str]:
    """What is to be said of a base model whose family is settled; `path`: its folder or file."""
    facts = config.facts
    if FLOW not in facts.traits:
        return []
    result = []
    if is_distilled(config, path):
        base = facts.trained_instead or "the model that it was made from"
        result.append(
            f"The base model {path.name} is distilled for few steps, as its files or its name show, and loses that "
            f"when it is trained as it is: train {base}, and use the LoRA with this one"
        )
    told = GUIDANCE in facts.traits and _description(path, config).get("guidance_embeds")
    if told and config.guidance_scale not in (None, 1):
        result.append(
            f"guidance_scale is {config.guidance_scale:g}: a guidance-distilled model is usually trained with 1; that "
            "of the sample images is --g"
        )
    return result


def is_distilled(config: Config, path: Path) -> bool:
    """Whether a model's files say, or their name shows, that it makes its pictures in a few steps."""
    if _json(index_of(path)).get("is_distilled"):
        return True
    if config.family == "flux" and _description(path, config).get("guidance_embeds") is False:
        return True  # schnell
    name = config.pretrained_model_name_or_path if path.is_dir() else path.name
    last = Path(name).name
    return bool(NAMES.search(last)) and not UNDISTILLED.search(last)


def _description(path: Path, config: Config) -> dict[str, Any]:
    """The config.json of the denoiser, where there is one."""
    folder = path if path.is_dir() else Path(config.single_file_config) if config.single_file_config else path
    return _json(folder / config.facts.denoiser.component / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
