"""The model file of a checkpoint, written without the base model: what the trainer itself would have written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, run
from trainer.checkpoints import export
from trainer.checkpoints.export import ExportRefused
from trainer.models import adapters
from trainer.models.keys import Naming
from trainer.options.config import Config
from trainer.runs import branches
from trainer.runs.manifest import CheckpointDamaged, folder_name
from trainer.runs.run_folder import RunFolder

OF_THE_MOMENT = {"ss_training_finished_at", "sshs_legacy_hash", "modelspec.date", "ss_tag_frequency", "ss_optimizer"}


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of two steps with every kind of layer, and its model files."""
    output = tmp_path_factory.mktemp("output")
    config = config_for(
        tiny_model, tiny_images, output, max_train_steps=2, conv_dim=4, conv_alpha=1.0, network_alpha=1.0,
        save_precision="bf16",
    )  # fmt: skip
    assert run(config) == "finished"
    return config


def checkpoint_of(config: Config, step: int) -> Path:
    return RunFolder(config.run_dir).checkpoints / folder_name(step)


def header(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: value for name, value in (file.metadata() or {}).items() if name not in OF_THE_MOMENT}


def test_the_exported_file_has_the_tensors_and_the_header_that_the_trainer_wrote(
    trained: Config, tmp_path: Path
) -> None:
    written = branches.step_file(trained, 1)
    exported = export.model_file(checkpoint_of(trained, 1), tmp_path / "exported.safetensors")
    assert_bit_equal(load_file(exported), load_file(written))
    assert header(exported) == header(written)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("float", torch.float32)])
def test_other_precisions_round_as_torch_does(trained: Config, precision: str, dtype: torch.dtype) -> None:
    weights = {"unet.a.lora_A.weight": torch.linspace(-1, 1, 6).reshape(2, 3), "unet.a.lora_B.weight": torch.ones(3, 2)}
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    stored = adapters.tensors_of_file(
        arrays, Naming("kohya", {"unet": ("lora_unet", "")}), trained.replace(save_precision=precision)
    )
    assert set(stored) == {f"lora_unet_a.{name}" for name in ("lora_down.weight", "lora_up.weight", "alpha")}
    expected = weights["unet.a.lora_A.weight"].to(dtype)
    assert torch.equal(torch.from_numpy(stored["lora_unet_a.lora_down.weight"].array), expected)


def test_a_file_that_a_scheduled_save_has_written_is_the_export(trained: Config) -> None:
    written = branches.step_file(trained, 1)
    before = written.stat()
    assert export.model_file(checkpoint_of(trained, 1)) == written
    assert written.stat() == before


@pytest.mark.parametrize("content", [b"", b"no model at all"], ids=["empty", "other"])
def test_a_file_of_something_else_is_not_overwritten(trained: Config, tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "taken.safetensors"
    target.write_bytes(content)
    with pytest.raises(ExportRefused, match=r"taken\.safetensors is there already and holds other weights"):
        export.model_file(checkpoint_of(trained, 1), target)
    export.model_file(checkpoint_of(trained, 1), tmp_path / "first.safetensors")
    with pytest.raises(ExportRefused, match="holds other weights"):
        export.model_file(checkpoint_of(trained, 2), tmp_path / "first.safetensors")


def test_a_damaged_checkpoint_is_not_exported(trained: Config, tmp_path: Path) -> None:
    damaged = checkpoint_of(trained, 2) / "weights.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointDamaged, match="was changed"):
        export.model_file(checkpoint_of(trained, 2), tmp_path / "never.safetensors")
    damaged.write_bytes(whole)
    assert not (tmp_path / "never.safetensors").exists()


def test_exporting_needs_no_torch() -> None:
    code = "import sys, trainer.checkpoints.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
