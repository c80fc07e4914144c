"""Starts a trainer as a process of its own, which outlives whoever starts it; what is known of it is kept in files.

Beside the run folders, in <output_dir>/.rekindle/, each run has
    <output_name>.toml   the complete config its last start was given
    <output_name>.json   that start: process, time, where its output begins in console.log, how it ended
    <output_name>.stop   the process that was last asked to stop
They are not in the run folder, which `overwrite_run` moves aside and which a refused start should not create in part.
What belongs to what is told by process, never by time: clocks are set back. No torch here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer import files
from trainer.options import writing
from trainer.options.config import Config
from trainer.runs import detached, run_folder, signals
from trainer.runs.run_folder import RunFolder, RunUnreadable

logger = logging.getLogger(__name__)
REQUESTS = ".rekindle"


@dataclass(frozen=True)
class Started:
    """A start of a run. `before`: the process that the run's record named then. `exit_code` is None while the process
    lives, and when nobody saw it end."""

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


def identity(process: Mapping[str, Any] | None) -> str:
    """What tells a process from every other one; empty for none."""
    return " ".join(str((process or {}).get(key, "")) for key in ("boot_id", "pid", "process_start")).strip()


def record_of(run: RunFolder) -> dict[str, Any] | None:
    """run.json, which names the process of the latest session; None while it cannot be read."""
    try:
        return run_folder.read_run(run)
    except RunUnreadable:
        return None


def request_file(run: RunFolder, suffix: str) -> Path:
    return run.path.parent / REQUESTS / f"{run.path.name}{suffix}"


def command(config_file: Path | str) -> list[str]:
    """The argument list that trains with a config file."""
    return [sys.executable, "-m", "trainer", "train", "--config", str(config_file)]


def command_of_several(config_file: Path | str, processes: int) -> list[str]:
    """The same with several processes on this machine, one a GPU. Port 0: accelerate takes a free one."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [*launcher, *fixed, "-m", *command(config_file)[2:]]


def write_config(run: RunFolder, settings: Config) -> Path:
    path = request_file(run, ".toml")
    files.write_text(path, writing.to_toml(settings))
    return path


def start(
    run: RunFolder, arguments: Sequence[str], home: Path, more: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], Started]:
    """Start a trainer on a run; its output goes to the run's console.log. Raises OSError.

    `home`: the folder in which relative paths begin. `more`: what its environment has besides ours.
    """
    before = identity(record_of(run))
    run.path.mkdir(parents=True, exist_ok=True)
    with run.console_file.open("ab") as console:
        when, line = time.strftime("%Y-%m-%d %H:%M:%S"), "\n" if console.seek(0, os.SEEK_END) else ""
        console.write(f"{line}--- {when}: {shlex.join(arguments)}\n".encode())
        console.flush()
        offset = console.tell()
        process = detached.start(arguments, home, console, more)
    begun = Started(
        pid=process.pid,
        process_start=run_folder.process_start(process.pid),
        boot_id=run_folder.boot_id(),
        host=run_folder.this_process()["host"],
        time=time.time(),
        console_offset=offset,
        before=before,
    )
    write_started(run, begun)
    return process, begun


def record_end(run: RunFolder, begun: Started, code: int) -> None:
    """Keep with a start how its process ended, unless there was another start since."""
    latest = read_started(run)
    if latest is not None and latest.pid == begun.pid and latest.process_start == begun.process_start:
        write_started(run, replace(begun, exit_code=code))


def write_started(run: RunFolder, begun: Started) -> None:
    try:
        files.write_bytes(request_file(run, ".json"), files.json_bytes(asdict(begun)))
    except OSError as error:
        logger.warning("the start of %s cannot be recorded: %s", run.path, error)


def read_started(run: RunFolder) -> Started | None:
    """The last recorded start of the run; None when there was none."""
    try:
        return Started(**json.loads(request_file(run, ".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_unrecorded(run: RunFolder, begun: Started) -> bool:
    """Whether the run's own record says nothing of this start yet (or, once the process is gone, never will)."""
    return identity(record_of(run)) in ("", begun.before)


def worker(run: RunFolder) -> dict[str, Any] | None:
    """The live process that works on the run or is about to; None when there is none."""
    begun, record = read_started(run), record_of(run)
    if record is not None and run_folder.status(run) == "running":
        return record
    return asdict(begun) if begun is not None and begun.alive else None


def begun_runs(folders: Iterable[Path]) -> list[tuple[float, RunFolder]]:
    """Runs that were started and have no record of their own yet, with the time of the start."""
    result = []
    for folder in folders:
        for record in (folder / REQUESTS).glob("*.json"):
            run = RunFolder(folder / record.stem)
            begun = read_started(run)
            if begun is not None and is_there(run) and not run.run_file.exists():
                result.append((begun.time, run))
    return result


def is_there(run: RunFolder) -> bool:
    """Whether there is such a run: a record of its own, or a start whose process or folder was not removed since."""
    begun = read_started(run)
    return run.run_file.is_file() or (begun is not None and (begun.alive or run.path.exists()))


def said_since(run: RunFolder, begun: Started | None, most: int = 4000) -> str:
    """The end of what a start's process has printed."""
    try:
        with run.console_file.open("rb") as console:
            size = console.seek(0, os.SEEK_END)
            console.seek(max(begun.console_offset if begun else 0, size - most))
            return console.read().decode("utf-8", errors="replace").strip()
    except OSError:
        return ""


# --- requests ------------------------------------------------------------------------------------------------------


def ask_stop(run: RunFolder, *, before_first_step: bool = False) -> bool:
    """Ask the run's process to finish its step, save and leave; whether there is a process to ask.

    Before its first step the trainer does not look for requests; a signal then means the same and is noticed sooner.
    """
    process = worker(run)
    if process is None:
        return False
    recorded = run_folder.status(run) == "running"
    if recorded:
        run_folder.ask(run, "stop")
    if before_first_step or not recorded:
        signals.ask_to_stop(process)
    with contextlib.suppress(OSError):
        files.write_text(request_file(run, ".stop"), identity(process))
    return True


def stop_asked(run: RunFolder) -> bool:
    """Whether the process that works on the run was asked to stop."""
    try:
        return request_file(run, ".stop").read_text(encoding="utf-8") == identity(worker(run))
    except OSError:
        return False
