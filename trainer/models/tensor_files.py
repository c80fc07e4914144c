"""safetensors files of any size, read and written a tensor at a time. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import files
from trainer.models import keys
from trainer.models.file_header import MOST_HEADER, HeaderUnreadable, Shape

NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?", "F8_E4M3": "<u1", "F8_E5M2": "<u1",
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
WRITTEN = {"float": "F32", "fp16": "F16", "bf16": "BF16"}  # by save_precision


@dataclass(frozen=True)
class Entry:
    """A tensor that is read when it is wanted. `dtype`: safetensors' name; `read`: its numbers, or bfloat16's bits."""

    shape: Shape
    dtype: str
    read: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(NUMPY[self.dtype]).itemsize

    def values(self) -> NDArray[Any]:
        """The numbers in fp32."""
        array = self.read()
        if self.dtype == "BF16":
            return (np.asarray(array, np.uint32) << 16).view(np.float32)
        return np.asarray(array, np.float32)

    def changed(self, shape: Shape, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Entry:
        """The tensor after a change of its layout alone."""
        return Entry(shape, self.dtype, lambda: change(self.read()))

    def in_precision(self, precision: str) -> Entry:
        """As a file of this save_precision holds it; whole numbers stay as they are."""
        dtype = WRITTEN[precision]
        if self.dtype == dtype or self.dtype not in FLOATS:
            return self
        return Entry(self.shape, dtype, lambda: keys.stored(self.values(), precision).array)


Entries = Mapping[str, Entry]


def joined(parts: list[Entry]) -> Entry:
    """Tensors as one, along their first side; in fp32 where they are of different types."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    dtypes = {part.dtype for part in parts}
    if len(dtypes) == 1:
        return Entry(shape, dtypes.pop(), lambda: np.concatenate([part.read() for part in parts]))
    return Entry(shape, "F32", lambda: np.concatenate([part.values() for part in parts]))


def entries(path: Path) -> dict[str, Entry]:
    """The tensors of a file. Raises HeaderUnreadable."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MOST_HEADER:
                raise ValueError("its header is too large")
            declared = json.loads(file.read(length))
        return {
            name: _entry(path, tuple(map(int, entry["shape"])), entry["dtype"], 8 + length + entry["data_offsets"][0])
            for name, entry in declared.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise HeaderUnreadable(f"the header of {path} cannot be read: {error}") from error


def _entry(path: Path, shape: Shape, dtype: str, offset: int) -> Entry:
    kind = np.dtype(NUMPY[dtype])

    def read() -> NDArray[Any]:
        count = int(np.prod(shape, dtype=np.int64))
        return np.fromfile(path, kind, count, offset=offset).reshape(shape)

    return Entry(shape, dtype, read)


def in_folder(folder: Path) -> dict[str, Entry]:
    """The tensors in a component's folder, those of other variants apart. Raises HeaderUnreadable."""
    every = sorted(folder.glob("*.safetensors"))
    whole = [path for path in every if ".fp16" not in path.name and ".non_ema" not in path.name]
    if not every:
        raise HeaderUnreadable(f"there is no .safetensors file in {folder}")
    return {name: entry for path in whole or every for name, entry in entries(path).items()}


def write(path: Path, tensors: Entries, metadata: Mapping[str, str]) -> None:
    """Write a new file, durably; one tensor is in memory at a time. Raises OSError."""
    names = sorted(tensors, key=lambda name: (-np.dtype(NUMPY[tensors[name].dtype]).itemsize, name))  # all aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name in names:
        entry = tensors[name]
        offsets = [place, place + entry.nbytes]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        place += entry.nbytes
    described = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    files.require_space(path.parent, len(described) + place)
    with path.open("xb") as file:
        file.write(len(described).to_bytes(8, "little") + described)
        for name in names:
            entry = tensors[name]
            array = np.ascontiguousarray(entry.read(), dtype=NUMPY[entry.dtype])
            if array.nbytes != entry.nbytes:
                raise ValueError(f"{name} has {array.nbytes} bytes instead of {entry.nbytes}")
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    files.restore_mode(path)
