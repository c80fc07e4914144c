"""What the estimate of the GPU's memory says, against what is really allocated; and what it advises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from tests.support import single_file, tiny_families
from tests.support.real_shapes import header
from tests.support.runs_at_tiny_size import config_for, events_of, run
from tests.support.tiny_families import real_sdxl
from trainer import devices
from trainer.checkpoints import memory_size, preflight
from trainer.checkpoints.memory_size import OVERHEAD, Estimator
from trainer.models import activations, adapters, base_model, families
from trainer.models import model as models
from trainer.models.adapters.base import Target
from trainer.options.config import Config
from trainer.recipe import optimizers

GB = 1e9


def settled(folder: Path, **options: Any) -> Config:
    config = Config(pretrained_model_name_or_path=str(folder), resolution="64", network_dim=4, **options)
    return base_model.settle(config, folder)


def bytes_of(module: nn.Module) -> int:
    tensors = {tensor.data_ptr(): tensor for tensor in module.state_dict().values()}  # some have two names
    return sum(tensor.nbytes for tensor in tensors.values())


# --- what is held --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8bit", "Adafactor"])
def test_weights_gradients_and_moments_are_those_allocated(family: str, optimizer: str, tmp_path: Path) -> None:
    folder = tiny_families.FAMILIES[family].make(tmp_path)
    config = settled(folder, optimizer_type=optimizer, mixed_precision="bf16", conv_dim=2, use_ema=True)
    told = Estimator(folder).of(config)
    model = models.load(config, folder, torch.bfloat16, torch.device("cpu"))
    adapter = adapters.load(config)
    parameters = [value for target in model.targets for value in adapter.parameters(target).values()]
    components = {target.name: bytes_of(target.module) for target in model.targets}
    frozen = sum(components.values()) - sum(parameter.nbytes for parameter in parameters)
    others = told.weights.keys() - components.keys()
    assert "vae" in others
    loaded = {name: bytes_of(model.components[name]) for name in others}
    # Some models keep a few layers in fp32, which no file tells.
    assert sum(told.weights[name] for name in components) == pytest.approx(frozen, rel=0.01)
    assert {name: told.weights[name] for name in others} == pytest.approx(loaded, rel=0.01)
    assert told.trained == told.average == sum(parameter.nbytes for parameter in parameters)

    reached = [parameter for parameter in parameters if parameter.requires_grad]
    built = optimizers.build(config, [("all", reached, 1e-3)])
    for parameter in reached:
        parameter.grad = torch.ones_like(parameter)
    assert told.gradients == sum(parameter.nbytes for parameter in reached)
    built.step()
    held = [value for entries in built.state.values() for value in entries.values() if isinstance(value, Tensor)]
    # Tables of bitsandbytes that all states share, and single numbers, are not counted alike everywhere.
    assert told.moments == pytest.approx(sum(value.nbytes for value in held), rel=0.02, abs=4 * len(reached))


def test_what_is_cached_is_not_there_in_a_step(tiny_model: Path) -> None:
    cached = {"cache_latents": True, "cache_text_encoder_outputs": True, "network_train_unet_only": True}
    told = Estimator(tiny_model).of(settled(tiny_model, **cached))
    assert list(told.weights) == ["unet"] and told.caching > OVERHEAD and told.sampling == 0
    assert set(Estimator(tiny_model).of(settled(tiny_model)).weights) == {"unet", "vae", "text_encoder"}
    sampling = Estimator(tiny_model).of(settled(tiny_model, **cached, sample_prompts="a thing"))
    assert sampling.sampling > sampling.resident


def test_8_bit_weights_and_streamed_blocks_are_counted_as_they_are_held(tiny_model: Path) -> None:
    checkpointing = {"gradient_checkpointing": True, "network_train_unet_only": True}
    for options in ({"fp8_base": True}, {"blocks_to_swap": 4}, {"blocks_to_swap": 4, "fp8_base": True}):
        config = settled(tiny_model, **checkpointing, **options)
        told = Estimator(tiny_model).of(config)
        model = models.load(config, tiny_model, torch.float32, torch.device("cpu"))
        whole = bytes_of(model.denoiser)
        model.stream_blocks(torch.device("cpu"))
        left = bytes_of(model.denoiser)
        assert told.host == whole - left
        on_the_way = told.weights["unet"] - (left - told.trained)
        assert 0 <= on_the_way < told.host or not told.host


def test_a_single_file_needs_what_the_folder_needs(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    file = single_file.write(pipeline, tmp_path / "model.safetensors")
    folder = Estimator(tiny_model).of(settled(tiny_model))
    told = Estimator(file).of(settled(file))
    assert told.weights == folder.weights
    assert told.activations == pytest.approx(folder.activations, rel=0.02)


# --- activations ---------------------------------------------------------------------------------------------------


class _Attention(torch.autograd.Function):
    """Keeps what the kernels of GPUs keep, and computes nothing."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        context.save_for_backward(query, key, value, result)
        return result


def kept_for_backward(network: nn.Module, arguments: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that autograd keeps of a forward pass on the meta device, the parameters apart."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, *_, **__: _Attention.apply(q, k, v))
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in parameters:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(**arguments, return_dict=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(("family", "side"), [("sd", 512), ("sdxl", 1024)])
def test_activations_at_real_shapes_are_those_that_autograd_keeps(
    family: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.device("meta"):
        network = real_sdxl() if family == "sdxl" else UNet2DConditionModel(cross_attention_dim=768)
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        network.requires_grad_(False)
        layers = Target(families.TABLE[family].denoiser, network).layers(Config(family=family))
        inject_adapter_in_model(LoraConfig(r=16, target_modules=list(layers)), network, "default")
        arguments = {
            "sample": torch.empty(1, 4, side // 8, side // 8),
            "timestep": torch.zeros(1, dtype=torch.long),
            "encoder_hidden_states": torch.empty(1, 77, network.config.cross_attention_dim),
            "added_cond_kwargs": {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)},
        }
    told = activations.kept(shapes, (side // 8, side // 8), 77, "no", rank=16, convolutional=True)
    network.train()
    assert told.whole == pytest.approx(kept_for_backward(network, arguments, monkeypatch), rel=0.05)
    network.enable_gradient_checkpointing()
    assert told.inputs == pytest.approx(kept_for_backward(network, arguments, monkeypatch), rel=0.05)


# --- what it advises -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Estimator, Config]:
    """SDXL at its real size, with text encoders and a VAE that weigh nothing beside it."""
    folder = tmp_path_factory.mktemp("sdxl")
    small = tiny_families.make_sdxl(folder / "tiny")
    with torch.device("meta"):
        header(folder / "large" / "unet", real_sdxl())
    for entry in small.iterdir():
        if entry.name != "unet":
            (folder / "large" / entry.name).symlink_to(entry)
    config = Config(pretrained_model_name_or_path=str(folder / "large"), resolution="1024", train_batch_size=2)
    return Estimator(folder / "large"), base_model.settle(config, folder / "large")


@pytest.mark.parametrize("room", [36, 24, 16, 12, 8, 6, 4])
def test_what_is_advised_fits_and_nothing_of_it_is_needless(room: int, large: tuple[Estimator, Config]) -> None:
    estimator, config = large
    changes = memory_size.fitting(config, estimator, int(room * GB))
    assert changes and estimator.of(config).peak > room * GB
    assert estimator.of(config.replace(**changes)).peak <= room * GB
    for name in list(changes)[:-1]:
        if name in ("train_batch_size", "gradient_accumulation_steps"):
            continue  # which go together
        rest = {other: value for other, value in changes.items() if other != name}
        needs = memory_size.combination_problems(config.replace(**rest))
        assert needs or estimator.of(config.replace(**rest)).peak > room * GB, name
    if "blocks_to_swap" in changes:
        fewer = changes | {"blocks_to_swap": changes["blocks_to_swap"] - 1}
        assert estimator.of(config.replace(**fewer)).peak > room * GB


def test_cheap_switches_come_before_dear_ones(large: tuple[Estimator, Config]) -> None:
    estimator, config = large
    order = ["mixed_precision", "gradient_checkpointing", "fp8_base", "blocks_to_swap", "quantize"]
    known: set[str] = set()
    for room in (30, 20, 12, 8, 5, 4, 3, 2.5):
        changes = memory_size.fitting(config, estimator, int(room * GB)) or {}
        chosen = [name for name in changes if name in order]
        assert chosen == sorted(chosen, key=order.index)
        known |= set(chosen)
    assert {"mixed_precision", "gradient_checkpointing", "blocks_to_swap"} <= known


def test_what_fits_is_left_alone_and_what_never_can_is_said(large: tuple[Estimator, Config]) -> None:
    estimator, config = large
    assert memory_size.fitting(config, estimator, int(100 * GB)) == {}
    assert memory_size.advice(config, estimator, int(100 * GB)) == ""
    assert memory_size.fitting(config, estimator, int(0.7 * GB)) is None
    assert "no memory option is enough" in memory_size.advice(config, estimator, int(0.7 * GB))


# --- where it is told ----------------------------------------------------------------------------------------------


def test_the_dry_run_says_it_in_words_and_for_programs(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path)
    looked = preflight.examine(config, gpu_memory=OVERHEAD + 3_000_000)
    [line] = [line for line in looked.lines() if line.startswith("GPU memory: about ")]
    assert "it would with cache_latents = true" in line
    told = json.loads(json.dumps(looked.as_json()))
    assert looked.memory and told["memory"]["peak"] == looked.memory.peak
    assert told["memory_advice"] in line
    assert preflight.examine(config, gpu_memory=1 << 40).memory_advice == ""


def test_a_start_on_a_gpu_that_is_likely_to_be_too_small_says_so(
    tiny_model: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "memory_total", lambda device: OVERHEAD + 3_000_000)
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=1)
    run(config)
    [warning] = [event for event in events_of(config, "warning") if event["kind"] == "gpu_memory"]
    assert "it would with cache_latents = true" in warning["message"]
