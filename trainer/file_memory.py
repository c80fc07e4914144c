"""What was once learnt of a file's content, remembered while the file does not change. No torch here."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer import files


def stamp_of_stat(status: os.stat_result) -> str:
    """What changes whenever a file's content does.

    The inode's change time is part of it: no program can set it back, as it can the modification time.
    """
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"


def stamp_of(path: Path) -> str | None:
    """The stamp of the file's content; None when there is no such file."""
    try:
        return stamp_of_stat(path.stat())
    except OSError:
        return None


def _key(path: str) -> str:
    """The path as a text that SQLite takes, also where it is not UTF-8."""
    whole = path if path.startswith(os.sep) else str(Path(path).absolute())
    return whole if whole.isascii() else os.fsencode(whole).decode(errors="backslashreplace")


class FileMemory:
    """Values by path and stamp, kept in an SQLite file in `folder`. Where that cannot be written, nothing is kept."""

    def __init__(self, folder: Path, table: str) -> None:
        self._file = folder / f"{table}.sqlite"
        with contextlib.suppress(OSError, sqlite3.Error):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._create()
            except sqlite3.OperationalError:  # somebody else has it locked, or it cannot be written
                raise
            except sqlite3.DatabaseError:  # damaged; all that it held can be learnt again
                self._file.unlink()
                self._create()

    def _create(self) -> None:
        with self._connection() as connection:
            connection.execute("create table if not exists memory (path text primary key, stamp text, value text)")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._file, timeout=30)) as connection, connection:
            yield connection

    def recall(self, stamps: Mapping[str, str]) -> dict[str, Any]:
        """The values of those files (path -> stamp) that are as they were when they were remembered."""
        folders: dict[str, dict[str, str]] = {}
        for path in stamps:
            key = _key(path)
            folders.setdefault(key[: key.rfind(os.sep) + 1], {})[key] = path
        result: dict[str, str] = {}
        with contextlib.suppress(sqlite3.Error), self._connection() as connection:
            for folder, paths in folders.items():
                below = (folder, folder[:-1] + chr(ord(os.sep) + 1))
                rows = connection.execute("select path, stamp, value from memory where path > ? and path < ?", below)
                for key, stamp, value in rows:
                    file = paths.get(key)
                    if file is not None and stamps[file] == stamp:
                        result[file] = value
        return dict(zip(result, json.loads(f"[{','.join(result.values())}]"), strict=True))  # one call for them all

    def remember(self, learnt: Iterable[tuple[str, str, Any]]) -> None:
        """Keep (path, stamp, value) for the next time."""
        rows = [(_key(path), stamp, json.dumps(value)) for path, stamp, value in learnt]
        if rows:
            with contextlib.suppress(sqlite3.Error), self._connection() as connection:
                connection.executemany("insert or replace into memory values (?, ?, ?)", rows)


def sha256_of(
    paths: Iterable[Path], folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[Path, str]:
    """SHA-256 of each file, reading only those that changed since `folder` last remembered them.

    `progress`: told now and then how many bytes of how many are read; may raise, and then nothing is remembered.
    """
    memory = FileMemory(folder, "digests")
    stamps = {path: stamp_of(path) for path in paths}
    remembered = memory.recall({str(path): stamp for path, stamp in stamps.items() if stamp})
    sizes = {path: path.stat().st_size for path in stamps if str(path) not in remembered}
    result = {path: remembered[str(path)] for path in stamps if str(path) in remembered}
    before, total = 0, sum(sizes.values())
    for path, size in sizes.items():

        def read(count: int, before: int = before) -> None:
            progress(before + count, total)

        result[path] = files.sha256_file(path, read)
        before += size
    new = [(str(path), stamp, result[path]) for path, stamp in stamps.items() if stamp and str(path) not in remembered]
    memory.remember(new)
    return result
