"""Prompts of the sample images, in kohya's notation. No torch here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import files
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem

_OPTION = re.compile(r"\s--([a-zA-Z]+)\s+")


@dataclass(frozen=True)
class Prompt:
    """One sample image to make; width and height in pixels."""

    text: str
    negative: str
    width: int
    height: int
    seed: int
    guidance_scale: float
    steps: int


_MEANINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "n": ("negative", str.strip),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "l": ("guidance_scale", float),
    "s": ("steps", int),
}


def read(config: Config) -> list[Prompt]:
    """The prompts of sample_prompts: a file's lines, or its own. Raises ConfigError with every wrong one."""
    text, where = config.sample_prompts, "sample_prompts"
    if "\n" not in text and text.strip().endswith(".txt"):
        path = Path(text.strip()).expanduser()
        try:
            text, where = files.read_text(path), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([Problem("sample_prompts", f"{path} cannot be read: {error}")]) from error
    prompts: list[Prompt] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            prompts.append(_parse(line, config, index=len(prompts)))
        except ValueError as error:
            problems.append(Problem("sample_prompts", str(error), f"{where}, line {number}"))
    if problems:
        raise ConfigError(problems)
    return prompts


def _parse(line: str, config: Config, index: int) -> Prompt:
    head, *rest = _OPTION.split(" " + line.strip() + " ")
    width, height = config.resolution_size
    values: dict[str, Any] = {
        "negative": "",
        "width": width,
        "height": height,
        "seed": config.seed + index,
        "guidance_scale": config.facts.guidance,
        "steps": 30,
    }
    for letter, value in zip(rest[::2], rest[1::2], strict=True):
        if letter not in _MEANINGS:
            raise ValueError(f"--{letter} is unknown; known are {', '.join('--' + name for name in _MEANINGS)}")
        name, convert = _MEANINGS[letter]
        try:
            values[name] = convert(value.strip())
        except ValueError:
            raise ValueError(f"--{letter} {value.strip()}: that is not a number") from None
    step = config.facts.granularity
    for side in ("width", "height"):
        if not step <= values[side] <= 4096 or values[side] % step:
            raise ValueError(f"{side} {values[side]} is not a multiple of {step} between {step} and 4096")
    if not 1 <= values["steps"] <= 1000:
        raise ValueError(f"--s {values['steps']} is not between 1 and 1000")
    if not 0 <= values["seed"] < 2**63:
        raise ValueError(f"--d {values['seed']} is not a seed")
    return Prompt(text=head.strip(), **values)
