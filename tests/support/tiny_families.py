"""Each family's real classes at a tiny size, for the test that every family passes; and its real size, on paper.

A new family adds its entry here and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.support import tiny


@dataclass(frozen=True)
class Tiny:
    """How a family is tried.

    `make`: writes its tiny model, always the same, as a diffusers folder. `denoiser`: makes the real one, whose layers
    are counted on the meta device: `layers`, and `with_convolutions` when conv_dim is given. `call`: what the official
    pipeline is called with besides the prompt.
    """

    make: Callable[[Path], Path]
    denoiser: Callable[[], nn.Module]
    layers: int
    with_convolutions: int
    call: Mapping[str, Any] = field(default_factory=dict)


def make_sdxl(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = tiny.make_tokenizer(folder / "tokenizer-source")
        second = tiny.make_tokenizer(folder / "tokenizer-source")
        second.pad_token = "!"
        larger = tiny.text_config(
            first, hidden_size=48, projection_dim=32
        )  # a single file tells the two by their widths
        pipeline = StableDiffusionXLPipeline(
            vae=tiny.make_vae(),
            text_encoder=CLIPTextModel(tiny.text_config(first)),
            text_encoder_2=CLIPTextModelWithProjection(larger),
            tokenizer=first,
            tokenizer_2=second,
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 32, 64),
                layers_per_block=2,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 1, 2),
                attention_head_dim=(2, 2, 4),
                cross_attention_dim=32 + 48,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
                norm_num_groups=8,
            ),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
            ),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def real_sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


FAMILIES: dict[str, Tiny] = {
    "sd": Tiny(tiny.make_model, lambda: UNet2DConditionModel(cross_attention_dim=768), 192, 278),
    "sdxl": Tiny(make_sdxl, real_sdxl, 722, 788),
}
