"""Samples before and after a resume, of the average and of the raw weights, and how alike they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, events_of, run, steps_of, tensors_of
from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Given
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder
from trainer.training import loop


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    prompts = "a thing --w 64 --h 64 --s 2 --d 3\nanother --w 64 --h 64 --s 2 --d 4"
    return config_for(
        tiny_model, tiny_images, tmp_path, sample_prompts=prompts, max_train_steps=6, save_every_n_steps=0,
        learning_rate=0.1, use_ema=True, ema_decay=0.9,
    )  # fmt: skip


def stopped_at(config: Config, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a stop is asked for on the page after a step."""

    def asking(training: Any) -> Any:
        if training.state.global_step == step:
            run_folder.ask(training.begun.run, "stop")
        return wish(training)

    wish = loop.wish_of_this_process
    with monkeypatch.context() as patch:
        patch.setattr(loop, "wish_of_this_process", asking)
        assert run(config) == "stopped"


def test_they_are_equal_where_the_resume_is_exact_and_change_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = config.replace(output_name="watched", sample_at_resume=True, sample_weights="both")
    stopped_at(watched, 4, monkeypatch)
    assert run(watched.replace(resume_from_checkpoint="latest", sample_every_n_steps=6)) == "finished"
    compared = events_of(watched, "samples_compared")
    assert [(event["global_step"], event["before_step"], event["equal"]) for event in compared] == [(4, 4, True)] * 4
    assert [event["ssim"] for event in compared] == pytest.approx([1.0] * 4)
    folder = RunFolder(watched.run_dir).path
    for event in compared:
        before, after, difference = (Image.open(folder / event[name]) for name in ("before", "path", "difference"))
        assert np.array_equal(np.asarray(before), np.asarray(after)) and not np.asarray(difference).any()
    saved = events_of(watched, "sample_saved")
    assert [(event["global_step"], event.get("weights"), event.get("resumed")) for event in saved] == [
        (4, None, None), (4, None, None), (4, "raw", None), (4, "raw", None),
        (4, None, True), (4, None, True), (4, "raw", True), (4, "raw", True),
        (6, None, None), (6, None, None), (6, "raw", None), (6, "raw", None),
    ]  # fmt: skip
    assert all(event["before_step"] == 4 and event["ssim"] < 0.999 for event in saved[8:])
    average, raw = (Image.open(folder / saved[place]["path"]) for place in (0, 2))
    assert not np.array_equal(np.asarray(average), np.asarray(raw))
    plain = config.replace(output_name="plain")
    run(plain)
    assert steps_of(watched) == steps_of(plain)
    assert_bit_equal(tensors_of(watched, 6), tensors_of(plain, 6))


def test_it_wants_a_prompt() -> None:
    with pytest.raises(ConfigError, match="is empty, but sample images are asked for"):
        resolve({"sample_at_resume": Given(True, "")})
