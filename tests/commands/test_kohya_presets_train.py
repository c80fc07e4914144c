"""Presets of kohya_ss are imported by the command, train on a tiny model of their family, and resume bit-equal.

REKINDLE_KOHYA_PRESETS names a folder with JSON files of kohya_ss' own: they are tried as well, and none may become
something that it is not.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import tiny_families
from tests.support.exactness import check_every_resume
from tests.support.kohya_presets import PRESETS
from trainer.__main__ import main
from trainer.models import adapters
from trainer.models import model as models
from trainer.models.parts import Parts
from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.network_kinds import NETWORK_KINDS
from trainer.options.sources import read_toml
from trainer.runs import branches

OWN = ("SDXL, LoHa", "SD, LoKr", "fine-tune, Lion")
FOLDER = os.environ.get("REKINDLE_KOHYA_PRESETS", "")
FILES = sorted(Path(FOLDER).glob("*.json")) if FOLDER else []
# What a tiny model and a machine without a GPU want otherwise; everything else stays as it is imported.
TINY: dict[str, Any] = {
    "resolution": "64", "min_bucket_reso": 32, "max_bucket_reso": 128, "bucket_reso_steps": 16,
    "max_train_epochs": None,
    "save_every_n_epochs": 0, "sample_prompts": "", "sample_every_n_steps": 0, "sample_every_n_epochs": 0,
    "network_weights": "",
}  # fmt: skip
OF_THE_RUN = (
    "pretrained_model_name_or_path", "train_data_dir", "output_dir", "output_name", "max_train_steps", "logging_dir",
    "save_every_n_steps", "keep_last_n_checkpoints", "max_data_loader_n_workers", "deterministic", "reg_data_dir",
    "vae", "clip_l", "t5xxl",
)  # fmt: skip


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tiny_families.FAMILIES[family].make(tmp_path_factory.mktemp(family))
        return made[family]

    return of


def imported(preset: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, Config | None]:
    """What the command makes of a preset: its exit code, what it says, and the config."""
    target = folder / "ours.toml"
    code = main(["import", str(preset), "--output", str(target)])
    told = capsys.readouterr().out
    return code, told, resolve(read_toml(target))[0] if target.exists() else None


def train(config: Config, model: Path, images: Path, folder: Path) -> None:
    """Two steps, the second once more after a resume; then the file is read back."""
    if NETWORK_KINDS[config.network_kind].extra:
        pytest.importorskip(NETWORK_KINDS[config.network_kind].extra)
    precision = "bf16" if config.mixed_precision == "fp16" else config.mixed_precision  # fp16 needs a GPU
    batch = {"train_batch_size": min(2, config.train_batch_size), "mixed_precision": precision}
    kept = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    options = {name: value for name, value in (kept | TINY | batch).items() if name not in OF_THE_RUN}
    assert check_every_resume(model, images, folder, options, steps=2) == 1
    trained = config.replace(**TINY, output_dir=str(folder / "straight"), output_name="run")
    trained = trained.replace(pretrained_model_name_or_path=str(model))
    network = models.load(trained, model, torch.float32, torch.device("cpu"))
    file = branches.last_file(trained)
    if trained.fine_tunes:
        parts = Parts(
            network.config.replace(training_kind="network", single_file_config=str(model)), file, torch.float32
        )
        weights = dict(network.denoiser.named_parameters())
        changed = [
            name
            for name, tensor in parts[network.config.facts.denoiser.component].named_parameters()
            if not torch.equal(tensor, weights[name])
        ]
        assert changed
        return
    adapters.load(network.config).from_file(network.targets, adapters.naming_of(network.config), file)


@pytest.mark.parametrize("name", OWN)
def test_a_preset_trains_and_resumes_bit_equal(
    name: str, model_of: Callable[[str], Path], tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "theirs.json"
    preset.write_text(json.dumps(PRESETS[name]), encoding="utf-8")
    code, _, config = imported(preset, tmp_path, capsys)
    assert code == 0 and config is not None
    train(config, model_of(config.family), tiny_images, tmp_path)


@pytest.mark.skipif(not FILES, reason="REKINDLE_KOHYA_PRESETS names no folder of presets")
@pytest.mark.parametrize("preset", FILES, ids=[path.stem for path in FILES])
def test_a_preset_of_a_folder_trains_or_is_refused_by_name(
    preset: Path, model_of: Callable[[str], Path], tiny_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, config = imported(preset, tmp_path, capsys)
    keys = json.loads(preset.read_text(encoding="utf-8"))
    lines = told.splitlines()
    unsaid = [key for key in keys if not any(line.startswith(f"{key} = ") for line in lines)]
    assert unsaid == []
    refused = [line for line in lines if line.startswith("Refused: ")]
    assert (code == 3) == bool(refused) and (config is None) == bool(refused)
    if config is None:
        pytest.skip("; ".join(refused))
    train(config, model_of(config.family), tiny_images, tmp_path)
