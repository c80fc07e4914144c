"""The log of a session: on standard error, and in the run's console.log once the run is held. No torch here."""

from __future__ import annotations

import contextlib
import io
import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from pathlib import Path

FORMAT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
KEPT = 100_000  # records kept until the file is known


class ConsoleLog:
    """Keeps the log until `attach` names the file it belongs in."""

    def __init__(self) -> None:
        self._kept = logging.handlers.MemoryHandler(KEPT, flushLevel=logging.CRITICAL + 1)
        self._attached: Path | None = None

    def attach(self, path: Path) -> None:
        """Write what was kept and all that follows to a file, unless standard error goes there already."""
        if self._attached == path:
            return
        self._attached = path
        logging.getLogger().removeHandler(self._kept)
        path.touch()
        with contextlib.suppress(OSError):  # closed, as where a program of Windows has no console
            if os.path.samestat(path.stat(), os.fstat(2)):
                return
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(FORMAT)
        self._kept.setTarget(file)
        self._kept.flush()
        logging.getLogger().addHandler(file)


def is_main_process() -> bool:
    """Whether this is the one of several processes that speaks for all (torch's launchers set RANK)."""
    return os.environ.get("RANK", "0") == "0"


def write_utf8() -> None:
    """Print in UTF-8 whatever the system's own encoding is; on Windows that has the letters of one language only."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def logging_to_console() -> Iterator[ConsoleLog]:
    """Set logging up for a command; afterwards it is as it was."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    console = ConsoleLog()
    stream = logging.StreamHandler()
    stream.setFormatter(FORMAT)
    root.addHandler(stream)
    root.addHandler(console._kept)
    root.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for library in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(library, "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told in words of our own
    try:
        yield console
    finally:
        logging.captureWarnings(False)
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
