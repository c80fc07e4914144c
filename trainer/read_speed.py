"""How fast a process reads what it trains from: added up where files are read, asked for by whoever reports it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Read:
    """What was read: bytes, and the seconds it took, those of threads that read at the same time added up."""

    bytes: int = 0
    seconds: float = 0.0

    def since(self, before: Read) -> Read:
        return Read(self.bytes - before.bytes, self.seconds - before.seconds)


class ReadMeter:
    """Adds up what any thread reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Read()

    @property
    def total(self) -> Read:
        """Since the process began."""
        return self._total

    @contextlib.contextmanager
    def timed(self) -> Iterator[Callable[[int], None]]:
        """Within, something is read; call what is given with its number of bytes."""
        started = time.perf_counter()

        def tell(count: int) -> None:
            with self._lock:
                seconds = self._total.seconds + time.perf_counter() - started
                self._total = Read(self._total.bytes + count, seconds)

        yield tell


TRAINED = ReadMeter()  # pictures, and what is cached of pictures and captions
