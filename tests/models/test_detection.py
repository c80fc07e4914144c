"""What a base model's files are is told before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.runs_at_tiny_size import config_for
from trainer.checkpoints import preflight
from trainer.models import base_model
from trainer.models.base_model import BaseModelMissing
from trainer.options.config import Config

UNET = "model.diffusion_model.input_blocks.0.0.weight"


def file_with(path: Path, *names: str, channels: int = 4) -> Path:
    save_file({name: torch.zeros(1, channels, 1, 1) for name in names}, path)
    return path


@pytest.mark.parametrize(
    ("names", "family"),
    [
        ((UNET, "cond_stage_model.transformer.text_model.embeddings.position_ids"), "sd"),
        ((UNET, "cond_stage_model.model.transformer.resblocks.0.ln_1.weight"), "sd"),
        (
            (UNET, "conditioner.embedders.0.transformer.a.weight", "conditioner.embedders.1.model.ln_final.weight"),
            "sdxl",
        ),
        (
            ("model.diffusion_model.noise_refiner.0.a", "model.diffusion_model.layers.0.adaLN_modulation.0.weight"),
            "z_image",
        ),
        (("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight"), "flux2"),
        (("double_blocks.0.img_mod.lin.weight", "single_blocks.0.linear1.weight"), "flux"),
        (
            ("model.diffusion_model.transformer_blocks.0.img_mod.1.weight", "model.diffusion_model.txt_in.weight"),
            "qwen_image",
        ),
        (("txtfusion.projector.weight",), "krea2"),
        (("net.blocks.0.cross_attn.q_proj.weight", "net.llm_adapter.out_proj.weight"), "anima"),
        (("layers.0.adaLN_sa_ln.weight", "layers.0.mlp.gate_proj.weight"), "ernie"),
        (("distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"), "chroma"),
        (
            (
                "model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias",
                "model.diffusion_model.x_embedder.proj.weight",
            ),
            "sd3",
        ),
        (("layers.0.adaLN_modulation.1.weight", "noise_refiner.0.a"), "lumina2"),
        (("something.else",), None),
    ],
)
def test_a_single_file_is_known_by_its_tensors(names: tuple[str, ...], family: str | None, tmp_path: Path) -> None:
    assert base_model.detect(file_with(tmp_path / "a.safetensors", *names)) == family


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("lora_unet_a.lora_down.weight", "lora_unet_a.alpha"), "is a LoRA, which network_weights takes"),
        (("double_blocks.0.img_attn.qkv.weight",), "is a model made like FLUX.1"),
        (("encoder.down.0.block.0.conv1.weight",), "is a VAE alone"),
    ],
)
def test_a_file_that_is_no_such_model_is_called_what_it_is(names: tuple[str, ...], what: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelMissing, match=what):
        base_model.detect(file_with(tmp_path / "a.safetensors", *names))


def test_an_inpainting_model_is_refused(tmp_path: Path) -> None:
    file = file_with(tmp_path / "a.safetensors", UNET, "cond_stage_model.a", channels=9)
    with pytest.raises(BaseModelMissing, match="takes 9 channels instead of 4"):
        base_model.detect(file)


def test_a_file_that_tells_nothing_needs_the_family(tmp_path: Path) -> None:
    file = file_with(tmp_path / "a.safetensors", "something.else")
    with pytest.raises(
        BaseModelMissing, match=r"the model type cannot be recognised from the files of .*; set family to one of"
    ):
        base_model.settle(Config(), file)
    assert base_model.settle(Config(family="sd"), file).sample_sampler == "ddim"


def folder_of(pipeline: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return folder


def refusals(model: Path, images: Path, output: Path, **options: Any) -> tuple[str, ...]:
    return preflight.examine(config_for(model, images, output, **options)).refusals


def test_a_folder_of_an_unknown_architecture_is_refused_by_its_name(tiny_images: Path, tmp_path: Path) -> None:
    [refusal] = refusals(folder_of("KandinskyPipeline", tmp_path / "model"), tiny_images, tmp_path)
    assert "is a KandinskyPipeline; supported are Stable Diffusion 1.x or 2.x" in refusal


def test_a_missing_component_is_named_before_anything_is_loaded(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "vae")
    [refusal] = refusals(tmp_path / "model", tiny_images, tmp_path)
    assert "is not a whole Stable Diffusion 1.x or 2.x model: it has no vae" in refusal
    assert refusals(tmp_path / "model", tiny_images, tmp_path, vae=str(tiny_model / "vae")) == ()


def test_a_wrong_choice_is_refused_with_what_the_files_are(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    [refusal] = refusals(tiny_model, tiny_images, tmp_path, family="sdxl")
    assert 'is Stable Diffusion 1.x or 2.x, not Stable Diffusion XL; set family to "sd" or "auto"' in refusal
