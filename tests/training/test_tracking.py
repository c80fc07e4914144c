"""TensorBoard and Weights & Biases: what they get is what the events say, in one curve through resumes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, events_of, run, tensors_of
from trainer.options.config import Config
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder
from trainer.training import tracking
from trainer.training.tracking import Follower, scalars


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    return config_for(tiny_model, tiny_images, tmp_path, max_train_steps=6, save_every_n_steps=3)


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(point.step, point.value) for point in board.Scalars(name)]


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format behind a header of 7 bytes, as wandb writes it."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no header fits into what is left of the block
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def test_tensorboard_has_one_curve_through_a_resume_that_repeats_steps(config: Config, tmp_path: Path) -> None:
    board = config.replace(logging_dir=str(tmp_path / "board"), log_prefix="my-")
    run(board)
    run(board.replace(resume_from_checkpoint="3", max_train_steps=8))
    steps = {event["global_step"]: event["loss"] for event in events_of(config, "step")}
    points = curve(tmp_path / "board" / "my-run", "loss/current")
    assert [step for step, _ in points] == list(range(1, 9))
    assert [value for _, value in points] == pytest.approx([steps[step] for step, _ in points])


def test_a_tracked_training_is_the_untracked_one(config: Config, tmp_path: Path) -> None:
    run(config)
    board = config.replace(
        output_name="tracked", log_with="tensorboard", sample_prompts="a thing", sample_at_first=True
    )
    run(board)
    assert_bit_equal(tensors_of(config, 6), tensors_of(board, 6))
    reader = EventAccumulator(str(board.run_dir / "tensorboard" / "tracked"))
    reader.Reload()
    assert reader.Tags()["images"] == ["sample/0: a thing"]


def test_weights_and_biases_offline_is_one_run_with_the_runs_id_and_config(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", 300.0)  # its service takes long to begin on a busy machine
    tracked = config.replace(log_with="wandb", log_tracker_name="a-project")
    run(tracked)
    run(tracked.replace(resume_from_checkpoint="latest", max_train_steps=8))
    record = run_folder.read_run(RunFolder(config.run_dir))
    assert record
    losses: dict[int, float] = {}
    files = sorted((config.run_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.stem for file in files] == [f"run-{record['run_id']}"] * 2
    for file in files:
        for data in records_of(file.read_bytes()):
            told = wandb_internal_pb2.Record()
            told.ParseFromString(data)
            if told.HasField("run"):
                assert told.run.project == "a-project" and told.run.display_name == "run"
            items = {(item.key or ".".join(item.nested_key)): item.value_json for item in told.history.item}
            if "loss/current" in items:
                losses[int(json.loads(items["global_step"]))] = json.loads(items["loss/current"])
    assert losses == {event["global_step"]: event["loss"] for event in events_of(config, "step")}


def test_a_tracker_that_fails_is_left_alone_and_the_others_go_on(tmp_path: Path) -> None:
    class Broken:
        told = 0

        def log(self, values: dict[str, float], **more: Any) -> None:
            self.told += 1
            raise ConnectionError("no network")

    class Good:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def log(self, values: dict[str, float], step: int) -> None:
            self.steps.append(step)

        def finish(self) -> None:
            self.steps.append(-1)

    broken, good = Broken(), Good()

    def not_there() -> Any:
        raise OSError("no such service")

    follower = Follower({"wandb": lambda: broken, "tensorboard": lambda: good, "third": not_there}, tmp_path)
    for step in (1, 2):
        follower({"event": "step", "global_step": step, "loss": 0.5, "lr": 1e-4})
    follower.close()
    assert broken.told == 1 and good.steps == [1, 2, -1]


def test_each_part_has_a_rate_of_its_own_and_what_is_no_number_is_left_out() -> None:
    step = {"event": "step", "global_step": 1, "loss": 0.5, "lr": 1e-4, "lrs": {"unet": 1e-4, "text_encoder": 5e-5}}
    told = scalars({**step, "grad_norm": "nan", "memory": None})
    assert told == {"loss/current": 0.5, "lr/unet": 1e-4, "lr/text_encoder": 5e-5}


def test_a_tracker_that_is_not_installed_is_refused_before_the_start(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    real = builtins.__import__

    def without_wandb(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_wandb)
    with pytest.raises(tracking.ConfigError, match="pip install wandb"):
        tracking.require(config.replace(log_with="all"))
    tracking.require(config.replace(log_with="tensorboard"))
