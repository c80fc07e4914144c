"""Asked to stop, in whatever it is doing, the trainer saves and leaves; a second SIGINT is obeyed at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.faults import Fault
from tests.support.forked_trainer import REPOSITORY, Server
from tests.support.runs_at_tiny_size import (
    STEPS,
    assert_bit_equal,
    config_for,
    events_of,
    exported_tensors_of,
    run,
    steps_of,
    temporary_in,
    tensors_of,
)
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder

FINISHED, STOPPED, AT_ONCE = 0, 4, 130
BEFORE_THE_FIRST_STEP = ("scanning", "loading", "caching")
DURING_THE_STEPS = ("stepping", "saving", "sampling")


@pytest.fixture(scope="module")
def straight(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run that goes through every phase."""
    config = config_for(
        tiny_model,
        tiny_images,
        tmp_path_factory.mktemp("straight"),
        save_every_n_steps=2,
        cache_latents=True,
        sample_every_n_steps=2,
        sample_prompts="a thing --s 1",
    )
    run(config)
    return config


def saved_steps(config: Config) -> list[int]:
    """The steps of the run's checkpoints, all of which have to be sound."""
    found = manifest.listing(RunFolder(config.run_dir).checkpoints, thorough=True)
    assert [item.problem for item in found] == [""] * len(found)
    return [item.step for item in found]


def check_continues(trainers: Server, config: Config, straight: Config) -> None:
    """The run goes on to the same end as the straight one."""
    latest = "latest" if saved_steps(config) else ""
    assert trainers.train(config.replace(resume_from_checkpoint=latest)) == FINISHED
    assert steps_of(config) == steps_of(straight)
    assert_bit_equal(tensors_of(config), tensors_of(straight))
    assert_bit_equal(exported_tensors_of(config), exported_tensors_of(straight))
    assert temporary_in(Path(config.output_dir)) == []


@pytest.mark.parametrize("asked", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("moment", BEFORE_THE_FIRST_STEP)
def test_a_signal_before_the_first_step_ends_the_trainer_with_nothing_to_save(
    moment: str, asked: str, straight: Config, trainers: Server, tmp_path: Path
) -> None:
    config = straight.replace(output_dir=str(tmp_path))
    trainer = trainers.start(config, Fault(moment, do=(asked,)))
    assert trainer.wait() == STOPPED
    assert "nothing to save" in trainer.printed
    assert saved_steps(config) == []
    assert run_folder.status(RunFolder(config.run_dir)) == ("new" if moment == "scanning" else "stopped")
    assert trainers.train(config.replace(max_train_steps=2)) == FINISHED


@pytest.mark.parametrize("moment", BEFORE_THE_FIRST_STEP)
def test_a_stop_file_before_the_first_step_ends_the_trainer_with_nothing_to_save(
    moment: str, straight: Config, trainers: Server, tmp_path: Path
) -> None:
    config = straight.replace(output_dir=str(tmp_path))
    assert trainers.train(config, Fault(moment, do=("stop",))) == STOPPED
    assert saved_steps(config) == []


@pytest.mark.parametrize("asked", ["SIGTERM", "SIGINT", "SIGHUP", "stop"])
@pytest.mark.parametrize("moment", DURING_THE_STEPS)
def test_asked_to_stop_during_the_steps_the_trainer_saves_the_last_one_and_the_run_can_be_resumed(
    moment: str, asked: str, straight: Config, trainers: Server, tmp_path: Path
) -> None:
    config = straight.replace(output_dir=str(tmp_path))
    trainer = trainers.start(config, Fault(moment, count=2, do=(asked,)))
    assert trainer.wait() == STOPPED
    assert "Stopped and saved" in trainer.printed
    last = max(steps_of(config))
    assert last < STEPS
    assert saved_steps(config)[0] == last
    assert [event["reason"] for event in events_of(config, "run_finished")] == ["stopped"]
    assert run_folder.status(RunFolder(config.run_dir)) == "stopped"
    check_continues(trainers, config, straight)


@pytest.mark.parametrize("moment", [*BEFORE_THE_FIRST_STEP, *DURING_THE_STEPS])
def test_a_second_sigint_ends_the_trainer_at_once_and_the_run_can_be_resumed(
    moment: str, straight: Config, trainers: Server, tmp_path: Path
) -> None:
    config = straight.replace(output_dir=str(tmp_path))
    count = 1 if moment in BEFORE_THE_FIRST_STEP else 3
    assert trainers.train(config, Fault(moment, count, do=("SIGINT", "SIGINT"))) == AT_ONCE
    assert events_of(config, "run_finished") == []
    assert run_folder.status(RunFolder(config.run_dir)) == ("new" if moment == "scanning" else "interrupted")
    check_continues(trainers, config, straight)


def test_a_second_sigterm_changes_nothing(straight: Config, trainers: Server, tmp_path: Path) -> None:
    config = straight.replace(output_dir=str(tmp_path))
    assert trainers.train(config, Fault("stepping", 3, do=("SIGTERM", "SIGTERM", "SIGINT"))) == STOPPED
    assert saved_steps(config)[0] == 3


def test_asked_to_stop_in_its_last_step_the_run_finishes(straight: Config, trainers: Server, tmp_path: Path) -> None:
    config = straight.replace(output_dir=str(tmp_path), max_train_steps=2)
    assert trainers.train(config, Fault("stepping", 2, do=("SIGTERM", "stop"))) == FINISHED
    assert run_folder.status(RunFolder(config.run_dir)) == "finished"


def test_a_stop_file_left_from_an_earlier_session_stops_nothing(
    straight: Config, trainers: Server, tmp_path: Path
) -> None:
    config = straight.replace(output_dir=str(tmp_path), max_train_steps=2)
    control = RunFolder(config.run_dir).control
    run_folder.ask(RunFolder(config.run_dir), "stop")
    os.utime(control / "stop", (0, time.time() - 60))
    assert trainers.train(config) == FINISHED
    assert list(control.iterdir()) == []


def test_the_command_asked_to_stop_by_sigterm_exits_4_and_resumes_bit_equal(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path / "stopped", max_train_steps=60, save_every_n_steps=0)
    straight = config.replace(output_dir=str(tmp_path / "straight"))
    run(straight)
    preset = tmp_path / "preset.toml"
    preset.write_text(to_toml(config))
    command = [sys.executable, "-m", "trainer", "train", "--config", str(preset)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not events_of(config, "step"):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == STOPPED
    assert saved_steps(config) == [max(steps_of(config))]
    again = [*command, "--resume_from_checkpoint", "latest"]
    assert subprocess.run(again, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL).returncode == FINISHED
    assert steps_of(config) == steps_of(straight)
    assert_bit_equal(tensors_of(config, 60), tensors_of(straight, 60))
