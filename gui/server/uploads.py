"""Pictures from the browser become a dataset: files written one by one into a folder of the page's home."""

from __future__ import annotations

import re
from pathlib import Path

from gui.places import Places
from trainer import files
from trainer.data import folder_scan

FOLDER = "datasets"
CAPTIONS = (".txt", ".caption")
NAME = re.compile(r"\w[\w .+-]{0,79}")


class UploadRefused(Exception):
    """A file cannot become part of a dataset; the message says why."""


def folder_of(places: Places, name: str) -> Path:
    """The folder of the dataset of that name, whether it is there or not. Raises UploadRefused."""
    name = name.strip()
    if not NAME.fullmatch(name) or files.unusable_name(name, windows=True):
        raise UploadRefused(
            f"{name[:80]!r} cannot be a dataset's name: use letters, digits, spaces and . _ - + only, beginning with a "
            "letter or digit."
        )
    return places.home / FOLDER / name


def keep(places: Places, name: str, file: str, content: bytes) -> Path:
    """Write a picture or a caption file into the dataset; returns where. Raises UploadRefused or OSError."""
    folder = folder_of(places, name)
    plain = Path(file.replace("\\", "/")).name
    if files.unusable_name(plain, windows=True) or plain.startswith("."):
        raise UploadRefused(f"{file[:80]!r} cannot be the name of a file.")
    if not folder_scan.is_picture_name(plain) and Path(plain).suffix.lower() not in CAPTIONS:
        raise UploadRefused(f"{plain} is neither a picture that can be read nor a caption file (.txt, .caption).")
    target = folder / plain
    if target.exists():
        if target.read_bytes() != content:
            raise UploadRefused(f"There is another {plain} in {name} already; it was left as it is.")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    files.require_space(folder, len(content))
    files.write_bytes(target, content)
    return target
