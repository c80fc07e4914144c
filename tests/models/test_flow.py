"""Samplers of rectified flow follow the model's own noise levels; joined layers of a file are taken apart again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support import tiny_families
from trainer.models import base_model, families, flow, keys
from trainer.models import model as models
from trainer.models.adapters.base import Target
from trainer.models.families.facts import FLOW
from trainer.models.keys import Naming
from trainer.models.parts import Parts
from trainer.options.config import Config
from trainer.options.sections.samples import SAMPLERS
from trainer.recipe.prompts import Prompt

FLOWING = {name: sampler.flow for name, sampler in SAMPLERS.items() if sampler.flow}
OWN = {"shift": 3.0, "num_train_timesteps": 1000}


@pytest.mark.parametrize("name", FLOWING)
@pytest.mark.parametrize("own", [OWN, {**OWN, "shift": 1.0, "use_dynamic_shifting": True}], ids=["shift", "by size"])
def test_a_straight_path_is_followed_to_its_end(name: str, own: dict[str, Any]) -> None:
    kind, changes = FLOWING[name]
    scheduler = flow.sampler(kind, changes, own)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 6, 6), device="cpu", mu=0.8)
    scheduler.set_begin_index(0)
    noise, picture = torch.full((1, 4), 2.0), torch.tensor([[0.0, 1.0, -1.0, 3.0]])
    latents = noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(noise - picture, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, picture, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("variant", ["z_image", "flux"])
def test_every_sampler_makes_a_picture_through_the_official_pipeline(variant: str, tmp_path: Path) -> None:
    folder = tiny_families.FAMILIES[variant].make(tmp_path)
    config = Config(pretrained_model_name_or_path=str(folder), network_dim=1, max_sequence_length=16)
    model = models.load(config, folder, torch.float32, torch.device("cpu"))
    prompt = Prompt("a thing", "", 64, 64, seed=3, guidance_scale=0.0, steps=3)
    drawn = {name: model.sample([prompt], name, torch.device("cpu"))[0].tobytes() for name in FLOWING}
    assert len(set(drawn.values())) == len(drawn)


def test_every_family_of_flow_is_sampled_as_its_own_scheduler_does_where_nothing_else_is_asked_for() -> None:
    flowing = [facts for facts in families.TABLE.values() if FLOW in facts.traits]
    assert flowing and {facts.defaults["sample_sampler"] for facts in flowing} == {"euler"}


NAMING = Naming("fused", {"transformer": ("lora_unet", "")})
SIZES = {"single_transformer_blocks.0.attn.to_q": 3, "single_transformer_blocks.0.attn.to_k": 3,
         "single_transformer_blocks.0.attn.to_v": 3, "single_transformer_blocks.0.proj_mlp": 5}  # fmt: skip


def delta(tensors: dict[str, Any], name: str) -> np.ndarray[Any, Any]:
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    return up @ down * (float(tensors[f"{name}.alpha"]) / len(down))


def test_layers_that_were_joined_in_a_file_are_the_same_again() -> None:
    draw = np.random.default_rng(1)
    weights = {}
    for path, size in SIZES.items():
        weights[f"transformer.{path}.lora_A.weight"] = draw.standard_normal((2, 4)).astype(np.float32)
        weights[f"transformer.{path}.lora_B.weight"] = draw.standard_normal((size, 2)).astype(np.float32)
    joined = keys.lora_file(weights, NAMING, lambda shape: 1.0)
    assert next(iter(joined)) == "lora_unet_single_blocks_0_linear1.lora_down.weight"
    assert joined["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (14, 8)
    apart = keys.unfused(joined, NAMING, "transformer", SIZES)
    for path in SIZES:
        name = "lora_unet_" + path.replace(".", "_")
        assert np.array_equal(apart[f"{name}.lora_down.weight"], weights[f"transformer.{path}.lora_A.weight"])
        assert np.array_equal(apart[f"{name}.lora_up.weight"], weights[f"transformer.{path}.lora_B.weight"])
        assert apart[f"{name}.alpha"] == 1.0


def test_a_layer_that_was_trained_as_one_becomes_parts_that_add_up_to_it() -> None:
    draw = np.random.default_rng(2)
    name = "lora_unet_single_blocks_0_linear1"
    whole = {
        f"{name}.lora_down.weight": draw.standard_normal((4, 6)),
        f"{name}.lora_up.weight": draw.standard_normal((14, 4)),
        f"{name}.alpha": np.array(2.0),
    }
    apart = keys.unfused(whole, NAMING, "transformer", SIZES)
    parts = [delta(apart, "lora_unet_" + path.replace(".", "_")) for path in SIZES]
    np.testing.assert_allclose(np.concatenate(parts), delta(whole, name))


def test_diffusers_finds_every_layer_of_flux_in_kohyas_file() -> None:
    """At the real widths, which its reader knows by heart; one block of each kind, of rank 1."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    layers = Target(families.TABLE["flux"].denoiser, transformer).layers(Config(family="flux"))
    draw = np.random.default_rng(3)
    shapes = {path: layer.weight.shape for path, (layer, _) in layers.items()}
    weights = {
        f"transformer.{path}.lora_{matrix}.weight": draw.standard_normal(size, dtype=np.float32)
        for path, shape in shapes.items()
        for matrix, size in (("A", (1, shape[1])), ("B", (shape[0], 1)))
    }
    file = keys.lora_file(weights, NAMING, lambda shape: 0.5)
    read = FluxPipeline.lora_state_dict({name: torch.from_numpy(values) for name, values in file.items()})
    assert len(layers) == 17 and len(file) == 3 * 10
    for path in layers:
        down, up = (read[f"transformer.{path}.lora_{matrix}.weight"].float() for matrix in "AB")
        ours = weights[f"transformer.{path}.lora_B.weight"] @ weights[f"transformer.{path}.lora_A.weight"] * 0.5
        np.testing.assert_allclose((up @ down).numpy(), ours, rtol=1e-3, atol=1e-4)


# --- files in the names of other programs --------------------------------------------------------------------------


def in_comfys_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer of Z-Image as ComfyUI's files have it: queries, keys and values in one."""
    names = {"to_out.0": "out", "norm_q": "q_norm", "norm_k": "k_norm"}
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"(.+)\.to_q\.weight", name):
            parts = [weights[f"{match[1]}.to_{part}.weight"] for part in "qkv"]
            result[f"model.diffusion_model.{match[1]}.qkv.weight"] = torch.cat(parts)
        elif not re.search(r"\.to_[kv]\.weight$", name):
            name = name.replace("all_x_embedder.2-1", "x_embedder").replace("all_final_layer.2-1", "final_layer")
            for ours, theirs in names.items():
                name = name.replace(f".attention.{ours}.", f".attention.{theirs}.")
            result[f"model.diffusion_model.{name}"] = tensor
    return result


def test_a_transformer_in_comfyuis_names_is_the_same(tmp_path: Path) -> None:
    folder = tiny_families.make_z_image(tmp_path / "model")
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(in_comfys_names(weights), tmp_path / "z_image.safetensors")
    config = base_model.settle(Config(single_file_config=str(folder)), tmp_path / "z_image.safetensors")
    loaded = Parts(config, tmp_path / "z_image.safetensors", torch.float32)["transformer"].state_dict()
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_text_that_is_masked_counts_for_nothing_beside_a_longer_one(tmp_path: Path) -> None:
    folder = tiny_families.FAMILIES["flux"].make(tmp_path)
    losses = {}
    for masked, checkpointing in ((True, False), (True, True), (False, False)):
        config = Config(
            pretrained_model_name_or_path=str(folder), network_dim=1, max_sequence_length=16,
            apply_t5_attn_mask=masked, gradient_checkpointing=checkpointing,
        )  # fmt: skip
        model = models.load(base_model.settle(config, folder), folder, torch.float32, torch.device("cpu"))
        model.train()
        draw = torch.Generator().manual_seed(1)
        latents, noise = (torch.randn(1, 16, 8, 8, generator=draw).expand(2, -1, -1, -1) for _ in range(2))
        batch: dict[str, Any] = {
            "latent_mean": latents, "latent_std": torch.zeros_like(latents), "latent_noise": noise, "noise": noise,
            "timesteps": torch.full((2,), 0.5), "captions": ("cat", "a longer one"),
        }  # fmt: skip
        losses[masked, checkpointing] = model.module()(batch).detach()
        alone = {name: value[:1] for name, value in batch.items()}
        torch.testing.assert_close(model.module()(alone).detach(), losses[masked, checkpointing][:1])
    assert torch.equal(losses[True, False], losses[True, True])
    assert not torch.allclose(losses[True, False], losses[False, False])
