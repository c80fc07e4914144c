"""The presets on disk: listed, read, saved. A name from the browser never becomes a path unchecked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gui.places import Places
from trainer import files
from trainer.options import checks, problems, sources, writing
from trainer.options.kohya import reading, translation

USER = "user/"
PLAIN_NAME = re.compile(r"\w[\w .+-]{0,79}")
SHIPPED_NAME = re.compile(r".+-lora-(.+)-(\d+)gb")  # what it is for, and the memory of the GPU that it is made for
TRY_OUT, PARTICULAR, OWN = "To try it out", "For a particular need", "Your own"
PURPOSES = {
    "demo": TRY_OUT,
    "try-out": TRY_OUT,
    "character": "A character or person",
    "style": "A style",
    "object": "An object or product",
}  # in the order of the groups, the last of which is what is for something else
LARGEST = 256 << 10  # bytes; a preset with every option has about 5,000


class NameRefused(Exception):
    """A preset cannot have that name; the message says why."""


def listing(places: Places) -> dict[str, Path]:
    """Name -> file: the presets that come with the program, then the user's own as user/<name>."""
    result = {path.stem: path for path in _files(places.shipped_presets)}
    return result | {USER + path.stem: path for path in _files(places.user_presets)}


def _files(folder: Path) -> list[Path]:
    inside = folder.resolve()
    return sorted(path for path in folder.glob("*.toml") if path.is_file() and path.resolve().parent == inside)


def grouped(places: Places) -> dict[str, list[str]]:
    """The presets by what they are for, those for the least memory first; then the user's own."""
    groups: dict[str, list[str]] = {heading: [] for heading in (*PURPOSES.values(), PARTICULAR, OWN)}
    for name in sorted(listing(places), key=_order):
        groups[_purpose(name)].append(name)
    return {heading: names for heading, names in groups.items() if names}


def _purpose(name: str) -> str:
    if name.startswith(USER):
        return OWN
    match = SHIPPED_NAME.fullmatch(name)
    return PURPOSES.get(match[1] if match else name, PARTICULAR)


def _order(name: str) -> tuple[int, str]:
    match = None if name.startswith(USER) else SHIPPED_NAME.fullmatch(name)
    return int(match[2]) if match else 0, name


def headings(places: Places, picker: str) -> str:
    """A style that writes what they are for above the first one shown of each group, also while the list is filtered.

    `picker`: the id of the dropdown that lists them.
    """
    rules = []
    for heading, names in grouped(places).items():
        members = '[aria-label^="user/"]' if heading == OWN else ", ".join(f'[aria-label="{name}"]' for name in names)
        of_group = f"li:is({members})"
        rules.append(f'#{picker} {of_group}::before {{ content: "{heading}"; }}')
        rules.append(f"#{picker} {of_group} ~ {of_group}::before {{ content: none; }}")
    return "\n".join(rules)


def read(places: Places, name: str) -> problems.Checked:
    """The preset's options, checked. Raises ConfigError when it cannot be read, NameRefused when there is none."""
    return checks.check(sources.read_toml(_path(places, name)))


def parse(content: bytes, name: str) -> problems.Checked:
    """The options of an uploaded preset, ours or one of kohya_ss or sd-scripts, checked. Raises ConfigError."""
    if len(content) > LARGEST:
        raise problems.ConfigError([problems.Problem("", f"{name} is no preset: it has more than {LARGEST:,} bytes")])
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise problems.ConfigError([problems.Problem("", f"{name} is not text in UTF-8: {error}")]) from error
    if not reading.is_theirs(text):
        return checks.check(sources.read_toml_text(text, name))
    imported = translation.read(text, name)
    if imported.refused:
        raise problems.ConfigError([problems.Problem("", reason) for reason in imported.refused])
    notices = [str(fate) for fate in imported.fates if fate.outcome in ("changed", "default")]
    without = [fate.key for fate in imported.fates if fate.outcome == "no effect" and fate.matters]
    if without:
        notices.append(f"Without effect here: {', '.join(without)}")
    return problems.Checked(
        imported.checked.values, imported.checked.problems, [f"{imported.title}.", *notices, *imported.remarks]
    )


def about(places: Places, name: str) -> str:
    """What the comment at the top of a preset says of it; empty when there is none."""
    try:
        with _path(places, name).open(encoding="utf-8", errors="replace") as file:
            lines = file.read(LARGEST).splitlines()
    except (OSError, NameRefused):
        return ""
    head = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("#").strip() for line in head)


def text(values: Mapping[str, Any]) -> str:
    """The preset as TOML: what differs from the defaults."""
    return writing.to_toml(values, complete=False)


def save(places: Places, name: str, values: Mapping[str, Any]) -> Path:
    """Write presets/user/<name>.toml, at once and whole. Raises NameRefused or OSError."""
    path = places.user_presets / f"{plain(name)}.toml"
    files.write_text(path, text(values))
    return path


def delete(places: Places, name: str) -> None:
    """Delete one of the user's own presets. Raises NameRefused or OSError."""
    if not name.startswith(USER):
        raise NameRefused(f"The preset {name!r} comes with the program and stays.")
    _path(places, name).unlink()


def own_name(name: str) -> str:
    """The name under which a preset of the picker would be saved."""
    return name.removeprefix(USER)


def _path(places: Places, name: str) -> Path:
    path = listing(places).get(name)
    if path is None:
        raise NameRefused(f"There is no preset {name!r}.")
    return path


def plain(name: str) -> str:
    """The name, when it is one that can only be a file inside the folder. Raises NameRefused."""
    name = name.strip().removeprefix(USER).removesuffix(".toml").strip()
    if not name:
        raise NameRefused("Write a name for the preset first.")
    if not PLAIN_NAME.fullmatch(name) or files.unusable_name(name, windows=True):
        raise NameRefused(
            f"{name[:80]!r} cannot be a preset's name: use letters, digits, spaces and . _ - + only, "
            "beginning with a letter or digit, 80 characters at most."
        )
    return name
