"""What a checkpoint will take, told before the base model is loaded, against what it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.support import single_file
from tests.support.runs_at_tiny_size import config_for, run
from trainer.checkpoints import checkpoint_size, preflight
from trainer.checkpoints.checkpoint_size import SizeUnknown
from trainer.checkpoints.preflight import Preflight
from trainer.models.base_model import BaseModelMissing
from trainer.options.config import Config
from trainer.runs import manifest
from trainer.runs.run_folder import RunFolder

LAYERS: tuple[dict[str, Any], ...] = (
    {},
    {"network_train_unet_only": True},
    {"network_train_text_encoder_only": True},
    {"conv_dim": 4, "network_dim": 8, "use_ema": True},
)
# One of each way to keep a state; tests/recipe/test_optimizers.py compares all of them tensor by tensor.
OPTIMIZERS = ("AdamW", "AdamW8bit", "Adafactor", "Lion", "Prodigy", "SGDNesterov", "DAdaptAdan", "AdamWScheduleFree")


def saved(config: Config) -> int:
    """The bytes of the checkpoint that a run of one step leaves."""
    assert run(config) == "finished"
    [found] = manifest.listing(RunFolder(config.run_dir).checkpoints)
    assert found.manifest is not None
    return found.manifest.bytes


def names_and_shapes(config: Config, model: Path) -> dict[str, tuple[int, ...]]:
    return dict(checkpoint_size.trained(config, model))


@pytest.mark.parametrize("layers", LAYERS, ids=str)
def test_the_layers_are_found_in_the_headers_and_the_size_is_right(
    layers: dict[str, Any], tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=1, **layers)
    looked = preflight.examine(config)
    size = saved(config)
    assert looked.bytes_of_save == pytest.approx(size, rel=0.03)
    weights = load_file(RunFolder(config.run_dir).checkpoints / "step-00000001" / "weights.safetensors")
    assert names_and_shapes(config, tiny_model) == {name: tuple(tensor.shape) for name, tensor in weights.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_an_optimizer_keeps_is_known(optimizer: str, tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    arguments = {"Adafactor": ("beta1=0.9",)}.get(optimizer, ())
    config = config_for(
        tiny_model, tiny_images, tmp_path, max_train_steps=1, optimizer_type=optimizer, optimizer_args=arguments,
        network_dim=16, network_train_unet_only=True,
    )  # fmt: skip
    expected = preflight.examine(config).bytes_of_save
    assert expected == pytest.approx(saved(config), rel=0.03)


def test_a_single_file_in_the_original_names_has_the_same_layers(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    file = single_file.write(pipeline, tmp_path / "model.safetensors")
    config = Config(network_dim=4, conv_dim=2)
    expected = names_and_shapes(config, tiny_model)
    assert sorted(names_and_shapes(config, file).values()) == sorted(expected.values())


def test_the_joined_attention_of_sd_2_counts_as_three_layers_and_its_last_block_as_none(tmp_path: Path) -> None:
    pipeline = "cond_stage_model.model.transformer.resblocks"
    shapes = {"attn.in_proj_weight": (96, 32), "attn.out_proj.weight": (32, 32), "mlp.c_fc.weight": (64, 32)}
    tensors = {f"{pipeline}.{block}.{name}": torch.zeros(shape) for block in (0, 1) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = Config(network_dim=4, network_train_text_encoder_only=True)
    found = names_and_shapes(config, tmp_path / "model.safetensors")
    assert sorted(found.values()) == sorted([(4, 32)] * 5 + [(32, 4)] * 4 + [(64, 4)])


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b'{"a": {}}'])
def test_a_header_that_cannot_be_read_is_said_and_not_guessed(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(SizeUnknown, match="model"):
        checkpoint_size.trained(Config(), file)


def test_a_folder_without_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(SizeUnknown, match=r"no \.safetensors file"):
        checkpoint_size.trained(Config(), tmp_path)


def test_a_model_of_the_hub_is_read_where_it_was_downloaded_and_never_fetched_for_this(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = Config(pretrained_model_name_or_path="someone/tiny", network_dim=4)
    with pytest.raises(BaseModelMissing, match="is not downloaded yet"):
        checkpoint_size.of_fresh_start(config, images=3)
    downloaded = tmp_path / "models--someone--tiny"
    (downloaded / "snapshots").mkdir(parents=True)
    (downloaded / "snapshots" / "0123").symlink_to(tiny_model)
    (downloaded / "refs").mkdir()
    (downloaded / "refs" / "main").write_text("0123")
    local = config.replace(pretrained_model_name_or_path=str(tiny_model))
    assert checkpoint_size.of_fresh_start(config, 3) == pytest.approx(checkpoint_size.of_fresh_start(local, 3), abs=200)


# --- where it is told ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Preflight:
    folder = tmp_path_factory.mktemp("output")
    return preflight.examine(
        config_for(tiny_model, tiny_images, folder, keep_last_n_checkpoints=3, save_every_n_steps=2)
    )


def test_a_fresh_start_says_about_what_is_written_and_what_is_free(looked: Preflight) -> None:
    assert looked.refusals == ()
    [written] = [line for line in looked.lines() if "to be written" in line]
    assert written.startswith("4 checkpoints of about ")
    assert "The checkpoints that are kept take about " in looked.lines()[-1]
    assert " are free for " in looked.lines()[-1]


def test_the_same_for_programs(looked: Preflight) -> None:
    told = json.loads(json.dumps(looked.as_json()))
    assert told["checkpoint_bytes"] == looked.bytes_of_save
    assert told["disk_needed"] == 3 * told["checkpoint_bytes"]
    assert told["writes"]["saves"] == 4 and told["writes"]["about"]
    assert told["checkpoint_bytes_unknown"] is None
    assert told["at_stake"] is None


def test_a_start_that_could_lose_much_says_so(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, save_every_n_steps=0, save_every_n_minutes=0.0)
    looked = preflight.examine(config)
    assert looked.refusals == () and looked.at_stake in looked.lines()
    assert looked.as_json()["at_stake"].startswith("Nothing is saved before the end")
