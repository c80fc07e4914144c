"""Trying a resume before it is needed: `python -m trainer drill` as a process of its own, which the page only watches.

Beside the run folders, in <output_dir>/.rekindle/drills/, each run's last drill has
    <output_name>.toml   the config it was given
    <output_name>.json   its process, and when it began
    <output_name>.log    what it prints
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
STAGES = ("Training 8 steps straight", "Training again, to be killed", "Resuming")  # what it prints as each begins
VERDICTS = ("PASSED", "FAILED", "Refused")


@dataclass(frozen=True)
class Drill:
    """A drill's process, whether it lives, and what it has printed."""

    began: float
    alive: bool
    text: str


def _file(run: RunFolder, suffix: str) -> Path:
    return run.path.parent / runner.REQUESTS / "drills" / f"{run.path.name}{suffix}"


def start(settings: Config, places: Places) -> RunFolder:
    """Begin a drill of these options, in a process of its own. Raises StartRefused."""
    run = RunFolder(places.home / settings.run_dir)
    before = read(run)
    if before is not None and before.alive:
        raise runner.StartRefused(f"A drill of {run.path.name} is running already.")
    arguments = [sys.executable, "-m", "trainer", "drill", "--config", str(_file(run, ".toml")), "--steps", str(STEPS)]
    try:
        files.write_text(_file(run, ".toml"), writing.to_toml(settings))
        with _file(run, ".log").open("wb") as log:
            process = detached.start(arguments, places.home, log)
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
    lines = drill.text.splitlines()
    verdict = next((place for place, line in enumerate(lines) if line.startswith(VERDICTS)), None)
    if drill.alive and verdict is None:
        done = sum(any(line.startswith(stage) for line in lines) for stage in STAGES)
        words = lines[-1] if lines else "Starting ..."
        passed = max(0.0, now - drill.began)
        return look.note(f"Drill, stage {max(1, done)} of 3, for {passed:.0f} s: {words}") + look.progress(
            "drill", done / 4
        )
    if verdict is None and "KeyboardInterrupt" in drill.text:
        return look.note("The drill was stopped before its verdict.")
    if verdict is None:
        words = "The drill ended without a verdict: it was stopped or killed." if lines else "The drill said nothing."
        return look.note(words, kind="warn", log=drill.text)
    kind = "good" if lines[verdict].startswith("PASSED") else "bad"
    return look.note(lines[verdict], [line for line in lines[verdict + 1 :] if line.strip()], kind=kind)
