"""Small copies of a run's pictures, in a folder of our own. No widget here."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from pathlib import Path

from PIL import Image

from trainer import files
from trainer.file_memory import stamp_of
from trainer.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)
LARGEST_SIDE = 384
MOST_KEPT = 2000
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def confined(run: RunFolder, relative: str) -> Path | None:
    """The sample's file, when it is a picture inside the run's samples folder."""
    try:
        folder, path = run.samples.resolve(), (run.path / relative).resolve()
        is_picture = path.suffix.lower() in SUFFIXES and path.is_file()
        return path if path.is_relative_to(folder) and is_picture else None
    except (OSError, ValueError):
        return None


def path_of(picture: Path, folder: Path) -> Path | None:
    """Where the picture's copy is or will be, by its content's stamp; None when the picture is gone."""
    stamp = stamp_of(picture)
    if stamp is None:
        return None
    return folder / f"{hashlib.sha256(f'{picture} {stamp}'.encode()).hexdigest()[:40]}.webp"


def make(picture: Path, target: Path) -> bool:
    """Write a small copy; whether that went well (a picture may still be in the middle of being written)."""
    temporary = target.with_suffix(f".{threading.get_ident()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(picture) as opened:
            opened.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
            opened.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            opened.convert("RGB").save(temporary, "WEBP", quality=85)
        files.replace(temporary, target)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        logger.debug("no thumbnail of %s: %s", picture, error)
        return False
    return True


def small(picture: Path, folder: Path) -> Path | None:
    """The picture's small copy, made where it is not there; None when it cannot be."""
    target = path_of(picture, folder)
    return target if target is not None and (target.is_file() or make(picture, target)) else None


def prune(folder: Path, most: int = MOST_KEPT) -> None:
    """Keep the newest copies; the others are made again when they are needed."""
    with contextlib.suppress(OSError):
        files = [path for path in folder.iterdir() if path.suffix in SUFFIXES | {".tmp"}]
        files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[most:]:
            path.unlink(missing_ok=True)
