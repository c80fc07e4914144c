"""A real Stable Diffusion of a few hundred thousand parameters, and pictures to train it on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

# Options with which everything that can be cached is cached on the disk.
CACHED: dict[str, Any] = {
    "cache_latents": True,
    "cache_latents_to_disk": True,
    "cache_text_encoder_outputs": True,
    "cache_text_encoder_outputs_to_disk": True,
    "network_train_unet_only": True,
}


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer over single bytes: no merges."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def make_chat_tokenizer(padding_side: str = "right", *, begins: bool = False) -> PreTrainedTokenizerFast:
    """A language model's tokenizer over single bytes, with a chat template. `begins`: each text with a token for it."""
    words = {symbol: number for number, symbol in enumerate(bytes_to_unicode().values())}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    if begins:
        begin = "<|im_start|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHAT,
        padding_side=padding_side,
        model_max_length=4096,
    )


def text_config(tokenizer: CLIPTokenizer, **changes: Any) -> CLIPTextConfig:
    """A CLIP text encoder of two layers."""
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": len(tokenizer) - 2,
        "eos_token_id": len(tokenizer) - 1,
        "pad_token_id": len(tokenizer) - 1,
    }
    return CLIPTextConfig(vocab_size=len(tokenizer), **small | changes)


def make_vae(**changes: Any) -> AutoencoderKL:
    """A VAE whose latents have 8 pixels."""
    small = {
        "block_out_channels": (16, 16, 16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
    }
    return AutoencoderKL(**small | changes)


def make_model(folder: Path, **scheduler: Any) -> Path:
    """Write a tiny Stable Diffusion in diffusers' folder format, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = make_tokenizer(folder / "tokenizer-source")
        text_encoder = CLIPTextModel(text_config(tokenizer))
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        vae = make_vae()
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    defaults = {"clip_sample": False, "steps_offset": 1, **noise}
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDPMScheduler(**{**defaults, **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def make_images(
    folder: Path, count: int = 6, repeats: int = 1, sizes: tuple[tuple[int, int], ...] = ((64, 64),)
) -> Path:
    """Write a kohya folder of smooth random pictures with captions."""
    inner = folder / f"{repeats}_thing"
    inner.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(7)
    for number in range(count):
        width, height = sizes[number % len(sizes)]
        coarse = draw.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(inner / f"picture{number}.png")
        words = ("red", "round", "small", "bright", "soft", "plain")
        chosen = [words[int(index)] for index in draw.permutation(len(words))[:4]]
        (inner / f"picture{number}.txt").write_text(", ".join(["thing", *chosen]))
    return folder
