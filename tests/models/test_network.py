"""LoRA layers and their files: right in other tools, and read back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline

from tests.support import tiny
from trainer.checkpoints import checkpoint
from trainer.models import adapters, file_metadata, keys
from trainer.models import model as models
from trainer.models.adapters import lora
from trainer.models.adapters.base import NetworkFileError
from trainer.models.model import Model
from trainer.options.config import Config

ADAPTER = lora.Lora()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"))


def load(folder: Path, **options: Any) -> Model:
    config = Config(pretrained_model_name_or_path=str(folder), resolution="64", **options)
    return models.load(config, folder, torch.float32, torch.device("cpu"))


def randomise(model: Model) -> dict[str, torch.Tensor]:
    """Give every LoRA matrix random values, so that a lost one is noticed; returns them by name."""
    weights: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for target in model.targets:
            for name, parameter in ADAPTER.parameters(target).items():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
                weights[name] = parameter.detach().clone()
    return weights


def stored_of(model: Model, weights: dict[str, torch.Tensor], precision: str) -> dict[str, keys.Stored]:
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    config = model.config.replace(save_precision=precision)
    return adapters.tensors_of_file(arrays, adapters.naming_of(config), config)


def file_of(model: Model, weights: dict[str, torch.Tensor], precision: str) -> dict[str, torch.Tensor]:
    """The tensors of a file of these weights."""
    return {name: torch.from_numpy(stored.array) for name, stored in stored_of(model, weights, precision).items()}


def picture(pipeline: StableDiffusionPipeline) -> np.ndarray[Any, Any]:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    result = pipeline("a thing", width=64, height=64, num_inference_steps=3, generator=generator, output_type="np")
    return np.asarray(result.images[0])


def plain_pipeline(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("options", [{}, {"conv_dim": 2, "conv_alpha": 4.0}, {"network_alpha": 0.0}])
def test_diffusers_loads_the_file_and_draws_the_same_picture(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = load(folder, **{"network_dim": 4, "network_alpha": 2.0, **options})
    weights = randomise(model)
    path = tmp_path / "lora.safetensors"
    checkpoint.write_model_file(path, file_of(model, weights, "float"), {})

    ours = plain_pipeline(folder)
    before = picture(ours)
    ours.unet, ours.text_encoder = model.module().unet, model.module().text_encoder
    model.module().eval()
    theirs = plain_pipeline(folder)
    theirs.load_lora_weights(tmp_path, weight_name=path.name)

    drawn = picture(theirs)
    assert np.abs(drawn - before).max() > 0.05  # the file changes the picture
    np.testing.assert_allclose(picture(ours), drawn, atol=2e-4)


def test_a_file_is_read_back_bit_equal(folder: Path, tmp_path: Path) -> None:
    model = load(folder, network_dim=4, network_alpha=3.0, conv_dim=2)
    weights = randomise(model)
    checkpoint.write_model_file(tmp_path / "a.safetensors", file_of(model, weights, "float"), {})
    other = load(folder, network_dim=4, network_alpha=3.0, conv_dim=2)
    ADAPTER.from_file(other.targets, adapters.naming_of(other.config), tmp_path / "a.safetensors")
    for target in other.targets:
        for name, parameter in ADAPTER.parameters(target).items():
            assert torch.equal(parameter, weights[name]), name


def test_the_keys_are_those_of_kohya(folder: Path) -> None:
    model = load(folder, network_dim=4)
    keys = file_of(model, randomise(model), "fp16")
    unet = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    for name in (unet, text):
        assert {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"} <= keys.keys()
    assert keys[f"{unet}.lora_down.weight"].shape == (4, 32)
    assert keys[f"{unet}.lora_up.weight"].shape == (32, 4)
    assert keys[f"{unet}.alpha"].shape == () and keys[f"{unet}.alpha"].dtype == torch.float16
    assert "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight" in keys
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj.lora_down.weight" in keys
    assert not any("resnets" in key for key in keys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network_dim": 8}, "set it to 4"),
        ({"network_dim": 4, "network_alpha": 1.0}, "has alpha 2"),
        ({"network_dim": 4, "network_alpha": 2.0, "conv_dim": 2}, "is not in it"),
        ({"network_dim": 4, "network_alpha": 2.0, "network_train_unet_only": True}, "has no place in this network"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    model = load(folder, network_dim=4, network_alpha=2.0)
    path = tmp_path / "a.safetensors"
    checkpoint.write_model_file(path, file_of(model, randomise(model), "float"), {})
    other = load(folder, **options)
    before = [
        parameter.detach().clone() for target in other.targets for parameter in ADAPTER.parameters(target).values()
    ]
    with pytest.raises(NetworkFileError, match=message):
        ADAPTER.from_file(other.targets, adapters.naming_of(other.config), path)
    after = [parameter for target in other.targets for parameter in ADAPTER.parameters(target).values()]
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))


def test_new_layers_change_nothing_and_depend_on_the_seed_alone(folder: Path) -> None:
    torch.manual_seed(1)
    first = load(folder, network_dim=4)
    torch.manual_seed(2)
    second = load(folder, network_dim=4)
    other = load(folder, network_dim=4, seed=43)
    for one, two, three in zip(first.targets, second.targets, other.targets, strict=True):
        for name, parameter in ADAPTER.parameters(one).items():
            assert torch.equal(parameter, ADAPTER.parameters(two)[name])
            if "lora_B" in name:
                assert not parameter.any()
            else:
                assert not torch.equal(parameter, ADAPTER.parameters(three)[name])


def test_dropout_leaves_out_channels_between_the_matrices(folder: Path) -> None:
    model = load(folder, network_dim=4, network_dropout=0.5)
    layers = [layer.lora_A[lora.NAME] for layer in lora.layers(model.targets[0]).values()]
    module = next(layer for layer in layers if isinstance(layer, torch.nn.Linear))
    module.train()
    output = module(torch.randn(1000, module.in_features))
    share = (output == 0).float().mean().item()
    assert 0.4 < share < 0.6
    module.eval()
    assert not (module(torch.randn(10, module.in_features)) == 0).any()


def test_the_hashes_are_kohyas(folder: Path, tmp_path: Path) -> None:
    model = load(folder, network_dim=4)
    stored = stored_of(model, randomise(model), "fp16")
    tensors = {name: torch.from_numpy(tensor.array) for name, tensor in stored.items()}
    described = file_metadata.as_text({"ss_steps": 3, "ss_list": {"a": [1]}, "ss_none": None, "modelspec.title": "x"})
    assert described["ss_list"] == '{"a": [1]}' and described["ss_none"] == "None"
    hashes = keys.hashes(stored, described)
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert set(file.keys()) == set(tensors)
    assert len(hashes["sshs_model_hash"]) == 64 and len(hashes["sshs_legacy_hash"]) == 8


def test_the_model_hash_of_a_single_file_is_the_digest_kohya_shows(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x" * 0x200000)
    assert file_metadata.model_hashes(path, "d" * 64) == {
        "ss_sd_model_hash": "1f8745f0",
        "ss_new_sd_model_hash": "d" * 64,
    }
    assert json.dumps(file_metadata.model_hashes(tmp_path, "d")) == "{}"
