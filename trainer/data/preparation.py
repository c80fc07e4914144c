"""kohya's folder layout built from plain folders, by copying: img/<repeats>_<instance> <class>, reg/<repeats>_<class>.

Nothing that is there is overwritten or removed. No torch here.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import files, quantities
from trainer.data.folder_scan import Progress, list_pictures, no_progress
from trainer.refusal import Refused

LONGEST_NAME = 255  # bytes


class PreparationRefused(Refused):
    """The folders cannot be built; the message names every reason."""


@dataclass(frozen=True)
class Part:
    """One folder of images: where they are, how often an epoch uses each, and what they show."""

    source: Path
    repeats: int
    tokens: str  # "<instance> <class>" for images to learn, "<class>" for regularisation


@dataclass(frozen=True)
class Plan:
    """What preparing would do. `there`: files of the same content that are there already."""

    target: Path
    folders: tuple[Path, ...]
    copies: tuple[tuple[Path, Path], ...]
    there: int
    size: int  # bytes to copy

    @property
    def train_data_dir(self) -> Path:
        return self.target / "img"

    @property
    def reg_data_dir(self) -> Path | None:
        """None when there are no regularisation images."""
        folder = self.target / "reg"
        return folder if any(path.parent == folder for path in self.folders) else None


def plan(target: Path, images: Part, regularisation: Part | None, caption_extensions: Sequence[str]) -> Plan:
    """What building the layout in `target` takes. Raises PreparationRefused with all that is in the way."""
    problems: list[str] = []
    folders, copies, there = [], [], 0
    parts = [("img", images), *([("reg", regularisation)] if regularisation else [])]
    for kind, part in parts:
        lines = list(_problems(kind, part))
        problems += lines
        if lines:
            continue
        folder = target / kind / f"{part.repeats}_{part.tokens.strip()}"
        folders.append(folder)
        for source in _files_of(part.source, caption_extensions):
            copy = folder / source.name
            if not copy.exists() and not copy.is_symlink():
                copies.append((source, copy))
            elif copy.is_file() and filecmp.cmp(source, copy, shallow=False):
                there += 1
            else:
                problems.append(f"{copy} is there already with another content; choose another destination")
    size = sum(source.stat().st_size for source, _ in copies)
    existing = target.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        problems.append(f"{existing} is a file, not a folder")
    elif size > (free := shutil.disk_usage(existing).free):
        problems.append(
            f"{quantities.size(size)} are to be copied, and only {quantities.size(free)} are free for {target}"
        )
    if problems:
        raise PreparationRefused("\n".join(problems))
    return Plan(target, tuple(folders), tuple(copies), there, size)


def _problems(kind: str, part: Part) -> Iterator[str]:
    """What is wrong with a part by itself."""
    name = "training images" if kind == "img" else "regularisation images"
    tokens = part.tokens.strip()
    if part.repeats < 1:
        yield f"{name}: repeats is {part.repeats}; it is 1 or more"
    folder = f"{part.repeats}_{tokens}"
    if not tokens or "/" in tokens or "\\" in tokens or not tokens.isprintable():
        yield f"{name}: {part.tokens!r} cannot be part of a folder's name; write words without / and \\"
    elif len(folder.encode()) <= files.MOST_NAME and (reason := files.unusable_name(folder)):
        yield f"{name}: the folder's name, {folder!r}, {reason}"
    elif len(folder.encode()) > LONGEST_NAME:
        yield f"{name}: the folder's name would be longer than {LONGEST_NAME} bytes"
    if not part.source.is_dir():
        yield f"{name}: there is no folder {part.source}"
    elif not list_pictures(part.source):
        yield f"{name}: no images directly in {part.source}"


def _files_of(folder: Path, caption_extensions: Sequence[str]) -> list[Path]:
    """The pictures of a folder, each followed by its captions; pipes and folders are not copied."""
    result: list[Path] = []
    for picture in list_pictures(folder):
        captions = [picture.with_name(picture.stem + extension) for extension in caption_extensions]
        result += [path for path in (picture, *captions) if path.is_file()]
    return list(dict.fromkeys(result))


def carry_out(planned: Plan, progress: Progress = no_progress) -> None:
    """Copy. An interrupted copy is continued by planning and carrying out again. Raises OSError."""
    for folder in planned.folders:
        folder.mkdir(parents=True, exist_ok=True)
    for number, (source, copy) in enumerate(planned.copies, start=1):
        _copy(source, copy)
        progress(number, len(planned.copies))


def _copy(source: Path, copy: Path) -> None:
    """Copy a file under a temporary name, then give it its own, which no other file may have."""
    temporary = copy.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        shutil.copyfile(source, temporary)
        with contextlib.suppress(OSError):
            shutil.copystat(source, temporary)
        try:
            os.link(temporary, copy)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if copy.exists():
                raise FileExistsError(f"{copy} is there already") from None
            files.rename(temporary, copy)
    finally:
        temporary.unlink(missing_ok=True)
