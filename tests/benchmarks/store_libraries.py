"""The store of the caches against LMDB and SQLite, side by side in one run.

    python -m tests.benchmarks.store_libraries [--values 2000] [--entries 100000] [--damages 60] [--kills 10]

LMDB is no part of the project: `pip install lmdb` first; without it the two others are compared. All three hold the
same bytes, a record with its SHA-256 before it, and all check it at every read. Each is used so that the end of a
process at any moment costs nothing that was acknowledged, and a power cut no more than what was not flushed yet: SQLite
with its write-ahead log and `synchronous = normal`, LMDB without `writemap` and with a flush at every commit. Values
are those of SD 1.5 at 512 x 512 pixels, 131 kB, committed one by one, as a cache is filled; damages and kills use small
ones. What a damage or a cut does to a process is found out in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trainer.caching import packs
from trainer.caching.packs import Arrays, Packs

LARGE = (4, 64, 64)  # mean and deviation: 131 kB
SMALL = (4, 16, 16)  # 8 kB
TINY = (4,)
SAMPLE_SEED = 7


class Contender(Protocol):
    """What a cache asks of its store."""

    def put(self, key: bytes, arrays: Arrays) -> None: ...

    def get(self, key: bytes) -> Arrays | None: ...

    def missing(self, keys: Sequence[bytes]) -> list[int]: ...

    def finish_writing(self) -> None: ...


def checked(key: bytes, record: memoryview | None) -> Arrays | None:
    """The arrays of a record if it is whole and the key's."""
    return packs.record_arrays(record) if record is not None and packs.record_key(record) == key else None


class Sqlite:
    """A table of values in one file, the keys in an index of their own; a connection for each thread."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "values.sqlite"
        self._threads = threading.local()
        self._connection.execute("create table if not exists 'values' (key blob unique not null, value blob not null)")

    @property
    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._threads, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._file, timeout=60, isolation_level=None)
            connection.execute("pragma page_size = 16384")
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = normal")
            self._threads.connection = connection
        return connection

    def put(self, key: bytes, arrays: Arrays) -> None:
        record = packs.encode_record(key, arrays)
        self._connection.execute("insert or replace into 'values' values (?, ?)", (key, record))

    def get(self, key: bytes) -> Arrays | None:
        try:
            row = self._connection.execute("select value from 'values' where key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError:  # of this value's pages; others may be whole
            return None
        return checked(key, memoryview(row[0])) if row else None

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        there = {row[0] for row in self._connection.execute("select key from 'values'")}
        return [place for place, key in enumerate(keys) if key not in there]

    def finish_writing(self) -> None:
        self._connection.execute("pragma wal_checkpoint(truncate)")


class Lmdb:
    """One LMDB environment; its map has to be as large as it may ever become."""

    MAP_BYTES = 16 << 30

    def __init__(self, folder: Path) -> None:
        lmdb: Any = importlib.import_module("lmdb")
        folder.mkdir(parents=True, exist_ok=True)
        self._environment = lmdb.open(str(folder), map_size=self.MAP_BYTES, metasync=False)
        self._transaction: Any = None
        weakref.finalize(self, self._environment.close)  # a process may open a file only once

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, what is put is one transaction."""
        with self._environment.begin(write=True) as self._transaction:
            yield
        self._transaction = None

    def put(self, key: bytes, arrays: Arrays) -> None:
        with contextlib.nullcontext() if self._transaction else self.at_once():
            self._transaction.put(key, packs.encode_record(key, arrays))

    def get(self, key: bytes) -> Arrays | None:
        with self._environment.begin() as transaction:
            value = transaction.get(key)
        return checked(key, memoryview(value)) if value is not None else None

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            return [place for place, key in enumerate(keys) if not cursor.set_key(key)]

    def finish_writing(self) -> None:
        self._environment.sync(True)


CONTENDERS: dict[str, Callable[[Path], Contender]] = {"packs": Packs, "sqlite": Sqlite}
if importlib.util.find_spec("lmdb"):
    CONTENDERS["lmdb"] = Lmdb


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[: packs.KEY_BYTES]


def arrays_of(number: int, shape: tuple[int, ...]) -> Arrays:
    draw = np.random.default_rng(number)
    return {name: draw.standard_normal(shape, dtype=np.float32) for name in ("mean", "std")}


def equal(found: Arrays, number: int, shape: tuple[int, ...]) -> bool:
    return all(np.array_equal(found[name], array) for name, array in arrays_of(number, shape).items())


def fill(store: Contender, numbers: range, shape: tuple[int, ...]) -> None:
    for number in numbers:
        store.put(key_of(number), arrays_of(number, shape))
    store.finish_writing()


def in_a_process(work: Callable[..., None], *arguments: object) -> int:
    """The exit code of a process of its own that does it; below 0 the signal that ended it."""
    process = multiprocessing.Process(target=quiet, args=(work, *arguments))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def quiet(work: Callable[..., None], *arguments: object) -> None:
    logging.disable()
    work(*arguments)


def ended(code: int) -> str:
    return f"process ended by {signal.Signals(-code).name}" if code < 0 else f"process ended with {code}"


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# --- speed and size ------------------------------------------------------------------------------------------------


def speed(name: str, folder: Path, values: int, rounds: int) -> str:
    """Filling, reading in random order, both with the records encoded and checked; and what it takes on the disk."""
    arrays = arrays_of(0, LARGE)
    store = CONTENDERS[name](folder)
    started = time.perf_counter()
    for number in range(values):
        store.put(key_of(number), arrays)
    store.finish_writing()
    filling = values / (time.perf_counter() - started)
    order = random.Random(SAMPLE_SEED).sample(range(values), values)
    reading = []
    del store
    for _ in range(rounds):
        store = CONTENDERS[name](folder)
        started = time.perf_counter()
        for number in order:
            assert store.get(key_of(number)) is not None
        reading.append(values / (time.perf_counter() - started))
        del store
    payload = values * sum(array.nbytes for array in arrays.values())
    return (
        f"filled {filling:,.0f}/s, random reads {statistics.median(reading):,.0f}/s, "
        f"{bytes_of(folder) / payload:.3f} of the arrays' bytes"
    )


def opening(name: str, folder: Path, entries: int) -> str:
    """To open a store and ask which of as many keys are missing."""
    arrays = arrays_of(0, TINY)
    store = CONTENDERS[name](folder)
    with store.at_once() if isinstance(store, Lmdb) else contextlib.nullcontext():  # otherwise it takes minutes
        for number in range(entries):
            store.put(key_of(number), arrays)
    store.finish_writing()
    del store
    keys = [key_of(number) for number in range(entries + 10)]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        store = CONTENDERS[name](folder)
        missing = store.missing(keys)
        seconds.append(time.perf_counter() - started)
        assert missing == list(range(entries, entries + 10))
        del store
    return f"opened and asked for {entries:,} keys in {statistics.median(seconds) * 1000:,.0f} ms"


def writers(name: str, folder: Path, values: int) -> str:
    """Two processes that fill one store at once."""
    CONTENDERS[name](folder)  # makes it
    started = time.perf_counter()
    halves = [range(values // 2), range(values // 2, values)]
    both = [multiprocessing.Process(target=fill_one, args=(name, folder, half)) for half in halves]
    for process in both:
        process.start()
    for process in both:
        process.join()
    seconds = time.perf_counter() - started
    lost = len(CONTENDERS[name](folder).missing([key_of(number) for number in range(values)]))
    failed = sum(process.exitcode != 0 for process in both)
    return f"two writers {values / seconds:,.0f}/s together, {failed} failed, {lost} values lost"


def fill_one(name: str, folder: Path, numbers: range) -> None:
    store, arrays = CONTENDERS[name](folder), arrays_of(0, LARGE)
    for number in numbers:
        store.put(key_of(number), arrays)
    store.finish_writing()


# --- damage --------------------------------------------------------------------------------------------------------


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """One flipped bit, a block of zeros, or the end cut off."""
    size = path.stat().st_size
    place = draw.randrange(size)
    if kind == "cut":
        os.truncate(path, place)
        return
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1 << draw.randrange(8)]) if kind == "bit" else bytes(min(4096, size - place)))


def fill_small(name: str, folder: Path) -> None:
    fill(CONTENDERS[name](folder), range(100), SMALL)


def lmdb_error() -> type[Exception]:
    """The class of LMDB's errors, where it is installed."""
    error: type[Exception] = importlib.import_module("lmdb").Error if "lmdb" in CONTENDERS else OSError
    return error


def examine(name: str, folder: Path, count: int, answer: Path) -> None:
    """Read everything and put again what is not there, as a run would; leaves what it met."""
    lost, wrong = set(), 0
    try:
        store = CONTENDERS[name](folder)
        for number in range(count):
            found = store.get(key_of(number))
            if found is None:
                lost.add(number)
                store.put(key_of(number), arrays_of(number, SMALL))
            else:
                wrong += not equal(found, number, SMALL)
        store.finish_writing()
        del store
        store = CONTENDERS[name](folder)
        again = (store.get(key_of(number)) for number in range(count))
        unrepaired = sum(found is None for found in again)
        answer.write_text(f"{len(lost)} {wrong} {unrepaired}")
    except (OSError, sqlite3.Error, lmdb_error()) as error:
        answer.write_text(f"{type(error).__name__}")


def damages(name: str, folder: Path, count: int) -> str:
    """What single damages do to a store of 100 values of 8 kB."""
    values = 100
    source, copy, answer = folder / "source", folder / "copy", folder / "answer"
    assert in_a_process(fill_small, name, source) == 0
    largest = max(source.iterdir(), key=lambda path: path.stat().st_size)
    draw = random.Random(SAMPLE_SEED)
    outcomes: Counter[str] = Counter()
    lost_in_all = 0
    kinds = ("bit", "zeros", "cut")
    for number in range(count):
        shutil.copytree(source, copy)
        damage(copy / largest.name, kind := kinds[number % 3], draw)
        answer.unlink(missing_ok=True)
        code = in_a_process(examine, name, copy, values, answer)
        if code:
            outcomes[f"{kind}: {ended(code)}"] += 1
        else:
            met = answer.read_text().split()
            if len(met) == 1:
                outcomes[f"{kind}: store unusable ({met[0]})"] += 1
            else:
                lost, wrong, unrepaired = map(int, met)
                lost_in_all += lost
                outcome = "wrong value served" if wrong else "not repaired" if unrepaired else "found and repaired"
                outcomes[f"{kind}: {outcome}"] += 1
        shutil.rmtree(copy)
    listed = ", ".join(f"{what} {times}" for what, times in sorted(outcomes.items()))
    return f"{count} damages: {listed}; {lost_in_all} values computed again where it went on"


def read_across_a_cut(name: str, folder: Path) -> None:
    store = CONTENDERS[name](folder)
    for number in range(100):
        store.get(key_of(number))
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with contextlib.suppress(OSError, sqlite3.Error, lmdb_error()):
        for number in range(100):
            store.get(key_of(number))


def cut_while_read(name: str, folder: Path) -> str:
    """A file that loses its second half while a process reads it, as on a network drive."""
    assert in_a_process(fill_small, name, folder) == 0
    code = in_a_process(read_across_a_cut, name, folder)
    return f"cut while it is read: {ended(code) if code else 'goes on'}"


# --- the end of a process ------------------------------------------------------------------------------------------


def put_for_ever(name: str, folder: Path, first: int) -> None:
    store = CONTENDERS[name](folder)
    for number in range(first, first + 10**6):
        store.put(key_of(number), arrays_of(number, SMALL))
        print(number, flush=True)


def kills(name: str, folder: Path, count: int) -> str:
    """Writers killed at random moments: whatever was acknowledged has to be there."""
    draw = random.Random(SAMPLE_SEED)
    written = lost = wrong = 0
    for _ in range(count):
        command = [sys.executable, "-m", "tests.benchmarks.store_libraries", "--put", name, str(folder), str(written)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [process.stdout.readline()]
            time.sleep(draw.uniform(0, 0.15))
            process.kill()
            said += process.stdout.read().split("\n")[:-1]
        acknowledged = int(said[-1]) + 1
        store = CONTENDERS[name](folder)
        for number in range(written, acknowledged):
            found = store.get(key_of(number))
            lost += found is None
            wrong += found is not None and not equal(found, number, SMALL)
        written = acknowledged
        del store
    return f"{count} kills over {written} acknowledged values: {lost} lost, {wrong} wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=2000, help="of 131 kB")
    parser.add_argument("--entries", type=int, default=100_000, help="keys asked for on opening")
    parser.add_argument("--damages", type=int, default=60)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the stores are made; default: the temporary folder")
    parser.add_argument("--put", nargs=3, metavar=("STORE", "FOLDER", "FIRST"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.put:
        put_for_ever(arguments.put[0], Path(arguments.put[1]), int(arguments.put[2]))
        return
    if "lmdb" not in CONTENDERS:
        print("LMDB is not installed (pip install lmdb); the others are compared")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        parts: list[Callable[[str, Path], str]] = [
            lambda name, folder: speed(name, folder, arguments.values, arguments.rounds),
            lambda name, folder: opening(name, folder, arguments.entries),
            lambda name, folder: writers(name, folder, arguments.values // 2),
            lambda name, folder: damages(name, folder, arguments.damages),
            cut_while_read,
            lambda name, folder: kills(name, folder, arguments.kills),
        ]
        for number, part in enumerate(parts):
            for name in CONTENDERS:
                folder = Path(place) / f"{number}-{name.replace(' ', '-')}"
                folder.mkdir()
                print(f"{name:12} {part(name, folder)}", flush=True)
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
