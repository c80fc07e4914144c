"""safetensors files read and written a tensor at a time, so that no file is ever held in memory."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from trainer import files
from trainer.models.file_header import Shape
from trainer.refusal import Refused

AT_ONCE = 4 << 20  # bytes
ALIGNED = 8  # bytes; headers are filled up to a multiple with spaces, as the format allows
# A tensor's entry in a header, besides its name, is at most so long: the type, four sizes and two places in the file.
LONGEST_ENTRY = 160
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PRECISIONS = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class FileUnreadable(Refused):
    """What is there is no sound safetensors file; the message says why."""


class Entry(NamedTuple):
    """A tensor as a file's header declares it; its bytes are from `start` to `end` of the file."""

    dtype: str
    shape: Shape
    start: int
    end: int


class TensorSource:
    """A safetensors file that is read. Nothing of it stays in memory but its header."""

    def __init__(self, path: Path) -> None:
        """Raises FileUnreadable."""
        self.path = path
        try:
            with safetensors.safe_open(path, "numpy"):  # sees that the header is sound and the file whole
                pass
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(length))
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise FileUnreadable(f"{path} is no sound safetensors file: {error}") from error
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.begin = 8 + length
        self.entries = {
            name: Entry(entry["dtype"], tuple(entry["shape"]), *(self.begin + at for at in entry["data_offsets"]))
            for name, entry in header.items()
        }

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.end - entry.start for entry in self.entries.values())

    def chunks(self, name: str) -> Iterator[bytes]:
        """A tensor's bytes, some at a time."""
        entry = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.start)
            left = entry.end - entry.start
            while left:
                part = file.read(min(AT_ONCE, left))
                if not part:
                    raise FileUnreadable(f"{self.path} became shorter while it was read")
                left -= len(part)
                yield part

    def tensor(self, name: str) -> Tensor:
        """A tensor as the file has it, in memory of its own. Raises FileUnreadable where torch has no such type."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise FileUnreadable(f"{name} of {self.path} is of the type {entry.dtype}, which cannot be computed with")
        data = bytearray(entry.end - entry.start)
        with self.path.open("rb") as file:
            file.seek(entry.start)
            if file.readinto(data) != len(data):
                raise FileUnreadable(f"{self.path} became shorter while it was read")
        flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        return flat.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def values(self, name: str) -> Tensor:
        """A tensor in fp32."""
        return self.tensor(name).float()


class TensorWriter:
    """A safetensors file that is written a tensor at a time: whole, and under its name, only once all are there.

    A context manager; without an error inside, its end is the file's.
    """

    def __init__(
        self, target: Path, names: Iterable[str], metadata: Mapping[str, str], *, hashed: bool = False, new: bool = True
    ) -> None:
        """`names`: of all that will be added, or more; `hashed`: put kohya's hashes into the header; `new`: refuse
        where the target is there. `metadata` may be changed, within a thousand bytes, until the end."""
        self.target = target
        self.metadata = dict(metadata)
        self._hashed, self._new = hashed, new
        room = sum(len(json.dumps(name)) + LONGEST_ENTRY for name in names)
        room += len(json.dumps(self.metadata)) + 1000
        self._reserved = -(-room // ALIGNED) * ALIGNED
        self._entries: dict[str, dict[str, Any]] = {}
        self._place = 0
        self._sum = hashlib.sha256()

    def __enter__(self) -> TensorWriter:
        if self._new:
            refuse_existing(self.target)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        _, name = tempfile.mkstemp(prefix=f".tmp-{self.target.name}-", dir=self.target.parent)
        self._temporary = Path(name)
        self._file = self._temporary.open("w+b")
        self._file.seek(8 + self._reserved)
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.detach().cpu().contiguous()
        data = tensor.reshape(-1).view(torch.uint8).numpy()
        self._write(name, NAMES[tensor.dtype], tuple(tensor.shape), [data.data])

    def copy(self, name: str, source: TensorSource, of: str | None = None) -> None:
        """Add a tensor of another file as it is. `of`: its name there, if it is another."""
        entry = source.entries[of or name]
        self._write(name, entry.dtype, entry.shape, source.chunks(of or name))

    def _write(self, name: str, dtype: str, shape: Shape, chunks: Iterable[bytes | memoryview]) -> None:
        begin = self._place
        for part in chunks:
            self._file.write(part)
            self._place += len(part)
            if self._hashed:
                self._sum.update(part)
        self._entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, self._place]}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if error is None:
                    self._finish()
            if error is None:
                if self._new:
                    refuse_existing(self.target)
                files.restore_mode(self._temporary)
                files.replace(self._temporary, self.target)
                files.fsync_folder(self.target.parent)
        finally:
            files.unlink(self._temporary)

    def _finish(self) -> None:
        if self._hashed:
            self.metadata |= {"sshs_model_hash": self._sum.hexdigest(), "sshs_legacy_hash": self._legacy_hash()}
        header = _header(self._entries, self.metadata)
        if len(header) > self._reserved:
            raise ValueError(f"the header of {self.target} has grown beyond the room left for it")
        self._file.seek(0)
        self._file.write(self._reserved.to_bytes(8, "little") + header.ljust(self._reserved))
        self._file.seek(0, 2)
        files.fsync_open(self._file)

    def _legacy_hash(self) -> str:
        """Of 64 kB of the file as it would be with the ss_* metadata alone, in kohya's program."""
        ours = {name: value for name, value in self.metadata.items() if name.startswith("ss_")}
        header = _header(self._entries, ours)
        header = header.ljust(-(-len(header) // ALIGNED) * ALIGNED)
        front = len(header).to_bytes(8, "little") + header
        start, length = 0x100000, 0x10000
        window = front[start : start + length]
        self._file.seek(8 + self._reserved + max(0, start - len(front)))
        window += self._file.read(length - len(window))
        return hashlib.sha256(window).hexdigest()[:8]


def refuse_existing(target: Path) -> None:
    """Raises Refused where there is such a file or folder."""
    if files.exists(target):
        raise Refused(f"{target} is there already; choose another name, or move it away")


def _header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    whole = ({"__metadata__": dict(sorted(metadata.items()))} if metadata else {}) | dict(entries)
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
