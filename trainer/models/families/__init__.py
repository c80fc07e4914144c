"""The table of architectures: what each is, without torch; and one file each, imported only to load a model.

This module and `facts` import nothing but the standard library, so every room may read them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from trainer.models.families.facts import (
    BLOCKS,
    CLIP_SKIP,
    CLIP_TEXT,
    CONVOLUTIONAL,
    DDPM,
    TRAINS_ENCODERS,
    TWO_ENCODERS,
    UPCASTS_VAE,
    Blocks,
    Facts,
    Part,
)

if TYPE_CHECKING:
    from trainer.models.families.base import Family

AUTO = "auto"  # the family that the base model's files show

UNET_LAYERS = r"(^|\.)attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.)"
UNET_CONVOLUTIONS = r"\.(resnets\.\d+\.(conv[12]|conv_shortcut|time_emb_proj)|(down|up)samplers\.\d+\.conv)$"
UNET_KERNELS = r"\.(conv[12]|(down|up)samplers\.\d+\.conv)$|^conv_(in|out)$"
ORIGINAL_UNET = "model.diffusion_model."
ORIGINAL_UNET_LAYERS = r"\.transformer_blocks\.|(blocks\.\d+|middle_block)\.1\.proj_(in|out)$"
ORIGINAL_UNET_CONVOLUTIONS = r"\.(in_layers\.2|out_layers\.3|emb_layers\.1|skip_connection|op|conv)$"
CLIP_LAYERS = r"(^|\.)(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$"

TABLE: dict[str, Facts] = {
    "sd": Facts(
        title="Stable Diffusion 1.x or 2.x",
        module="trainer.models.families.sd",
        pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
        signature=(r"^model\.diffusion_model\.input_blocks\.0\.0\.weight$", r"^cond_stage_model\."),
        components=("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
        denoiser=Part(
            "unet",
            "lora_unet",
            UNET_LAYERS,
            UNET_CONVOLUTIONS,
            outer=r"^(conv_in|conv_out|time_embedding\.linear_[12])$",
            kernels=UNET_KERNELS,
            original=ORIGINAL_UNET,
            original_layers=ORIGINAL_UNET_LAYERS,
            original_convolutions=ORIGINAL_UNET_CONVOLUTIONS,
            original_outer=r"^(input_blocks\.0\.0|out\.2|time_embed\.[02])$",
        ),
        encoders=(
            Part(
                "text_encoder",
                "lora_te",
                CLIP_LAYERS,
                path_prefix="text_model.",
                tokenizer="tokenizer",
                original="cond_stage_model.",
                original_layers=CLIP_LAYERS,
                drops_last=True,
            ),
        ),
        channels=4,
        factor=8,
        granularity=8,
        traits=frozenset({DDPM, CLIP_TEXT, CLIP_SKIP, TRAINS_ENCODERS, CONVOLUTIONAL, BLOCKS}),
        blocks=Blocks(0, 12, 1, 12, 0),
        version="sd_v1",
        architecture="stable-diffusion-v1",
        defaults={"sample_sampler": "ddim"},
    ),
    "sdxl": Facts(
        title="Stable Diffusion XL",
        module="trainer.models.families.sdxl",
        pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        signature=(r"^model\.diffusion_model\.input_blocks\.0\.0\.weight$", r"^conditioner\.embedders\.1\."),
        components=("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
        denoiser=Part(
            "unet",
            "lora_unet",
            UNET_LAYERS,
            UNET_CONVOLUTIONS,
            kernels=UNET_KERNELS,
            original=ORIGINAL_UNET,
            original_layers=ORIGINAL_UNET_LAYERS,
            original_convolutions=ORIGINAL_UNET_CONVOLUTIONS,
        ),
        encoders=(
            Part(
                "text_encoder",
                "lora_te1",
                CLIP_LAYERS,
                path_prefix="text_model.",
                tokenizer="tokenizer",
                original="conditioner.embedders.0.",
                original_layers=CLIP_LAYERS,
                idle=r"\.layers\.{last}\.",
            ),
            Part(
                "text_encoder_2",
                "lora_te2",
                CLIP_LAYERS,
                path_prefix="text_model.",
                tokenizer="tokenizer_2",
                original="conditioner.embedders.1.",
                original_layers=CLIP_LAYERS,
            ),
        ),
        channels=4,
        factor=8,
        granularity=8,
        traits=frozenset({DDPM, CLIP_TEXT, TRAINS_ENCODERS, TWO_ENCODERS, UPCASTS_VAE, CONVOLUTIONAL, BLOCKS}),
        blocks=Blocks(1, 9, 3, 9, 1),
        version="sdxl_base_v1-0",
        architecture="stable-diffusion-xl-v1-base",
        keys="sai",
        defaults={"sample_sampler": "euler_a"},
    ),
}


def choices() -> tuple[str, ...]:
    """The values of the option `family`."""
    return (AUTO, *TABLE)


def get(name: str) -> Family:
    """The family of this name; only its own module is imported."""
    family: Family = importlib.import_module(TABLE[name].module).FAMILY
    return family
