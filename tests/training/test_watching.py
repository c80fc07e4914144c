"""Watching a training changes nothing in it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.runs.test_resources import SAMPLE, ScriptedGpus
from tests.support.runs_at_tiny_size import (
    assert_bit_equal,
    config_for,
    events_of,
    run,
    steps_of,
    tensors_of,
)
from trainer import devices
from trainer.options.config import Config
from trainer.runs import resources

STEPS = 24


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    return config_for(tiny_model, tiny_images, tmp_path, max_train_steps=STEPS, save_every_n_steps=12)


def test_with_all_watching_on_losses_and_weights_are_those_with_all_of_it_off(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(resources, "LOOK_SECONDS", 0.0)
    hot, cool = (dataclasses.replace(SAMPLE, temperature=degrees) for degrees in (95.0, 50.0))
    prompt = "a thing --w 64 --h 64 --s 2"
    plain = config.replace(validation_split=0.3, sample_prompts=prompt, max_data_loader_n_workers=1)
    off = plain.replace(
        output_name="off", alarms=False, resources_every_n_seconds=0.0, dataset_portrait=False, max_validation_steps=1,
        validate_every_n_steps=100,
    )  # fmt: skip
    on = plain.replace(
        output_name="on", alarm_window=10, resources_every_n_seconds=0.05, max_gpu_temperature=90, max_rollbacks=3,
        validate_every_n_steps=8, sample_every_n_steps=12, sample_weights="both", log_with="tensorboard",
    )  # fmt: skip
    run(off)
    monkeypatch.setattr(resources, "find_gpus", lambda ids: ScriptedGpus(cool, hot, hot, hot, cool))
    run(on)
    assert steps_of(on) == steps_of(off)
    assert_bit_equal(tensors_of(on, STEPS), tensors_of(off, STEPS))
    assert len(events_of(on, "resources")) > 1 and events_of(off, "resources") == []


def test_a_text_encoder_that_moves_far_is_told_at_the_same_step_after_a_resume(config: Config) -> None:
    fast = config.replace(text_encoder_lr=1.0, unet_lr=0.0, alarm_window=10, alarm_text_encoder_drift=0.01)

    def drifts(of: Config) -> list[tuple[int, str]]:
        told = [event for event in events_of(of, "warning") if event["kind"] == "text_encoder_drift"]
        return [(event["global_step"], event["seen"]) for event in told]

    straight = fast.replace(output_name="straight")
    run(straight)
    run(fast.replace(max_train_steps=12))
    run(fast.replace(resume_from_checkpoint="latest"))
    assert drifts(straight) and drifts(straight) == drifts(fast)


def test_an_alarm_of_the_steps_is_a_warning_with_its_parts(config: Config) -> None:
    falling = {"lr_scheduler": "polynomial", "lr_scheduler_power": 3.0, "alarm_low_rate": 0.5}
    run(config.replace(**falling, alarm_window=10, max_train_steps=60, save_every_n_steps=0))
    (told,) = [event for event in events_of(config, "warning") if event["kind"] == "low_rate"]
    assert told["global_step"] == 40 and told["seen"] in told["message"]
    assert told["reasons"] and told["ways_out"]


def test_a_resume_with_other_images_tells_how_far_they_have_moved(config: Config, tmp_path: Path) -> None:
    shutil.copytree(config.train_data_dir, tmp_path / "images")
    config = config.replace(train_data_dir=str(tmp_path / "images"), save_every_n_steps=2, max_train_steps=4)
    run(config)
    (folder,) = (path for path in (tmp_path / "images").iterdir() if path.is_dir())
    for number in range(5):
        Image.new("RGB", (64, 64), (255, 255, 200 + number)).save(folder / f"white{number}.png")
        (folder / f"white{number}.txt").write_text("snow")
    run(config.replace(max_train_steps=12, resume_from_checkpoint="latest", resume_allow=("dataset",)))
    (told,) = events_of(config, "dataset_shift")
    assert told["global_step"] >= 4 and told["images"] == [7, 12]
    shifts = {item["kind"]: item for item in told["shifts"]}
    assert shifts["brightness"]["distance"] > 0.3
    assert any(change[0] == "snow" and change[1] == 0 for change in shifts["tag"]["changes"])
    run(config.replace(max_train_steps=13, resume_from_checkpoint="latest"))
    assert len(events_of(config, "dataset_shift")) == 1


def test_what_the_gpu_held_is_set_beside_the_estimate(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 24 GB, as far as its memory is asked for; there is none on a test machine."""
    monkeypatch.setattr(devices, "memory_total", lambda device: 24_000_000_000)
    monkeypatch.setattr(devices, "memory_used", lambda device: 100_000_000)
    run(config.replace(max_train_steps=1))
    (told,) = events_of(config, "memory_judged")
    assert told["measured"] == 100_000_000 and told["ratio"] == told["estimated"] / told["measured"] > 0
