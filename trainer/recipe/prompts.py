"""Prompts of the sample images, in kohya's notations. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import files
from trainer.data import pictures
from trainer.data.captions import Shown
from trainer.data.pictures import PictureError
from trainer.models.families.facts import CONTROLS, GUIDANCE
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem
from trainer.options.sections.samples import AUTO
from trainer.options.values import check_value

SUFFIXES = (".txt", ".json", ".toml")  # of prompt files, as sd-scripts has them
_OPTION = re.compile(r"\s--([a-zA-Z]+)\s+")


@dataclass(frozen=True)
class Prompt:
    """One sample image to make; width and height in pixels. `embedded_guidance`: what a model is told of it."""

    text: str
    negative: str
    width: int
    height: int
    seed: int
    guidance_scale: float
    steps: int
    embedded_guidance: float = 3.5
    control: Shown | None = None  # the picture to edit


_LETTERS = {  # what a line's --n, --w ... are called in JSON and TOML
    "n": "negative_prompt",
    "w": "width",
    "h": "height",
    "d": "seed",
    "l": "scale",
    "g": "guidance_scale",
    "s": "sample_steps",
    "ss": "sample_sampler",
    "cn": "controlnet_image",
    "ci": "control_image_path",  # as musubi-tuner calls it
}
_MEANINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "prompt": ("text", str.strip),
    "negative_prompt": ("negative", str.strip),
    "width": ("width", int),
    "height": ("height", int),
    "seed": ("seed", int),
    "scale": ("guidance_scale", float),
    "guidance_scale": ("embedded_guidance", float),
    "sample_steps": ("steps", int),
    "controlnet_image": ("control", str.strip),
    "control_image_path": ("control", str.strip),
}


def read(config: Config) -> list[Prompt]:
    """The prompts of sample_prompts: those of a file, or its own lines. Raises ConfigError with every wrong one."""
    text, where = config.sample_prompts, "sample_prompts"
    kind = Path(text.strip()).suffix if "\n" not in text.strip() else ""
    if kind in SUFFIXES:
        path = Path(text.strip()).expanduser()
        try:
            text, where = files.read_text(path), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([Problem("sample_prompts", f"{path} cannot be read: {error}")]) from error
    prompts: list[Prompt] = []
    problems: list[Problem] = []
    for place, given in _from_document(text, kind, where) if kind in (".json", ".toml") else _from_lines(text):
        try:
            fields = _of_line(given) if isinstance(given, str) else given
            prompts.append(_prompt(fields, config, index=len(prompts), by_letter=isinstance(given, str)))
        except ValueError as error:
            problems.append(Problem("sample_prompts", str(error), f"{where}, {place}"))
    if problems:
        raise ConfigError(problems)
    return prompts


def _from_lines(text: str) -> list[tuple[str, str]]:
    """(place, line) of each prompt."""
    lines = enumerate(text.splitlines(), start=1)
    return [(f"line {number}", line) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]


def _from_document(text: str, kind: str, where: str) -> list[tuple[str, Any]]:
    """(place, line or fields) of each prompt: JSON has a list of them, TOML [prompt] with [[prompt.subset]] tables.

    Raises ConfigError.
    """

    def wrong(message: str) -> ConfigError:
        return ConfigError([Problem("sample_prompts", message, where)])

    try:
        document = json.loads(text) if kind == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong(f"is not valid {kind[1:].upper()}: {error}") from error
    if kind == ".json":
        if not isinstance(document, list):
            raise wrong('holds no list of prompts; write [{"prompt": "a cat", "seed": 1}, "a dog --d 2"]')
        entries = document
    else:
        common = document.get("prompt")
        subsets = common.get("subset") if isinstance(common, dict) else None
        if common is None or not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
            raise wrong('holds no prompts; write a table [[prompt.subset]] with prompt = "a cat" for each')
        shared = {name: value for name, value in common.items() if name != "subset"}
        entries = [{**shared, **subset} for subset in subsets]
    return [(f"prompt {number}", entry) for number, entry in enumerate(entries, start=1)]


def _of_line(line: str) -> dict[str, str]:
    """What a line says: text --n negative --w width ... Raises ValueError."""
    head, *rest = _OPTION.split(" " + line.strip() + " ")
    fields = {"prompt": head}
    for letter, value in zip(rest[::2], rest[1::2], strict=True):
        if letter not in _LETTERS:
            raise ValueError(f"--{letter} is unknown; known are {', '.join('--' + name for name in _LETTERS)}")
        fields[_LETTERS[letter]] = value
    return fields


def _prompt(fields: Any, config: Config, index: int, *, by_letter: bool) -> Prompt:
    """The prompt that fields describe; `by_letter`: they came from a line. Raises ValueError."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"{fields!r} is neither a text nor a table")
    step = config.facts.granularity
    width, height = (max(step, side // step * step) for side in config.resolution_size)
    values: dict[str, Any] = {
        "negative": "",
        "width": width,
        "height": height,
        "seed": config.seed + index,
        "guidance_scale": config.facts.guidance,
        "embedded_guidance": config.facts.embedded_guidance,
        "steps": 30,
    }
    letters = {field: f"--{letter}" for letter, field in _LETTERS.items()} if by_letter else {}
    for field, given in fields.items():
        called, text = letters.get(field, field), str(given).strip()
        if given is None:
            continue
        if field == "sample_sampler":
            sampler, wrong = check_value("sample_sampler", text)
            if wrong or config.sample_sampler not in (AUTO, sampler):  # auto is known with the family
                raise ValueError(
                    f"{called} {text}: all prompts are sampled with {config.sample_sampler}; leave it out, or set the "
                    "option sample_sampler"
                )
            continue
        if field not in _MEANINGS:
            raise ValueError(f"{called} is unknown; known are {', '.join(_MEANINGS)}, sample_sampler")
        if field == "guidance_scale" and config.family != AUTO and GUIDANCE not in config.facts.traits:
            raise ValueError(
                f"{called}: {config.facts.title} is told no guidance; {letters.get('scale', 'scale')} guides it"
            )
        name, convert = _MEANINGS[field]
        if isinstance(given, bool | list | dict) or (convert is str.strip and not isinstance(given, str)):
            raise ValueError(f"{called}: {given!r} is not {'text' if convert is str.strip else 'a number'}")
        try:
            values[name] = convert(text)
        except ValueError:
            raise ValueError(f"{called} {text}: that is not a {'whole ' if convert is int else ''}number") from None
    if values.get("control"):
        values["control"] = _control(values["control"], config)
    facts = config.facts
    for field, name, usual in (
        ("scale", "guidance_scale", facts.guidance),
        ("guidance_scale", "embedded_guidance", facts.embedded_guidance),
    ):
        if not math.isfinite(values[name]):
            raise ValueError(f"{letters.get(field, field)} {values[name]} is not finite; {usual} is usual")
    for side in ("width", "height"):
        if not step <= values[side] <= 4096 or values[side] % step:
            raise ValueError(f"{side} {values[side]} is not a multiple of {step} between {step} and 4096")
    if not 1 <= values["steps"] <= 1000:
        raise ValueError(f"{letters.get('sample_steps', 'sample_steps')} {values['steps']} is not between 1 and 1000")
    if not 0 <= values["seed"] < 2**63:
        raise ValueError(f"{letters.get('seed', 'seed')} {values['seed']} is not a seed")
    return Prompt(**{"text": ""} | values)


def _control(file: str, config: Config) -> Shown:
    """The control picture of a prompt. Raises ValueError."""
    if config.family != AUTO and CONTROLS not in config.facts.traits:
        raise ValueError(f"{config.facts.title} takes no control picture; leave {file} out")
    path = Path(file).expanduser()
    try:
        data = path.read_bytes()
        pictures.open_picture(path, data)
    except OSError as error:
        raise ValueError(f"the control picture {path} cannot be read: {error.strerror}") from error
    except PictureError as error:
        raise ValueError(f"the control picture {error}") from error
    return Shown(str(path), hashlib.sha256(data).hexdigest())
