"""Sources become one checked, frozen Config, or a list of everything that is wrong. No torch here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.options import network_kinds, sd_scripts
from trainer.options.config import OPTIONS, Config
from trainer.options.conflicts import combination_problems, without_effect
from trainer.options.problems import Checked, ConfigError, Given, Problem, Source, nearest
from trainer.options.sources import from_text, read_toml
from trainer.options.values import TOO_LARGE, as_ours, list_items, oversized, value_problem


def _network(merged: Mapping[str, Given], values: dict[str, Any]) -> list[Problem]:
    """Set the options that network_module and network_args stand for; returns what is wrong with them."""
    module, given = merged.get("network_module", Given("", "")), merged.get("network_args", Given("", ""))
    items = given.value if isinstance(given.value, list | tuple) else list_items(str(given.value or ""))
    pairs = [str(item).partition("=") for item in items]
    texts = {name.strip(): text.strip() for name, _, text in pairs}
    options, wrong = network_kinds.from_module(str(module.value or ""), texts)
    where = given.where or module.where
    key = "network_args" if "network_args" in merged else "network_module"
    problems = [Problem(key, text, where) for text in wrong]
    for ours, text in options.items():
        option = OPTIONS[ours]
        value = as_ours(option, from_text(option, text) if isinstance(text, str) else text)
        checked, bad = (option.default, None) if value is None else value_problem(option, value)
        if bad:
            name = next((name for name in texts if network_kinds.ARGUMENTS.get(name) == ours), ours)
            problems.append(Problem(key, f"{name}: {bad}", where))
        else:
            values[ours] = checked
    return problems


def _foreign(key: str, given: Given) -> tuple[Problem | None, str | None]:
    """What to say of an option that is not ours: a problem, or a notice."""
    value = given.value
    off = value in (False, 0, "", None) or value == []
    if off and (key in sd_scripts.WITHOUT_EFFECT or key in sd_scripts.NOT_SUPPORTED):
        return None, None
    if key in sd_scripts.WITHOUT_EFFECT:
        return None, f"{key} has no effect here: {sd_scripts.WITHOUT_EFFECT[key]} ({given.where})"
    if key in sd_scripts.NOT_SUPPORTED:
        return Problem(key, sd_scripts.NOT_SUPPORTED[key], given.where), None
    return Problem(key, f"there is no such option{nearest(key, OPTIONS)}", given.where), None


def _one_each(merged: Mapping[str, Given]) -> dict[str, Given]:
    """Two values of one option of sd-scripts as two options of ours; the second's own name wins."""
    result = dict(merged)
    for name, second in sd_scripts.ONE_FOR_EACH_ENCODER.items():
        value = as_ours(OPTIONS[name], merged[name].value) if name in merged else None
        if isinstance(value, list) and len(value) == 2:
            where = merged[name].where
            result = {**result, name: Given(value[0], where), second: merged.get(second, Given(value[1], where))}
    return result


def check(*sources: Source) -> Checked:
    """Check sources together, later ones winning over earlier ones; wrong values are left at their defaults."""
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    problems: list[Problem] = []
    notices: list[str] = []
    merged: dict[str, Given] = {}
    for source in sources:
        for key, given in source.items():
            name = sd_scripts.RENAMED.get(key, key)
            merged[name] = given
    merged = _one_each(merged)
    problems += _network(merged, values)  # first: options given by their own name win
    for key, given in merged.items():
        if key in ("network_module", "network_args"):
            continue
        option = OPTIONS.get(key)
        if option is None:
            problem, notice = _foreign(key, given)
            problems += [problem] if problem else []
            notices += [notice] if notice else []
            continue
        if oversized(given.value):
            problems.append(Problem(key, TOO_LARGE, given.where))
            continue
        given = Given(as_ours(option, given.value), given.where)
        if given.value is None:
            continue
        value, wrong = value_problem(option, given.value)
        where[key] = given.where
        if wrong:
            problems.append(Problem(key, wrong, given.where))
        else:
            values[key] = value
    config = Config(**values)
    problems += [Problem(key, text, where.get(key, "")) for key, text in combination_problems(config)]
    return Checked(values, problems, [*notices, *without_effect(config)])


def resolve(*sources: Source) -> tuple[Config, list[str]]:
    """The config that the sources describe, and notices for the user. Raises ConfigError with every problem."""
    checked = check(*sources)
    if checked.problems:
        raise ConfigError(checked.problems)
    return build(checked.values), checked.notices


def build(values: dict[str, Any]) -> Config:
    """The Config of checked values. A leading ~ in a path becomes the home folder here, so that presets keep it."""
    homes = {
        name: tuple(map(_at_home, value)) if isinstance(value, tuple) else _at_home(value)
        for name, value in values.items()
        if OPTIONS[name].path
    }
    return Config(**values | homes)


def _at_home(path: str) -> str:
    if not path.startswith("~"):
        return path
    with contextlib.suppress(RuntimeError):  # ~nobody: there is no such user
        return str(Path(path).expanduser())
    return path


def read_config(path: Path) -> Config:
    """The config that `to_toml` wrote, all of it. Raises ConfigError."""
    given = read_toml(path)
    family = given["family"].value if "family" in given else "sd"
    if "conv_kernels_only" not in given and "conv_dim" in given and family != "sdxl":
        given = {
            **given,
            "conv_kernels_only": Given(True, str(path)),
        }  # what conv_dim meant before there was the option
    return resolve(given)[0]
