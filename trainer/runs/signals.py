"""SIGTERM, SIGINT and SIGHUP ask for a stop; the loop answers between two steps. No torch here."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)
EXIT_NOW = 130


class StopRequested(Exception):
    """Raised where there is nothing to save yet."""


class StopSignals:
    """While active, a first signal only sets `requested`; a second SIGINT ends the process at once, unsaved."""

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                continue  # under nohup a closed terminal means nothing
            self._before[number] = before
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
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

        for number in self._before:
            signal.signal(number, signal.SIG_DFL if code is None else leave)
        try:
            yield
        finally:
            for number in self._before:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                os._exit(EXIT_NOW)
        self.requested = True

    def raise_if_requested(self) -> None:
        if self.requested:
            raise StopRequested
