"""The presets on disk: listed, read, saved. A name from the browser never becomes a path unchecked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gui.places import Places
from trainer import config, files

USER = "user/"
PLAIN_NAME = re.compile(r"\w[\w .+-]{0,79}")
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class NameRefused(Exception):
    """A preset cannot have that name; the message says why."""


def listing(places: Places) -> dict[str, Path]:
    """Name -> file: the presets that come with the program, then the user's own as user/<name>."""
    found = {path.stem: path for path in _files(places.shipped_presets)}
    return found | {USER + path.stem: path for path in _files(places.user_presets)}


def _files(folder: Path) -> list[Path]:
    inside = folder.resolve()
    return sorted(path for path in folder.glob("*.toml") if path.is_file() and path.resolve().parent == inside)


def read(places: Places, name: str) -> config.Checked:
    """The preset's options, checked. Raises ConfigError when it cannot be read, NameRefused when there is none."""
    path = listing(places).get(name)
    if path is None:
        raise NameRefused(f"There is no preset {name!r}.")
    return config.check(config.read_toml(path))


def save(places: Places, name: str, values: Mapping[str, Any]) -> Path:
    """Write what differs from the defaults to presets/user/<name>.toml. Raises NameRefused or OSError."""
    path = places.user_presets / f"{plain(name)}.toml"
    files.write_text(path, config.to_toml(values, complete=False))
    return path


def plain(name: str) -> str:
    """The name, when it is one that can only be a file inside the folder. Raises NameRefused."""
    name = name.strip().removeprefix(USER).removesuffix(".toml").strip()
    if not name:
        raise NameRefused("Write a name for the preset first.")
    if not PLAIN_NAME.fullmatch(name) or name.endswith(".") or DEVICES.fullmatch(name):
        raise NameRefused(
            f"{name[:80]!r} cannot be a preset's name: use letters, digits, spaces and . _ - + only, "
            "beginning with a letter or digit, 80 characters at most."
        )
    return name
