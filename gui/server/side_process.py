"""Work about a run in a process of its own, which the page only watches: its last one of each kind is remembered.

Beside the run folders, in <output_dir>/.rekindle/<kind>/, a run's last work of a kind has
    <output_name>.toml   the config it was given, where it takes one
    <output_name>.json   its process, and when it began
    <output_name>.log    what it prints: JSON lines, and whatever its programs say besides
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gui.server import console_log, runner
from trainer import files
from trainer.runs import detached, run_folder
from trainer.runs.run_folder import RunFolder

ENDING_SECONDS = 10.0


@dataclass(frozen=True)
class Work:
    """A process, whether it lives, and what it has printed. `began`: in seconds since 1970."""

    began: float
    alive: bool
    text: str

    def last(self, key: str) -> dict[str, Any] | None:
        """The last JSON object it printed that has this key."""
        for line in reversed(self.text.splitlines()):
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and key in answer:
                    return answer
        return None


@dataclass(frozen=True)
class Kind:
    """A kind of work. `name`: of its folder; `words`: what a person calls it."""

    name: str
    words: str

    def file(self, run: RunFolder, suffix: str) -> Path:
        return run.path.parent / runner.REQUESTS / self.name / f"{run.path.name}{suffix}"

    def start(self, run: RunFolder, arguments: Sequence[str], home: Path) -> None:
        """Begin `python -m trainer` with these arguments in the home. Raises StartRefused."""
        before = self.read(run)
        if before is not None and before.alive:
            raise runner.StartRefused(f"{self.words} of {run.path.name} is running already.")
        try:
            self.file(run, ".log").parent.mkdir(parents=True, exist_ok=True)
            with self.file(run, ".log").open("wb") as log:
                process = detached.start([sys.executable, "-m", "trainer", *arguments], home, log)
            here = {
                "pid": process.pid,
                "process_start": run_folder.process_start(process.pid),
                "boot_id": run_folder.boot_id(),
            }
            files.write_bytes(self.file(run, ".json"), files.json_bytes(here | {"time": time.time()}))
        except OSError as error:
            raise runner.StartRefused(f"{self.words} could not be started: {error}") from error
        threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie

    def read(self, run: RunFolder) -> Work | None:
        """The run's last work of this kind as it stands; None when there was none."""
        try:
            answer = json.loads(self.file(run, ".json").read_text(encoding="utf-8"))
            return Work(float(answer["time"]), run_folder.is_alive(answer), console_log.tail(self.file(run, ".log")))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def stop(self, run: RunFolder) -> bool:
        """End the work and the processes it started; whether there was one. Elsewhere than on Windows, it may clean up
        first."""
        work = self.read(run)
        if work is None or not work.alive:
            return False
        family = detached.family_of(json.loads(self.file(run, ".json").read_text(encoding="utf-8"))["pid"])
        if sys.platform != "win32":
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGINT)
        else:
            detached.kill(family)
            psutil.wait_procs(family, timeout=ENDING_SECONDS)
        return bool(family)
