"""What a checkpoint folder is: manifest, verification, list, setting aside, pruning. No torch here."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainer import files

CHECKPOINT_VERSION = 1
MANIFEST = "manifest.json"
STEP_FOLDER = re.compile(r"step-(\d{8,})")
REQUIRED = (
    "weights.safetensors",
    "optimizer.safetensors",
    "state.json",
    "config.toml",
    "dataset.json",
    "environment.json",
)
MAX_MANIFEST_BYTES = 1 << 20
T = TypeVar("T")


class CheckpointDamaged(Exception):
    """The folder is not a checkpoint that can be trusted; the message says why."""


class CheckpointNewer(CheckpointDamaged):
    """The folder is a checkpoint of a newer program, and so nothing that could be set aside."""


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says. `files`: name -> (bytes, SHA-256). `loss`, `epoch`: for the list of checkpoints.

    `validation`: the last validation loss before the save, and a name of the images it was measured with.
    """

    step: int
    run_id: str
    created: float
    epoch: int
    loss: float | None
    files: dict[str, tuple[int, str]]
    digest: str  # of the manifest itself
    validation: tuple[float, str] | None = None

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder is, or by its name was to be, a checkpoint; it may be damaged."""
    return folder.is_dir() and bool((folder / MANIFEST).exists() or STEP_FOLDER.fullmatch(folder.resolve().name))


def compose(
    folder: Path,
    step: int,
    run_id: str,
    created: float,
    epoch: int,
    loss: float | None,
    validation: tuple[float, str] | None = None,
) -> bytes:
    """The manifest of the files in `folder`, read back from the disk."""
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    body = {
        "version": CHECKPOINT_VERSION,
        "step": step,
        "run_id": run_id,
        "created": created,
        "epoch": epoch,
        "loss": loss,
        "validation": validation,
        "files": entries,
    }
    return files.json_bytes({**body, "digest": hashlib.sha256(files.json_bytes(body)).hexdigest()})


def of(kind: type[T], value: Any) -> T:
    """A value from JSON, if it is of this very kind (true is no number here). Raises ValueError."""
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 2**63):
        raise ValueError(f"{value!r} is not what belongs there")
    return value


def _validation(value: Any) -> tuple[float, str] | None:
    if value is None:
        return None
    loss, images = of(list, value)
    return of(float, loss), of(str, images)


def read(folder: Path) -> Manifest:
    """The folder's manifest, checked against itself but not against the files. Raises CheckpointDamaged."""
    path = folder / MANIFEST
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointDamaged(f"{MANIFEST} is not a plain file")
        if status.st_size > MAX_MANIFEST_BYTES:
            raise CheckpointDamaged(f"{MANIFEST} is too large")
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointDamaged(f"there is no {MANIFEST}: the checkpoint was never completed") from None
    except OSError as error:
        raise CheckpointDamaged(f"{MANIFEST} cannot be read: {error}") from error
    try:
        body = json.loads(data)
        version = body["version"]
        # One byte form is the right one, so that a changed byte anywhere is found, white space included.
        if data != files.json_bytes(body):
            raise CheckpointDamaged(f"{MANIFEST} was changed")
        digest = body.pop("digest")
        if digest != hashlib.sha256(files.json_bytes(body)).hexdigest():
            raise CheckpointDamaged(f"{MANIFEST} does not match its own digest")
        # Form and digest are the same in every version, or a flipped bit could pass for a newer one.
        if of(int, version) > CHECKPOINT_VERSION:
            raise CheckpointNewer(
                f"it is of version {version}; this program reads up to {CHECKPOINT_VERSION}: update it"
            )
        if version != CHECKPOINT_VERSION:
            raise ValueError(f"{version!r} is no version")
        entries = {name: (of(int, entry["bytes"]), of(str, entry["sha256"])) for name, entry in body["files"].items()}
        manifest = Manifest(
            step=of(int, body["step"]),
            run_id=of(str, body["run_id"]),
            created=of(float, body["created"]),
            epoch=of(int, body["epoch"]),
            loss=None if body["loss"] is None else of(float, body["loss"]),
            files=entries,
            digest=digest,
            validation=_validation(body.get("validation")),  # the first checkpoints have none
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(f"{MANIFEST} is damaged: {error}") from error
    for name in manifest.files:
        if name in ("", ".", "..") or Path(name).name != name or not name.isprintable():
            raise CheckpointDamaged(f"{MANIFEST} names a file outside the checkpoint: {name!r}")
    missing = [name for name in REQUIRED if name not in manifest.files]
    if missing:
        raise CheckpointDamaged(f"{MANIFEST} lacks {', '.join(missing)}")
    return manifest


def verify(folder: Path) -> Manifest:
    """Read every byte of the checkpoint and compare. Raises CheckpointDamaged with the first thing that is wrong."""
    manifest = read(folder)
    match = STEP_FOLDER.fullmatch(folder.name)
    if match and int(match[1]) != manifest.step:
        raise CheckpointDamaged(f"it is of step {manifest.step}, but its folder is named {folder.name}")
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        try:
            if not path.is_file() or path.is_symlink():
                raise CheckpointDamaged(f"{name} is missing")
            if path.stat().st_size != size:
                raise CheckpointDamaged(f"{name} has {path.stat().st_size} bytes instead of {size}")
            if files.sha256_file(path) != digest:
                raise CheckpointDamaged(f"{name} was changed: its SHA-256 does not match")
        except OSError as error:
            raise CheckpointDamaged(f"{name} cannot be read: {error}") from error
    return manifest


@dataclass(frozen=True)
class Found:
    """A folder among a run's checkpoints: with its manifest, or with what is wrong with it."""

    path: Path
    step: int
    manifest: Manifest | None
    problem: str
    pinned: bool


def listing(checkpoints: Path, *, thorough: bool = False) -> list[Found]:
    """Every checkpoint folder, newest first. `thorough` reads every byte; otherwise the manifests only.

    Safe while another process saves and prunes: a folder that vanishes meanwhile is left out.
    """
    listed, vanished = _look(checkpoints, thorough)
    for _ in range(10):
        if listed or not vanished:
            break
        listed, vanished = _look(checkpoints, thorough)  # the only one was deleted because there is a newer one
    return listed


def _look(checkpoints: Path, thorough: bool) -> tuple[list[Found], bool]:
    """What `listing` finds at once, and whether a folder vanished meanwhile."""
    try:
        names = os.listdir(checkpoints)
    except OSError:
        return [], False
    listed, vanished = [], False
    for name in names:
        match = STEP_FOLDER.fullmatch(name)
        path = checkpoints / name
        if not match:
            continue
        if not path.is_dir():
            vanished = vanished or not path.exists()
            continue
        manifest, problem = None, ""
        try:
            manifest = verify(path) if thorough else read(path)
        except CheckpointDamaged as error:
            if not path.is_dir():
                vanished = True
                continue
            problem = str(error)
        listed.append(Found(path, int(match[1]), manifest, problem, _pin(path).exists()))
    return sorted(listed, key=lambda item: item.step, reverse=True), vanished


def _unused(path: Path) -> Path:
    """The path, or with a number behind it the first one that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def move_aside(path: Path, folder: Path) -> Path:
    """Move a file or folder into `folder` without replacing anything there; returns where it is now."""
    folder.mkdir(parents=True, exist_ok=True)
    target = _unused(folder / path.name)
    files.rename(path, target)
    if _pin(path).exists():
        files.rename(_pin(path), _pin(target))
    files.fsync_folder(folder)
    files.fsync_folder(path.parent)
    return target


def set_aside(checkpoint: Path, reason: str) -> Path:
    """Move a damaged checkpoint to `rejected` beside it and write down why; it is never deleted."""
    target = move_aside(checkpoint, checkpoint.parent / "rejected")
    files.write_text(target.with_name(target.name + ".txt"), reason + "\n")
    return target


def _pin(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".pin")


def pin(checkpoint: Path, pinned: bool = True) -> None:
    """Keep a checkpoint whatever the retention rules say, or no longer. Raises OSError."""
    if not pinned:
        files.unlink(_pin(checkpoint))
        return
    _pin(checkpoint).touch()
    if not checkpoint.is_dir():  # deleted meanwhile, by a trainer that goes on
        _pin(checkpoint).unlink(missing_ok=True)
        raise FileNotFoundError(errno.ENOENT, "the checkpoint was deleted, because there are newer ones", checkpoint)


def to_prune(
    steps: Collection[int],
    *,
    keep_last: int,
    keep_every: int = 0,
    within_last_steps: int = 0,
    protected: Collection[int] = (),
) -> list[int]:
    """The steps whose checkpoints may go: not among the last `keep_last` (0: keep all), not a multiple of
    `keep_every`, not within the last `within_last_steps` steps, not protected (pinned, best, resumed from)."""
    if keep_last == 0 or not steps:
        return []
    ordered = sorted(steps, reverse=True)
    return [
        step
        for step in ordered[keep_last:]
        if not (keep_every and step % keep_every == 0)
        and not (within_last_steps and step > ordered[0] - within_last_steps)
        and step not in protected
    ]


def best(checkpoints: Iterable[Found]) -> int | None:
    """The step of the checkpoint with the lowest validation loss, among those measured with the newest one's images.

    None where the newest checkpoint has no validation loss; of equal ones the older, whose weights came first to it.
    """
    sound = sorted((item.manifest for item in checkpoints if item.manifest), key=lambda manifest: manifest.step)
    if not sound or sound[-1].validation is None:
        return None
    images = sound[-1].validation[1]
    measured = [(item.validation[0], item.step) for item in sound if item.validation and item.validation[1] == images]
    return min(measured)[1]


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint: renamed first, so that a crash in the middle leaves no half of one to be found."""
    trash = checkpoint.with_name(f".tmp-delete-{checkpoint.name}-{uuid.uuid4().hex[:8]}")
    files.rename(checkpoint, trash)
    files.unlink(_pin(checkpoint))
    shutil.rmtree(trash, ignore_errors=True)


def sums(folders: Sequence[Path]) -> list[str]:
    """Lines for `sha256sum -c`, from the manifests, for each file of the checkpoints."""
    return [
        f"{digest}  {folder / name}" for folder in folders for name, (_, digest) in sorted(read(folder).files.items())
    ]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a verified checkpoint. Raises CheckpointDamaged."""
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointDamaged(f"{name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointDamaged(f"{name} is not an object")
    if not isinstance(value.get("version"), int) or value["version"] > CHECKPOINT_VERSION:
        raise CheckpointDamaged(f"{name} is of version {value.get('version')!r}; this program does not know it")
    return value
