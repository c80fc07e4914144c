"""Starts the trainer and asks it things, for the page. What is known of a start is kept by trainer.runs.launch."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gui.forms import form as forms
from gui.places import CODE, Places
from trainer.options import checks
from trainer.options.config import Config
from trainer.runs import detached, launch, run_folder
from trainer.runs.launch import REQUESTS, Started, command
from trainer.runs.run_folder import Request, RunFolder

logger = logging.getLogger(__name__)


class StartRefused(Exception):
    """The run cannot be started now; the message says why."""


def shell_line(settings: Config, places: Places) -> str:
    """The line for a shell that starts the same process as `start` does. Writes the config file. Raises OSError."""
    run = RunFolder(places.home / settings.run_dir)
    if os.name == "nt":  # for cmd
        code = f' && set "PYTHONPATH={CODE}"' if places.home != CODE else ""
        return f'cd /d "{places.home}"{code} && {subprocess.list2cmdline(command(launch.write_config(run, settings)))}'
    words = ["cd", shlex.quote(str(places.home)), "&&"]
    if places.home != CODE:
        words.append(f"PYTHONPATH={shlex.quote(str(CODE))}")
    return " ".join([*words, shlex.join(command(launch.write_config(run, settings)))])


def start(settings: Config, places: Places) -> RunFolder:
    """Start the trainer on the run that the config names and return at once. Raises StartRefused."""
    run = RunFolder(places.home / settings.run_dir)
    if run_folder.status(run) == "running":
        raise StartRefused(f"The run {run.path.name} is already running. Stop it first, or choose another output_name.")
    earlier = launch.read_started(run)
    if earlier is not None and launch.is_unrecorded(run, earlier) and earlier.alive:
        raise StartRefused(f"The run {run.path.name} is already starting; its trainer is process {earlier.pid}.")
    try:
        process, begun = launch.start(run, command(launch.write_config(run, settings)), places.home)
    except OSError as error:
        raise StartRefused(f"The trainer could not be started: {error}") from error
    threading.Thread(target=_await_end, args=(process, run, begun), daemon=True).start()
    places.remember_output_folder(run.path.parent)
    return run


def _await_end(process: subprocess.Popen[bytes], run: RunFolder, begun: Started) -> None:
    launch.record_end(run, begun, process.wait())


# --- requests ------------------------------------------------------------------------------------------------------


def kill(run: RunFolder) -> bool:
    """End the run's process and those it started at once, without saving; whether there was one."""
    process = launch.worker(run)
    if process is None:
        return False
    family = detached.family_of(process["pid"])
    if run_folder.is_alive(process):  # certainly the one meant
        detached.kill(family)
    return True


def ask(run: RunFolder, request: Request) -> bool:
    """Ask the run's process for a checkpoint or samples after its step; whether there is a process to ask."""
    if run_folder.status(run) != "running":
        return False
    run_folder.ask(run, request)
    return True


def stop_all(places: Places, seconds: float) -> list[RunFolder]:
    """Ask every run of this machine to stop and save, and wait; returns those still running after that time."""
    folders = places.output_folders()
    waiting = [
        run for run in [*places.known_runs(), *(run for _, run in launch.begun_runs(folders))] if launch.ask_stop(run)
    ]
    for run in waiting:
        logger.warning("%s was asked to save and stop", run.path)
    deadline = time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        time.sleep(0.2)
        waiting = [run for run in waiting if is_active(run)]
    return waiting


def is_active(run: RunFolder) -> bool:
    """Whether a process works on the run or is about to."""
    return launch.worker(run) is not None


def has_runs(folder: Path) -> bool:
    """Whether a folder holds runs, or starts of runs."""
    return bool(run_folder.find_runs([folder]) or (folder / REQUESTS).is_dir())


def run_of(places: Places, values: Mapping[str, Any]) -> RunFolder | None:
    """The run folder that the form names; None while it names none."""
    checked = forms.check_values({name: values[name] for name in ("output_dir", "output_name")})
    if checked.problems:
        return None
    settings = checks.build(checked.values)
    return RunFolder(places.home / settings.run_dir)
