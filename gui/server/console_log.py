"""The end of a run's console log, as a terminal would show it."""

from __future__ import annotations

import re
from pathlib import Path

LOG_BYTES = 128 << 10
LOG_LINES = 400
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]")


def terminal_lines(text: str) -> list[str]:
    """The lines as a terminal would show them: a carriage return begins its line anew, colours are left out."""
    lines = []
    for line in _ESCAPES.sub("", text).split("\n"):
        shown = ""
        for part in line.rstrip("\r").split("\r"):
            shown = part + shown[len(part) :]  # a shorter text leaves the end of the longer one before it
        lines.append(shown.rstrip())
    return lines


def tail(path: Path, start: int = 0, lines: int = LOG_LINES) -> str:
    """The end of a log, from byte `start` on at the earliest; empty when there is none."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            begin = max(min(start, end), end - LOG_BYTES)
            file.seek(begin)
            text = file.read(LOG_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""
    shown = terminal_lines(text.rstrip())
    if begin > start:
        shown = shown[1:]  # begins in the middle of a line
    return "\n".join(shown[-lines:]).strip("\n")


def stamp(path: Path) -> tuple[int, int, int]:
    """What changes whenever the log does."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
