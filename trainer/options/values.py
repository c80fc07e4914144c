"""Whether a single value is what its option takes. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.options import blocks
from trainer.options.config import OPTIONS
from trainer.options.declaration import Option
from trainer.options.problems import nearest
from trainer.options.sd_scripts import ONE_FOR_EACH_ENCODER

WRITTEN_WITH_COMMAS = ("caption_extension", "face_crop_aug_range", *blocks.RANKS, *blocks.ALPHAS, *blocks.RATES)
TOO_LARGE = "holds a number that is too large"


def items_of(option: Option, text: str) -> list[str]:
    """The items of an option's list that was written as one text: paths have a line each, as they may have blanks."""
    if option.path:
        return [line.strip() for line in text.splitlines() if line.strip()]
    return list_items(text)


def list_items(text: str) -> list[str]:
    """The items of a list that was written as one text, wherever it was written.

    Each has a line of its own, or blanks or commas between it and the next one: name, name. Where the items are
    name=value, only what stands before another name= divides: betas=0.9,0.99 weight_decay=0.01 are two.
    """
    items: list[str] = []
    for line in text.splitlines():
        between = r"[\s,]+(?=\w+=)" if "=" in line else r"[\s,]+"
        items += [item.strip(" ,\t") for item in re.split(between, line)]
    return [item for item in items if item]


def number_of(text: str) -> int | float | str:
    """The number that a text means; the text itself where it means none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def oversized(value: Any) -> bool:
    """Whether there is a whole number in it beyond TOML's 64 bits: Python cannot even print every one of these."""
    if isinstance(value, Mapping):
        return any(map(oversized, value.values()))
    if isinstance(value, list | tuple):
        return any(map(oversized, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _unwritable(text: str) -> bool:
    """Whether a text has half a surrogate pair: what Python makes of a byte on the command line that is not UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def value_problem(option: Option, value: Any) -> tuple[Any, str | None]:
    """The value in its option's type, and what is wrong with it (None: nothing)."""
    if option.name == "resolution" or (option.name == "control_resolution" and value != ""):
        return _check_resolution(value)
    if option.kind == "bool":
        return value, None if isinstance(value, bool) else f"{value!r} is not true or false"
    if option.name in ONE_FOR_EACH_ENCODER and isinstance(value, list):
        each = ", ".join(map(str, value))
        return value, f"{each}: these are for {len(value)} text encoders; give one value, or one for each of two"
    if option.kind in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value, f"{value!r} is not a number"
        if value != value or value in (float("inf"), float("-inf")):
            return value, f"{value!r} is not a finite number"
        if option.kind == "int" and value != int(value):
            return value, f"{value!r} is not a whole number"
        value = int(value) if option.kind == "int" else float(value)
        if option.low is not None and value < option.low:
            return value, f"{value!r} is below {option.low:g}"
        if option.high is not None and value > option.high:
            return value, f"{value!r} is above {option.high:g}"
        return value, None
    if option.kind == "list":
        if isinstance(value, str):
            value = items_of(option, value)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            return value, f"{value!r} is not a list of text values"
        if any("\0" in item or _unwritable(item) for item in value):
            return value, f"{value!r} has a character that cannot be written"
        return tuple(value), None
    if not isinstance(value, str):
        return value, f"{value!r} is not text"
    if "\0" in value or _unwritable(value):
        return value, f"{value!r} has a character that cannot be written (NUL, or one that is not UTF-8)"
    if option.kind == "choice" and value not in option.choices and not _is_other(option, value):
        return value, f"{value!r} is not one of {', '.join(option.choices)}{nearest(value, option.choices)}"
    return value, None


def _is_other(option: Option, value: str) -> bool:
    """Whether a text is right although it is none of the choices."""
    return bool(option.pattern and re.fullmatch(option.pattern, value))


def as_ours(option: Option, value: Any) -> Any:
    """What sd-scripts and kohya_ss write for the same thing; None where they mean "not given"."""
    if option.kind == "choice" and isinstance(value, str):
        value = {"fp32": "float"}.get(value, value) if option.name == "save_precision" else value
        value = value.removeprefix("k_") if option.name == "sample_sampler" else value
        if value == "" and "" not in option.choices:
            return None
        return next((choice for choice in option.choices if choice.lower() == value.lower()), value)
    if option.name in ("max_train_epochs", "max_token_length") and value == 0:
        return None
    if option.name == "base_weights_multiplier":
        return [str(item) for item in value] if isinstance(value, list | tuple) else value
    if option.name in WRITTEN_WITH_COMMAS and isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if option.name in blocks.RATES and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if option.name in ONE_FOR_EACH_ENCODER:
        if isinstance(value, str) and len(items := list_items(value)) > 1:
            value = [number_of(item) for item in items]
        if isinstance(value, list):
            return value[0] if len(set(map(str, value))) == 1 else value or None
    if option.name == "resume_from_checkpoint" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a step
    return value


def check_value(name: str, value: Any) -> tuple[Any, str | None]:
    """A value for an option in the option's type, and what is wrong with it (None: nothing)."""
    if oversized(value):
        return value, TOO_LARGE
    value = as_ours(OPTIONS[name], value)
    return (OPTIONS[name].default, None) if value is None else value_problem(OPTIONS[name], value)


def _check_resolution(value: Any) -> tuple[Any, str | None]:
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        sides = [int(str(part)) for part in parts]
    except ValueError:
        sides = []
    if isinstance(value, bool) or len(sides) not in (1, 2):
        return value, f'{value!r} is not a resolution; write "512" or "512,768"'
    if min(sides) < 8 or max(sides) > 8192:
        return value, f"{value!r}: each side must be between 8 and 8192 pixels"
    return ",".join(str(side) for side in sides), None
