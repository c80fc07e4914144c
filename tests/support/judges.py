"""The networks that judge pictures: their real architectures, small where they can be, with random weights."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from tests.support.tiny import make_tokenizer
from trainer.judging.inception import Inception


def make_inception(path: Path) -> Path:
    """InceptionV3, whose size cannot be chosen: 24 million parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Inception()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
                nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # as it comes, it would hardly tell pictures apart
    safetensors.torch.save_file(network.state_dict(), path)
    return path


def make_clip(folder: Path) -> Path:
    """CLIP with its tokenizer over single bytes."""
    tokenizer = make_tokenizer(folder)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 77, **layers}
    ends = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": len(tokenizer) - 1}
    config = CLIPConfig(
        text_config={**text, **ends}, vision_config={"image_size": 32, "patch_size": 8, **layers}, projection_dim=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dino(folder: Path) -> Path:
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        Dinov2Model(config).save_pretrained(folder)
    return folder
