"""A disk that is full, fails or turns read-only in the middle of a save costs that save, and nothing else."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.failing_disk import ERRORS, FailingDisk, Failure, calls_of_a_save, check_failures
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
from trainer import files
from trainer.checkpoints.checkpoint import Save, Writer
from trainer.checkpoints.resume import ResumeRefused
from trainer.refusal import Refused
from trainer.runs import manifest, run_folder
from trainer.runs.failures import TrainingFailed
from trainer.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def calls(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return calls_of_a_save(tiny_model, tiny_images, tmp_path_factory.mktemp("calls"))


# --- every call of a save ------------------------------------------------------------------------------------------


def test_a_failure_of_any_one_call_of_a_save_costs_no_more_than_that_save(
    calls: list[str], tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    failures = [Failure(number, ERRORS[number % 3]) for number in range(1, len(calls) + 1)]
    disk = check_failures(tiny_model, tiny_images, tmp_path, failures)
    failed = {step: disk.failed_at[step] for step in disk.failed_at}
    assert len(failed) == len(calls)
    assert {call.split()[0] for call in failed.values()} >= {"write", "fsync", "rename", "mkdir", "replace", "unlink"}


def test_a_disk_that_fails_from_some_call_on_costs_no_more_than_that_save(
    calls: list[str], tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    numbers = range(1, len(calls) + 1, 4)
    failures = [Failure(number, error, lasting=True) for number, error in zip(numbers, itertools.cycle(ERRORS))]
    check_failures(tiny_model, tiny_images, tmp_path, failures)


# --- what is seen of it --------------------------------------------------------------------------------------------


def test_a_save_that_would_not_fit_is_not_begun_and_says_how_much_is_missing(
    tiny_model: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=3)
    write = Writer._write

    def small_at_step_2(writer: Writer, save: Save, blocking: float) -> None:
        monkeypatch.setattr(files, "SPARE_BYTES", 1 << 60 if save.step == 2 else 0)
        write(writer, save, blocking)

    monkeypatch.setattr(Writer, "_write", small_at_step_2)
    assert run(config) == "finished"
    [failed] = events_of(config, "checkpoint_failed")
    assert failed["global_step"] == 2
    assert "the disk is full" in failed["error"]
    assert " are needed" in failed["error"]
    assert [found.step for found in manifest.listing(RunFolder(config.run_dir).checkpoints)] == [3, 1]


def test_a_disk_too_small_for_a_run_is_told_before_its_first_step(
    tiny_model: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path)
    monkeypatch.setattr(files, "SPARE_BYTES", 1 << 60)
    with pytest.raises(ResumeRefused, match=r"the disk is too small: .* are needed"):
        run(config)
    assert events_of(config, "step") == []


def hold(folder: Path) -> None:
    with run_folder.locked(RunFolder(folder)):
        pytest.fail("the run was held")


def test_a_run_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "output").touch()
    with pytest.raises(Refused, match=r"output_dir: .*run cannot be written: Not a directory; .* another output_dir"):
        hold(tmp_path / "output" / "run")


def test_a_disk_that_is_full_when_the_run_is_to_be_held_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(value: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_folder.json, "dumps", full)  # as the write that follows it would
    with pytest.raises(Refused, match="cannot be written: No space left on device"):
        hold(tmp_path)


def test_a_run_whose_last_save_fails_has_failed_and_can_be_resumed(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    straight = config_for(tiny_model, tiny_images, tmp_path / "straight", max_train_steps=4)
    run(straight)
    config = straight.replace(output_dir=str(tmp_path / "failing"), save_every_n_steps=2)
    disk = FailingDisk(config, [Failure(60, errno.EIO, lasting=True)])
    with disk.installed(), pytest.raises(TrainingFailed, match="the last save failed"):
        run(config)
    assert run_folder.status(RunFolder(config.run_dir)) == "failed"
    assert run(config.replace(resume_from_checkpoint="latest")) == "finished"
    assert_bit_equal(tensors_of(config, 4), tensors_of(straight, 4))
    assert temporary_in(tmp_path) == []


def test_a_sample_image_that_cannot_be_written_is_a_warning(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    prompt = {"sample_prompts": "a thing --s 1", "sample_every_n_steps": 1}
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=2, **prompt)

    def refuse(call: Call) -> None:
        if (
            call.name == "fsync"
            and call.path.isdigit()
            and "samples" in str(Path(f"/proc/self/fd/{call.path}").readlink())
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with FileCalls(refuse, thread="MainThread"):
        assert run(config) == "finished"
    assert [event["kind"] for event in events_of(config, "warning")] == ["sample_failed"] * 2
    assert events_of(config, "sample_saved") == []
    assert temporary_in(tmp_path) == []


# --- a real one ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounting.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounting.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("checked", [True, False])
def test_a_disk_that_is_really_full_at_every_second_save_costs_those_saves_only(
    checked: bool,
    small_disk: Path,
    tiny_model: Path,
    tiny_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`checked`: whether the free space is looked at first, or the writes themselves fail."""
    left = (0, 4, 8, 40, 64, 100, 150, 200, 220, 260)  # KiB that the ballast leaves free at each even step
    steps = 2 * len(left) + 1
    straight = config_for(tiny_model, tiny_images, tmp_path / "straight", max_train_steps=steps, save_every_n_steps=0)
    run(straight)
    config = straight.replace(output_dir=str(small_disk), save_every_n_steps=1, keep_last_n_checkpoints=2)
    config = config.replace(save_last_n_steps=1)
    ballast, write = small_disk / "ballast", Writer._write

    def with_little_left(writer: Writer, save: Save, blocking: float) -> None:
        ballast.unlink(missing_ok=True)
        if save.step % 2 == 0:
            free = shutil.disk_usage(small_disk).free
            ballast.write_bytes(bytes(max(0, free - left[save.step // 2 - 1] * 1024)))
        write(writer, save, blocking)

    monkeypatch.setattr(files, "SPARE_BYTES", 0 if checked else -(1 << 40))
    monkeypatch.setattr(Writer, "_write", with_little_left)
    assert run(config) == "finished"
    assert_bit_equal(tensors_of(config, steps), tensors_of(straight, steps))
    assert steps_of(config) == steps_of(straight)
    assert temporary_in(small_disk) == []
    failed = list(events_of(config, "checkpoint_failed"))
    assert len(failed) >= 5
    assert {event["global_step"] % 2 for event in failed} == {0}
    assert all("disk is full" in event["error"] for event in failed)
    found = manifest.listing(RunFolder(config.run_dir).checkpoints, thorough=True)
    assert [item.problem for item in found] == [""] * len(found)
