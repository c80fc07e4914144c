"""Writes a diffusers Stable Diffusion 1.x or XL as the single .safetensors file that other tools pass around."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet_key(key: str, layers: int, with_attention: frozenset[str]) -> str:
    """The original name of a U-Net parameter; `layers`: resnets per down block; `with_attention`: up blocks."""
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
    if first == "add_embedding":
        return ".".join(["label_emb.0", {"linear_1": "0", "linear_2": "2"}[rest[0]], rest[1]])
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
            column = "2" if block in with_attention else "1"
            return ".".join([f"output_blocks.{(layers + 1) * int(block) + layers}.{column}", *tail])
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


def _open_clip(encoder: CLIPTextModelWithProjection) -> dict[str, Tensor]:
    """A text encoder in OpenCLIP's names, with queries, keys and values in one."""
    tensors, weights = {}, {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for key, value in weights.items():
        if match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            number, layer, kind = match.groups()
            block = f"transformer.resblocks.{number}"
            if layer == "self_attn.q_proj":
                parts = [weights[f"encoder.layers.{number}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
                tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
            elif layer in names:
                tensors[f"{block}.{names[layer]}.{kind}"] = value
    return tensors | {
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T,
    }


def write(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, path: Path, marks: Sequence[str] = ()) -> Path:
    """Write the pipeline's weights under their original names. `marks`: empty tensors that say something."""
    tensors: dict[str, Tensor] = dict.fromkeys(marks, torch.zeros(0))
    unet = pipeline.unet.state_dict()
    with_attention = frozenset(key.split(".")[1] for key in unet if re.match(r"up_blocks\.\d+\.attentions", key))
    for key, tensor in unet.items():
        name = _unet_key(key, pipeline.unet.config.layers_per_block, with_attention)
        tensors["model.diffusion_model." + name] = tensor
    for key, tensor in pipeline.vae.state_dict().items():
        name = _vae_key(key, len(pipeline.vae.config.block_out_channels))
        is_attention = "attn_1" in name and name.endswith("weight") and "norm" not in name
        tensors["first_stage_model." + name] = tensor[:, :, None, None] if is_attention else tensor
    second = getattr(pipeline, "text_encoder_2", None)
    first = "conditioner.embedders.0" if second else "cond_stage_model"
    for key, tensor in pipeline.text_encoder.state_dict().items():
        inner = key if key.startswith("text_model.") else f"text_model.{key}"
        tensors[f"{first}.transformer.{inner}"] = tensor
    if second:
        tensors |= {f"conditioner.embedders.1.model.{key}": tensor for key, tensor in _open_clip(second).items()}
    safetensors.torch.save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path
