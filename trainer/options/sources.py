"""Options as they are written: TOML files and command lines. No torch here."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import files
from trainer.options import sd_scripts
from trainer.options.config import OPTIONS
from trainer.options.declaration import Option
from trainer.options.problems import ConfigError, Given, Problem
from trainer.options.values import TOO_LARGE, items_of, number_of, oversized

SWITCHES = {"true": True, "false": False}


_KEY_LINE = re.compile(r"""^\s*(?:"([^"]+)"|'([^']+)'|([A-Za-z0-9_-]+))\s*=""")


_DRIVE = re.compile(r"""[=\[,]\s*"(?:[A-Za-z]:|\\)\\?[^\\"\n]*\\""")
_SWALLOWED = re.compile(r"[A-Za-z]:(?=[\\/\x08-\x0d]).*[\x08-\x0d]", re.DOTALL)  # "C:\new" is C: and a line's end
BACKSLASHES = "; in TOML \\ begins a special character: write C:/images, 'C:\\images' in single quotes, or C:\\\\images"


def hint_of_backslashes(text: str) -> str:
    """What to do about paths of Windows in a file that is not TOML; empty where it has none."""
    return BACKSLASHES if _DRIVE.search(text) else ""


def _key_lines(text: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    in_block = False
    for number, line in enumerate(text.splitlines(), start=1):
        match = None if in_block else _KEY_LINE.match(line)
        if match:
            lines.setdefault(next(group for group in match.groups() if group), number)
        if (line.count('"""') + line.count("'''")) % 2:
            in_block = not in_block
    return lines


def read_toml_text(text: str, name: str) -> dict[str, Given]:
    """Read TOML, flat or in sections (sections are only headings).

    Raises ConfigError when it is not TOML or names an option twice with different values.
    """
    lines = _key_lines(text)
    source: dict[str, Given] = {}
    problems: list[Problem] = []

    def add(table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            if isinstance(value, dict) and key not in OPTIONS:
                add(value)
                continue
            where = f"{name}, line {lines[key]}" if key in lines else name
            if isinstance(value, str) and _SWALLOWED.match(value):
                problems.append(Problem(key, f"{value!r} is no path{BACKSLASHES}", where))
                continue
            if oversized(value):
                problems.append(Problem(key, TOO_LARGE, where))
                continue
            if key in source and source[key].value != value:
                problems.append(Problem(key, f"given twice, as {source[key].value!r} and as {value!r}", where))
            source[key] = Given(value, where)

    try:
        add(tomllib.loads(text.removeprefix("\ufeff")))
    except RecursionError:
        raise ConfigError([Problem("", f"{name} is nested too deeply")]) from None
    except ValueError as error:  # tomllib's own, and that of a number with too many digits
        raise ConfigError([Problem("", f"{name} is not valid TOML: {error}{hint_of_backslashes(text)}")]) from error
    if problems:
        raise ConfigError(problems, source)
    return source


def read_toml(path: Path | str) -> dict[str, Given]:
    """Read a preset. Raises ConfigError when there is no such file or it is not TOML."""
    path = Path(path)
    try:
        text = files.read_text(path)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError([Problem("", f"there is no file {path}{hint}")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("", f"{path} cannot be read: {error}")]) from error
    return read_toml_text(text, str(path))


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir() if entry.suffix == ".toml"]
    except OSError:
        return []


def read_arguments(arguments: Sequence[str]) -> dict[str, Given]:
    """Read `--option value`, `--option=value`, `--flag` and `--no-flag`.

    A list takes all values up to the next option, as in sd-scripts; each may hold several items (see `items_of`).
    Raises ConfigError with everything that is not of this form; values are checked by `check`.
    """
    source: dict[str, Given] = {}
    problems: list[Problem] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        where = "command line"
        if not argument.startswith("--") or argument == "--":
            problems.append(Problem("", f"{argument!r} is not an option; options begin with --", where))
            continue
        name, has_value, text = argument[2:].partition("=")
        negated = name.removeprefix("no-") if name.startswith("no-") else None
        if negated in OPTIONS and OPTIONS[negated].kind == "bool" and not has_value:
            source[negated] = Given(False, where)
            continue
        option = OPTIONS.get(sd_scripts.RENAMED.get(name, name))
        following = arguments[position] if position < len(arguments) else None
        if option and option.kind == "bool" and not has_value:
            source[name] = Given(True, where)
            if following is not None and following.lower() in SWITCHES:
                position += 1
                switch = f"--{name}" if SWITCHES[following.lower()] else f"--no-{name}"
                problems.append(Problem(name, f"a switch takes no {following!r}; write {switch}", where))
        elif has_value:
            source[name] = Given(from_text(option, text), where)
        elif following is not None and not following.startswith("--"):
            position += 1
            if option is None or option.kind == "list" or name in sd_scripts.ONE_FOR_EACH_ENCODER:
                while position < len(arguments) and not arguments[position].startswith("--"):
                    following += f"\n{arguments[position]}"
                    position += 1
            source[name] = Given(from_text(option, following), where)
        elif option:
            problems.append(Problem(name, "needs a value", where))
        else:
            source[name] = Given(True, where)
    if problems:
        raise ConfigError(problems, source)
    return source


def from_text(option: Option | None, text: str) -> Any:
    """The value that a text means for an option's kind; the text itself where it means none, for `check` to refuse."""
    if option is None:
        return text
    if option.kind == "bool":
        return SWITCHES.get(text.lower(), text)
    if option.kind == "list":
        return items_of(option, text)
    return number_of(text) if option.kind in ("int", "float") else text
