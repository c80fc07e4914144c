"""A whole Stable Diffusion under the names of its first publishers, as single files have it. No torch here.

Everything is told from diffusers' names alone. Its `from_single_file` is the inverse, and judges it in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainer.models.tensor_files import Entries, Entry, joined

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
EMBEDDINGS = {"time_embedding": "time_embed", "add_embedding": "label_emb.0"}
VAE_LAYERS = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {
    "group_norm": "norm",
    **dict.fromkeys(("to_q", "query"), "q"),  # today's names and those of older folders
    **dict.fromkeys(("to_k", "key"), "k"),
    **dict.fromkeys(("to_v", "value"), "v"),
    **dict.fromkeys(("to_out.0", "proj_attn"), "proj_out"),
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_OUTER = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def unet(tensors: Entries) -> dict[str, Entry]:
    """A U-Net of Stable Diffusion 1.x, 2.x or XL. Raises ValueError for what is none."""
    layers = len({match[1] for name in tensors if (match := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", name))})
    with_attention = {match[1] for name in tensors if (match := re.match(r"up_blocks\.(\d+)\.attentions\.", name))}
    return {
        f"model.diffusion_model.{_unet_name(name, layers, with_attention)}": entry for name, entry in tensors.items()
    }


def _unet_name(name: str, layers: int, with_attention: set[str]) -> str:
    """`layers`: resnets of a block on the way down; `with_attention`: the blocks on the way up that have some."""
    first, _, rest = name.partition(".")
    if first in UNET_ENDS:
        return f"{UNET_ENDS[first]}.{rest}"
    if first in EMBEDDINGS:
        return f"{EMBEDDINGS[first]}.{rest.replace('linear_1', '0').replace('linear_2', '2')}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        place = f"middle_block.{2 * int(match[2])}" if match[1] == "resnets" else "middle_block.1"
        return f"{place}.{_inner(match[1], match[3])}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if not match:
        raise ValueError(f"{name} has no name in the original file of Stable Diffusion")
    side, block, kind, number, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (block + 1)}.0.{inner.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * block + layers}.{2 if match[2] in with_attention else 1}.{inner}"
    start = f"input_blocks.{(layers + 1) * block + number + 1}"
    if side == "up":
        start = f"output_blocks.{(layers + 1) * block + number}"
    return f"{start}.{0 if kind == 'resnets' else 1}.{_inner(kind, inner)}"


def _inner(kind: str, inner: str) -> str:
    """The end of a name in a resnet; in attention it is the same."""
    layer, _, rest = inner.partition(".")
    return f"{RESNET[layer]}.{rest}" if kind == "resnets" else inner


def vae(tensors: Entries) -> dict[str, Entry]:
    """An AutoencoderKL, from diffusers' names or from original ones."""
    tensors = {name.removeprefix("first_stage_model."): entry for name, entry in tensors.items()}
    blocks = 1 + max(
        (int(match[1]) for name in tensors if (match := re.match(r"encoder\.down_blocks\.(\d+)\.", name))), default=-1
    )
    named: dict[str, Entry] = {}
    for name, entry in tensors.items():
        original = _vae_name(name, blocks) if blocks else name
        if re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", original) and len(entry.shape) == 2:
            entry = entry.changed((*entry.shape, 1, 1), lambda array: array[:, :, None, None])
        named[f"first_stage_model.{original}"] = entry
    return named


def _vae_name(name: str, blocks: int) -> str:
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(.+)", name):
        return f"{match[1]}.mid.block_{int(match[2]) + 1}.{_vae_layer(match[3])}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", name):
        return f"{match[1]}.mid.attn_1.{VAE_ATTENTION[match[2]]}.{match[3]}"
    if match := re.fullmatch(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|\w+samplers)\.(\d+)\.(.+)", name):
        number = int(match[3]) if match[2] == "down" else blocks - 1 - int(match[3])
        if match[4] == "resnets":
            return f"{match[1]}.{match[2]}.{number}.block.{match[5]}.{_vae_layer(match[6])}"
        return f"{match[1]}.{match[2]}.{number}.{match[2]}sample.{match[6]}"
    return _vae_layer(name)


def _vae_layer(name: str) -> str:
    return ".".join(VAE_LAYERS.get(part, part) for part in name.split("."))


def clip(tensors: Entries, prefix: str) -> dict[str, Entry]:
    """CLIP-L in transformers' names, under a prefix."""
    return {f"{prefix}transformer.text_model.{name}": entry for name, entry in _inside(tensors).items()}


def _inside(tensors: Entries) -> dict[str, Entry]:
    """The names within the text model, without what is counted and not learnt."""
    return {
        name.removeprefix("text_model."): entry for name, entry in tensors.items() if not name.endswith("position_ids")
    }


def open_clip(tensors: Entries, prefix: str, *, last_again: bool = False) -> dict[str, Entry]:
    """A text encoder in OpenCLIP's names, with queries, keys and values in one. `last_again`: for SD 2.x, whose file
    has a last block that nothing uses, and that diffusers leaves out."""
    inside = _inside(tensors)
    named: dict[str, Entry] = {}
    for name, entry in inside.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            named |= _open_clip_outer(name, entry)
        elif match[2] in OPEN_CLIP:
            named[f"transformer.resblocks.{match[1]}.{OPEN_CLIP[match[2]]}.{match[3]}"] = entry
        elif match[2] == "self_attn.q_proj":
            parts = [inside[f"encoder.layers.{match[1]}.self_attn.{one}_proj.{match[3]}"] for one in "qkv"]
            named[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = joined(parts)
    if last_again:
        named |= _with_one_more_block(named)
    return {f"{prefix}model.{name}": entry for name, entry in named.items()}


def _open_clip_outer(name: str, entry: Entry) -> Mapping[str, Entry]:
    if name == "text_projection.weight":
        return {"text_projection": entry.changed(entry.shape[::-1], lambda array: array.T)}
    return {OPEN_CLIP_OUTER[name]: entry}


def _with_one_more_block(named: Entries) -> dict[str, Entry]:
    blocks = {int(match[1]) for name in named if (match := re.match(r"transformer\.resblocks\.(\d+)\.", name))}
    last = f"transformer.resblocks.{max(blocks)}."
    following = f"transformer.resblocks.{max(blocks) + 1}."
    return {name.replace(last, following): entry for name, entry in named.items() if name.startswith(last)}
