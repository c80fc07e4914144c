"""Starts the trainer as a process of its own and asks it things. What is known of a start is kept in files.

Beside the run folders, in <output_dir>/.rekindle/, each run has
    <output_name>.toml   the complete config its last start was given
    <output_name>.json   that start: process, time, where its output begins in console.log, how it ended
    <output_name>.stop   present once that session was asked to stop
They are not in the run folder, which `overwrite_run` moves aside and which a refused start should not create in part.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gui.places import CODE, Places
from trainer import config, files, runs
from trainer.config import Config
from trainer.runs import RunFolder

logger = logging.getLogger(__name__)
REQUESTS = ".rekindle"
SECRETS = ("REKINDLE_USERNAME", "REKINDLE_PASSWORD")


class StartRefused(Exception):
    """The run cannot be started now; the message says why."""


@dataclass(frozen=True)
class Started:
    """A start made from the browser. `exit_code` is None while the process lives, and when nobody saw it end."""

    pid: int
    process_start: str | None
    boot_id: str
    host: str
    time: float
    console_offset: int
    exit_code: int | None = None

    @property
    def alive(self) -> bool:
        return runs.is_alive(asdict(self))


def _request(run: RunFolder, suffix: str) -> Path:
    return run.path.parent / REQUESTS / f"{run.path.name}{suffix}"


def command(config_file: Path | str) -> list[str]:
    """The argument list that trains with a config file."""
    return [sys.executable, "-m", "trainer", "train", "--config", str(config_file)]


def start(settings: Config, places: Places) -> RunFolder:
    """Start the trainer on the run that the config names and return at once. Raises StartRefused."""
    run = RunFolder(places.home / settings.run_dir)
    if runs.status(run) == "running":
        raise StartRefused(f"The run {run.path.name} is already running. Stop it first, or choose another output_name.")
    before = read_started(run)
    if before is not None and is_unrecorded(run, before) and before.alive:
        raise StartRefused(f"The run {run.path.name} is already starting; its trainer is process {before.pid}.")
    config_file = _request(run, ".toml")
    arguments = command(config_file)
    try:
        files.write_text(config_file, config.to_toml(settings))
        _request(run, ".stop").unlink(missing_ok=True)
        run.path.mkdir(parents=True, exist_ok=True)
        with run.console_file.open("ab") as console:
            offset = console.seek(0, os.SEEK_END)
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            console.write(f"{'' if offset == 0 else chr(10)}--- {when}: {shlex.join(arguments)}\n".encode())
            console.flush()
            process = subprocess.Popen(
                arguments,
                cwd=places.home,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise StartRefused(f"The trainer could not be started: {error}") from error
    begun = Started(
        pid=process.pid,
        process_start=runs.process_start(process.pid),
        boot_id=runs.boot_id(),
        host=runs.this_process()["host"],
        time=time.time(),
        console_offset=offset,
    )
    _write_started(run, begun)
    threading.Thread(target=_await_end, args=(process, run, begun), daemon=True).start()
    places.remember_output_folder(run.path.parent)
    return run


def _environment() -> dict[str, str]:
    """The trainer's environment: ours, without the browser's password, and with the program's code to import."""
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    paths = [str(CODE), environment.get("PYTHONPATH", "")]
    return environment | {"PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}


def _await_end(process: subprocess.Popen[bytes], run: RunFolder, begun: Started) -> None:
    code = process.wait()
    latest = read_started(run)
    if latest is not None and latest.pid == begun.pid and latest.process_start == begun.process_start:
        _write_started(run, replace(begun, exit_code=code))


def _write_started(run: RunFolder, begun: Started) -> None:
    try:
        files.write_bytes(_request(run, ".json"), files.json_bytes(asdict(begun)))
    except OSError as error:
        logger.warning("the start of %s cannot be recorded: %s", run.path, error)


def read_started(run: RunFolder) -> Started | None:
    """The last start of the run from the browser; None when there was none."""
    try:
        return Started(**json.loads(_request(run, ".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_unrecorded(run: RunFolder, begun: Started) -> bool:
    """Whether the run's own record says nothing of this start yet (or, once the process is gone, never will)."""
    try:
        return run.run_file.stat().st_mtime < begun.time
    except OSError:
        return True


def begun_runs(folders: Iterable[Path]) -> list[tuple[float, RunFolder]]:
    """Runs that were started from the browser and have no record of their own yet, with the time of the start."""
    found = []
    for folder in folders:
        for record in (folder / REQUESTS).glob("*.json"):
            run = RunFolder(folder / record.stem)
            begun = read_started(run)
            if begun is not None and not run.run_file.exists():
                found.append((begun.time, run))
    return found


# --- requests ------------------------------------------------------------------------------------------------------


def ask_stop(run: RunFolder, *, before_first_step: bool = False) -> bool:
    """Ask the run's process to finish its step, save and leave; whether there is a process to ask.

    Before its first step the trainer does not look for requests; SIGTERM then means the same and is noticed sooner.
    """
    begun = read_started(run)
    if runs.status(run) == "running":
        runs.ask(run, "stop")
        if before_first_step:
            _terminate(runs.read_run(run) or {})
    elif begun is not None and begun.alive:
        _terminate(asdict(begun))
    else:
        return False
    with contextlib.suppress(OSError):
        _request(run, ".stop").parent.mkdir(parents=True, exist_ok=True)
        _request(run, ".stop").touch()
    return True


def _terminate(process: dict[str, Any]) -> None:
    """Send SIGTERM to a process that is certainly the one meant."""
    if runs.is_alive(process):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process["pid"], signal.SIGTERM)


def stop_asked(run: RunFolder) -> float:
    """When the run was last asked to stop; 0 when it was not."""
    try:
        return _request(run, ".stop").stat().st_mtime
    except OSError:
        return 0.0


def ask_save(run: RunFolder) -> bool:
    """Ask the run's process for a checkpoint after its step; whether there is a process to ask."""
    if runs.status(run) != "running":
        return False
    runs.ask(run, "save")
    return True


def stop_all(places: Places, seconds: float) -> list[RunFolder]:
    """Ask every run of this machine to stop and save, and wait; returns those still running after that time."""
    folders = places.output_folders()
    waiting = [run for run in [*places.known_runs(), *(run for _, run in begun_runs(folders))] if ask_stop(run)]
    for run in waiting:
        logger.warning("%s was asked to save and stop", run.path)
    deadline = time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        time.sleep(0.2)
        waiting = [run for run in waiting if is_active(run)]
    return waiting


def is_active(run: RunFolder) -> bool:
    """Whether a process works on the run or is about to."""
    begun = read_started(run)
    return runs.status(run) == "running" or (begun is not None and begun.alive)


def has_runs(folder: Path) -> bool:
    """Whether a folder holds runs, or starts of runs."""
    return bool(runs.find_runs([folder]) or (folder / REQUESTS).is_dir())
