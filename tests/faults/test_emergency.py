"""Errors in the middle of a training: what is saved, what is said, and that the run goes on from there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.runs_at_tiny_size import STEPS, assert_bit_equal, config_for, events_of, run, steps_of, tensors_of
from trainer.checkpoints import checkpoint
from trainer.checkpoints.checkpoint import Save
from trainer.models.model import Model
from trainer.options.config import Config
from trainer.runs import manifest, run_folder
from trainer.runs.failures import advice_for
from trainer.runs.run_folder import RunFolder, RunUnreadable
from trainer.training import saving
from trainer.training.state import State


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    return config_for(tiny_model, tiny_images, tmp_path / "output", save_every_n_steps=0)


@pytest.fixture(scope="module")
def straight(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = config_for(tiny_model, tiny_images, tmp_path_factory.mktemp("straight"), save_every_n_steps=0)
    run(config)
    return config


def saved_steps(config: Config) -> list[int]:
    return sorted(found.step for found in manifest.listing(RunFolder(config.run_dir).checkpoints, thorough=True))


# --- memory --------------------------------------------------------------------------------------------------------


def in_forward(monkeypatch: pytest.MonkeyPatch, at: int, error: Exception) -> None:
    forward, count = Model.forward, [0]

    def failing(model: Model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        count[0] += 1
        if count[0] == at:
            raise error
        return forward(model, batch)

    monkeypatch.setattr(Model, "forward", failing)


def in_backward(monkeypatch: pytest.MonkeyPatch, at: int, error: Exception) -> None:
    forward, count = Model.forward, [0]

    def fail(gradient: torch.Tensor) -> torch.Tensor:
        raise error

    def failing(model: Model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        count[0] += 1
        losses = forward(model, batch)
        if count[0] == at:
            losses.register_hook(fail)
        return losses

    monkeypatch.setattr(Model, "forward", failing)


MEMORY = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "PyTorch on the CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
    ),
    "Python": MemoryError(),
    "the system": OSError(12, "Cannot allocate memory"),
}


@pytest.mark.parametrize("place", [in_forward, in_backward])
@pytest.mark.parametrize("kind", MEMORY)
def test_without_memory_the_last_completed_step_is_saved_and_the_run_goes_on_bit_equal(
    kind: str,
    place: Callable[[pytest.MonkeyPatch, int, Exception], None],
    config: Config,
    straight: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        place(patched, 4, MEMORY[kind])
        with pytest.raises(type(MEMORY[kind])):
            run(config)
    assert saved_steps(config) == [3]
    [failed] = events_of(config, "run_failed")
    assert failed["advice"].startswith("Memory ran out. Set gradient_checkpointing = true")
    assert run_folder.status(RunFolder(config.run_dir)) == "failed"
    assert run(config.replace(resume_from_checkpoint="latest")) == "finished"
    assert steps_of(config) == steps_of(straight)
    assert_bit_equal(tensors_of(config), tensors_of(straight))


def test_without_memory_inside_the_optimizer_only_the_save_before_is_finished(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.replace(save_every_n_steps=2)
    update, write = State.update, checkpoint.write

    def failing(state: State, finite: torch.Tensor) -> None:
        update(state, finite)  # half done or done: nobody knows
        if state.global_step == 4:
            raise MEMORY["CUDA"]

    def slow(folder: Path, save: Save) -> Path:
        time.sleep(0.5)  # still being written when the training fails
        return write(folder, save)

    monkeypatch.setattr(checkpoint, "write", slow)
    monkeypatch.setattr(State, "update", failing)
    with pytest.raises(torch.OutOfMemoryError):
        run(config)
    assert saved_steps(config) == [2]


def test_an_error_that_has_nothing_to_do_with_memory_has_other_advice() -> None:
    assert "Memory" not in advice_for(ValueError("shapes differ")) and "Memory" not in advice_for(
        OSError(5, "I/O error")
    )


# --- time ----------------------------------------------------------------------------------------------------------


def test_saves_by_time_follow_a_clock_that_is_never_set(
    config: Config, straight: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock on the wall runs backwards meanwhile; two of three steps are the minutes apart."""
    minutes = iter(range(10**6))
    wall = iter(range(2 * 10**9, 0, -3600))
    monkeypatch.setattr(saving.time, "monotonic", lambda: 20.0 * next(minutes))
    monkeypatch.setattr(time, "time", lambda: float(next(wall)))
    assert run(config.replace(save_every_n_minutes=1.0, keep_last_n_checkpoints=0)) == "finished"
    assert len(saved_steps(config)) > 2 and saved_steps(config)[-1] == STEPS
    assert steps_of(config) == steps_of(straight)
    times = [event["time"] for event in events_of(config, "step")]
    assert times == sorted(times, reverse=True)
    monkeypatch.undo()
    again = config.replace(resume_from_checkpoint="latest", max_train_steps=STEPS + 2)
    assert run(again) == "finished"
    assert [event["step"] for event in events_of(config, "resumed")] == [STEPS]


def test_model_files_alone_do_not_put_the_clock_back(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = iter(range(10**6))
    monkeypatch.setattr(saving.time, "monotonic", lambda: 60.0 * next(minutes))
    assert run(config.replace(save_every_n_steps=1, save_state=False, save_every_n_minutes=15.0)) == "finished"
    assert 1 < len(saved_steps(config)) < STEPS


# --- a record that was tampered with -------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    changes=st.dictionaries(
        st.sampled_from(("version", "run_id", "status", "sessions", "created", "pid", "boot_id", "parent", "more")),
        anything,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_record_of_a_run_has_a_status_and_is_read_or_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = RunFolder(tmp_path)
    folder.run_file.write_text(json.dumps({**run_folder.new_run("run"), "status": "running", **changes}))
    assert run_folder.status(folder) in ("new", "running", "interrupted", "stopped", "finished", "failed")
    try:
        run_folder.read_run(folder)
    except RunUnreadable as error:
        assert str(folder.run_file) in str(error)


@given(content=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_bytes_for_a_record_are_refused(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.run_file.write_bytes(content)
    assert run_folder.status(folder) == "failed"
    with pytest.raises(RunUnreadable):
        run_folder.read_run(folder)
