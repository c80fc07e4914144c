"""Writes a diffusers Stable Diffusion 1.x as the single .safetensors file that other tools pass around."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet_key(key: str, layers: int) -> str:
    """The original name of a U-Net parameter; `layers`: resnets per down block."""
    first, *rest = key.split(".")
    fixed = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    if first in fixed:
        return ".".join([fixed[first], *rest])
    if first == "time_embedding":
        return ".".join(["time_embed", {"linear_1": "0", "linear_2": "2"}[rest[0]], rest[1]])
    if first == "mid_block":
        kind, number, *tail = rest
        place = f"middle_block.{2 * int(number)}" if kind == "resnets" else "middle_block.1"
        return ".".join([place, *_inner(kind, tail)])
    block, kind, number, *tail = rest
    if first == "down_blocks":
        if kind == "downsamplers":
            return ".".join([f"input_blocks.{(layers + 1) * (int(block) + 1)}.0.op", *tail[1:]])
        place = f"input_blocks.{(layers + 1) * int(block) + int(number) + 1}"
    else:
        if kind == "upsamplers":
            has_attention = "2" if int(block) > 0 else "1"
            return ".".join([f"output_blocks.{(layers + 1) * int(block) + layers}.{has_attention}", *tail])
        place = f"output_blocks.{(layers + 1) * int(block) + int(number)}"
    return ".".join([f"{place}.{0 if kind == 'resnets' else 1}", *_inner(kind, tail)])


def _inner(kind: str, tail: list[str]) -> list[str]:
    return [RESNET[tail[0]], *tail[1:]] if kind == "resnets" else tail


def _vae_key(key: str, blocks: int) -> str:
    parts = key.split(".")
    names = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
    attention = {"to_q": "q", "to_k": "k", "to_v": "v", "group_norm": "norm"}
    if "mid_block" in parts:
        side, _, kind, number, *tail = parts
        if kind == "resnets":
            return ".".join([side, "mid", f"block_{int(number) + 1}", *(names.get(part, part) for part in tail)])
        tail = ["proj_out", *tail[2:]] if tail[0] == "to_out" else [attention[tail[0]], *tail[1:]]
        return ".".join([side, "mid", "attn_1", *tail])
    if len(parts) > 2 and parts[1] in ("down_blocks", "up_blocks"):
        side, stack, block, kind, number, *tail = parts
        place = f"{side}.down.{block}" if stack == "down_blocks" else f"{side}.up.{blocks - 1 - int(block)}"
        if kind == "resnets":
            return ".".join([place, "block", number, *(names.get(part, part) for part in tail)])
        return ".".join([place, "downsample" if kind == "downsamplers" else "upsample", *tail])
    return ".".join(names.get(part, part) for part in parts)


def write(pipeline: StableDiffusionPipeline, path: Path) -> Path:
    """Write the pipeline's weights under their original names."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in pipeline.unet.state_dict().items():
        tensors["model.diffusion_model." + _unet_key(key, pipeline.unet.config.layers_per_block)] = tensor
    for key, tensor in pipeline.vae.state_dict().items():
        name = _vae_key(key, len(pipeline.vae.config.block_out_channels))
        is_attention = "attn_1" in name and name.endswith("weight") and "norm" not in name
        tensors["first_stage_model." + name] = tensor[:, :, None, None] if is_attention else tensor
    for key, tensor in pipeline.text_encoder.state_dict().items():
        inner = key if key.startswith("text_model.") else f"text_model.{key}"
        tensors[f"cond_stage_model.transformer.{inner}"] = tensor
    safetensors.torch.save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path
