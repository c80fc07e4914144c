"""The only file that writes checkpoints and model files, and that loads checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import files
from trainer.distributed import beside
from trainer.models import tensor_files
from trainer.models.tensor_files import Entry
from trainer.refusal import Refused
from trainer.runs import manifest
from trainer.runs.manifest import CheckpointDamaged, Manifest

logger = logging.getLogger(__name__)
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
WRITER_NICE = 10  # measured on two busy cores: a step beside a save takes 1.3 of its usual time, 3.1 without


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds. `optimizer` and `ema` may be empty; `documents`: file name -> what it holds."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    state: Mapping[str, Any]
    documents: Mapping[str, bytes]
    config: str

    @property
    def tensor_bytes(self) -> int:
        groups = (self.weights, self.optimizer, self.ema)
        return sum(tensor.nbytes for group in groups for tensor in group.values())


@dataclass(frozen=True)
class Save:
    """One save: where to, and what besides the contents. `exports`: model file -> (tensors, metadata) from contents;
    `models`: model file or folder -> what writes a whole model there, from contents.

    `streamed`: too much to be copied first: what holds the training up is then the writing itself.
    """

    folder: Path | None  # the run's checkpoints folder; None writes model files only
    step: int
    epoch: int
    loss: float | None
    run_id: str
    contents: Contents
    validation: tuple[float, str] | None = None  # see Manifest
    exports: Mapping[Path, Callable[[Contents], tuple[dict[str, Tensor], dict[str, str]]]] = field(default_factory=dict)
    models: Mapping[Path, Callable[[Path, Contents], None]] = field(default_factory=dict)
    streamed: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The model files that it writes."""
        return (*self.exports, *self.models)


@dataclass(frozen=True)
class Saved:
    """How a save went. `path`: the checkpoint; `error`: why it failed; the times are in seconds."""

    save: Save
    path: Path | None
    bytes: int
    error: str
    blocking_seconds: float
    write_seconds: float
    verify_seconds: float  # of these for reading it back


class Writer:
    """Copies the state on the calling thread and writes it on another one; a save waits for the one before it.

    The copies are made into buffers kept from save to save, so that blocking costs one copy and no allocation. A state
    that is streamed is not copied: the calling thread writes its tensors, one at a time, and the other one completes
    the checkpoint and reads it back.
    """

    def __init__(self, done: Callable[[Saved], None]) -> None:
        self._done = done
        self._pool = beside.pool(1, "checkpoint", enter=_step_aside)
        self._pending: Future[None] | None = None
        self._buffers: dict[str, Tensor] = {}

    def save(self, save: Save) -> float:
        """Begin a save; returns the seconds for which the caller was held up."""
        started = time.perf_counter()
        self.wait()
        contents = save.contents
        if save.streamed:
            written, error = self._write_tensors(save)
            blocking = time.perf_counter() - started
            self._pending = self._pool.submit(self._complete, save, written, error, blocking)
            return blocking
        copied = Contents(
            weights=self._copy("weights", contents.weights),
            optimizer=self._copy("optimizer", contents.optimizer),
            ema=self._copy("ema", contents.ema),
            state=contents.state,
            documents=contents.documents,
            config=contents.config,
        )
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        frozen = dataclasses.replace(save, contents=copied)
        blocking = time.perf_counter() - started
        self._pending = self._pool.submit(self._write, frozen, blocking)
        return blocking

    def wait(self) -> None:
        """Return when the last save is written, or has failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        self.wait()
        self._pool.shutdown()

    def _copy(self, group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            key = f"{group}/{name}"
            buffer = self._buffers.get(key)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._buffers[key] = buffer
            copies[name] = buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        return copies

    def _write(self, save: Save, blocking: float) -> None:
        started = time.perf_counter()
        self._complete(save, *self._write_tensors(save), blocking, started)

    def _write_tensors(self, save: Save) -> tuple[Path | None, str]:
        """Write the model files and the checkpoint's tensors; where these are, and what went wrong."""
        try:
            _refuse_nonfinite(save.contents)
            for model_file, export in save.exports.items():
                write_model_file(model_file, *export(save.contents))
            for model_file, write_model in save.models.items():
                write_model(model_file, save.contents)
            return begin(save.folder, save) if save.folder else None, ""
        except (OSError, safetensors.SafetensorError, ValueError, Refused) as problem:
            return None, _explain(problem)

    def _complete(
        self, save: Save, written: Path | None, error: str, blocking: float, started: float | None = None
    ) -> None:
        """Make a checkpoint of the tensors that are written, read it back, and report."""
        started = time.perf_counter() if started is None else started
        path, size, verified = None, 0, 0.0
        if written and save.folder:
            try:
                path = complete(written, save.folder, save)
                completed = time.perf_counter()
                size = manifest.verify(path).bytes
                verified = time.perf_counter() - completed
            except (OSError, CheckpointDamaged, ValueError) as problem:
                path, error = None, _explain(problem)
        self._done(Saved(save, path, size, error, blocking, time.perf_counter() - started, verified))


def _step_aside() -> None:
    """Let the training's threads go first on a machine whose cores they need. Linux gives each thread its own nice."""
    if sys.platform == "linux":
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WRITER_NICE)


def _explain(problem: Exception) -> str:
    full = (errno.ENOSPC, errno.EDQUOT)
    number = problem.errno if isinstance(problem, OSError) else None
    # safetensors tells the system's number in its text only.
    if number in full or any(f"(os error {code})" in str(problem) for code in full):
        return f"the disk is full ({problem})"
    return str(problem) or type(problem).__name__


def _refuse_nonfinite(contents: Contents) -> None:
    for group in (contents.weights, contents.optimizer, contents.ema):
        for name, tensor in group.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"{name} is not finite, so the state is not worth keeping")


def as_entry(tensor: Tensor) -> Entry:
    """A tensor that is brought to the host when it is written."""

    def read() -> NDArray[Any]:
        on_host = tensor.detach().to("cpu", memory_format=torch.contiguous_format)
        return (on_host.view(torch.int16) if on_host.dtype == torch.bfloat16 else on_host).numpy()

    return Entry(tuple(tensor.shape), DTYPES[tensor.dtype], read)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    safetensors.torch.save_file(dict(tensors), path, metadata)
    files.restore_mode(path)
    files.fsync_file(path)


def write_model_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a model file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.require_space(path.parent, sum(tensor.nbytes for tensor in tensors.values()))
    # A folder, because safetensors in its turn writes to a temporary file beside its target.
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        _write_tensors(temporary / path.name, tensors, metadata)
        files.replace(temporary / path.name, path)
        files.fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(folder: Path, save: Save) -> Path:
    """Write a checkpoint: everything into a temporary folder, its manifest last, then one rename.

    Raises OSError; nothing of the failed attempt is left, and earlier checkpoints are as they were.
    """
    return complete(begin(folder, save), folder, save)


def begin(folder: Path, save: Save) -> Path:
    """Write the tensors of a checkpoint; returns the temporary folder, or the checkpoint where it is there already."""
    target = folder / manifest.folder_name(save.step)
    if target.exists():  # a rewind has moved later checkpoints aside, so this one is of this very step and branch
        return target
    files.remove_temporary(folder)  # what could not be removed when an earlier save failed
    files.require_space(folder, save.contents.tensor_bytes)
    temporary = folder / f".tmp-{target.name}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    contents = save.contents
    try:
        for name, tensors in (("weights", contents.weights), ("optimizer", contents.optimizer), ("ema", contents.ema)):
            if save.streamed and (tensors or name != "ema"):
                entries = {key: as_entry(tensor) for key, tensor in tensors.items()}
                tensor_files.write(temporary / f"{name}.safetensors", entries, {})
            elif tensors or name != "ema":
                _write_tensors(temporary / f"{name}.safetensors", tensors)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return temporary


def complete(temporary: Path, folder: Path, save: Save) -> Path:
    """Make a checkpoint of what `begin` has written; returns where it is. Raises OSError, as `write` does."""
    target = folder / manifest.folder_name(save.step)
    if temporary == target:
        return target
    contents = save.contents
    try:
        for name, document in {"state.json": files.json_bytes(contents.state), **contents.documents}.items():
            files.write_bytes(temporary / name, document)
        files.write_text(temporary / "config.toml", contents.config)
        listing = manifest.compose(
            temporary, save.step, save.run_id, time.time(), save.epoch, save.loss, save.validation
        )
        files.write_bytes(temporary / manifest.MANIFEST, listing)
        files.fsync_folder(temporary)
        files.rename(temporary, target)
        files.fsync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def load(folder: Path, expected: Manifest, weights: Mapping[str, Tensor], with_ema: bool) -> Contents:
    """Load a verified checkpoint and see that it fits; nothing live is changed.

    `weights`: the present parameters, whose names and shapes it must have. Raises CheckpointDamaged.
    """
    if manifest.verify(folder).digest != expected.digest:
        raise CheckpointDamaged(f"{folder} was replaced while it was being used")
    try:
        loaded = {
            name: safetensors.torch.load_file(folder / f"{name}.safetensors")
            for name in ("weights", "optimizer", *(["ema"] if with_ema else []))
        }
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointDamaged(f"{folder} cannot be read: {error}") from error
    for name in ("weights", "ema"):
        if name in loaded:
            _require_same_shapes(f"{name}.safetensors", loaded[name], weights)
    return Contents(
        weights=loaded["weights"],
        optimizer=loaded["optimizer"],
        ema=loaded.get("ema", {}),
        state=manifest.read_json(folder, "state.json"),
        documents={},
        config="",
    )


def _require_same_shapes(name: str, loaded: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
    different = sorted(
        key
        for key in loaded.keys() | present.keys()
        if key not in loaded or key not in present or loaded[key].shape != present[key].shape
    )
    if different:
        raise CheckpointDamaged(f"{name} is of another network: {', '.join(different[:3])} (of {len(different)})")
