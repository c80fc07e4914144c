"""Trying a resume before it is needed: `python -m trainer drill` as a process of its own, which the page only watches.

Beside the run folders, in <output_dir>/.rekindle/drills/, each run's last drill has
    <output_name>.toml   the config it was given
    <output_name>.json   its process, and when it began
    <output_name>.log    what it prints: JSON lines, and whatever its programs say besides
"""

from __future__ import annotations

import contextlib
import glob
import json
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gui import look
from gui.places import Places
from gui.server import console_log, runner
from trainer import files
from trainer.options import writing
from trainer.options.config import Config
from trainer.runs import detached, run_folder
from trainer.runs.run_folder import RunFolder

STEPS = 8
COLOURS = {"passed": "good", "stopped": ""}  # of verdicts; others are bad


@dataclass(frozen=True)
class Drill:
    """A drill's process, whether it lives, and what it has printed. `began`: in seconds since 1970."""

    began: float
    alive: bool
    text: str

    def last(self, key: str) -> dict[str, Any] | None:
        """The last JSON object it printed that has this key."""
        for line in reversed(self.text.splitlines()):
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if isinstance(told, dict) and key in told:
                    return told
        return None


def _file(run: RunFolder, suffix: str) -> Path:
    return run.path.parent / runner.REQUESTS / "drills" / f"{run.path.name}{suffix}"


def start(settings: Config, places: Places) -> RunFolder:
    """Begin a drill of these options, in a process of its own. Raises StartRefused."""
    run = RunFolder(places.home / settings.run_dir)
    before = read(run)
    if before is not None and before.alive:
        raise runner.StartRefused(f"A drill of {run.path.name} is running already.")
    command = [sys.executable, "-m", "trainer", "drill", "--json", "--steps", str(STEPS)]
    command += ["--config", str(_file(run, ".toml"))]
    try:
        files.write_text(_file(run, ".toml"), writing.to_toml(settings))
        with _file(run, ".log").open("wb") as log:
            process = detached.start(command, places.home, log)
        here = {
            "pid": process.pid,
            "process_start": run_folder.process_start(process.pid),
            "boot_id": run_folder.boot_id(),
        }
        files.write_bytes(_file(run, ".json"), files.json_bytes(here | {"time": time.time()}))
    except OSError as error:
        raise runner.StartRefused(f"The drill could not be started: {error}") from error
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
    return run


def read(run: RunFolder) -> Drill | None:
    """The run's last drill as it stands; None when there was none."""
    try:
        told = json.loads(_file(run, ".json").read_text(encoding="utf-8"))
        return Drill(float(told["time"]), run_folder.is_alive(told), console_log.tail(_file(run, ".log")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def stop(run: RunFolder) -> bool:
    """End a drill and the trainings it started; whether there was one. Nothing of the run itself is touched."""
    drill = read(run)
    if drill is None or not drill.alive:
        return False
    pid = json.loads(_file(run, ".json").read_text(encoding="utf-8"))["pid"]
    family = detached.family_of(pid)
    if sys.platform != "win32":
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGINT)  # so that it cleans up
    else:
        detached.kill(family)
        psutil.wait_procs(family, timeout=10)
        for folder in run.path.parent.glob(f".drill-{glob.escape(run.path.name)}-*"):
            shutil.rmtree(folder, ignore_errors=True)
    return bool(family)


def show(drill: Drill | None, now: float) -> str:
    """In HTML: how far it is, or its verdict with the figures."""
    if drill is None:
        return ""
    if verdict := drill.last("verdict"):
        first, *others = [line for text in verdict["lines"] for line in text.splitlines() if line.strip()]
        return look.note(first, others, kind=COLOURS.get(verdict["verdict"], "bad"))
    if not drill.alive:
        return look.note("The drill ended without a verdict: it was killed.", kind="warn", log=drill.text)
    stage = drill.last("stage") or {"stage": 0, "of": 1, "doing": "Starting"}
    passed = max(0.0, now - drill.began)
    words = f"stage {stage['stage']} of {stage['of']}: {stage['doing']}" if stage["stage"] else stage["doing"]
    return look.note(f"Drill, for {passed:.0f} s, {words} ...") + look.progress(
        "drill", stage["stage"] / (stage["of"] + 1)
    )
