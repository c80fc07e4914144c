"""Starts the trainings of the queue, each as a process of its own, and looks what becomes of them. No torch here.

A runner may be killed at any moment, as its trainings may. Nothing is known only by it: a decision is in queue.json
before a process is started, a process that was started is found by its config file, and how a training stands is in
its run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from trainer.options.problems import ConfigError
from trainer.refusal import Refused
from trainer.runs import detached, launch, queue, run_folder, signals
from trainer.runs.queue import Entry, Queue, QueueRefused
from trainer.runs.run_folder import RunFolder, RunInUse
from trainer.runs.signals import StopSignals

logger = logging.getLogger(__name__)
FINISHED, FAILED, REFUSED, STOPPED = 0, 1, 3, 4  # exit codes of the trainer
WHOLE_MACHINE = ""  # the one device where there are no GPUs that could be told apart
MOST_LOG = 1 << 20  # bytes of runner.log
LOOK_SECONDS = 0.5  # between two looks at the queue
MOST_DEATHS = 3


def devices_here(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs for trainings, as CUDA_VISIBLE_DEVICES names them; the whole machine where there are none."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()] or [WHOLE_MACHINE]
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return [WHOLE_MACHINE]
    return answer.stdout.split() or [WHOLE_MACHINE]


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Be the one that starts the queue's trainings. Raises QueueRefused where another process is."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(run_folder.locked(RunFolder(folder)))
        except RunInUse as error:
            raise QueueRefused(f"the queue {folder} is worked on by another process already") from error
        yield


def needs_runner(folder: Path) -> bool:
    """Whether there is something to do and nobody who does it. Raises QueueRefused."""
    return queue.read(folder).is_at_work and run_folder.holder(RunFolder(folder)) is None


def start_in_background(folder: Path) -> None:
    """Start a runner as a process of its own, which leaves when nothing is left to do; one too many leaves at once.

    Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "runner.log").open("ab") as log:
        if log.tell() > MOST_LOG:
            log.truncate(0)
        detached.start([sys.executable, "-m", "trainer", "queue", "run", "--queue", str(folder)], folder, log)


def ask_to_leave(folder: Path, seconds: float = 10.0) -> None:
    """Ask the queue's runner to leave, and wait for it; the trainings that it has started go on."""
    deadline = time.monotonic() + seconds
    while (runner := run_folder.holder(RunFolder(folder))) is not None and time.monotonic() < deadline:
        signals.ask_to_stop(runner)
        time.sleep(0.1)


class QueueRunner:
    """Works on a queue until nothing in it is left to start or to wait for, or until a signal asks it to leave; the
    trainings that it has started go on then."""

    def __init__(
        self, folder: Path, devices: Sequence[str], signals: StopSignals, most_deaths: int = MOST_DEATHS
    ) -> None:
        self.folder = folder
        self.devices = list(devices)
        self.signals = signals
        self.most_deaths = most_deaths
        self.ended: list[Entry] = []
        self._children: dict[int, subprocess.Popen[bytes]] = {}  # of those that this process has started

    def run(self) -> None:
        """Raises QueueRefused where another process does this already, or the queue cannot be read."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(holding(self.folder))
            while not self.signals.requested:
                with queue.changing(self.folder) as now:
                    for entry in now.among("running"):
                        self._settle(now, entry)
                    self._begin(now)
                    if not now.is_at_work:
                        queue.commit(self.folder, now)
                        stack.close()  # within the change: whoever adds something now finds that nobody works
                        return
                time.sleep(LOOK_SECONDS)

    # --- what became of a training ---------------------------------------------------------------------------------

    def _settle(self, now: Queue, entry: Entry) -> None:
        """Bring an entry that was started up to date with its process and its run."""
        child = self._children.get(entry.number)
        code = child.poll() if child else None
        if child and code is None:
            return
        process = self._still_at_work(entry)
        if process is not None:
            if launch.identity(process) != launch.identity(entry.process):
                self._children.pop(entry.number, None)
                now.put(replace(entry, process=process))
            return
        if child is not None and code is not None:
            del self._children[entry.number]
            if (begun := launch.read_started(entry.folder)) is not None and begun.pid == child.pid:
                launch.record_end(entry.folder, begun, code)
        ended = replace(self._ended(entry, code), process=None)
        if ended.state == "waiting":
            logger.info("%d %s: its process is gone; it goes on from where it was saved", entry.number, entry.name)
        else:
            ended = replace(ended, ended=time.time())
            self.ended.append(ended)
            logger.info("%d %s: %s%s", entry.number, entry.name, ended.state, f": {ended.said}" if ended.said else "")
        now.put(ended)

    def _still_at_work(self, entry: Entry) -> Mapping[str, Any] | None:
        """The process that works on the entry's run, or was started to; None when there is none."""
        if entry.process is not None and run_folder.is_alive(dict(entry.process)):
            return entry.process
        if run_folder.status(entry.folder) == "running":
            return launch.record_of(entry.folder)
        # Between a decision and its record stands only the start itself.
        return None if entry.process is not None else _process_of(launch.request_file(entry.folder, ".toml"))

    def _ended(self, entry: Entry, code: int | None) -> Entry:
        """The entry as its end leaves it: its run's own record decides, or its exit code where that says nothing."""
        record = launch.record_of(entry.folder)
        begun = launch.identity(record) not in ("", entry.before)
        status = run_folder.status(entry.folder) if begun else "new"
        if status == "finished" or code == FINISHED:
            return replace(entry, state="finished", said="")
        if code == REFUSED:
            return replace(entry, state="refused", said=_last_words(entry))
        if status == "failed" or code == FAILED:
            return replace(entry, state="failed", said=_last_words(entry))
        # Whoever shuts a machine down tells every process; a training that was stopped so is to go on afterwards.
        if code in (STOPPED, -signal.SIGTERM):
            time.sleep(1.0)
        seen = code is not None and not self.signals.requested
        if entry.stop_asked or ((status == "stopped" or code == STOPPED) and seen):
            return replace(entry, state="stopped", said="stopped on request")
        newest = next(iter(queue.digests(entry.folder)), "")
        # A death that nobody saw may be the machine's.
        deaths = 0 if newest != entry.newest else entry.deaths + (1 if seen else 0)
        if deaths >= self.most_deaths:
            said = f"its process died {deaths} times in a row without saving anything in between"
            return replace(entry, state="failed", said=said, deaths=0)
        return replace(entry, state="waiting", deaths=deaths)

    # --- what can begin --------------------------------------------------------------------------------------------

    def _begin(self, now: Queue) -> None:
        """Start what waits, in order. What has to wait keeps the devices that it waits for from those behind it."""
        taken = {device for entry in now.among("running") for device in entry.on}
        waiting = [entry for entry in now.among("waiting") if entry.at_once or not now.paused]
        if waiting and taken < set(self.devices):
            taken |= self._held_by_others(now)
        for entry in waiting:
            wanted = [name for name in entry.devices if name in self.devices] or list(self.devices)
            count = min(entry.gpus, len(self.devices))
            free = [device for device in wanted if device not in taken]
            if len(free) < count or launch.worker(entry.folder) is not None:
                taken |= set(wanted)
                continue
            taken |= set(free[:count])
            self._start(now, entry, free[:count])

    def _held_by_others(self, now: Queue) -> set[str]:
        """The devices of runs that are not this queue's."""
        own = {entry.run for entry in now.among("running")}
        folders = [Path(folder) for folder in now.folders]
        runs = [*run_folder.find_runs(folders), *(run for _, run in launch.begun_runs(folders))]
        held: set[str] = set()
        for run in runs:
            if str(run.path) not in own and (process := launch.worker(run)) is not None:
                held |= set(self._devices_of(process))
        return held

    def _devices_of(self, process: Mapping[str, Any]) -> list[str]:
        """The devices of a training that others started, by its environment; where that cannot be read, all."""
        try:
            environment = psutil.Process(int(process["pid"])).environ()
        except (psutil.Error, OSError):
            return self.devices
        named = environment.get("CUDA_VISIBLE_DEVICES")
        if named:
            return [name.strip() for name in named.split(",")]
        count = environment.get("LOCAL_WORLD_SIZE", "1")
        return self.devices[: int(count) if count.isdecimal() else 1]

    def _start(self, now: Queue, entry: Entry, devices: list[str]) -> None:
        """Decide, write that down, start, and write down what was started."""
        run = entry.folder
        try:
            if entry.origin is None:
                entry = replace(entry, origin=queue.origin_of(run))
            config = queue.config_to_start(self.folder, entry)
            file = launch.write_config(run, config)
        except (Refused, ConfigError, OSError) as error:
            now.put(replace(entry, state="refused", said=str(error), ended=time.time()))
            return
        entry = replace(
            entry, state="running", on=tuple(devices), process=None, before=launch.identity(launch.record_of(run)),
            started=time.time(), starts=entry.starts + 1, newest=next(iter(queue.digests(run)), ""), at_once=False,
        )  # fmt: skip
        now.put(entry)
        queue.commit(self.folder, now)
        several = len(devices) > 1
        arguments = launch.command_of_several(file, len(devices)) if several else launch.command(file)
        visible = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(devices)}
        if WHOLE_MACHINE in devices:
            visible = {}
        try:
            child, begun = launch.start(run, arguments, Path(entry.home), visible)
        except OSError as error:
            now.put(replace(entry, state="failed", said=f"it could not be started: {error}", ended=time.time()))
            return
        self._children[entry.number] = child
        now.put(replace(entry, process=asdict(begun)))
        where = f" on {', '.join(devices)}" if visible else ""
        logger.info("%d %s: started%s", entry.number, entry.name, where)


def _process_of(config_file: Path) -> dict[str, Any] | None:
    """The process that was started with this config file, and not by another that was; None when there is none."""
    result: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if str(config_file) in words and "train" in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            result[process.pid] = process
    for pid, process in result.items():
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in result:
                here = run_folder.this_process()
                return here | {"pid": pid, "process_start": run_folder.process_start(pid)}
    return None


def _last_words(entry: Entry) -> str:
    """What the trainer said last of why it left."""
    said = launch.said_since(entry.folder, launch.read_started(entry.folder)).splitlines()
    reasons = [line.split("Refused: ", 1)[1] for line in said if "Refused: " in line]
    failed = [line.split("Failed: ", 1)[1] for line in said if "Failed: " in line]
    return " ".join(reasons or failed[-1:] or said[-1:])
