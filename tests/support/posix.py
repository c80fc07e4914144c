"""What only POSIX has, for tests that need it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

WINDOWS = sys.platform == "win32"
posix_only = pytest.mark.skipif(WINDOWS, reason="Windows has no such thing")
IS_ROOT = sys.platform != "win32" and os.geteuid() == 0


def make_pipe(path: Path) -> bool:
    """Put a pipe among the files, which whoever opens it waits for; whether there are such things."""
    if sys.platform == "win32":
        return False
    os.mkfifo(path)
    return True


def make_pipe_or_skip(path: Path) -> None:
    """The same; where there are none, the test is skipped."""
    if not make_pipe(path):
        pytest.skip("Windows has no pipes among its files")
