"""The server's folders as a person browses them for a field that wants a path: inside the roots, and nothing else."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gui.places import Places

MOST = 2000  # entries of a folder that are told


@dataclass(frozen=True)
class Entry:
    """Something in a folder. `text`: what a field gets that names it. `bytes`: None of a folder."""

    name: str
    path: str
    text: str
    bytes: int | None = None


@dataclass(frozen=True)
class Listing:
    """A folder inside a root. `above`: the folders on the way to it, from its root on, itself the last; `more`: entries
    that are not told; `note`: why it is not what was asked for."""

    here: Entry
    above: tuple[Entry, ...]
    roots: tuple[Entry, ...]
    folders: tuple[Entry, ...]
    files: tuple[Entry, ...]
    more: int = 0
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def listing(places: Places, asked: str) -> Listing:
    """What is in the folder that a path names, or in the nearest one above it that is there; in the first root where
    none is. Links that lead out of the roots are not followed. Raises OSError where it cannot be read."""
    roots = places.browsable()
    folder, note = _folder(places, roots, asked)
    folders, files, more = _inside(places, roots, folder)
    root = max((one for one in roots if folder.is_relative_to(one)), key=lambda one: len(one.parts))
    way = [folder, *folder.parents]
    above = [_entry(places, path) for path in reversed(way[: way.index(root) + 1])]
    return Listing(
        _entry(places, folder), tuple(above), tuple(_entry(places, one) for one in roots),
        tuple(folders), tuple(files), more, note,
    )  # fmt: skip


def _folder(places: Places, roots: tuple[Path, ...], asked: str) -> tuple[Path, str]:
    """The folder to show, and why it is another than that asked for."""
    try:
        path = (places.home / Path(asked.strip()).expanduser()).resolve() if asked.strip() else roots[0]
    except (OSError, ValueError, RuntimeError):  # a NUL, a loop of links, the home of nobody
        return roots[0], "That is no path."
    if not is_inside(roots, path):
        named = ", ".join(map(str, roots))
        return roots[0], f"{path} is outside of what is shown here: {named}. app.py --browse FOLDER shows others."
    there = next(one for one in (path, *path.parents) if one.is_dir() or one in roots)
    return there, "" if there == path or path.is_file() else f"There is no {path}."


def is_inside(roots: tuple[Path, ...], path: Path) -> bool:
    """Whether a resolved path is one of the roots or below one."""
    return any(path.is_relative_to(root) for root in roots)


def _inside(places: Places, roots: tuple[Path, ...], folder: Path) -> tuple[list[Entry], list[Entry], int]:
    """Folders and files by name, and how many are left out; hidden ones and those with names that are no text are."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith(".") or not _is_text(entry.name):
                continue
            try:
                if entry.is_symlink() and not is_inside(roots, path.resolve()):
                    continue
                if entry.is_dir():
                    folders.append(_entry(places, path))
                elif entry.is_file():
                    files.append(_entry(places, path, entry.stat().st_size))
            except (OSError, RuntimeError):  # gone meanwhile, or a loop of links
                continue
    folders.sort(key=lambda one: one.name.casefold())
    files.sort(key=lambda one: one.name.casefold())
    shown = folders[:MOST], files[: max(0, MOST - len(folders))]
    return *shown, len(folders) + len(files) - len(shown[0]) - len(shown[1])


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entry(places: Places, path: Path, size: int | None = None) -> Entry:
    """`text` is relative to the home of the page where it is below, as the paths of presets are."""
    home = places.home.resolve()
    text = path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
    return Entry(path.name or str(path), str(path), text, size)
