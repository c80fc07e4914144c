"""A run folder: where things are in it, who works on it, what was asked of it. No torch here."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from trainer import files, locks
from trainer.refusal import Refused

RUN_VERSION = 1
Status = Literal["new", "running", "interrupted", "stopped", "finished", "failed"]
Request = Literal["stop", "save", "sample"]
# Not by whether the folder is there: Wine shows programs of Windows the one of Linux, with the wrong processes.
HAS_PROC = sys.platform == "linux"
REQUESTS: tuple[Request, ...] = ("stop", "save", "sample")


class RunInUse(Refused):
    """Another live process works on the run."""


class RunUnreadable(Refused):
    """run.json is damaged or of a newer version."""


@dataclass(frozen=True)
class RunFolder:
    """The run folder at `path`; its files need not exist yet."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def console_file(self) -> Path:
        return self.path / "console.log"

    @property
    def lock_file(self) -> Path:
        """Says who holds the run."""
        return self.path / ".lock"

    @property
    def held_file(self) -> Path:
        """Locked as long as somebody holds it; apart from what says who, for nobody reads a locked file on Windows."""
        return self.path / ".held"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def abandoned(self) -> Path:
        return self.path / "abandoned"

    @property
    def portraits(self) -> Path:
        """What the images that it was trained with are like, a file for each set of them."""
        return self.path / "datasets"

    @property
    def archived_file(self) -> Path:
        """Its presence says that the run is left out of lists."""
        return self.path / ".archived"


# --- processes -----------------------------------------------------------------------------------------------------


def boot_id() -> str:
    """What tells one boot of a machine from the next; elsewhere than on Linux the machine alone, for there a process's
    start is a date, which no later boot has again."""
    if HAS_PROC:
        with contextlib.suppress(OSError):
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def process_start(pid: int) -> str | None:
    """When a process started, in a form that a changed clock does not alter; None when there is no such process."""
    if HAS_PROC:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] == "Z" else fields[19]  # clock ticks since boot; a zombie is dead
        except (OSError, IndexError):
            return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None


def this_process() -> dict[str, Any]:
    """What identifies this process for as long as the machine is up."""
    return {
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "boot_id": boot_id(),
        "host": socket.gethostname(),
    }


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether the process that `this_process` described still runs on this machine."""
    if process.get("boot_id") != boot_id() or not isinstance(process.get("pid"), int):
        return False
    start = process_start(process["pid"])
    return start is not None and start == process.get("process_start")


# --- the lock ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the run for this process; a stale lock is taken over.

    Raises RunInUse when a live process holds it, Refused when its folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(run.lock_file.open("a+b", buffering=0))
            held = _hold(run, stack)
            holder = _read_holder(run)
            if held or (holder.get("pid") != os.getpid() and is_alive(holder)):
                raise RunInUse(
                    f"the run {run.path} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}; "
                    "stop that process first, or choose another output_name"
                )
            file.seek(0)
            file.truncate()
            file.write(json.dumps(this_process()).encode())
        except OSError as error:
            raise _not_writable(run, error) from error
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


def _hold(run: RunFolder, stack: contextlib.ExitStack) -> bool:
    """Lock the run until the stack is left; whether somebody else has. Raises OSError."""
    with run.held_file.open("ab"):  # what follows may fail only for want of locks
        pass
    try:
        stack.enter_context(locks.hold(run.held_file))
    except locks.Held:
        return True
    except OSError:  # a file system without locks: what the file says has to do
        pass
    return False


def _not_writable(run: RunFolder, error: OSError) -> Refused:
    return Refused(
        f"output_dir: {run.path} cannot be written: {error.strerror}; free some space, or choose another output_dir"
    )


def _read_holder(run: RunFolder) -> dict[str, Any]:
    try:
        holder = json.loads(run.lock_file.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def holder(run: RunFolder) -> dict[str, Any] | None:
    """The live process that holds the run's lock; None when there is none."""
    process = _read_holder(run)
    return process if is_alive(process) else None


# --- run.json ------------------------------------------------------------------------------------------------------


def read_run(run: RunFolder) -> dict[str, Any] | None:
    """run.json; None when there is none. Raises RunUnreadable."""
    try:
        record = json.loads(run.run_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunUnreadable(f"{run.run_file} cannot be read: {error}") from error
    version = record.get("version") if isinstance(record, dict) else None
    if isinstance(version, int) and version > RUN_VERSION:
        raise RunUnreadable(
            f"{run.run_file} is of version {version}; this program reads up to {RUN_VERSION}: update it"
        )
    if not isinstance(record, dict) or not _is_record(record):
        raise RunUnreadable(f"{run.run_file} is not a run's record; move it away to begin a new one")
    return record


def _is_record(record: dict[str, Any]) -> bool:
    """Whether what every reader relies on is there."""
    kinds = {"version": int, "run_id": str, "status": str, "sessions": list, "created": float}
    if not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        return False
    return record["status"] in get_args(Status) and all(isinstance(entry, dict) for entry in record["sessions"])


def new_run(name: str) -> dict[str, Any]:
    """The record of a run that has not begun."""
    return {
        "version": RUN_VERSION,
        "run_id": uuid.uuid4().hex,
        "output_name": name,
        "created": time.time(),
        "status": "new",
        "sessions": [],
    }


def write_run(run: RunFolder, record: dict[str, Any]) -> None:
    files.write_bytes(run.run_file, files.json_bytes(record))


def status(run: RunFolder) -> Status:
    """How the run stands, from its record and from whether its process lives: a stored "running" can be stale."""
    try:
        record = read_run(run)
    except RunUnreadable:
        return "failed"
    if record is None:
        return "new"
    if record["status"] == "running" and not is_alive(record):
        return "interrupted"
    return record["status"]


def find_runs(folders: Sequence[Path]) -> list[RunFolder]:
    """Every run folder directly inside the given output folders, the one that was active last first."""
    result = []
    for folder in folders:
        try:
            entries = list(folder.iterdir())
        except OSError:
            continue
        result += [RunFolder(entry) for entry in entries if (entry / "run.json").is_file()]
    return sorted(result, key=last_active, reverse=True)


def last_active(run: RunFolder) -> float:
    """When its record or its events were last written, in seconds since 1970; 0 when neither is there."""
    times = [0.0]
    for path in (run.run_file, run.events_file):
        with contextlib.suppress(OSError):  # moved aside meanwhile
            times.append(path.stat().st_mtime)
    return max(times)


# --- requests ------------------------------------------------------------------------------------------------------


def ask(run: RunFolder, request: Request) -> None:
    """Ask the run's process for something; it answers after the step it is in."""
    run.control.mkdir(parents=True, exist_ok=True)
    (run.control / request).touch()


def drop_old_requests(run: RunFolder) -> None:
    """Forget what was asked before this process began: it was meant for an earlier one."""
    began = psutil.Process().create_time()  # exact to a second
    for request in REQUESTS:
        with contextlib.suppress(OSError):
            if (run.control / request).stat().st_mtime < began:
                (run.control / request).unlink()


def take_requests(run: RunFolder) -> set[Request]:
    """What was asked since the last call; each request is returned once."""
    taken: set[Request] = set()
    try:
        names = os.listdir(run.control)
    except OSError:
        return taken
    for request in REQUESTS:
        if request in names:
            with contextlib.suppress(OSError):
                (run.control / request).unlink()
                taken.add(request)
    return taken
