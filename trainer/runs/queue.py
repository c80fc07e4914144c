"""The queue: trainings that wait for a device, in order, kept in a folder of small files. Nothing is started here.

    queue.json       the entries in their order, whether it is paused, where other runs are looked for
    <number>.toml    the complete config of an entry
    .lock            who starts the trainings (see trainer.commands.queue_runner)
    changes/.lock    who changes something just now
Every file is written whole or not at all, and only while `changing` is held. What becomes of a training is told by its
run folder; an entry says what was asked for. No torch here.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from trainer import files
from trainer.options import checks, writing
from trainer.options.config import Config
from trainer.refusal import Refused
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder, RunInUse

QUEUE_VERSION = 1
State = Literal["waiting", "running", "finished", "stopped", "failed", "refused"]
OPEN: tuple[State, ...] = ("waiting", "running")  # the others have ended
CHANGE_WAIT = 20.0  # seconds for another process to be done with its change, which takes it milliseconds
MOST_ENDED = 200  # entries that have ended and are still listed


class QueueRefused(Refused):
    """The queue cannot do what was asked; the message says why, and the way out."""


@dataclass(frozen=True)
class Origin:
    """What was in the run folder before an entry's first start, to tell its own work from what was there."""

    run_id: str = ""
    checkpoints: tuple[str, ...] = ()  # digests of their manifests


@dataclass(frozen=True)
class Entry:
    """A training that was asked for. `run`: its run folder, `home`: where relative paths of its config begin."""

    number: int
    run: str
    home: str
    state: State = "waiting"
    gpus: int = 1  # how many it takes; without GPUs it takes the machine
    devices: tuple[str, ...] = ()  # on these and no others; empty: on any
    at_once: bool = False  # also while the queue is paused
    added: float = 0.0
    started: float | None = None  # its latest start
    ended: float | None = None
    on: tuple[str, ...] = ()  # the devices it was given
    process: Mapping[str, Any] | None = None  # of its latest start; None between the decision and the start
    before: str = ""  # the process that run.json named before that start
    origin: Origin | None = None  # None until it is first started
    starts: int = 0
    deaths: int = 0  # in a row, without a new checkpoint between them
    newest: str = ""  # the checkpoint that was the newest at its latest start
    stop_asked: bool = False
    said: str = ""  # why it ended as it did

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.run))

    @property
    def name(self) -> str:
        return Path(self.run).name


@dataclass
class Queue:
    """What queue.json says. `folders`: output folders in which runs of others are looked for, which hold devices."""

    entries: list[Entry] = field(default_factory=list)
    paused: bool = False
    folders: list[str] = field(default_factory=list)
    next_number: int = 1

    def entry(self, number: int) -> Entry:
        """Raises QueueRefused."""
        for entry in self.entries:
            if entry.number == number:
                return entry
        raise QueueRefused(f"there is no entry {number} in the queue; python -m trainer queue list names them")

    def put(self, entry: Entry) -> None:
        """Replace the entry of that number, in its place."""
        self.entries = [entry if other.number == entry.number else other for other in self.entries]

    def among(self, *states: State) -> list[Entry]:
        return [entry for entry in self.entries if entry.state in states]

    @property
    def is_at_work(self) -> bool:
        """Whether there is anything to start or to wait for."""
        waiting = self.among("waiting")
        return bool(self.among("running") or (waiting and not self.paused) or any(one.at_once for one in waiting))


def usual_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """$XDG_STATE_HOME/rekindle/queue, usually ~/.local/state/rekindle/queue: a queue is a machine's, not a folder's."""
    state = environment.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser().resolve() / "rekindle" / "queue"


def config_file(folder: Path, number: int) -> Path:
    return folder / f"{number}.toml"


# --- reading and changing ------------------------------------------------------------------------------------------


def read(folder: Path) -> Queue:
    """The queue as it is. Raises QueueRefused when its file is damaged or of a newer version."""
    path = folder / "queue.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Queue()
    except (OSError, ValueError) as error:
        raise QueueRefused(f"{path} cannot be read: {error}; move it away to begin a new queue") from error
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > QUEUE_VERSION:
        raise QueueRefused(f"{path} is of version {version}; this program reads up to {QUEUE_VERSION}: update it")
    try:
        return Queue(
            [_entry(item) for item in content["entries"]],
            bool(content["paused"]),
            [str(item) for item in content["folders"]],
            int(content["next_number"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise QueueRefused(f"{path} is not a queue: {error!r}; move it away to begin a new one") from error


def _entry(item: Mapping[str, Any]) -> Entry:
    """Raises TypeError, KeyError or ValueError."""
    values = {option.name: item[option.name] for option in fields(Entry)}
    if values["state"] not in get_args(State):
        raise ValueError(f"the state {values['state']!r}")
    origin = values["origin"]
    values["origin"] = Origin(origin["run_id"], tuple(origin["checkpoints"])) if origin is not None else None
    values |= {name: tuple(values[name]) for name in ("devices", "on")}
    return Entry(**values)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[Queue]:
    """The queue, for a change that no other process comes between; it is written when the context is left without an
    error. Raises QueueRefused."""
    with _alone(folder):
        queue = read(folder)
        before = _content(queue)
        yield queue
        commit(folder, queue, before)


def commit(folder: Path, queue: Queue, before: Any = None) -> None:
    """Write the queue as it is now, within `changing`, where the rest of the change must not be lost with this."""
    ended = [entry.number for entry in queue.entries if entry.state not in OPEN]
    for number in ended[: max(0, len(ended) - MOST_ENDED)]:
        forget(folder, queue, number)
    content = _content(queue)
    if content != before:
        try:
            files.write_bytes(folder / "queue.json", files.json_bytes(content))
        except OSError as error:
            raise QueueRefused(f"{folder} cannot be written: {error.strerror}; free some space") from error


def _content(queue: Queue) -> dict[str, Any]:
    return {
        "version": QUEUE_VERSION,
        "paused": queue.paused,
        "folders": list(queue.folders),
        "next_number": queue.next_number,
        "entries": [asdict(entry) for entry in queue.entries],
    }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    deadline = time.monotonic() + CHANGE_WAIT
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(run_folder.locked(RunFolder(folder / "changes")))
                break
            except RunInUse as error:
                if time.monotonic() > deadline:
                    raise QueueRefused(f"the queue {folder} is being changed by another process: {error}") from error
                time.sleep(0.02)
            except Refused as error:
                raise QueueRefused(f"the queue {folder} cannot be written; free some space, or name another") from error
        yield


# --- what a person does with it ------------------------------------------------------------------------------------


def add(
    folder: Path, config: Config, home: Path, *, gpus: int = 1, devices: Sequence[str] = (), first: bool = False
) -> Entry:
    """Put a training at the end of the queue, or `first` among those that wait. Raises QueueRefused."""
    run = RunFolder((home / config.run_dir).absolute())
    with changing(folder) as queue:
        _require_free(queue, run, config)
        entry = Entry(
            queue.next_number, str(run.path), str(home.absolute()), gpus=len(devices) or gpus, devices=tuple(devices),
            added=time.time(),
        )  # fmt: skip
        files.write_text(config_file(folder, entry.number), writing.to_toml(config))
        queue.next_number += 1
        queue.entries.append(entry)
        watch_folder(queue, run.path.parent)
        if first:
            place(queue, entry.number, 0)
    return entry


def _require_free(queue: Queue, run: RunFolder, config: Config, but: int | None = None) -> None:
    """Refuse a second entry of a run, and a beginning where there is something to lose. Raises QueueRefused."""
    same = [entry.number for entry in queue.among(*OPEN) if entry.run == str(run.path) and entry.number != but]
    if same:
        raise QueueRefused(
            f"the run {run.path.name} is in the queue already, as entry {same[0]}; edit that one, or choose another "
            "output_name"
        )
    have = manifest.listing(run.checkpoints)
    if have and not config.resume_from_checkpoint and not config.overwrite_run:
        raise QueueRefused(
            f"the run {run.path} already holds checkpoints, the newest of step {have[0].step}; continue it with "
            'resume_from_checkpoint = "latest", choose another output_name, or set overwrite_run = true (the old run '
            "is moved aside, not deleted)"
        )


def watch_folder(queue: Queue, folder: Path) -> None:
    """Look for runs of others in this output folder too, when a device is to be free."""
    if str(folder) not in queue.folders:
        queue.folders.append(str(folder))


def edit(folder: Path, number: int, config: Config, *, gpus: int | None = None) -> Entry:
    """Give an entry that does not run other options; one that has ended waits again. Raises QueueRefused."""
    with changing(folder) as queue:
        entry = _not_running(queue, number, "edited")
        run = RunFolder((Path(entry.home) / config.run_dir).absolute())
        if _own_checkpoints(entry) and str(run.path) == entry.run:  # a resume, with what is decided for it now
            config = config.replace(
                resume_from_checkpoint=config.resume_from_checkpoint or "latest", overwrite_run=False
            )
        _require_free(queue, run, config, but=number)
        entry = replace(entry, run=str(run.path), origin=None)
        files.write_text(config_file(folder, number), writing.to_toml(config))
        entry = replace(entry, gpus=gpus or entry.gpus, devices=entry.devices if gpus is None else ())
        queue.put(waiting_again(entry))
        watch_folder(queue, run.path.parent)
        return queue.entry(number)


def again(folder: Path, number: int, *, at_once: bool = False) -> Entry:
    """Let an entry that has ended wait again; it goes on from its latest checkpoint. Raises QueueRefused."""
    with changing(folder) as queue:
        entry = _not_running(queue, number, "started again")
        if entry.state == "finished":
            raise QueueRefused(f"entry {number} is finished; add it once more with more steps to train it longer")
        if entry.state != "waiting":
            same = [other for other in queue.among(*OPEN) if other.run == entry.run]
            if same:
                raise QueueRefused(f"the run {entry.name} is in the queue already, as entry {same[0].number}")
            entry = waiting_again(entry)
        queue.put(replace(entry, at_once=at_once or entry.at_once))
        if at_once:
            place(queue, number, 0)
        return queue.entry(number)


def waiting_again(entry: Entry) -> Entry:
    return replace(entry, state="waiting", stop_asked=False, deaths=0, said="", ended=None, process=None)


def _not_running(queue: Queue, number: int, what: str) -> Entry:
    entry = queue.entry(number)
    if entry.state == "running":
        raise QueueRefused(f"entry {number} ({entry.name}) is running and cannot be {what}; stop it first")
    return entry


def remove(folder: Path, number: int) -> Entry:
    """Take an entry out of the queue; its run folder stays as it is. Raises QueueRefused."""
    with changing(folder) as queue:
        entry = _not_running(queue, number, "removed")
        forget(folder, queue, number)
    return entry


def remove_ended(folder: Path) -> list[Entry]:
    """Take every entry out that has ended. Raises QueueRefused."""
    with changing(folder) as queue:
        ended = [entry for entry in queue.entries if entry.state not in OPEN]
        for entry in ended:
            forget(folder, queue, entry.number)
    return ended


def forget(folder: Path, queue: Queue, number: int) -> None:
    queue.entries = [entry for entry in queue.entries if entry.number != number]
    config_file(folder, number).unlink(missing_ok=True)


def move(folder: Path, number: int, to: int) -> None:
    """Give an entry that waits the place `to` among those that wait, 0 the first. Raises QueueRefused."""
    with changing(folder) as queue:
        if queue.entry(number).state != "waiting":
            raise QueueRefused(f"entry {number} does not wait, so it has no place in the line")
        place(queue, number, to)


def place(queue: Queue, number: int, to: int) -> None:
    entry = queue.entry(number)
    waiting = [other for other in queue.among("waiting") if other.number != number]
    waiting.insert(max(0, to), entry)
    queue.entries = [*(other for other in queue.entries if other.state != "waiting"), *waiting]


def pause(folder: Path, paused: bool = True) -> None:
    """Start nothing more until it goes on; what runs goes on running. Raises QueueRefused."""
    with changing(folder) as queue:
        queue.paused = paused


def note_stop(folder: Path, run: RunFolder) -> None:
    """A person ends this run: it is not to be started again by itself. Nothing happens where it is not in the queue."""
    if not any(entry.run == str(run.path) for entry in read(folder).among("running")):
        return
    with changing(folder) as queue:
        for entry in queue.among("running"):
            if entry.run == str(run.path):
                queue.put(replace(entry, stop_asked=True))


# --- what an entry is started with ---------------------------------------------------------------------------------


def origin_of(run: RunFolder) -> Origin:
    """What is in a run folder now. Raises RunUnreadable."""
    record = run_folder.read_run(run)
    return Origin(str(record["run_id"]) if record else "", tuple(digests(run)))


def digests(run: RunFolder) -> list[str]:
    """Of the manifests of the run's checkpoints, the newest first; damaged ones are left out."""
    return [item.manifest.digest for item in manifest.listing(run.checkpoints) if item.manifest]


def _own_checkpoints(entry: Entry) -> list[str]:
    """What an entry has saved itself, the newest first."""
    there = entry.origin.checkpoints if entry.origin else None
    return [] if there is None else [digest for digest in digests(entry.folder) if digest not in there]


def config_of(folder: Path, entry: Entry) -> Config:
    """The options that were asked for. Raises ConfigError."""
    return checks.read_config(config_file(folder, entry.number))


def config_to_start(folder: Path, entry: Entry) -> Config:
    """The options of the entry's next start: as asked for, or, once it has saved something, on from there.

    What was decided for a resume was done with its first checkpoint; from then on nothing differs that would need it.
    Raises ConfigError or RunUnreadable.
    """
    config = config_of(folder, entry)
    if entry.origin is None:
        return config
    run = entry.folder
    record = run_folder.read_run(run)
    if _own_checkpoints(entry):
        return config.replace(
            resume_from_checkpoint="latest", overwrite_run=False, resume_allow=(), resume_lr_policy="keep",
            resume_lr_scale=1.0, resume_warmup_steps=0,
        )  # fmt: skip
    has_begun = (str(record["run_id"]) if record else "") != entry.origin.run_id
    if has_begun and not config.resume_from_checkpoint:
        return config.replace(overwrite_run=False)  # the old run is aside already; there is nothing yet to go on from
    return config
