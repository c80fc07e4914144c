"""The demo does what README says, and every shipped preset can be used."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from trainer.data import dataset
from trainer.options.checks import resolve
from trainer.options.sources import read_toml
from trainer.recipe.prompts import read as read_prompts
from trainer.runs.events import read_events

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.toml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_shipped_preset_has_no_problem_and_needs_no_notice(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "before").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "before" / "1.jpg")  # the control picture of those that edit
    monkeypatch.chdir(tmp_path)
    config, notices = resolve(read_toml(preset))
    assert notices == []
    assert read_prompts(config)
    assert config.save_every_n_steps or config.save_every_n_epochs


def draw(pipeline: StableDiffusionPipeline, prompt: str) -> np.ndarray[Any, Any]:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2)
    result = pipeline(
        prompt, width=64, height=64, num_inference_steps=20, guidance_scale=4.0, generator=generator, output_type="np"
    )
    return np.asarray(result.images[0])  # (64, 64, 3), from 0 to 1


def test_the_base_model_draws_what_it_is_asked_for() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "presets/demo/model", local_files_only=True)
    picture = draw(pipeline, "a red circle on a white ground")
    red = (picture[..., 0] > 0.6) & (picture[..., 1] < 0.4) & (picture[..., 2] < 0.4)
    white = (picture > 0.85).all(axis=-1)
    assert 0.05 < red.mean() < 0.6 and white.mean() > 0.35 and red.mean() + white.mean() > 0.85
    rows, columns = np.nonzero(red)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert 0.8 < height / width < 1.25
    assert red.sum() / (height * width) == pytest.approx(np.pi / 4, abs=0.1)  # a circle in its square


def test_the_demo_trains_and_its_file_changes_the_picture_in_diffusers(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "trainer", "train", "--config", "presets/demo.toml", "--output_dir", str(tmp_path)),
            *("--max_train_steps", "60", "--sample_every_n_steps", "0", "--no-sample_at_first"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events, _ = read_events(tmp_path / "zorb" / "events.jsonl")
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 60
    assert statistics.mean(losses[-10:]) < 0.7 * statistics.mean(losses[:10])

    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "presets/demo/model", local_files_only=True)
    before = draw(pipeline, "a zorb on a black ground")
    pipeline.load_lora_weights(tmp_path, weight_name="zorb.safetensors")
    after = draw(pipeline, "a zorb on a black ground")

    def pinkness(picture: np.ndarray[Any, Any]) -> float:
        red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
        return float(((red > 0.7) & (green > 0.3) & (green < 0.75) & (blue > 0.45)).mean())

    assert pinkness(after) > 0.05 > pinkness(before)


def test_the_demos_images_are_all_read(tmp_path: Path) -> None:
    config, _ = resolve(read_toml(ROOT / "presets/demo.toml"))
    found = dataset.scan(config.replace(train_data_dir=str(ROOT / "presets/demo/dataset"), output_dir=str(tmp_path)))
    assert (len(found.entries), found.samples, found.skipped) == (16, 160, ())
    assert all("zorb" in entry.caption for entry in found.entries)
