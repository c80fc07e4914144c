"""A Hugging Face dataset with its images inside Arrow or Parquet files, unpacked once into a folder. No torch here."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from trainer import files
from trainer.data import metadata_files
from trainer.data.metadata_files import MetadataError, arrow
from trainer.data.pictures import FORMATS, PICTURE_ERRORS

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 64


def shards(folder: Path) -> list[Path]:
    """The files of a dataset's training split: as `save_to_disk` writes them, or as the hub stores them; none where
    the folder is something else."""
    for place in (folder, folder / "train", folder / "data"):
        names = os.listdir(place) if place.is_dir() else []
        names_here = sorted(name for name in names if name.endswith((".arrow", ".parquet")))
        names_here = [name for name in names_here if name not in metadata_files.NAMES]
        if names_here:
            return [place / name for name in names_here if name.startswith("train")] or [
                place / name for name in names_here
            ]
    return []


def unpack(folder: Path, memory_folder: Path, column: str) -> Path:
    """A folder of the dataset's images with a metadata.jsonl of their captions; made once, below `memory_folder`.

    Raises MetadataError.
    """
    sources = shards(folder)
    states = [[path.name, (state := path.stat()).st_size, state.st_mtime_ns] for path in sources]
    name = hashlib.sha256(files.json_bytes([str(folder.absolute()), states, column])).hexdigest()[:16]
    target = memory_folder / "unpacked" / name
    if target.is_dir():
        return target
    logger.info("Unpacking the images of %s into %s", folder, target)
    temporary = target.with_name(f".tmp-{name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with (temporary / "metadata.jsonl").open("w", encoding="utf-8") as captions:
            for number, row in enumerate(_rows(sources, column)):
                data, caption = _bytes(row, folder, sources), row[column]
                file_name = f"{number:08d}{_extension(data)}"
                (temporary / file_name).write_bytes(data)
                captions.write(json.dumps({"file_name": file_name, column: caption}) + "\n")
        files.rename(temporary, target)
    except OSError as error:
        if target.is_dir():  # another process was faster
            return target
        raise MetadataError(f"{folder} cannot be unpacked: {error}; its images go into cache_dir") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _rows(sources: list[Path], column: str) -> Iterator[dict[str, Any]]:
    """Each row: the image as it is stored, under "image", and its caption under `column`."""
    for path in sources:
        try:
            yield from _rows_of(path, column)
        except (OSError, ValueError) as error:
            raise MetadataError(f"{path} cannot be read as a dataset: {error}") from error


def _rows_of(path: Path, column: str) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        if path.suffix == ".parquet":
            parquet = arrow("parquet").ParquetFile(file)
            schema, batches = parquet.schema_arrow, parquet.iter_batches(ROWS_AT_ONCE)
        else:
            batches = arrow("ipc").open_stream(file)
            schema = batches.schema
        image = _image_column(path, schema, column)
        for batch in batches:
            for row in batch.select([image, column]).to_pylist():
                yield {"image": row[image], column: row[column]}


def _image_column(path: Path, schema: Any, column: str) -> str:
    """The first column of images: bytes, with a path. Raises MetadataError also where there is no caption column."""
    is_struct = arrow("types").is_struct
    images = [field.name for field in schema if is_struct(field.type) and "bytes" in _names(field.type)]
    others = [name for name in schema.names if name not in images]
    if not images:
        raise MetadataError(f"{path} has no column of images, but {', '.join(others)}")
    if column not in others:
        raise MetadataError(f"{path} has no column {column!r}; set caption_column to one of {', '.join(others)}")
    return str(images[0])


def _names(struct: Any) -> set[str]:
    return {struct.field(number).name for number in range(struct.num_fields)}


def _bytes(row: dict[str, Any], folder: Path, sources: list[Path]) -> bytes:
    image = row["image"] or {}
    if image.get("bytes"):
        return bytes(image["bytes"])
    name = image.get("path")
    for place in (folder, sources[0].parent):
        if name and (place / name).is_file():
            return (place / name).read_bytes()
    raise MetadataError(f"{folder}: a row has no image in it, and there is no file {name!r}")


def _extension(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as picture:
            return FORMATS[picture.format or "PNG"][0]
    except PICTURE_ERRORS:
        return ".png"  # the scan finds it damaged, and names it
