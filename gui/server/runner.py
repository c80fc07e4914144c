"""Starts the trainer as a process of its own and asks it things. What is known of a start is kept in files.

Beside the run folders, in <output_dir>/.rekindle/, each run has
    <output_name>.toml   the complete config its last start was given
    <output_name>.json   that start: process, time, where its output begins in console.log, how it ended
    <output_name>.stop   the process that was last asked to stop
They are not in the run folder, which `overwrite_run` moves aside and which a refused start should not create in part.
What belongs to what is told by process, never by time: clocks are set back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gui.forms import form as forms
from gui.places import CODE, Places
from gui.server import detached
from trainer import files
from trainer.options import checks, writing
from trainer.options.config import Config
from trainer.runs import run_folder, signals
from trainer.runs.run_folder import Request, RunFolder, RunUnreadable

logger = logging.getLogger(__name__)
REQUESTS = ".rekindle"


class StartRefused(Exception):
    """The run cannot be started now; the message says why."""


@dataclass(frozen=True)
class Started:
    """A start made from the browser. `before`: the process that the run's record named then. `exit_code` is None while
    the process lives, and when nobody saw it end."""

    pid: int
    process_start: str | None
    boot_id: str
    host: str
    time: float
    console_offset: int
    before: str = ""
    exit_code: int | None = None

    @property
    def alive(self) -> bool:
        return run_folder.is_alive(asdict(self))


def _identity(process: Mapping[str, Any] | None) -> str:
    """What tells a process from every other one; empty for none."""
    return " ".join(str((process or {}).get(key, "")) for key in ("boot_id", "pid", "process_start")).strip()


def _record(run: RunFolder) -> dict[str, Any] | None:
    """run.json, which names the process of the latest session; None while it cannot be read."""
    try:
        return run_folder.read_run(run)
    except RunUnreadable:
        return None


def _request(run: RunFolder, suffix: str) -> Path:
    return run.path.parent / REQUESTS / f"{run.path.name}{suffix}"


def command(config_file: Path | str) -> list[str]:
    """The argument list that trains with a config file."""
    return [sys.executable, "-m", "trainer", "train", "--config", str(config_file)]


def shell_line(settings: Config, places: Places) -> str:
    """The line for a shell that starts the same process as `start` does. Writes the config file. Raises OSError."""
    run = RunFolder(places.home / settings.run_dir)
    if os.name == "nt":  # for cmd
        code = f' && set "PYTHONPATH={CODE}"' if places.home != CODE else ""
        return f'cd /d "{places.home}"{code} && {subprocess.list2cmdline(command(_write_config(run, settings)))}'
    words = ["cd", shlex.quote(str(places.home)), "&&"]
    if places.home != CODE:
        words.append(f"PYTHONPATH={shlex.quote(str(CODE))}")
    return " ".join([*words, shlex.join(command(_write_config(run, settings)))])


def _write_config(run: RunFolder, settings: Config) -> Path:
    path = _request(run, ".toml")
    files.write_text(path, writing.to_toml(settings))
    return path


def start(settings: Config, places: Places) -> RunFolder:
    """Start the trainer on the run that the config names and return at once. Raises StartRefused."""
    run = RunFolder(places.home / settings.run_dir)
    if run_folder.status(run) == "running":
        raise StartRefused(f"The run {run.path.name} is already running. Stop it first, or choose another output_name.")
    earlier = read_started(run)
    if earlier is not None and is_unrecorded(run, earlier) and earlier.alive:
        raise StartRefused(f"The run {run.path.name} is already starting; its trainer is process {earlier.pid}.")
    before = _identity(_record(run))
    try:
        arguments = command(_write_config(run, settings))
        run.path.mkdir(parents=True, exist_ok=True)
        with run.console_file.open("ab") as console:
            when, line = time.strftime("%Y-%m-%d %H:%M:%S"), "\n" if console.seek(0, os.SEEK_END) else ""
            console.write(f"{line}--- {when}: {shlex.join(arguments)}\n".encode())
            console.flush()
            offset = console.tell()
            process = detached.start(arguments, places.home, console)
    except OSError as error:
        raise StartRefused(f"The trainer could not be started: {error}") from error
    begun = Started(
        pid=process.pid,
        process_start=run_folder.process_start(process.pid),
        boot_id=run_folder.boot_id(),
        host=run_folder.this_process()["host"],
        time=time.time(),
        console_offset=offset,
        before=before,
    )
    _write_started(run, begun)
    threading.Thread(target=_await_end, args=(process, run, begun), daemon=True).start()
    places.remember_output_folder(run.path.parent)
    return run


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
    return _identity(_record(run)) in ("", begun.before)


def begun_runs(folders: Iterable[Path]) -> list[tuple[float, RunFolder]]:
    """Runs that were started from the browser and have no record of their own yet, with the time of the start."""
    found = []
    for folder in folders:
        for record in (folder / REQUESTS).glob("*.json"):
            run = RunFolder(folder / record.stem)
            begun = read_started(run)
            if begun is not None and is_there(run) and not run.run_file.exists():
                found.append((begun.time, run))
    return found


def is_there(run: RunFolder) -> bool:
    """Whether there is such a run: a record of its own, or a start whose process or folder was not removed since."""
    begun = read_started(run)
    return run.run_file.is_file() or (begun is not None and (begun.alive or run.path.exists()))


# --- requests ------------------------------------------------------------------------------------------------------


def _worker(run: RunFolder) -> dict[str, Any] | None:
    """The live process that works on the run or is about to; None when there is none."""
    begun, record = read_started(run), _record(run)
    if record is not None and run_folder.status(run) == "running":
        return record
    return asdict(begun) if begun is not None and begun.alive else None


def ask_stop(run: RunFolder, *, before_first_step: bool = False) -> bool:
    """Ask the run's process to finish its step, save and leave; whether there is a process to ask.

    Before its first step the trainer does not look for requests; a signal then means the same and is noticed sooner.
    """
    process = _worker(run)
    if process is None:
        return False
    recorded = run_folder.status(run) == "running"
    if recorded:
        run_folder.ask(run, "stop")
    if before_first_step or not recorded:
        signals.ask_to_stop(process)
    with contextlib.suppress(OSError):
        files.write_text(_request(run, ".stop"), _identity(process))
    return True


def stop_asked(run: RunFolder) -> bool:
    """Whether the process that works on the run was asked to stop."""
    try:
        return _request(run, ".stop").read_text(encoding="utf-8") == _identity(_worker(run))
    except OSError:
        return False


def kill(run: RunFolder) -> bool:
    """End the run's process and those it started at once, without saving; whether there was one."""
    process = _worker(run)
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
    return _worker(run) is not None


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
