"""Files of kohya_ss and sd-scripts: their keys as they were given. No torch here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Literal

from trainer.options import sd_scripts
from trainer.options.config import OPTIONS
from trainer.options.problems import ConfigError, Given, Problem
from trainer.options.sources import from_text, read_toml_text
from trainer.options.values import oversized

Form = Literal["page", "trainer"]  # kohya_ss' JSON, or the arguments of sd-scripts' trainer
NAMES_OF_OTHERS = frozenset(
    {*sd_scripts.WITHOUT_EFFECT, *sd_scripts.NOT_SUPPORTED, *sd_scripts.RENAMED, "network_module", "network_args",
     "save_model_as"}
)  # fmt: skip


def is_theirs(text: str) -> bool:
    """Whether a preset was written for kohya_ss or sd-scripts: a JSON, or a TOML with names that only they have."""
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        return True
    try:
        given = read_toml_text(text, "")
    except ConfigError:
        return False
    return any(name not in OPTIONS and name in NAMES_OF_OTHERS for name in given)


def read(text: str, name: str) -> tuple[Form, dict[str, Given]]:
    """The keys of a file, those in its additional_parameters last. Raises ConfigError when it cannot be read."""
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        form: Form = "page"
        given = _read_json(text, name)
    else:
        form, given = "trainer", read_toml_text(text, name)
    more = given.get("additional_parameters")
    if more and isinstance(more.value, str) and more.value.strip():
        given |= _read_command_line(more.value, f"additional_parameters of {name}")
    return form, given


def _read_json(text: str, name: str) -> dict[str, Given]:
    try:
        document = json.loads(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ConfigError([Problem("", f"{name} is nested too deeply")]) from None
    except ValueError as error:
        raise ConfigError([Problem("", f"{name} is not valid JSON: {error}")]) from error
    if not isinstance(document, dict):
        raise ConfigError([Problem("", f"{name} is no preset of kohya_ss: it is not a table of keys")])
    wrong = [key for key, value in document.items() if isinstance(value, Mapping) or oversized(value)]
    if wrong:
        raise ConfigError([Problem(key, "holds no value of a preset", name) for key in wrong])
    return {key: Given(value, name) for key, value in document.items()}


def _read_command_line(text: str, where: str) -> dict[str, Given]:
    """Arguments as a command line has them: --name value ..., --name=value, --switch. Raises ConfigError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError([Problem("additional_parameters", f"{text!r} cannot be read: {error}")]) from error
    result: dict[str, list[str]] = {}
    latest = ""
    for word in words:
        if word.startswith("--"):
            latest, has_value, value = word[2:].partition("=")
            result[latest] = [value] if has_value else []
        elif latest:
            result[latest].append(word)
        else:
            raise ConfigError([Problem("additional_parameters", f"{word!r} is not an option; options begin with --")])
    return {name: Given(_value(name, values), where) for name, values in result.items()}


def _value(name: str, values: list[str]) -> Any:
    option = OPTIONS.get(name)
    if option is not None and option.kind == "list":
        return values
    if not values:
        return True
    return from_text(option, values[0]) if len(values) == 1 else values
