"""The files of a dataset's folders: listed, looked at once, remembered. No torch here, and no option of a training."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.memory import FileMemory, stamp_of
from trainer.pictures import PICTURE_ERRORS, open_picture

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Facts:
    """What reading a picture once told."""

    digest: str
    width: int
    height: int
    problem: str


def look(path: Path) -> Facts:
    """Read a picture whole."""
    try:
        digest = files.sha256_file(path)
        picture = open_picture(path)
    except PICTURE_ERRORS as error:
        return Facts("", 0, 0, f"cannot be read as a picture: {error}")
    return Facts(digest, picture.width, picture.height, "")


def facts_of(
    paths: list[Path], memory_folder: Path, progress: Callable[[int, int], None], workers: int
) -> dict[Path, Facts]:
    """The facts of every path; only new and changed files are read, the others are remembered in `memory_folder`."""
    memory = FileMemory(memory_folder, "images")
    stamps = {path: stamp for path in paths if (stamp := stamp_of(path))}
    result = {
        path: Facts(*known) for path, stamp in stamps.items() if (known := memory.recall(path, stamp)) is not None
    }
    unknown = [path for path in paths if path not in result]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for number, (path, facts) in enumerate(zip(unknown, pool.map(look, unknown), strict=True), start=1):
            result[path] = facts
            progress(number, len(unknown))
    memory.remember(
        (path, stamps[path], [facts.digest, facts.width, facts.height, facts.problem])
        for path in unknown
        if path in stamps
        for facts in [result[path]]
    )
    return result


def list_pictures(folder: Path) -> list[Path]:
    """The files directly in a folder that are named like pictures, in the order of their names."""
    with os.scandir(folder) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not entry.name.startswith(".")
        )


def read_caption(path: Path, extension: str) -> tuple[str | None, str]:
    """The first line of the caption file (None: there is none), and a notice."""
    caption_file = path.with_name(path.stem + extension)
    try:
        data = caption_file.read_bytes()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{caption_file} cannot be read: {error}"
    notice = ""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        notice = f"{caption_file} is not UTF-8; it was read as Latin-1"
    lines = text.strip().splitlines()
    return (lines[0].strip() if lines else ""), notice
