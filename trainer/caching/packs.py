"""Many small groups of arrays in few large files, safe against crashes and against damage. No torch here.

A folder holds packs: `00000.pack`, a row of records, and beside each its index `00000.index`, a row of 40-byte entries
that say where the record of a key lies. A writer appends the record first and its entry after, so a process that is
killed loses the record it was writing and nothing else. Every record begins with a digest of its bytes and every entry
ends with one, so whatever a crash, a bad disk or a power cut leaves is noticed and never returned. One process at a
time appends to a pack, the one that holds its lock, `00000.lock`; any number read. Records are read into memory, never
mapped: a mapped file that is cut, as on a network drive that fails, ends the process that reads it (SIGBUS), and
Windows lets nobody cut or remove one.

Why neither SQLite nor LMDB, with the same digests (`python -m tests.benchmarks.store_libraries`; two busy cores,
latents of SD 1.5; packs / SQLite / LMDB): filled with 1,572 / 852 / 282 values a second, read at random 4,236 / 3,900 /
5,801, opened with 100,000 keys in 120 / 141 / 107 ms, by two writers 1,678 / 879 / 377 together, 1.00 / 1.02 / 1.03 of
the arrays' bytes, nothing lost in 8 kills. Each is fast enough for a training; these decide:
* Of 20 flipped bits, 20 blocks of zeros and 20 cuts, packs lost what was hit and took it again in all 60. SQLite did
  so in 30, LMDB in 28: otherwise the whole file was refused from then on, or LMDB ended the process with SIGBUS (19
  times), as it did when a file was cut while it was read.
* Caches lie on network drives, with several machines at work. By their own documentation SQLite's write-ahead log and
  LMDB are not for those, and SQLite without that log relies on the drive's locks. Without locks, each process here
  writes a pack of its own.
What SQLite has over this: its age, and a quarter of the lines.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import files, locks, read_speed

logger = logging.getLogger(__name__)
Arrays = dict[str, NDArray[Any]]
PACK_BYTES = 1 << 30  # a pack takes no further record once it is this large
KEY_BYTES = 16
ALIGNMENT = 64  # of records and of their arrays: whole cache lines
DIGEST_BYTES = 32
MAGIC = b"RKP1"
HEADER = struct.Struct("<4sIQ16s")  # after the digest: magic, bytes of the description, bytes of the arrays, key
HEAD_BYTES = DIGEST_BYTES + HEADER.size
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("offset", "<u8"), ("length", "<u8"), ("check", "<u8")])
Entries = NDArray[np.void]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


# --- records: pure functions of bytes ------------------------------------------------------------------------------


def encode_record(key: bytes, arrays: Arrays) -> bytes:
    """The bytes of a record: digest, header, description (JSON: name, dtype, shape, place of each array), arrays."""
    place = 0
    described: list[tuple[str, str, tuple[int, ...], int]] = []
    for name, array in arrays.items():
        described.append((name, array.dtype.str, array.shape, place))
        place = _aligned(place + array.nbytes)
    description = json.dumps(described).encode()
    description = description.ljust(_aligned(len(description)))
    body = bytearray(len(description) + place)
    body[: len(description)] = description
    for (*_, at), array in zip(described, arrays.values(), strict=True):
        start = len(description) + at
        body[start : start + array.nbytes] = np.ascontiguousarray(array).tobytes()
    content = HEADER.pack(MAGIC, len(description), place, key) + body
    return hashlib.sha256(content).digest() + content


@lru_cache(maxsize=1024)
def _description(text: bytes) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]:
    """(name, dtype, shape, place) of each array; a bucket's records all have the same description."""
    return tuple((name, np.dtype(kind), tuple(shape), place) for name, kind, shape, place in json.loads(text))


def record_length(head: memoryview) -> int | None:
    """The length of the record that begins here, from its first HEAD_BYTES; None when none does."""
    if len(head) < HEAD_BYTES:
        return None
    magic, described, size, _ = HEADER.unpack_from(head, DIGEST_BYTES)
    return HEAD_BYTES + described + size if magic == MAGIC else None


def record_key(record: memoryview) -> bytes | None:
    """The key of a record; None when any of its bytes is not as it was written."""
    if record_length(record) != len(record) or hashlib.sha256(record[DIGEST_BYTES:]).digest() != record[:DIGEST_BYTES]:
        return None
    key: bytes = HEADER.unpack_from(record, DIGEST_BYTES)[3]
    return key


def record_arrays(record: memoryview) -> Arrays:
    """The arrays of a sound record, in its own memory."""
    body = HEAD_BYTES + HEADER.unpack_from(record, DIGEST_BYTES)[1]
    return {
        name: np.frombuffer(record, kind, math.prod(shape), body + place).reshape(shape)
        for name, kind, shape, place in _description(bytes(record[HEAD_BYTES:body]))
    }


# --- entries of an index -------------------------------------------------------------------------------------------


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), which changes about half the bits for each changed one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _checks(entries: Entries) -> NDArray[np.uint64]:
    """The check of each entry. It is one-to-one in every field, so no single damaged field passes."""
    check = np.full(len(entries), 0x52454B494E444C45, np.uint64)
    for field in ("high", "low", "offset", "length"):
        check = _mixed(check ^ entries[field])
    return check


def _entry(key: bytes, offset: int, length: int) -> Entries:
    entry = np.zeros(1, ENTRY)
    entry["high"], entry["low"] = struct.unpack(">QQ", key)
    entry["offset"], entry["length"] = offset, length
    entry["check"] = _checks(entry)
    return entry


def key_of(entry: np.void) -> bytes:
    return struct.pack(">QQ", int(entry["high"]), int(entry["low"]))


def read_entries(path: Path) -> tuple[Entries, bool]:
    """The sound entries of an index file, and whether it holds nothing else."""
    try:
        data = path.read_bytes()
    except OSError:
        return np.zeros(0, ENTRY), False
    entries = np.frombuffer(data[: len(data) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)
    sound = _checks(entries) == entries["check"]
    return entries[sound], bool(sound.all()) and len(data) % ENTRY.itemsize == 0


@dataclass(frozen=True)
class _Index:
    """Where the record of every key lies: parallel arrays, ordered by key, then from the earliest written on."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    pack: NDArray[np.uint32]
    offset: NDArray[np.uint64]
    length: NDArray[np.uint64]

    @staticmethod
    def of(packs: dict[int, Entries]) -> _Index:
        numbers = sorted(packs)
        every = np.concatenate([np.zeros(0, ENTRY), *(packs[number] for number in numbers)])
        pack = np.repeat(np.array(numbers, np.uint32), [len(packs[number]) for number in numbers])
        order = np.lexsort((every["low"], every["high"]))  # stable: packs and offsets stay in order
        fields = {field: every[field][order] for field in ("high", "low", "offset", "length")}
        return _Index(pack=pack[order], **fields)

    def places(self, key: bytes) -> range:
        """The places of a key in the arrays."""
        high, low = struct.unpack(">QQ", key)
        start = int(np.searchsorted(self.high, np.uint64(high)))
        while start < len(self.high) and self.high[start] == high and self.low[start] < low:
            start += 1
        stop = start
        while stop < len(self.high) and self.high[stop] == high and self.low[stop] == low:
            stop += 1
        return range(start, stop)


# --- packs ---------------------------------------------------------------------------------------------------------


def pack_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.pack"


def index_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.index"


def numbers_in(folder: Path) -> list[int]:
    """The numbers of the packs in a folder, in order."""
    with contextlib.suppress(OSError):
        return sorted(int(path.stem) for path in folder.glob("*.pack") if path.stem.isdecimal())
    return []


def lock_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.lock"


class Appender:
    """Appends to one pack while it holds the pack's lock."""

    def __init__(self, folder: Path, number: int, file: io.FileIO, end: int, lock: io.FileIO | None) -> None:
        self.number = number
        self._pack = file
        self._index = index_file(folder, number).open("ab", buffering=0)
        self._lock = lock
        self.end = end

    def append(self, key: bytes, record: bytes | memoryview) -> None:
        """Append a record and its entry. Raises OSError, having taken back what was written of them."""
        entry = _entry(key, self.end, len(record))
        indexed = self._index.seek(0, os.SEEK_END)
        try:
            _write_all(self._pack, record)
            _write_all(self._index, entry.tobytes())
        except OSError:
            with contextlib.suppress(OSError):
                self._index.truncate(indexed)
                self._pack.truncate(self.end)
                self._pack.seek(self.end)
            raise
        self.end += len(record)

    def sync(self) -> None:
        """Make durable what was appended."""
        with contextlib.suppress(OSError):  # the digests tell what did not reach the disk
            os.fsync(self._pack.fileno())
            os.fsync(self._index.fileno())

    def close(self) -> None:
        """Make it durable, and let others append."""
        self.sync()
        self._index.close()
        self._pack.close()
        if self._lock:
            self._lock.close()


def _write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def settle(folder: Path, number: int, pack: io.FileIO) -> int:
    """Put right what a killed writer or a damaged index left of a pack; returns where the next record goes.

    Whole records that no entry leads to get one; what follows the last whole record is cut off. The caller holds the
    pack's lock, and `pack` ends up positioned at the returned offset.
    """
    path = index_file(folder, number)
    entries, complete = read_entries(path)
    size = pack.seek(0, os.SEEK_END)
    entries = entries[entries["offset"] + entries["length"] <= size]
    entries = entries[np.argsort(entries["offset"], kind="stable")]
    adopted, end = [], 0
    for entry in [*entries, None]:
        stop = size if entry is None else int(entry["offset"])
        for key, offset, length in _whole_records(pack, end, stop):
            adopted.append(_entry(key, offset, length))
            end = offset + length
        if entry is not None:
            end = stop + int(entry["length"])
    if adopted or not complete:
        files.write_bytes(path, np.concatenate([entries, *adopted]).tobytes())
    if end < size:
        pack.truncate(end)
    return pack.seek(end)


def _whole_records(pack: io.FileIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(key, offset, length) of the sound records that follow one another from `start` on."""
    while start + HEAD_BYTES <= stop:
        head = read_at(pack, start, HEAD_BYTES)
        length = record_length(head) if head else None
        record = read_at(pack, start, length) if length is not None and start + length <= stop else None
        key = record_key(record) if record else None
        if record is None or key is None:
            return
        yield key, start, len(record)
        start += len(record)


def read_at(file: io.FileIO, offset: int, length: int) -> memoryview | None:
    """So many bytes of a file from an offset on; None when it ends before."""
    file.seek(offset)
    data = file.read(length)
    while len(data) < length:
        more = file.read(length - len(data))
        if not more:
            return None
        data += more
    return memoryview(data)


class Packs:
    """The packs of one folder: read by any number of threads and processes, written by any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._appender: Appender | None = None
        self._index = _Index.of({})
        self._recent: dict[bytes, tuple[int, int, int]] = {}  # pack, offset, length; not in the index yet
        self._damaged: set[tuple[bytes, int, int]] = set()  # key, pack, offset
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers_in(folder):
            self._settle_if_interrupted(number)
        self.refresh()

    def _settle_if_interrupted(self, number: int) -> None:
        entries, complete = read_entries(index_file(self.folder, number))
        end = int((entries["offset"] + entries["length"]).max(initial=0))
        path = pack_file(self.folder, number)
        with contextlib.suppress(OSError, locks.Held):  # held: somebody is writing it just now
            if complete and path.stat().st_size == end:
                return
            with locks.hold(lock_file(self.folder, number)), path.open("r+b", buffering=0) as pack:
                settle(self.folder, number, pack)

    # --- reading ---------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Learn of what other processes wrote since."""
        with self._lock:
            numbers = numbers_in(self.folder)
            self._index = _Index.of({number: read_entries(index_file(self.folder, number))[0] for number in numbers})
            self._recent.clear()

    def _found(self, key: bytes) -> list[tuple[int, int, int]]:
        """(pack, offset, length) of every record of a key that is not known to be damaged."""
        index = self._index
        result = [
            (int(index.pack[place]), int(index.offset[place]), int(index.length[place])) for place in index.places(key)
        ]
        recent = self._recent.get(key)
        return [place for place in (*result, *([recent] if recent else [])) if (key, *place[:2]) not in self._damaged]

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """The places in `keys` of those that have no record. Reads no record."""
        if not keys:
            return []
        wanted = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2).astype(np.uint64)
        index, sure = self._index, np.zeros(len(keys), bool)
        if len(index.high) and not self._damaged:
            place = np.searchsorted(index.high, wanted[:, 0])
            last = len(index.high) - 1
            alike = (place <= last) & (index.high[np.minimum(place, last)] == wanted[:, 0])
            while alike.any():  # as often as keys share their first half
                sure |= alike & (index.low[np.minimum(place, last)] == wanted[:, 1])
                place += 1
                alike &= ~sure & (place <= last) & (index.high[np.minimum(place, last)] == wanted[:, 0])
        return [int(number) for number in np.flatnonzero(~sure) if not self._found(keys[int(number)])]

    def get(self, key: bytes) -> Arrays | None:
        """The arrays of a key, not to be written to.

        None when there are none; also when they are damaged, which is reported and then counts as missing.
        """
        for number, offset, length in self._found(key):
            record = self.record(number, offset, length)
            if record is not None and record_key(record) == key:
                return record_arrays(record)
            with self._lock:
                if (key, number, offset) not in self._damaged:
                    self._damaged.add((key, number, offset))
                    path = pack_file(self.folder, number)
                    logger.warning("%s is damaged at byte %d; its content is computed again", path, offset)
        return None

    def record(self, number: int, offset: int, length: int) -> memoryview | None:
        """The bytes of a record, read, not checked; None when the file is shorter, or cannot be read."""
        try:
            with pack_file(self.folder, number).open("rb", buffering=0) as pack:
                with read_speed.TRAINED.timed() as read:
                    record = read_at(pack, offset, length)
                    read(length)
                return record
        except OSError:
            return None

    # --- writing ---------------------------------------------------------------------------------------------------

    def put(self, key: bytes, arrays: Arrays) -> None:
        """Keep the arrays of a key. Raises OSError when the disk does not take them; nothing is left of them then."""
        record = encode_record(key, arrays)
        with self._lock:
            if self._appender and self._appender.end >= PACK_BYTES:
                self.finish_writing()
            self._appender = self._appender or self._claim()
            offset = self._appender.end
            self._appender.append(key, record)
            self._recent[key] = (self._appender.number, offset, len(record))
            self._damaged.discard((key, self._appender.number, offset))  # where the pack had been cut off

    def finish_writing(self) -> None:
        """Make durable what was put, and let other processes append to the same pack."""
        with self._lock:
            if self._appender:
                self._appender.close()
                self._appender = None

    def _claim(self) -> Appender:
        """A pack with room that nobody else writes, otherwise a new one."""
        existing = (self._claimed(number, create=False) for number in numbers_in(self.folder))
        return next((appender for appender in existing if appender), None) or self.create()

    def create(self) -> Appender:
        """A new pack, after all there are. Raises OSError."""
        number = max(numbers_in(self.folder), default=-1)
        while True:
            number += 1
            appender = self._claimed(number, create=True)
            if appender:
                return appender

    def _claimed(self, number: int, *, create: bool) -> Appender | None:
        """The pack, new or with room, if nobody else writes it. Raises OSError where a new one cannot be made."""
        path, lock = pack_file(self.folder, number), None
        with contextlib.ExitStack() as until_claimed:
            try:
                if not create and path.stat().st_size >= PACK_BYTES:
                    return None
                lock = until_claimed.enter_context(locks.hold(lock_file(self.folder, number)))
            except locks.Held:
                return None
            except OSError:  # a file system without locks: only a pack that this process creates is surely its own
                if not create:
                    return None
            try:
                file = until_claimed.enter_context(path.open("x+b" if create else "r+b", buffering=0))
            except FileExistsError:
                return None
            except OSError:
                if create:
                    raise
                return None
            appender = Appender(self.folder, number, file, settle(self.folder, number, file), lock)
            until_claimed.pop_all()
            return appender


# --- pruning -------------------------------------------------------------------------------------------------------


def compact(folder: Path, keep: Callable[[bytes], bool]) -> None:
    """Drop every record whose key is not to be kept, second records of a key, and damaged ones.

    Packs that hold any are written anew. The caller sees to it that nobody else uses the folder. Killed at any moment
    it leaves records twice at worst.
    """
    for temporary in folder.glob(".tmp-*"):
        temporary.unlink()
    packs = Packs(folder)
    seen: set[bytes] = set()
    target: Appender | None = None
    for number in numbers_in(folder):
        entries = read_entries(index_file(folder, number))[0]
        kept = []
        for entry in entries:
            key = key_of(entry)
            record = packs.record(number, int(entry["offset"]), int(entry["length"]))
            if record is not None and key not in seen and keep(key) and record_key(record) == key:
                seen.add(key)
                kept.append((key, record))
        if kept and sum(len(record) for _, record in kept) == pack_file(folder, number).stat().st_size:
            continue
        for key, record in kept:
            if target is None or target.end >= PACK_BYTES:
                if target:
                    target.close()
                target = packs.create()
            target.append(key, record)
        if target:
            target.sync()
        for file in (index_file, pack_file, lock_file):
            file(folder, number).unlink(missing_ok=True)
    if target:
        target.close()
