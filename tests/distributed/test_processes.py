"""One run on several processes: the same training on any number of them, and a clear end when one is gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.support.faults import SAVING, WAIT_SECONDS, Fault
from tests.support.forked_trainer import REPOSITORY, Server, Trainer, free_port
from tests.support.runs_at_tiny_size import STEPS, config_for, events_of, run, steps_of, temporary_in
from trainer.distributed.processes import lost_connection
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder

FINISHED, FAILED, REFUSED, STOPPED, KILLED = 0, 1, 3, 4, -9


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of one process with a global batch of 4 in buckets, the last of an epoch not full."""
    config = config_for(
        tiny_model,
        tiny_images,
        tmp_path_factory.mktemp("alone"),
        train_batch_size=4,
        save_every_n_steps=2,
        enable_bucket=True,
        min_bucket_reso=32,
        shuffle_caption=True,
        flip_aug=True,
    )
    run(config)
    return config


def on(alone: Config, output: Path, processes: int, accumulation: int = 1) -> Config:
    """The same run's options for so many processes: the global batch stays."""
    return alone.replace(
        output_dir=str(output),
        train_batch_size=4 // processes // accumulation,
        gradient_accumulation_steps=accumulation,
    )


def train_on(trainers: Server, config: Config, processes: int, faults: dict[int, Fault] | None = None) -> list[int]:
    """Train on several processes; the exit code of each."""
    return [trainer.wait() for trainer in trainers.start_several(config, processes, faults)]


def assert_same_training(config: Config, alone: Config) -> None:
    """The same samples, captions and timesteps at every step; losses as near as another order of sums lets them be."""
    expected, found = steps_of(alone), steps_of(config)
    assert {step: row[-1] for step, row in found.items()} == {step: row[-1] for step, row in expected.items()}
    for step, row in expected.items():
        assert found[step][1] == pytest.approx(row[1], rel=1e-6)


def sound_steps(config: Config) -> list[int]:
    found = manifest.listing(RunFolder(config.run_dir).checkpoints, thorough=True)
    assert [item.problem for item in found if item.problem] == []
    return [item.step for item in found]


# --- the same training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_any_number_of_processes_trains_the_same_samples_with_the_same_noise(
    processes: int, accumulation: int, alone: Config, trainers: Server, tmp_path: Path
) -> None:
    config = on(alone, tmp_path, processes, accumulation)
    assert train_on(trainers, config, processes) == [FINISHED] * processes
    assert_same_training(config, alone)


def test_a_run_is_continued_on_another_number_of_processes(alone: Config, trainers: Server, tmp_path: Path) -> None:
    stop = {0: Fault("stepping", 3, do=("stop",))}
    assert train_on(trainers, on(alone, tmp_path, 2), 2, stop) == [STOPPED] * 2
    assert sound_steps(on(alone, tmp_path, 2)) == [3, 2]
    more = on(alone, tmp_path, 4).replace(resume_from_checkpoint="latest", max_train_steps=6)
    assert train_on(trainers, more, 4) == [FINISHED] * 4
    fewer = on(alone, tmp_path, 1).replace(resume_from_checkpoint="latest")
    assert trainers.train(fewer) == FINISHED
    assert [(event["step"], event["grade"]) for event in events_of(fewer, "resumed")] == [
        (3, "trajectory-exact"),
        (6, "trajectory-exact"),
    ]
    assert_same_training(fewer, alone)


def test_a_signal_to_one_process_stops_all_of_them_after_the_same_step(
    alone: Config, trainers: Server, tmp_path: Path
) -> None:
    config = on(alone, tmp_path, 2)
    assert train_on(trainers, config, 2, {1: Fault("stepping", 3, do=("SIGTERM",))}) == [STOPPED] * 2
    assert max(steps_of(config)) == sound_steps(config)[0] == 3


def test_a_save_that_fails_in_the_main_process_ends_none(alone: Config, trainers: Server, tmp_path: Path) -> None:
    config = on(alone, tmp_path, 2)
    fault = Fault("file call", 5, do=("disk full",), thread=SAVING)
    assert train_on(trainers, config, 2, {0: fault}) == [FINISHED] * 2
    assert [event["global_step"] for event in events_of(config, "checkpoint_failed")] == [2]
    assert sound_steps(config) == [8, 6, 4]
    assert_same_training(config, alone)


@pytest.mark.parametrize(("moment", "count"), [("sampling", 1), ("saving", 1), ("saving", 4)])
def test_what_the_main_process_does_alone_may_take_longer_than_the_others_patience(
    moment: str, count: int, alone: Config, trainers: Server, tmp_path: Path
) -> None:
    """Sample images, a save that the next one waits for, and the last save."""
    config = on(alone, tmp_path, 2).replace(sample_prompts="a thing --s 1", sample_every_n_steps=5)
    fault = Fault(moment, count, do=("wait",))
    started = trainers.start_several(config, 2, {0: fault}, patience=int(WAIT_SECONDS * 0.6))
    assert [trainer.wait() for trainer in started] == [FINISHED] * 2
    assert_same_training(config, alone)
    assert sound_steps(config)[0] == STEPS


# --- one that is gone ----------------------------------------------------------------------------------------------


def main_printed(trainers: list[Trainer]) -> str:
    return trainers[0].printed  # all of them print to one file, as they do to one console


@pytest.mark.parametrize(
    ("processes", "killed", "moment", "count"),
    [(2, 1, "stepping", 4), (2, 0, "stepping", 4), (4, 2, "stepping", 4), (2, 0, "saving", 2), (2, 1, "loading", 1)],
)
def test_when_one_process_is_killed_the_others_name_it_and_end_and_the_run_can_be_resumed(
    processes: int, killed: int, moment: str, count: int, alone: Config, trainers: Server, tmp_path: Path
) -> None:
    config = on(alone, tmp_path, processes)
    started = trainers.start_several(config, processes, {killed: Fault(moment, count)})
    began = time.monotonic()
    codes = [trainer.wait() for trainer in started]
    print(f"all gone {time.monotonic() - began:.1f} s after the start")
    assert codes == [KILLED if number == killed else FAILED for number in range(processes)]
    printed = main_printed(started)
    assert "Traceback" not in printed
    [told] = [line for line in printed.splitlines() if "Failed: " in line]
    assert re.search(
        rf"process {killed} of {processes} \(counted from 0\), number \d+ on .*, ended without a message", told
    )
    assert "--resume_from_checkpoint latest" in told
    failed = events_of(config, "run_failed")
    assert len(failed) == (killed != 0)
    assert run_folder.status(RunFolder(config.run_dir)) == ("interrupted" if killed == 0 else "failed")

    sound = sound_steps(config)
    if moment == "stepping" and killed != 0:
        assert sound[0] == max(steps_of(config))  # the last completed step was saved
    latest = on(alone, tmp_path, 1).replace(resume_from_checkpoint="latest" if sound else "")
    assert trainers.train(latest) == FINISHED
    assert_same_training(latest, alone)
    assert temporary_in(tmp_path) == []


def test_the_reason_for_which_a_process_failed_is_told_and_recorded_by_the_main_one(
    alone: Config, trainers: Server, tmp_path: Path
) -> None:
    config = on(alone, tmp_path, 2)
    started = trainers.start_several(config, 2, {1: Fault("stepping", 4, do=("out of memory",))})
    assert [trainer.wait() for trainer in started] == [FAILED] * 2
    assert re.search(r"Failed: process 1 of 2 .* ended: .*out of memory", main_printed(started))
    [failed] = events_of(config, "run_failed")
    assert "process 1 of 2" in failed["error"] and "gradient_checkpointing" in failed["advice"]
    assert sound_steps(config)[0] == max(steps_of(config))
    assert train_on(trainers, config.replace(resume_from_checkpoint="latest"), 2) == [FINISHED] * 2
    assert_same_training(config, alone)


def test_what_is_refused_is_refused_by_all(alone: Config, trainers: Server, tmp_path: Path) -> None:
    missing = on(alone, tmp_path, 2).replace(pretrained_model_name_or_path="/nowhere/model")
    assert train_on(trainers, missing, 2) == [REFUSED] * 2


def test_what_only_the_main_process_refuses_ends_the_others_too(
    alone: Config, trainers: Server, tmp_path: Path
) -> None:
    config = on(alone, tmp_path, 2)
    with run_folder.locked(RunFolder(config.run_dir)):
        started = trainers.start_several(config, 2)
        assert [trainer.wait() for trainer in started] == [REFUSED, FAILED]
    printed = main_printed(started)
    assert printed.count("is in use by process") == 1 and "Traceback" not in printed
    # The other one is silent where it still heard why; where process 0 was gone already, it says just that.
    assert all(re.search("process 0 of 2.* ended", line) for line in printed.splitlines() if "Failed: " in line)


def test_a_process_that_fails_before_the_start_is_not_waited_for(
    alone: Config, trainers: Server, tmp_path: Path
) -> None:
    started = trainers.start_several(on(alone, tmp_path, 2), 2, {1: Fault("scanning", do=("disk full",))})
    assert [trainer.wait() for trainer in started] == [FAILED, REFUSED]
    assert re.search(r"Failed: process 1 of 2 \(counted from 0\) ended: .*No space left", main_printed(started))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_waits_for_one_that_never_comes_obeys_a_signal_at_once(
    rank: str, alone: Config, trainers: Server, tmp_path: Path
) -> None:
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    launched |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
    trainer = trainers.start(on(alone, tmp_path, 2), environment=launched)
    time.sleep(1.5)
    os.kill(trainer.pid, signal.SIGTERM)
    assert trainer.wait() in (-signal.SIGTERM, STOPPED)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../third_party/gloo/pair.cc:1] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), True),
        (torch.distributed.DistBackendError("NCCL error"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.OutOfMemoryError("CUDA out of memory in the peer access pool"), False),
        (ConnectionError("Connection reset by peer"), False),  # the hub, not a process
    ],
)
def test_a_lost_connection_is_told_from_an_error_of_ones_own(error: Exception, lost: bool) -> None:
    assert lost_connection(error) == lost


# --- as a user types it --------------------------------------------------------------------------------------------


def test_accelerate_launch_trains_on_two_processes_and_a_killed_one_ends_it_with_a_message(
    alone: Config, trainers: Server, tmp_path: Path
) -> None:
    config = on(alone, tmp_path, 2).replace(max_train_steps=2000, save_every_n_steps=20)
    preset = tmp_path / "preset.toml"
    preset.write_text(to_toml(config))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", str(free_port())]
    command = [*launch, "-m", "trainer", "train", "--config", str(preset)]
    environment: dict[str, Any] = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    with (tmp_path / "printed.txt").open("w") as printed:
        launcher = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=printed, stderr=printed)
    while launcher.poll() is None and not events_of(config, "checkpoint_saved"):
        time.sleep(0.05)
    [second] = [child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == "1"]
    second.kill()
    assert launcher.wait() == FAILED
    told = (tmp_path / "printed.txt").read_text()
    assert f"Failed: process 1 of 2 (counted from 0), number {second.pid} on " in told
    last = max(steps_of(config))
    assert sound_steps(config)[0] == last
    assert (
        trainers.train(on(config, tmp_path, 1).replace(resume_from_checkpoint="latest", max_train_steps=last + 1)) == 0
    )
