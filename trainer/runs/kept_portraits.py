"""The portraits of the images that a run has been trained with, in its folder. No torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer import files
from trainer.data import portrait
from trainer.runs.run_folder import RunFolder


def file_of(run: RunFolder, digest: str) -> Path:
    """Where the portrait of a dataset of this digest is kept."""
    return run.portraits / f"{digest[:16]}.json"


def write(run: RunFolder, made: dict[str, Any]) -> None:
    """Keep a portrait. Raises OSError."""
    files.write_bytes(file_of(run, made["digest"]), files.compact_json_bytes(made))


def read(run: RunFolder, digest: str) -> dict[str, Any] | None:
    """The portrait of a dataset that the run has trained; None where there is none that can be read."""
    return _read(file_of(run, digest))


def newest(run: RunFolder) -> dict[str, Any] | None:
    """The portrait that was made last."""
    portraits = sorted(run.portraits.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next(filter(None, map(_read, portraits)), None)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        usable = kept["version"] == portrait.VERSION and isinstance(kept["counts"], dict)
        return kept if usable and isinstance(kept["images"], int) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
