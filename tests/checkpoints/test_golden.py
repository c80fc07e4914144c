"""Checkpoints written by earlier versions stay readable; `tests/golden` holds one of each version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch

from trainer.checkpoints import resume
from trainer.checkpoints.resume import Chosen
from trainer.options.checks import read_config
from trainer.runs import manifest

GOLDEN = sorted((Path(__file__).parents[1] / "golden").iterdir())


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_a_checkpoint_of_an_earlier_version_is_understood(golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step-00000002"
    shutil.copytree(golden, folder)
    found = manifest.verify(folder)
    config = read_config(folder / "config.toml").replace(max_train_steps=4, output_dir=str(tmp_path))
    verdict = resume.examine(
        config,
        Chosen(folder, found, ()),
        steps_per_epoch=2,
        images=manifest.read_json(folder, "dataset.json"),
        base_model=manifest.read_json(folder, "state.json")["base_model"],
        environment=None,
    )
    assert verdict.refusals == ()
    assert (verdict.step, verdict.grade, verdict.learning_rates) == (2, "bit-exact", {"unet": 1e-4})
    assert verdict.last_learning_rates == {"unet": 1e-4} and verdict.sentence().endswith("unet 0.0001 (constant).")
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    averages = safetensors.torch.load_file(folder / "ema.safetensors")
    moments = safetensors.torch.load_file(folder / "optimizer.safetensors")
    assert weights.keys() == averages.keys()
    assert {name.rpartition("/")[0] for name in moments} == weights.keys()
