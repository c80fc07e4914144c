"""A run at a second address: a folder, or whatever fsspec reaches (s3://, gs://, hf://, ssh://). No torch here.

There it looks as here:

    <address>/<output_name>/run.json, config.toml, events.jsonl
    <address>/<output_name>/checkpoints/step-00000100/    a checkpoint's files, its manifest last
    <address>/<output_name>/abandoned/...                 checkpoints that do not lead to where the run is now
    <address>/<output_name>*.safetensors                  the model files

A checkpoint without its manifest was never completed, and is taken for none. Which of them are states of the run as it
is now follows from run.json, which tells the lineage of its last session: so a run that went back to an earlier step is
never continued from the steps it left, even where those could not be moved yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fsspec.core import split_protocol, url_to_fs

from trainer import files, quantities
from trainer.checkpoints import choosing, retention
from trainer.checkpoints.choosing import ResumeRefused
from trainer.data import fetching
from trainer.options.config import Config
from trainer.runs import branches, lineage, manifest, run_folder
from trainer.runs.events import EventWriter
from trainer.runs.lineage import Lineage
from trainer.runs.manifest import CheckpointDamaged, Found, Manifest
from trainer.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)
READ_AT_ONCE = 4 << 20  # bytes
TRIES = (2.0, 5.0)  # seconds between the attempts to reach a mirror at the start
FIRST_WAIT, LONGEST_WAIT = 5.0, 120.0  # seconds between the attempts of a training that goes on
CLOSING_SECONDS = 600.0  # for what is not there yet when a session ends
TAKEN_OVER = (
    "Another machine goes on with this run at {}, so what is trained here is no longer copied there. Stop one of the "
    "two; its checkpoints stay where it is."
)
NEW = ".new"  # behind the name of a file that is about to take the place of the one without it
ENDLESS = 2**62  # a step after all others


class MirrorAway(OSError):
    """The mirror cannot be reached, or does not do what it should; the message is its own."""


@contextlib.contextmanager
def reaching(address: str) -> Iterator[None]:
    """Within, every failure is one of the mirror: each kind of storage has errors of its own. Raises MirrorAway."""
    try:
        yield
    except (CheckpointDamaged, FileNotFoundError, MirrorAway, TakenOver):
        raise
    except Exception as error:
        raise MirrorAway(f"{address}: {str(error) or type(error).__name__}") from error


class TakenOver(Exception):
    """Another machine goes on with the run."""


def why_unusable(config: Config, home: Path) -> str:
    """Why a run cannot be mirrored where it is to be; empty when it can, as far as can be told without asking there.

    `home`: the folder that relative paths mean.
    """
    protocol, path = split_protocol(config.checkpoint_mirror)
    if protocol and (why := fetching.why_unusable(config.checkpoint_mirror)):
        return why
    if protocol in (None, "file", "local") and (home / path).resolve() == (home / config.output_dir).resolve():
        return "is output_dir itself, where the run is already; name another folder, on another disk or machine"
    return ""


class Mirror:
    """The files of one run at the address. Every method raises MirrorAway where it cannot be reached."""

    def __init__(self, config: Config) -> None:
        self.address = config.checkpoint_mirror
        self._name = config.output_name
        with reaching(self.address):
            options = {"use_listings_cache": False, "skip_instance_cache": True}
            self._fs, base = url_to_fs(self.address, **options)
        self._base = base.rstrip("/")

    def _in_run(self, *parts: str) -> str:
        return "/".join((self._base, self._name, *parts))

    # --- reading ---------------------------------------------------------------------------------------------------

    def _names(self, folder: str) -> dict[str, dict[str, Any]]:
        """What is in a folder: name -> fsspec's description."""
        self._fs.invalidate_cache()
        try:
            with reaching(self.address):
                return {item["name"].rstrip("/").rpartition("/")[2]: item for item in self._fs.ls(folder, detail=True)}
        except FileNotFoundError:
            return {}

    def record(self) -> dict[str, Any] | None:
        """The run's run.json there; None where there is no run, or only the beginning of its first file."""
        damaged = False
        for name in ("run.json", f"run.json{NEW}"):
            try:
                with reaching(self.address):
                    data = self._fs.cat_file(self._in_run(name))
                record = json.loads(data)
            except FileNotFoundError:
                continue
            except (ValueError, RecursionError):
                damaged = damaged or name == "run.json"
                continue
            if _is_record(record):
                return dict(record)
            damaged = damaged or name == "run.json"
        if damaged:
            raise MirrorAway(f"{self.address}: run.json is damaged")
        return None

    def checkpoints(self, outline: Path) -> list[Found]:
        """Every checkpoint there that was completed, newest first; of each, `outline` then has manifest and state."""
        names = self._names(self._in_run("checkpoints"))
        steps = {name for name in names if manifest.STEP_FOLDER.fullmatch(name)}
        for name in steps:
            self._fetch_outline(name, outline / name)
        listed = [item for item in manifest.listing(outline) if item.path.name in steps and item.manifest]
        return [
            Found(item.path, item.step, item.manifest, item.problem, f"{item.path.name}.pin" in names)
            for item in listed
        ]

    def _fetch_outline(self, name: str, folder: Path) -> None:
        """The manifest is read each time: another machine may have written the step again."""
        try:
            with reaching(self.address):
                listed = self._fs.cat_file(self._in_run("checkpoints", name, manifest.MANIFEST))
                if folder.is_dir() and (folder / manifest.MANIFEST).read_bytes() == listed:
                    return
                state = self._fs.cat_file(self._in_run("checkpoints", name, "state.json"))
        except FileNotFoundError:
            shutil.rmtree(folder, ignore_errors=True)
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "state.json").write_bytes(state)
        (folder / manifest.MANIFEST).write_bytes(listed)

    def fetch(self, wanted: Manifest, checkpoints: Path) -> Path:
        """Bring a checkpoint here, whole and verified. Raises CheckpointDamaged where it is not what its manifest says,
        and OSError where it cannot be written."""
        target = checkpoints / manifest.folder_name(wanted.step)
        with contextlib.suppress(CheckpointDamaged):
            if manifest.verify(target).digest == wanted.digest:
                return target
        checkpoints.mkdir(parents=True, exist_ok=True)
        files.require_space(checkpoints, wanted.bytes)
        temporary = checkpoints / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            for name in (*wanted.files, manifest.MANIFEST):
                self._get(self._in_run("checkpoints", target.name, name), temporary / name)
                files.fsync_file(temporary / name)
            if manifest.verify(temporary).digest != wanted.digest:
                raise CheckpointDamaged("it was replaced while it was being fetched")
            files.fsync_folder(temporary)
            if target.exists():
                manifest.set_aside(target, "it is not sound, and was fetched again from the mirror")
            files.rename(temporary, target)
            files.fsync_folder(checkpoints)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def _get(self, remote: str, local: Path) -> None:
        try:
            with reaching(self.address):
                self._fs.get_file(remote, str(local))
        except FileNotFoundError as error:
            raise CheckpointDamaged(f"{local.name} is missing") from error

    def fetch_record(self, run: RunFolder) -> None:
        """Bring what the run folder has besides checkpoints; run.json last."""
        for path in (run.config_file, run.events_file, run.run_file):
            try:
                with reaching(self.address):
                    data = self._fs.cat_file(self._in_run(path.name))
            except FileNotFoundError:
                continue
            files.write_bytes(path, data)

    # --- writing ---------------------------------------------------------------------------------------------------

    def _put(self, local: Path, remote: str, digest: str) -> None:
        """Write a file there and read it back. Raises FileNotFoundError where it is gone here."""
        with reaching(self.address):
            self._fs.makedirs(remote.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(local), remote)
            there = hashlib.sha256()
            with self._fs.open(remote, "rb") as file:
                while block := file.read(READ_AT_ONCE):
                    there.update(block)
        if there.hexdigest() != digest:
            raise MirrorAway(f"{self.address}: {local.name} does not read back as it was written")

    def put_checkpoint(self, item: Found) -> None:
        """Copy a checkpoint, its manifest last. Raises FileNotFoundError where it is pruned here meanwhile."""
        assert item.manifest
        self.remove(item.step)  # what was left half-written
        for name, (_, digest) in item.manifest.files.items():
            self._put(item.path / name, self._in_run("checkpoints", item.path.name, name), digest)
        listed = item.path / manifest.MANIFEST
        self._put(listed, self._in_run("checkpoints", item.path.name, listed.name), files.sha256_file(listed))

    def put_beside(self, path: Path) -> None:
        """Copy a file of the run folder, which may grow meanwhile: what there is of it now.

        Under another name first: some storages write in place, and a connection that is cut would leave half of it.
        """
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            shutil.copyfile(path, copy)
            self._put(copy, self._in_run(path.name + NEW), files.sha256_file(copy))
        with reaching(self.address):
            self._fs.mv(self._in_run(path.name + NEW), self._in_run(path.name))

    def put_model_file(self, path: Path) -> None:
        """Copy a model file, unless it is there."""
        remote = f"{self._base}/{path.name}"
        if not self._is_newer(path, remote):
            self._put(path, remote, files.sha256_file(path))

    def _is_newer(self, path: Path, remote: str) -> bool:
        """Whether what is there was written after the file here."""
        try:
            with reaching(self.address):
                same = self._fs.info(remote)["size"] == path.stat().st_size
                return bool(same and self._fs.modified(remote).timestamp() > path.stat().st_mtime)
        except FileNotFoundError:
            return False
        except MirrorAway as error:
            if isinstance(error.__cause__, NotImplementedError):  # it does not tell when
                return False
            raise

    def pin(self, step: int, pinned: bool) -> None:
        """Let it be known there, as here, that a checkpoint is kept whatever the rules say."""
        remote = self._in_run("checkpoints", f"{manifest.folder_name(step)}.pin")
        with reaching(self.address):
            if pinned:
                self._fs.pipe_file(remote, b"\n")
            else:
                self._fs.rm_file(remote)

    def remove(self, step: int) -> None:
        """Delete a checkpoint, its manifest first."""
        folder = self._in_run("checkpoints", manifest.folder_name(step))
        names = self._names(folder)
        with reaching(self.address):
            if manifest.MANIFEST in names:
                self._fs.rm_file(f"{folder}/{manifest.MANIFEST}")
            if names:
                self._fs.rm(folder, recursive=True)

    def set_aside(self, step: int) -> None:
        """Move a checkpoint to where nobody looks for one to continue from."""
        name = manifest.folder_name(step)
        self._move(self._in_run("checkpoints", name), self._in_run("abandoned", f"{name}-{uuid.uuid4().hex[:8]}"))

    def _move(self, folder: str, target: str) -> None:
        """Copied whole before the first file goes, since most storages cannot rename."""
        with reaching(self.address):
            self._fs.copy(folder, target, recursive=True)
            listed = f"{folder}/{manifest.MANIFEST}"
            if self._fs.exists(listed):
                self._fs.rm_file(listed)
            self._fs.rm(folder, recursive=True)

    def replace_run(self) -> None:
        """Move a run of this name aside, that another one begins in its place."""
        aside = f"{self._name}-replaced-{uuid.uuid4().hex[:8]}"
        with reaching(self.address):
            self._fs.copy(self._in_run(), f"{self._base}/{aside}", recursive=True)
            self._fs.rm_file(self._in_run("run.json"))
            self._fs.rm(self._in_run(), recursive=True)
        logger.info("The run of this name at %s is kept there as %s", self.address, aside)


def _is_record(value: Any) -> bool:
    """Whether this is what a run.json holds, as far as it is read here; it comes from elsewhere."""
    try:
        sessions = manifest.of(list, value["sessions"])
        manifest.of(str, value["run_id"])
        for session in sessions:
            manifest.of(str, session["id"])
            lineage.sessions_of(session)
    except (KeyError, TypeError, ValueError):
        return False
    return True


# --- at the start --------------------------------------------------------------------------------------------------


def restore(config: Config) -> None:
    """Bring the checkpoint that is to be continued from the mirror, where the mirror is ahead of this machine.

    Only for the process that holds the run. Raises ResumeRefused.
    """
    run, wanted = RunFolder(config.run_dir), choosing.wanted(config.resume_from_checkpoint)
    if wanted == "path":
        return
    has_own = _newest_sound(run) is not None
    mirror = _reached(config, needed=wanted != "nothing" and not has_own)
    if mirror is None:
        return
    try:
        _take_over(config, mirror, run, has_own=has_own)
    except OSError as error:
        raise ResumeRefused([f"checkpoint_mirror: {error}"]) from error


def _take_over(config: Config, mirror: Mirror, run: RunFolder, *, has_own: bool) -> None:
    """Raises ResumeRefused, and OSError where it cannot be read there or written here."""
    wanted = choosing.wanted(config.resume_from_checkpoint)
    with tempfile.TemporaryDirectory() as outline:
        record = mirror.record()
        if record is None:
            return
        there = _leading(mirror.checkpoints(Path(outline)), record)
        ours = run_folder.read_run(run)
        if wanted == "nothing":
            if there and not config.overwrite_run and (ours is None or ours["run_id"] != record["run_id"]):
                raise ResumeRefused([_taken(config, there[0].step)])
            return
        if ours is not None and ours["run_id"] != record["run_id"]:
            raise ResumeRefused(
                [
                    f"checkpoint_mirror: {config.checkpoint_mirror} has another run named {config.output_name}; choose "
                    "another address or another output_name"
                ]
            )
        if has_own and not _is_ahead(record, ours):
            return
        if wanted == "step":
            there = [item for item in there if item.step == int(config.resume_from_checkpoint)]
        if there:
            _fetch_newest(mirror, there, run)
            mirror.fetch_record(run)


def _reached(config: Config, *, needed: bool) -> Mirror | None:
    """The mirror; None where it cannot be reached and is not needed. Raises ResumeRefused where it is."""
    error: OSError | None = None
    for wait in (0.0, *TRIES):
        time.sleep(wait)
        try:
            mirror = Mirror(config)
            mirror.record()
            return mirror
        except MirrorAway as away:
            error = away
    if needed:
        raise ResumeRefused(
            [
                f"checkpoint_mirror: {error}. Without it nobody knows whether this run was begun on another machine. "
                'Try again later, or set checkpoint_mirror = "" to go on without it'
            ]
        )
    logger.warning("The mirror cannot be reached: %s. The training goes on from what is here.", error)
    return None


def _taken(config: Config, step: int) -> str:
    return (
        f"checkpoint_mirror: {config.checkpoint_mirror} has a run {config.output_name} up to step {step:,}; continue "
        'it with resume_from_checkpoint = "latest", choose another output_name, or set overwrite_run = true, which '
        "moves it aside there"
    )


def _newest_sound(run: RunFolder) -> Found | None:
    for item in manifest.listing(run.checkpoints):
        with contextlib.suppress(CheckpointDamaged):
            manifest.verify(item.path)
            return item
    return None


def _is_ahead(theirs: Mapping[str, Any], ours: Mapping[str, Any] | None) -> bool:
    """Whether the record there has all the sessions of ours, and others after them."""
    here = [session.get("id") for session in (ours or {}).get("sessions", [])]
    there = [session.get("id") for session in theirs.get("sessions", [])]
    return len(there) > len(here) and there[: len(here)] == here


def _last_session(record: Mapping[str, Any]) -> Any:
    return record["sessions"][-1].get("id") if record["sessions"] else None


def _leading(checkpoints: list[Found], record: Mapping[str, Any]) -> list[Found]:
    """The checkpoints that are states of the run as its last session had it; all where that does not tell."""
    sessions = record.get("sessions") or [{}]
    chain = lineage.sessions_of(sessions[-1])
    if chain is None:
        return checkpoints
    now = Lineage(chain, ENDLESS)
    states = [(item, lineage.of_checkpoint(item.path, item.step)) for item in checkpoints]
    return [item for item, state in states if state is None or state.leads_to(now)]


def _fetch_newest(mirror: Mirror, there: list[Found], run: RunFolder) -> None:
    """Raises ResumeRefused where none of them can be had."""
    reasons = []
    for item in there:
        assert item.manifest
        logger.info("Fetching step %d, %s, from %s", item.step, quantities.size(item.manifest.bytes), mirror.address)
        try:
            mirror.fetch(item.manifest, run.checkpoints)
        except CheckpointDamaged as error:
            reasons.append(f"{item.path.name}: {error}")
            logger.warning("%s at %s is damaged: %s", item.path.name, mirror.address, error)
        else:
            return
    raise ResumeRefused([f"checkpoint_mirror: every checkpoint at {mirror.address} is damaged", *reasons])


# --- while it trains -----------------------------------------------------------------------------------------------


class Mirroring:
    """Keeps a mirror as the run is here, on a thread of its own. Whatever fails is tried again; nothing waits for it
    before the session ends."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        events: EventWriter,
        warn: Callable[[str, str], None],
        resumed_from: int | None,
    ) -> None:
        """`warn`: is given the kind and the text of a warning."""
        self._config = config
        self._run = run
        self._events = events
        self._tell = warn
        self._resumed_from = resumed_from
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._mirror: Mirror | None = None
        self._sent: dict[str, tuple[int, int]] = {}  # of files beside the checkpoints: size and time as they were sent
        self._is_behind = True
        self._failing_since: float | None = None
        self._began = False  # whether this session's record is there

    def wake(self) -> None:
        """Something is there to be copied."""
        self._is_behind = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
            self._thread.start()
        self._wake.set()

    def close(self) -> None:
        """Return when everything is there, or it has been tried for long enough."""
        if self._thread is None:
            return
        self._is_behind = True  # the record of the run's end
        self._closing.set()
        self._wake.set()
        self._thread.join(0.5)
        if self._thread.is_alive():
            logger.info("Copying what is not there yet to %s", self._config.checkpoint_mirror)
            self._thread.join(CLOSING_SECONDS)
        if self._is_behind:
            logger.warning("%s does not have the end of this session.", self._config.checkpoint_mirror)

    def _work(self) -> None:
        wait = FIRST_WAIT
        with tempfile.TemporaryDirectory(prefix="rekindle-mirror-") as outline:
            while True:
                if not self._is_behind:
                    if self._closing.is_set():
                        return
                    self._wake.wait()
                self._wake.clear()
                self._is_behind = False
                try:
                    with reaching(self._config.checkpoint_mirror):
                        self._copy(Path(outline))
                    wait = FIRST_WAIT
                    if self._failing_since is not None:
                        logger.info("%s is as the run is here again", self._config.checkpoint_mirror)
                        self._failing_since = None
                except TakenOver:
                    self._tell("mirror_taken_over", TAKEN_OVER.format(self._config.checkpoint_mirror))
                    return
                except (OSError, CheckpointDamaged) as error:
                    self._is_behind = True
                    self._warn(error)
                    self._mirror = None
                    self._closing.wait(wait) if not self._closing.is_set() else time.sleep(min(wait, FIRST_WAIT))
                    wait = min(2 * wait, LONGEST_WAIT)

    def _warn(self, error: Exception) -> None:
        """Once for a failure that lasts."""
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            self._tell(
                "mirror", f"Nothing can be copied to the mirror: {error}. The training goes on; it is tried again."
            )

    def _copy(self, outline: Path) -> None:
        """Make the mirror like the run: what is newest first, since the machine may have seconds to live."""
        mirror = self._mirror = self._mirror or Mirror(self._config)
        record = run_folder.read_run(self._run)
        if record is None:
            return
        there = mirror.record()
        if there is not None and self._began and _last_session(there) != _last_session(record):
            raise TakenOver
        if there is not None and there["run_id"] != record["run_id"]:
            mirror.replace_run()
        for path in (self._run.config_file, self._run.run_file, self._run.events_file):  # before what they tell of
            with contextlib.suppress(FileNotFoundError):
                self._once(path, mirror.put_beside)
        self._began = True
        checkpoints = mirror.checkpoints(outline)
        own = {item.path.name for item in _leading(checkpoints, record)}
        for item in checkpoints:
            if item.path.name not in own:
                mirror.set_aside(item.step)
        digests = {item.step: item.manifest.digest for item in checkpoints if item.manifest and item.path.name in own}
        here = [item for item in manifest.listing(self._run.checkpoints) if item.manifest]
        for item in here:
            if item.manifest and digests.get(item.step) != item.manifest.digest:
                self._send(mirror, item)
                if self._wake.is_set():  # there is a newer one
                    self._is_behind = True
                    return
        self._prune(mirror, outline, {item.step: item.pinned for item in here})
        for path, _, _ in branches.model_files(self._config):
            with contextlib.suppress(FileNotFoundError):
                self._once(path, mirror.put_model_file)

    def _send(self, mirror: Mirror, item: Found) -> None:
        assert item.manifest
        started = time.monotonic()
        try:
            mirror.put_checkpoint(item)
        except FileNotFoundError:
            return  # pruned here meanwhile, because there are newer ones
        seconds = time.monotonic() - started
        self._events.write("checkpoint_mirrored", item.step, bytes=item.manifest.bytes, seconds=seconds)

    def _prune(self, mirror: Mirror, outline: Path, pins: Mapping[int, bool]) -> None:
        """By the rule of the run folder, applied to what is there."""
        checkpoints = mirror.checkpoints(outline)
        for item in checkpoints:
            if pins.get(item.step, item.pinned) != item.pinned:
                mirror.pin(item.step, pins[item.step])
        kept = [
            Found(item.path, item.step, item.manifest, item.problem, pins.get(item.step, item.pinned))
            for item in checkpoints
        ]
        for step in retention.steps_to_delete(self._run, kept, self._config, self._resumed_from):
            mirror.remove(step)

    def _once(self, path: Path, send: Callable[[Path], None]) -> None:
        """Send a file unless it is as it was when it was sent."""
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        if self._sent.get(path.name) != stamp:
            send(path)
            self._sent[path.name] = stamp
