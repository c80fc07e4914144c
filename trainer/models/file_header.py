"""What the header of a safetensors file declares; nothing else of the file is read. No torch here."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from trainer.file_memory import stamp_of

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # by the name of a tensor

MOST_HEADER = 100 << 20  # bytes; a header of Stable Diffusion has a hundred thousand


class HeaderUnreadable(Exception):
    """The file has no header of a safetensors file; the message says why."""


def shapes(path: Path) -> Shapes:
    """The shapes that a safetensors file declares. Raises HeaderUnreadable."""
    return _shapes(path, stamp_of(path))


@functools.lru_cache(maxsize=16)
def _shapes(path: Path, stamp: str | None) -> Shapes:
    """`stamp`: of the file's content, so that it is read once."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MOST_HEADER:
                raise ValueError("its header is too large")
            declared = json.loads(file.read(length))
        return {name: tuple(map(int, entry["shape"])) for name, entry in declared.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise HeaderUnreadable(f"the header of {path} cannot be read: {error}") from error
