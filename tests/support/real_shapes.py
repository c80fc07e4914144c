"""Base models at their real sizes with nothing but headers, so that what is told from headers can be tried.

Sizes of text encoders and VAEs are those of the published models' configs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimaTextConditioner,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    Flux2Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    MistralConfig,
    MistralModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from tests.support import tiny_families

Make = Callable[[], nn.Module]


def header(folder: Path, network: nn.Module) -> None:
    """A file of weights without the weights."""
    folder.mkdir(parents=True)
    tied = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in network.named_parameters()}
    declared = {
        name: {"dtype": "BF16", "shape": list(value.shape)}
        for name, value in network.state_dict().items()
        if name not in tied
    }
    text = json.dumps(declared).encode()
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


def qwen3(hidden: int, inner: int, layers: int, heads: int) -> Make:
    return lambda: Qwen3Model(
        Qwen3Config(
            vocab_size=151936, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=8, head_dim=128,
        )
    )  # fmt: skip


def mistral(hidden: int, inner: int, layers: int) -> Make:
    return lambda: MistralModel(
        MistralConfig(
            vocab_size=131072, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        )
    )  # fmt: skip


def qwen_vl() -> nn.Module:
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    sight = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight))


def t5() -> nn.Module:
    return T5EncoderModel(
        T5Config(
            vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def clip_l() -> nn.Module:
    return CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12))


def clip_g() -> nn.Module:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
        )
    )


def gemma() -> nn.Module:
    return Gemma2Model(Gemma2Config())


LAYERS: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
KINDS: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def vae(channels: int) -> Make:
    return lambda: AutoencoderKL(latent_channels=channels, **LAYERS, **KINDS)


def flux2_vae() -> nn.Module:
    return AutoencoderKLFlux2(**LAYERS, **KINDS)


def klein_9b() -> nn.Module:
    return Flux2Transformer2DModel(
        num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288, guidance_embeds=False
    )


def denoiser(variant: str) -> Make:
    return tiny_families.FAMILIES[variant].denoiser


# By what the names of presets begin with: the family, and its components.
MODELS: Mapping[str, tuple[str, Mapping[str, Make]]] = {
    "sd15": (
        "sd",
        {"unet": lambda: UNet2DConditionModel(cross_attention_dim=768), "text_encoder": clip_l, "vae": vae(4)},
    ),
    "sdxl": (
        "sdxl",
        {"unet": denoiser("sdxl"), "text_encoder": clip_l, "text_encoder_2": clip_g, "vae": vae(4)},
    ),
    "zimage": (
        "z_image",
        {"transformer": denoiser("z_image"), "text_encoder": qwen3(2560, 9728, 36, 32), "vae": vae(16)},
    ),
    "flux2-klein-4b": (
        "flux2",
        {"transformer": denoiser("flux2"), "text_encoder": qwen3(2560, 9728, 36, 32), "vae": flux2_vae},
    ),
    "flux2-klein-9b": (
        "flux2",
        {"transformer": klein_9b, "text_encoder": qwen3(4096, 12288, 36, 32), "vae": flux2_vae},
    ),
    "flux2-dev": (
        "flux2",
        {"transformer": denoiser("flux2 dev"), "text_encoder": mistral(5120, 32768, 40), "vae": flux2_vae},
    ),
    "flux": (
        "flux",
        {"transformer": denoiser("flux"), "text_encoder": clip_l, "text_encoder_2": t5, "vae": vae(16)},
    ),
    "qwen-image": (
        "qwen_image",
        {"transformer": denoiser("qwen_image"), "text_encoder": qwen_vl, "vae": AutoencoderKLQwenImage},
    ),
    "anima": (
        "anima",
        {
            "transformer": denoiser("anima"),
            "text_encoder": qwen3(1024, 3072, 28, 16),
            "text_conditioner": AnimaTextConditioner,
            "vae": AutoencoderKLQwenImage,
        },
    ),
    "krea2": (
        "krea2",
        {"transformer": denoiser("krea2"), "text_encoder": qwen3(2560, 9728, 36, 32), "vae": AutoencoderKLQwenImage},
    ),
    "chroma": ("chroma", {"transformer": denoiser("chroma"), "text_encoder": t5, "vae": vae(16)}),
    "sd35": (
        "sd3",
        {
            "transformer": denoiser("sd3"),
            "text_encoder": clip_l,
            "text_encoder_2": clip_g,
            "text_encoder_3": t5,
            "vae": vae(16),
        },
    ),
    "ernie": (
        "ernie",
        {"transformer": denoiser("ernie"), "text_encoder": mistral(3072, 9216, 26), "vae": flux2_vae},
    ),
    "lumina2": ("lumina2", {"transformer": denoiser("lumina2"), "text_encoder": gemma, "vae": vae(16)}),
}


def of_preset(name: str) -> str:
    """The model of a preset of this name."""
    return max((model for model in MODELS if name.startswith(model)), key=len)


def write(model: str, folder: Path) -> Path:
    """The components' headers of a model, as a diffusers folder has them."""
    with torch.device("meta"):
        for component, make in MODELS[model][1].items():
            header(folder / component, make())
    return folder
