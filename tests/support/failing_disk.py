"""A disk that fails at chosen calls of a run's saves, every second save being spared, and what has to come of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.faults import Call, FileCalls
from tests.support.runs_at_tiny_size import (
    assert_bit_equal,
    config_for,
    events_of,
    run,
    steps_of,
    temporary_in,
    tensors_of,
)
from trainer.checkpoints.checkpoint import Save, Writer
from trainer.options.config import Config
from trainer.runs import manifest
from trainer.runs.run_folder import RunFolder

ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)


@dataclass(frozen=True)
class Failure:
    """In one save, the `number`-th call fails, and with `lasting` every one after it."""

    number: int
    error: int
    lasting: bool = False


@dataclass
class FailingDisk:
    """Watches a run's saves. The second, the fourth ... meet the failures in turn."""

    config: Config
    failures: Sequence[Failure]
    saves: int = 0
    calls: list[list[str]] = field(default_factory=list)  # of each save
    problems: list[str] = field(default_factory=list)  # checkpoints that did not verify, files left over
    failed_at: dict[int, str] = field(default_factory=dict)  # step -> call

    @contextmanager
    def installed(self) -> Iterator[None]:
        write = Writer._write

        def watched(writer: Writer, save: Save, blocking: float) -> None:
            self.saves += 1
            self.calls.append([])
            self._step = save.step
            write(writer, save, blocking)

        with pytest.MonkeyPatch.context() as patches, FileCalls(self._before):
            patches.setattr(Writer, "_write", watched)
            yield

    def _before(self, call: Call) -> None:
        calls = self.calls[-1]
        if not calls:
            self._look()
        calls.append(f"{call.name} {Path(call.path).name}")
        place, fails = divmod(self.saves, 2)
        if fails or place > len(self.failures):
            return
        failure = self.failures[place - 1]
        if len(calls) == failure.number or (failure.lasting and len(calls) > failure.number):
            self.failed_at.setdefault(self._step, calls[-1])
            if failure.error == errno.ENOSPC:
                call.half()
            raise OSError(failure.error, os.strerror(failure.error), call.path)

    def _look(self) -> None:
        """Between two saves: every checkpoint is sound, and after one that was spared nothing temporary is left."""
        checkpoints = RunFolder(self.config.run_dir).checkpoints
        for found in manifest.listing(checkpoints, thorough=True):
            if found.problem:
                self.problems.append(f"before step {self._step}: {found.path.name}: {found.problem}")
        if self.saves % 2 == 0 and checkpoints.is_dir():
            self.problems += [f"before step {self._step}: {name}" for name in temporary_in(checkpoints)]


def calls_of_a_save(model: Path, images: Path, output: Path) -> list[str]:
    """The calls of a save that also deletes an older checkpoint and an older model file."""
    disk = FailingDisk(_config(model, images, output, 6), [])
    with disk.installed():
        run(disk.config)
    return disk.calls[3]


def _config(model: Path, images: Path, output: Path, steps: int) -> Config:
    return config_for(
        model,
        images,
        output,
        max_train_steps=steps,
        network_train_unet_only=True,
        keep_last_n_checkpoints=2,
        save_last_n_steps=1,
    )


def check_failures(model: Path, images: Path, output: Path, failures: Sequence[Failure]) -> FailingDisk:
    """Train with the failures, one in every second save; returns what happened, after checking it."""
    steps = 2 * len(failures) + 1
    straight = _config(model, images, output / "straight", steps).replace(save_every_n_steps=0)
    run(straight)
    config = straight.replace(output_dir=str(output / "failing"), save_every_n_steps=1)
    disk = FailingDisk(config, failures)
    with disk.installed():
        assert run(config) == "finished"

    assert disk.problems == []
    assert steps_of(config) == steps_of(straight)
    assert_bit_equal(tensors_of(config, steps), tensors_of(straight, steps))
    assert temporary_in(output) == []

    saved = {event["global_step"] for event in events_of(config, "checkpoint_saved")}
    failed = {event["global_step"] for event in events_of(config, "checkpoint_failed")}
    warned = {event["global_step"] for event in events_of(config, "warning") if event["kind"] == "checkpoint_failed"}
    assert set(disk.failed_at) == set(range(2, steps, 2))  # each failure did take place
    assert saved | failed == set(range(1, steps + 1))
    assert saved & failed == set()
    assert failed <= set(disk.failed_at)  # those that were spared succeeded
    assert warned == failed
    return disk
