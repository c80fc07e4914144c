"""Pictures of a class in general that the base model draws itself, for regularisation: which there are to be. No torch.

Each has an address, its number: the same seed, prompt and base model give the same picture, whenever it is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import files
from trainer.options.config import Config
from trainer.refusal import Refused

RECORD = "class-images.json"  # says in the folder what they were made with


class ClassImagesRefused(Refused):
    """There are pictures of another prompt, model or seed; the message says what to do."""


def path_of(config: Config, number: int) -> Path:
    """Where a picture is kept."""
    return Path(config.reg_data_dir) / f"class-{number:06d}.png"


def missing(config: Config) -> list[int]:
    """The numbers of the pictures that are still to be made."""
    return [number for number in range(config.num_class_images) if not path_of(config, number).exists()]


def require_same(config: Config, settings: Mapping[str, Any]) -> None:
    """See that what is in the folder was made with these settings, and write them down where there is nothing yet.

    Raises ClassImagesRefused.
    """
    folder = Path(config.reg_data_dir)
    record = folder / RECORD
    try:
        there = json.loads(record.read_bytes()) if record.exists() else None
    except (OSError, ValueError) as error:
        raise ClassImagesRefused(f"reg_data_dir: {record} cannot be read: {error}; delete it and its images") from error
    if there is None:
        files.write_bytes(record, files.json_bytes(dict(settings)))
        return
    differs = sorted(name for name in there.keys() | settings.keys() if there.get(name) != settings.get(name))
    if differs:
        raise ClassImagesRefused(
            f"reg_data_dir: {folder} has class images that were made with other settings ({', '.join(differs)}); name "
            "another folder, or set num_class_images = 0 to use them as they are"
        )
