"""What was once learnt of a file's content, remembered while the file does not change. No torch here."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer import files


def stamp_of(path: Path) -> str | None:
    """What changes whenever a file's content does; None when there is no such file.

    The inode's change time is part of it: no program can set it back, as it can the modification time.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"


def _key(path: Path) -> str:
    """The path as a text that SQLite takes, also where it is not UTF-8."""
    return os.fsencode(path.absolute()).decode(errors="backslashreplace")


class FileMemory:
    """Values by path and stamp, kept in an SQLite file in `folder`. Where that cannot be written, nothing is kept."""

    def __init__(self, folder: Path, table: str) -> None:
        self._file = folder / f"{table}.sqlite"
        self._known: dict[str, tuple[str, str]] = {}
        with contextlib.suppress(OSError, sqlite3.Error):
            folder.mkdir(parents=True, exist_ok=True)
            with self._connection() as connection:
                connection.execute("create table if not exists memory (path text primary key, stamp text, value text)")
                self._known = {
                    path: (stamp, value) for path, stamp, value in connection.execute("select * from memory")
                }

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._file, timeout=30)) as connection, connection:
            yield connection

    def recall(self, path: Path, stamp: str) -> Any:
        """The value remembered for the file in this state; None when there is none."""
        known = self._known.get(_key(path))
        return json.loads(known[1]) if known and known[0] == stamp else None

    def remember(self, learnt: Iterable[tuple[Path, str, Any]]) -> None:
        """Keep (path, stamp, value) for the next time."""
        rows = [(_key(path), stamp, json.dumps(value)) for path, stamp, value in learnt]
        self._known |= {path: (stamp, value) for path, stamp, value in rows}
        if rows:
            with contextlib.suppress(sqlite3.Error), self._connection() as connection:
                connection.executemany("insert or replace into memory values (?, ?, ?)", rows)


def sha256_of(paths: Iterable[Path], folder: Path) -> dict[Path, str]:
    """SHA-256 of each file, reading only those that changed since `folder` last remembered them."""
    memory = FileMemory(folder, "digests")
    result: dict[Path, str] = {}
    learnt = []
    for path in paths:
        stamp = stamp_of(path)
        known = memory.recall(path, stamp) if stamp else None
        result[path] = known or files.sha256_file(path)
        if stamp and not known:
            learnt.append((path, stamp, result[path]))
    memory.remember(learnt)
    return result
