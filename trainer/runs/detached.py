"""Processes that outlive whoever starts them, and their end. No torch here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

CODE = Path(__file__).resolve().parents[2]  # the folder that `import trainer` begins in
SECRETS = ("REKINDLE_USERNAME", "REKINDLE_PASSWORD")


def environment() -> dict[str, str]:
    """A process's environment: ours, without the browser's password, with the program's code to import, and UTF-8."""
    ours = {name: value for name, value in os.environ.items() if name not in SECRETS}
    paths = [str(CODE), ours.get("PYTHONPATH", "")]
    said = {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    return ours | said


def start(
    arguments: Sequence[str], folder: Path, output: IO[bytes], more: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a folder; what it prints goes to `output`. It hears neither a closed terminal nor Ctrl-C in
    ours, and goes on when we end. `more`: what its environment has besides ours. Raises OSError."""
    if sys.platform == "win32":
        flags, own_session = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW, False
    else:
        flags, own_session = 0, True
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment() | dict(more or {}),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=own_session,
        creationflags=flags,
    )


def family_of(pid: int) -> list[psutil.Process]:
    """A process and those it started, itself first; empty when it is gone."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """End them at once."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
