"""Pictures taken out of a dataset without being lost: excluded, or in its bin, until they are put back. No torch.

Both are hidden folders beside the pictures, which no training looks into: nothing is copied, and nothing can get lost
between two disks. What belongs to a picture (caption files, whatever is called like it) goes and comes with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.data.folder_scan import is_picture_name

EXCLUDED, BIN = ".excluded", ".bin"


@dataclass(frozen=True)
class Outcome:
    """Where pictures are now, and those left alone with the reason."""

    moved: tuple[Path, ...]
    refused: tuple[tuple[Path, str], ...]


def put(pictures: Iterable[Path], place: str) -> Outcome:
    """Take pictures out of their folders. `place`: EXCLUDED or BIN. A name that is taken there gets a number."""
    moved, refused = [], []
    for picture in pictures:
        try:
            target = picture.parent / place
            target.mkdir(exist_ok=True)
            moved.append(_move(picture, target, _free_stem(picture, target)))
        except OSError as error:
            refused.append((picture, error.strerror or str(error)))
    return Outcome(tuple(moved), tuple(refused))


def put_back(pictures: Iterable[Path]) -> Outcome:
    """Put pictures back beside the folder that they were put into; what is there already is not overwritten."""
    moved, refused = [], []
    for picture in pictures:
        home = picture.parent.parent
        try:
            if taken := [path for path in _with_it(picture) if (home / path.name).exists()]:
                refused.append((picture, f"there is another {taken[0].name} in {home}"))
            else:
                moved.append(_move(picture, home, picture.stem))
        except OSError as error:
            refused.append((picture, error.strerror or str(error)))
    return Outcome(tuple(moved), tuple(refused))


def listing(folders: Iterable[Path], place: str) -> list[Path]:
    """The pictures that were taken out of these folders, by name."""
    result = []
    for folder in folders:
        try:
            with os.scandir(folder / place) as entries:
                result += [Path(entry.path) for entry in entries if is_picture_name(entry.name)]
        except OSError:  # nothing was
            continue
    return sorted(result)


def empty_bins(folders: Iterable[Path]) -> Outcome:
    """Delete what is in the bins of these folders, for good."""
    gone: list[Path] = []
    refused = []
    for picture in listing(folders, BIN):
        try:
            for path in _with_it(picture):
                files.unlink(path)
            gone.append(picture)
        except OSError as error:
            refused.append((picture, error.strerror or str(error)))
    return Outcome(tuple(gone), tuple(refused))


def _with_it(picture: Path) -> Sequence[Path]:
    """A picture and what belongs to it alone, itself last: it is what is found again where this is cut short."""
    with os.scandir(picture.parent) as entries:
        same = [Path(entry.path) for entry in entries if entry.name.startswith(f"{picture.stem}.") and entry.is_file()]
    same = [path for path in same if path.stem == picture.stem]
    if any(is_picture_name(path.name) and path != picture for path in same):
        return [picture]  # a.png and a.jpg have one caption
    return [*(path for path in same if path != picture), picture]


def _free_stem(picture: Path, target: Path) -> str:
    """A stem under which the target has nothing: the picture's own, or with a number."""
    there = {Path(name).stem for name in os.listdir(target)}
    number, stem = 1, picture.stem
    while stem in there:
        number += 1
        stem = f"{picture.stem} ({number})"
    return stem


def _move(picture: Path, target: Path, stem: str) -> Path:
    for path in _with_it(picture):
        files.rename(path, target / f"{stem}{path.suffix}")
    return target / f"{stem}{picture.suffix}"
