"""Killed at any moment and restarted each time, a run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import kills
from tests.support.faults import Fault
from tests.support.forked_trainer import REPOSITORY, Server
from tests.support.kills import KINDS, Tally, train_straight, train_through_kills
from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, events_of, steps_of, temporary_in, tensors_of
from trainer import files
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder

KILLS = {"a save every step": 18, "everything that can be saved": 14}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_again_and_again_ends_bit_equal_to_one_left_alone(
    kind: str, trainers: Server, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    straight = train_straight(trainers, tiny_model, tiny_images, tmp_path / "straight", **KINDS[kind])
    draw, tally = random.Random(kind), Tally()
    while tally.kills < KILLS[kind]:
        wanted = min(kills.MOST_KILLS_OF_A_RUN, KILLS[kind] - tally.kills)
        train_through_kills(trainers, straight, tmp_path / f"run{tally.runs}", draw, wanted, tally)
    print(tally)
    assert tally.in_saves * 2 >= tally.kills


def content(path: Path) -> str:
    """What tells one checkpoint or file from another."""
    return manifest.verify(path).digest if path.is_dir() else files.sha256_file(path)


def command(config: Config) -> subprocess.Popen[bytes]:
    preset = Path(config.output_dir) / "preset.toml"
    preset.parent.mkdir(parents=True, exist_ok=True)
    preset.write_text(to_toml(config.replace(resume_from_checkpoint="")))
    arguments = [sys.executable, "-m", "trainer", "train", "--config", str(preset)]
    if config.resume_from_checkpoint:
        arguments += ["--resume_from_checkpoint", config.resume_from_checkpoint]
    return subprocess.Popen(
        arguments, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )


def test_the_command_killed_twice_and_resumed_with_latest_ends_bit_equal(
    trainers: Server, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    straight = train_straight(trainers, tiny_model, tiny_images, tmp_path / "straight", max_train_steps=40)
    config = straight.config.replace(output_dir=str(tmp_path / "killed"))
    for saves in (5, 15):
        process = command(config)
        while process.poll() is None and len(events_of(config, "checkpoint_saved")) < saves:
            time.sleep(0.02)
        process.kill()
        assert process.wait() == kills.KILLED
        config = config.replace(resume_from_checkpoint="latest")
    assert command(config).wait() == 0
    assert [event["grade"] for event in events_of(config, "resumed")] == ["bit-exact"] * 2
    assert steps_of(config) == straight.steps
    assert_bit_equal(tensors_of(config, 40), tensors_of(straight.config, 40))
    assert temporary_in(Path(config.output_dir)) == []


def test_a_run_killed_before_its_first_checkpoint_is_refused_as_latest_and_can_be_started_afresh(
    trainers: Server, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=2)
    assert trainers.train(config, Fault("stepping")) == kills.KILLED
    latest = trainers.start(config.replace(resume_from_checkpoint="latest"))
    assert latest.wait() == 3
    assert "there is no checkpoint" in latest.printed
    assert trainers.train(config) == 0


def test_a_finished_run_whose_process_was_killed_at_the_very_end_is_finished_by_a_resume(
    trainers: Server, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=2)
    run = RunFolder(config.run_dir)
    assert trainers.train(config, Fault("ending")) == kills.KILLED
    assert run_folder.status(run) == "interrupted"
    assert trainers.train(config.replace(resume_from_checkpoint="latest")) == 0
    assert run_folder.status(run) == "finished"


def test_going_back_in_a_run_loses_nothing_even_if_it_is_killed_halfway(
    trainers: Server, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=6)
    run = RunFolder(config.run_dir)
    assert trainers.train(config) == 0
    later = ["run-step00000004.safetensors", "run-step00000005.safetensors", "run-step00000006.safetensors"]
    later += ["run.safetensors", "step-00000004", "step-00000005", "step-00000006"]
    contents = {path.name: content(path) for path in tmp_path.rglob("*") if path.name in later}
    back = config.replace(resume_from_checkpoint="3", max_train_steps=5)
    for moved in (2, 3, 2):
        assert trainers.train(back, Fault("moving aside", moved)) == kills.KILLED
    assert trainers.train(back) == 0
    assert {path.name: content(path) for path in run.abandoned.rglob("*") if path.name in later} == contents


def test_overwriting_a_run_loses_nothing_even_if_it_is_killed_halfway(
    trainers: Server, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=2)
    assert trainers.train(config) == 0
    old = {"run-step00000001.safetensors", "run-step00000002.safetensors", "run.safetensors", "step-00000001"}
    contents = {path.name: content(path) for path in tmp_path.rglob("*") if path.name in old}
    over = config.replace(overwrite_run=True)
    for moved in (2, 2):
        assert trainers.train(over, Fault("moving aside", moved)) == kills.KILLED
    assert trainers.train(over) == 0
    [aside] = tmp_path.glob("run-replaced-*")
    assert {path.name: content(path) for path in aside.rglob("*") if path.name in old} == contents


def test_a_run_whose_record_is_lost_is_moved_aside_as_well(
    trainers: Server, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=2)
    assert trainers.train(config) == 0
    old = content(RunFolder(config.run_dir).checkpoints / "step-00000002")
    RunFolder(config.run_dir).run_file.unlink()
    assert trainers.train(config.replace(overwrite_run=True, seed=1)) == 0
    [aside] = tmp_path.glob("run-replaced-*")
    assert content(aside / "checkpoints" / "step-00000002") == old
    assert content(RunFolder(config.run_dir).checkpoints / "step-00000002") != old
