"""How a run stands, read from its folder each time: status, events, the words for numbers. No widget here."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from gui.server import console_log
from gui.views.history import History, first_rate
from trainer.quantities import brief_duration
from trainer.runs import events, launch, run_folder
from trainer.runs.launch import Started
from trainer.runs.run_folder import RunFolder, RunUnreadable

CHUNK_BYTES = 1 << 20  # read at once: the memory it takes does not grow with the file
LOOK_SECONDS = 0.3  # a look reads for so long at most
MOST_REMEMBERED = 500_000_000  # bytes of events: about two runs of a million steps, whose curves take 36 MB each

Condition = Literal[
    "none", "new", "starting", "refused", "running", "stopping", "interrupted", "stopped", "finished", "failed"
]

# --- reading a run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """How a run stands at one moment. `stamp` changes whenever the history does."""

    run: RunFolder
    condition: Condition
    history: History
    stamp: tuple[Any, ...]
    started: Started | None
    message: str  # what a trainer that did not start has said
    read: float = 1.0  # share of the events that was read so far

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def active(self) -> bool:
        return self.condition in ("starting", "running", "stopping")

    def elapsed(self) -> tuple[float, float]:
        """Seconds of this session, and of all sessions together."""
        history = self.history
        if not history.session_time:
            return 0.0, history.earlier_seconds
        end = time.time() if self.condition in ("running", "stopping") else history.last_time
        here = max(0.0, end - history.session_time)
        return here, history.earlier_seconds + here

    def process_memory(self) -> int | None:
        """Bytes that the run's process holds in the machine's own memory; None when it is not here."""
        if self.condition not in ("running", "stopping"):
            return None
        try:
            record = run_folder.read_run(self.run) or {}
            return psutil.Process(record["pid"]).memory_info().rss if run_folder.is_alive(record) else None
        except (RunUnreadable, KeyError, TypeError, psutil.Error):
            return None


def condition(run: RunFolder, started: Started | None) -> Condition:
    """How the run stands: from its own record, unless a start from the browser is newer than that."""
    if started is not None and launch.is_unrecorded(run, started):
        if not started.alive:
            return "refused"
        return "stopping" if launch.stop_asked(run) else "starting"
    status = run_folder.status(run)
    if status == "running" and launch.stop_asked(run):
        return "stopping"
    return status


class _Reader:
    """Reads one run's events on from where it was; everything it holds can be read again from the file."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._file_id = 0
        self._offset = 0
        self._history = History()
        self._shown = History()  # what views hold: other threads may still draw it
        self._taken = 0  # how far what is shown goes
        self._caught_up = False
        self._thread: threading.Thread | None = None

    @property
    def bytes_read(self) -> int:
        return self._offset

    def look(self) -> View:
        with self._lock:
            try:
                stat = self._run.events_file.stat()
                file_id, size = stat.st_ino, stat.st_size
            except OSError:
                file_id, size = 0, 0
            if file_id != self._file_id or size < self._offset:
                self._file_id, self._offset, self._taken, self._history = file_id, 0, 0, History()
            if self._read_on() or not self._offset:
                self._shown = self._history.snapshot()
            started = launch.read_started(self._run)
            state = condition(self._run, started)
            message = ""
            if state == "refused" and started is not None:
                message = console_log.tail(self._run.console_file, started.console_offset, lines=40)
            stamp = (str(self._run.path), self._file_id, self._taken)
            read = 1.0 if self._caught_up or not size else self._offset / size
            return View(self._run, state, self._shown, stamp, started, message, read)

    def _read_on(self) -> bool:
        """Take in what was appended; what does not fit into the time of a look is read by a thread meanwhile.

        Whether there was something new for this look.
        """
        begin, deadline = self._taken, time.monotonic() + LOOK_SECONDS
        while self._read_chunk() and time.monotonic() < deadline:
            pass
        if not self._caught_up and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._catch_up, daemon=True)
            self._thread.start()
        self._taken = self._offset
        return self._offset != begin

    def _read_chunk(self) -> bool:
        """Whether there was one. A torn last line is left for when it is whole."""
        before = self._offset
        events_read, self._offset = events.read_events(self._run.events_file, before, CHUNK_BYTES)
        for event in events_read:
            self._history.add(event)
        self._caught_up = self._offset == before
        return not self._caught_up

    def _catch_up(self) -> None:
        going = True
        while going:
            with self._lock:
                going = self._read_chunk()


class Watch:
    """Views of runs, for any number of pages. It remembers how far each file was read, for speed only.

    `most`, `most_bytes`: how many runs are remembered, and how much of their files; what is not is read again.
    """

    def __init__(self, most: int = 16, most_bytes: int = MOST_REMEMBERED) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._readers: collections.OrderedDict[Path, _Reader] = collections.OrderedDict()

    def look(self, run: RunFolder) -> View:
        with self._lock:
            reader = self._readers.pop(run.path, None) or _Reader(run)
            self._readers[run.path] = reader
            while len(self._readers) > self._most or (len(self._readers) > 1 and self._bytes() > self._most_bytes):
                self._readers.popitem(last=False)
        return reader.look()

    def _bytes(self) -> int:
        return sum(reader.bytes_read for reader in self._readers.values())


# --- words ---------------------------------------------------------------------------------------------------------


def speed(seconds_per_step: float) -> str:
    """2.4 it/s, or 3.1 s/it where a step takes longer than a second."""
    if seconds_per_step <= 0:
        return "–"
    return f"{1 / seconds_per_step:.3g} it/s" if seconds_per_step < 1 else f"{seconds_per_step:.3g} s/it"


def rates(value: Any) -> str:
    """A learning rate, or one for each trained part."""
    if isinstance(value, Mapping):
        return ", ".join(f"{part.replace('_', ' ')} {rates(rate)}" for part, rate in value.items())
    number = first_rate(value)
    return "–" if number is None else f"{number:.3g}"


def phase_line(view: View) -> str:
    """What is being done before or between steps, with the time left; empty while nothing of the kind is."""
    phase = view.history.phase
    if phase is None or not view.active:
        return ""
    if phase.name == "sampling":  # the one that is being made, not those that are
        return f"Sampling {min(phase.done + 1, phase.total)} of {phase.total}"
    left = f", about {brief_duration(phase.seconds_left)} left" if phase.seconds_left is not None else ""
    return f"{phase.name[:1].upper()}{phase.name[1:]}: {phase.done:,} of {phase.total:,}{left}"
