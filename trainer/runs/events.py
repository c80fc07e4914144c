"""Writes and reads events.jsonl, one JSON object a line. No torch here; nothing here can stop a training."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
EVENTS_VERSION = 1  # told by each run_started; readers pass over what they do not know
MAX_PENDING = 10_000  # lines kept in memory while the disk refuses them


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite is written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class EventWriter:
    """Appends events to a file and flushes each; safe from several threads.

    A disk that refuses the write is reported once; the lines are kept and tried again with the next event.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._pending: list[bytes] = []
        self._refused = False
        self._listener: Callable[[Mapping[str, Any]], None] | None = None

    def listen(self, listener: Callable[[Mapping[str, Any]], None] | None) -> None:
        """Have each event passed on from now on, to what takes it at once and does not raise; None: to nothing."""
        self._listener = listener

    def write(self, event: str, global_step: int, **fields: Any) -> None:
        record = {"event": event, "time": time.time(), "global_step": global_step, **fields}
        if listener := self._listener:
            listener(record)
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self._pending.append(line.encode(errors="backslashreplace"))  # a name that is not UTF-8, as JSON escapes it
            del self._pending[:-MAX_PENDING]
            self._flush()

    def _flush(self) -> None:
        try:
            with self._path.open("ab+", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if end:  # a torn last line, left by a crash or by a full disk, is closed first
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        end += file.write(b"\n")
                data = memoryview(b"".join(self._pending))
                try:
                    while data:
                        data = data[file.write(data) :]
                finally:
                    self._drop_written(file.seek(0, os.SEEK_END) - end)
        except OSError as error:
            if not self._refused:
                logger.warning("%s cannot be written: %s; training goes on", self._path, error)
            self._refused = True
        else:
            self._refused = False

    def _drop_written(self, size: int) -> None:
        """Forget the lines that have come to the disk with so many bytes, so that none is written twice.

        One that lacks nothing but its end counts: the next write closes it. Of any other the part is a torn line.
        """
        while self._pending and size >= len(self._pending[0]) - 1:
            size -= len(self._pending.pop(0))


class SilentWriter(EventWriter):
    """For a process that does not hold the run's lock: its events are written by the one that does."""

    def write(self, event: str, global_step: int, **fields: Any) -> None:
        pass


def read_events(path: Path, offset: int = 0, limit: int = 1 << 30) -> tuple[list[dict[str, Any]], int]:
    """The events from a byte offset on, and the offset to go on from.

    Reads at most `limit` bytes. An unfinished last line is left for the next call; a damaged line, or one longer than
    `limit`, is passed over; a file that became shorter is read from its beginning; no file means no events.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                offset = 0
            file.seek(offset)
            data = file.read(limit)
    except OSError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if not end and len(data) == limit:
        return [], offset + limit  # in the middle of a line that is longer; its end will not parse
    events = []
    for line in data[:end].splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events, offset + end
