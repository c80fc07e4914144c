"""Captions kept in one file for many images: kohya's metadata, Hugging Face's imagefolder. No torch here."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.refusal import Refused

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of Hugging Face's imagefolder


class MetadataError(Refused):
    """A metadata file cannot be used; the message says why and what to do."""


def in_folder(folder: Path) -> Path | None:
    """The metadata file that a folder holds."""
    return next((path for name in NAMES if (path := folder / name).is_file()), None)


def without_image(root: Path, captions: Mapping[str, str], images: Collection[str]) -> list[Path]:
    """What the captions of a folder name that is not among its images, which are files with or without extension."""
    return [
        root / name for name in captions if f"{root}/{name}" not in images and not os.path.lexists(f"{root}/{name}")
    ]


def folders_below(root: Path, metadata: Path, column: str) -> list[Path]:
    """The folders below `root` whose images the metadata names. Raises MetadataError."""
    names = {(root / name).parent for name in read(metadata, column)}
    return sorted(path for path in names if path != root and path.is_dir() and path.is_relative_to(root))


def read(path: Path, column: str) -> dict[str, str]:
    """Captions by image: a path from the file's folder on, an absolute one, or a name without extension.

    Raises MetadataError.
    """
    readers = {".json": _kohya, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise MetadataError(f"{path}: captions are read from {', '.join(readers)}")
    try:
        return dict(reader(path, column))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MetadataError(f"{path} cannot be read as captions: {error}") from error


def caption_of(image: Path, root: Path, captions: Mapping[str, str]) -> str | None:
    """The caption of an image below `root`, by any name that metadata may use for it."""
    relative = image.relative_to(root)
    candidates = (image, image.with_suffix(""), relative, relative.with_suffix(""), Path(image.name), Path(image.stem))
    return next((captions[name] for path in candidates if (name := path.as_posix()) in captions), None)


def _kohya(path: Path, column: str) -> Iterator[tuple[str, str]]:
    """sd-scripts' in_json: {image: {"caption": ..., "tags": ...}}."""
    for image, captions in json.loads(path.read_text(encoding="utf-8-sig")).items():
        parts = [captions.get("caption") or captions.get(column), captions.get("tags")]
        yield Path(image).as_posix(), ", ".join(str(part) for part in parts if part)


def _json_lines(path: Path, column: str) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig") as file:
        yield from _rows(path, _json_rows(file), column)


def _json_rows(lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error.msg} at character {error.colno}") from error


def _csv(path: Path, column: str) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _rows(path, csv.DictReader(file), column)


def _parquet(path: Path, column: str) -> Iterator[tuple[str, str]]:
    yield from _rows(path, arrow("parquet").read_table(path).to_pylist(), column)


def _rows(path: Path, rows: Iterable[Mapping[str, Any]], column: str) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or not isinstance(row.get("file_name"), str):
            raise ValueError(f'row {number} has no "file_name", which names its image')
        if column not in row:
            columns = ", ".join(name for name in row if name != "file_name")
            raise MetadataError(f"{path} has no column {column!r}; set caption_column to one of {columns}")
        if row[column] is not None:
            yield Path(row["file_name"]).as_posix(), _text(row[column])


def _text(caption: Any) -> str:
    """Of several captions each has a line, as in a caption file: the first counts, or with enable_wildcard any."""
    return "\n".join(map(str, caption)) if isinstance(caption, list) else str(caption)


def arrow(module: str) -> Any:
    """A module of pyarrow. Raises MetadataError with how to install it."""
    try:
        import importlib

        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise MetadataError(
            "this dataset is in Arrow's format, which needs pyarrow: pip install 'rekindle[datasets]'"
        ) from None
