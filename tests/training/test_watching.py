"""Watching a training changes nothing in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.runs.test_resources import SAMPLE, ScriptedGpus
from tests.support.runs_at_tiny_size import (
    assert_bit_equal,
    config_for,
    events_of,
    run,
    steps_of,
    tensors_of,
)
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
    off = config.replace(output_name="off", alarms=False, resources_every_n_seconds=0.0)
    on = config.replace(
        output_name="on", alarm_window=10, resources_every_n_seconds=0.05, max_gpu_temperature=90, use_ema=False
    )
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
