"""SIGTERM, SIGINT and SIGHUP ask for a stop; the loop answers between two steps. No torch here.

On Windows nothing asks a process to end: what os.kill and Task Manager do ends it without a word. There a file takes
SIGTERM's place, in the temporary folder and named after the process, which the process looks for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from trainer.runs import run_folder

logger = logging.getLogger(__name__)
EXIT_NOW = 130
BY_FILE = os.name == "nt"
LOOK_SECONDS = 0.2
if sys.platform == "win32":
    STOPPING: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGBREAK)
else:
    STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequested(Exception):
    """Raised where there is nothing to save yet."""


def ask_to_stop(process: Mapping[str, Any]) -> None:
    """Ask a process that `run_folder.this_process` described to finish its step, save and leave, if it still runs."""
    if not run_folder.is_alive(process):
        return
    with contextlib.suppress(OSError, psutil.Error):
        if BY_FILE:
            _stop_file(process).touch()
        else:
            psutil.Process(process["pid"]).terminate()


def _stop_file(process: Mapping[str, Any]) -> Path:
    return Path(tempfile.gettempdir()) / f"rekindle-stop-{process['pid']}-{process['process_start']}"


class StopSignals:
    """While active, a first signal only sets `requested`; a second SIGINT ends the process at once, unsaved."""

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}
        self._leave: Callable[[], None] | None = None  # what a stop means while nothing is to save
        self._over = threading.Event()

    def __enter__(self) -> StopSignals:
        for number in STOPPING:
            before = signal.getsignal(number)
            if number not in (signal.SIGTERM, signal.SIGINT) and before == signal.SIG_IGN:
                continue  # under nohup a closed terminal means nothing
            self._before[number] = before
            signal.signal(number, self._handle)
        if BY_FILE:
            threading.Thread(target=self._look_for_file, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def at_once(self, code: int | None = None, message: str = "") -> Iterator[None]:
        """Within, a signal ends the process: for where nothing is to save. Raises StopRequested when one came before.

        `code`: with which it ends, after a last message; an exception in the middle of an import would leave traces.
        None: by the signal itself, for where it waits outside of Python, which hears none.
        """
        self.raise_if_requested()

        def leave(number: int, frame: FrameType | None) -> None:
            logger.info("%s", message)
            os._exit(code or 0)

        self._leave = lambda: os._exit(EXIT_NOW) if code is None else leave(0, None)
        for number in self._before:
            signal.signal(number, signal.SIG_DFL if code is None else leave)
        try:
            yield
        finally:
            self._leave = None
            for number in self._before:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                os._exit(EXIT_NOW)
        self.requested = True

    def _look_for_file(self) -> None:
        path = _stop_file(run_folder.this_process())
        while not self._over.wait(LOOK_SECONDS):
            if path.exists():
                with contextlib.suppress(OSError):
                    path.unlink()
                if self._leave:
                    self._leave()
                self.requested = True

    def raise_if_requested(self) -> None:
        if self.requested:
            raise StopRequested
