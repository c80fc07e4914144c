"""What the tensors of a LoRA file are called, in each form that other tools read, and the file itself. No torch here.

The one writer of such files: the trainer uses it while it trains, and an export from a checkpoint without the model.
Our own names are those of a checkpoint: "<component>.<path>.lora_A.weight".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors import TensorSpec

Array = NDArray[Any]
DTYPES = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}  # as safetensors names them


@dataclass(frozen=True)
class Naming:
    """How a file names the layers of each component; a checkpoint records it, so that it can be exported.

    `targets`: component -> prefix of kohya's keys, and what is put before a path that lacks it.
    """

    scheme: str
    targets: Mapping[str, tuple[str, str]]

    def record(self) -> dict[str, Any]:
        """What `from_record` takes, for JSON."""
        return {"keys": self.scheme, "targets": {name: list(target) for name, target in self.targets.items()}}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Naming:
        """Checkpoints were written without "keys" while there was only kohya's way."""
        targets = {name: (str(target[0]), str(target[1])) for name, target in record["targets"].items()}
        return Naming(str(record.get("keys", "kohya")), targets)

    def kohya(self, component: str, path: str) -> str:
        """kohya's name of a layer, under this scheme."""
        prefix, before = self.targets[component]
        path = path if path.startswith(before) else before + path
        if component == "unet" and self.scheme == "sai":
            path = original_unet_path(path)
        if component == "transformer" and self.scheme == "cosmos":
            path = cosmos_path(path)
        return f"{prefix}_{path}".replace(".", "_")

    @property
    def keeps_paths(self) -> bool:
        """Whether a file has layers under our own names of them: those of transformers in diffusers' names."""
        return self.scheme in ("folded", "fused")

    def layer(self, ours: str) -> str:
        """What a file of another kind than LoRA calls a layer, "<component>.<path>" here."""
        component, _, path = ours.partition(".")
        return ours if self.keeps_paths else self.kohya(component, path)


class Layer(NamedTuple):
    """A LoRA layer: `down` (rank, in, ...), `up` (out, rank, ...), in fp32."""

    down: Array
    up: Array
    alpha: float


def layers_of(weights: Mapping[str, Array], alpha: Callable[[str], float]) -> Iterator[tuple[str, Layer]]:
    """("<component>.<path>", layer) of weights in our names. `alpha`: of a layer of such a name."""
    for name, down in weights.items():
        if name.endswith(".lora_A.weight"):
            ours = name.removesuffix(".lora_A.weight")
            yield ours, Layer(down, weights[f"{ours}.lora_B.weight"], alpha(ours))


def lora_file(weights: Mapping[str, Array], naming: Naming, alpha: Callable[[str], float]) -> dict[str, Array]:
    """The tensors of a LoRA file, in fp32, from weights in our names."""
    return SCHEMES[naming.scheme](dict(layers_of(weights, alpha)), naming)


def unjoined_file(weights: Mapping[str, Array], naming: Naming, alpha: Callable[[str], float]) -> dict[str, Array]:
    """The same with each layer by itself, named as `Naming.layer` does."""
    form = _folded if naming.keeps_paths else _kohya
    return form(dict(layers_of(weights, alpha)), naming)


# --- the forms -----------------------------------------------------------------------------------------------------


def _kohya(layers: Mapping[str, Layer], naming: Naming) -> dict[str, Array]:
    """lora_down, lora_up and alpha under flattened paths."""
    tensors: dict[str, Array] = {}
    for ours, layer in layers.items():
        component, _, path = ours.partition(".")
        tensors |= _as_kohya(naming.kohya(component, path), layer)
    return tensors


def _as_kohya(name: str, layer: Layer) -> dict[str, Array]:
    return {
        f"{name}.lora_down.weight": layer.down,
        f"{name}.lora_up.weight": layer.up,
        f"{name}.alpha": np.array(layer.alpha, np.float32),
    }


def _folded(layers: Mapping[str, Layer], naming: Naming) -> dict[str, Array]:
    """lora_A and lora_B under diffusers' paths with alpha / rank folded into lora_B: the one form of transformers
    that all of diffusers' pipelines read rightly."""
    tensors: dict[str, Array] = {}
    for ours, layer in layers.items():
        tensors[f"{ours}.lora_A.weight"] = layer.down
        tensors[f"{ours}.lora_B.weight"] = layer.up * np.float32(layer.alpha / layer.down.shape[0])
    return tensors


def _fused(layers: Mapping[str, Layer], naming: Naming) -> dict[str, Array]:
    """kohya's names of FLUX.1, in which several layers are one: downs stacked, ups along a diagonal. Nothing is lost;
    alpha grows as the rank does."""
    groups: dict[str, dict[int, Layer]] = {}
    tensors: dict[str, Array] = {}
    for ours, layer in layers.items():
        component, _, path = ours.partition(".")
        prefix, _ = naming.targets[component]
        if component != "transformer":
            tensors |= _as_kohya(naming.kohya(component, path), layer)
            continue
        name, place = flux_place(path)
        groups.setdefault(f"{prefix}_{name}".replace(".", "_"), {})[place] = layer
    for name, members in groups.items():
        joined = [members[number] for number in sorted(members)]
        if len(joined) == 1:
            tensors |= _as_kohya(name, joined[0])
            continue
        up = np.zeros((sum(len(part.up) for part in joined), sum(part.up.shape[1] for part in joined)), np.float32)
        row = column = 0
        for part in joined:
            height, rank = part.up.shape
            up[row : row + height, column : column + rank] = part.up
            row, column = row + height, column + rank
        down = np.concatenate([part.down for part in joined])
        alpha = joined[0].alpha * len(down) / len(joined[0].down)
        tensors |= _as_kohya(name, Layer(down, up, alpha))
    return tensors


def _cosmos(layers: Mapping[str, Layer], naming: Naming) -> dict[str, Array]:
    """`_folded` under the names of Cosmos' original file, which ComfyUI and diffusers read of Anima."""
    renamed = {f"{ORIGINAL}{cosmos_path(ours.partition('.')[2])}": layer for ours, layer in layers.items()}
    return _folded(renamed, naming)


def in_our_names(
    tensors: Mapping[str, Any], naming: Naming, component: str, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """A file's tensors so that each layer of a component has its own; `sizes`: path -> outputs of each layer."""
    if component == "transformer" and naming.scheme == "fused":
        return unfused(tensors, naming, component, sizes)
    if component == "transformer" and naming.scheme == "cosmos":
        ours = {f"{ORIGINAL}{cosmos_path(path)}": f"{component}.{path}" for path in sizes}
        layer = re.compile(r"(.+)\.(lora_[AB]\.weight)$")
        names = {name: match for name in tensors if (match := layer.match(name)) and match[1] in ours}
        return {
            f"{ours[names[name][1]]}.{names[name][2]}" if name in names else name: tensor
            for name, tensor in tensors.items()
        }
    return dict(tensors)


def unfused(tensors: Mapping[str, Any], naming: Naming, component: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A file's tensors with joined layers of FLUX.1 taken apart, under kohya's names of diffusers' paths.

    `sizes`: path -> outputs of each layer of the component. A part gets its own ranks where those of the others do not
    reach it (so does what `_fused` joined), or all of them (so does what was trained as one). Arrays or tensors.
    """
    prefix, _ = naming.targets[component]
    groups: dict[str, dict[int, str]] = {}
    for path in sizes:
        name, place = flux_place(path)
        groups.setdefault(f"{prefix}_{name}".replace(".", "_"), {})[place] = path
    result = dict(tensors)
    for name, members in groups.items():
        if f"{name}.lora_up.weight" not in tensors:
            continue
        down, up = result.pop(f"{name}.lora_down.weight"), result.pop(f"{name}.lora_up.weight")
        alpha = result.pop(f"{name}.alpha", None)
        scale = (len(down) if alpha is None else float(alpha)) / len(down)
        paths = [members[place] for place in sorted(members)]
        row, share = 0, len(down) // len(paths)
        apart = len(down) % len(paths) == 0 and _is_block_diagonal(up, [sizes[path] for path in paths], share)
        for number, path in enumerate(paths):
            rows, own = up[row : row + sizes[path]], slice(number * share, (number + 1) * share)
            row += sizes[path]
            layer = (down[own], rows[:, own]) if apart else (down, rows)
            ours = f"{prefix}_{path}".replace(".", "_")
            result[f"{ours}.lora_down.weight"], result[f"{ours}.lora_up.weight"] = layer
            result[f"{ours}.alpha"] = scale * len(layer[0])
    return result


def _is_block_diagonal(up: Any, heights: Sequence[int], rank: int) -> bool:
    """Whether each block of rows uses its own columns alone."""
    row = 0
    for number, height in enumerate(heights):
        rows, column = up[row : row + height], number * rank
        if rows[:, :column].any() or rows[:, column + rank :].any():
            return False
        row += height
    return True


SCHEMES: dict[str, Callable[[Mapping[str, Layer], Naming], dict[str, Array]]] = {
    "kohya": _kohya,
    "sai": _kohya,  # with the U-Net's original paths
    "folded": _folded,
    "fused": _fused,
    "cosmos": _cosmos,
}
ORIGINAL = "diffusion_model."  # before the paths of an original file


# --- original paths ------------------------------------------------------------------------------------------------

_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ORIGINAL_RESNET = {original: ours for ours, original in _RESNET.items()}
_SAMPLED = re.compile(r"down_blocks\.(\d+)\.downsamplers\.0\.conv|up_blocks\.(\d+)\.upsamplers\.0\.conv")
_IN_BLOCK = re.compile(r"(down|up|mid)_blocks?(?:\.(\d+))?\.(resnets|attentions)\.(\d+)\.(.+)")
OUTER_ORIGINAL = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
LAYERS_A_BLOCK = 2  # resnets of a down block of SDXL; an up block has one more
ATTENTION_BLOCKS = (1, 2)  # down blocks of SDXL with attention, counted from the outside


def original_unet_path(path: str) -> str:
    """A layer's path in SDXL's original file, "input_blocks.4.1.proj_in", from diffusers' path.

    Raises ValueError for what is no layer of an SDXL U-Net's blocks.
    """
    if path in OUTER_ORIGINAL:
        return OUTER_ORIGINAL[path]
    if match := _SAMPLED.fullmatch(path):
        if match[1] is not None:
            return f"input_blocks.{(LAYERS_A_BLOCK + 1) * (int(match[1]) + 1)}.0.op"
        block = int(match[2])
        has_attention = (2 - block) in ATTENTION_BLOCKS
        return f"output_blocks.{(LAYERS_A_BLOCK + 1) * block + LAYERS_A_BLOCK}.{2 if has_attention else 1}.conv"
    match = _IN_BLOCK.fullmatch(path)
    if not match:
        raise ValueError(f"{path} has no name in SDXL's original file")
    side, outer, kind, number, inner = match.groups()
    if kind == "resnets":
        inner = _RESNET[inner]
    if side == "mid":
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{inner}"
    column = 0 if kind == "resnets" else 1
    if side == "down":
        return f"input_blocks.{(LAYERS_A_BLOCK + 1) * int(outer) + int(number) + 1}.{column}.{inner}"
    return f"output_blocks.{(LAYERS_A_BLOCK + 1) * int(outer) + int(number)}.{column}.{inner}"


_FLUX_DOUBLE = {
    "attn.to_q": ("img_attn.qkv", 0),
    "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2),
    "attn.to_out.0": ("img_attn.proj", 0),
    "attn.to_add_out": ("txt_attn.proj", 0),
    "ff.net.0.proj": ("img_mlp.0", 0),
    "ff.net.2": ("img_mlp.2", 0),
    "ff_context.net.0.proj": ("txt_mlp.0", 0),
    "ff_context.net.2": ("txt_mlp.2", 0),
    "norm1.linear": ("img_mod.lin", 0),
    "norm1_context.linear": ("txt_mod.lin", 0),
}
_FLUX_SINGLE = {
    "attn.to_q": ("linear1", 0),
    "attn.to_k": ("linear1", 1),
    "attn.to_v": ("linear1", 2),
    "proj_mlp": ("linear1", 3),
    "proj_out": ("linear2", 0),
    "norm.linear": ("modulation.lin", 0),
}
FLUX_INNER = {name.replace(".", "_"): name for name, _ in (*_FLUX_DOUBLE.values(), *_FLUX_SINGLE.values())}
_FLUX_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


def flux_place(path: str) -> tuple[str, int]:
    """The layer of FLUX.1's original file that a layer of diffusers is in, and its place among those joined there."""
    match = _FLUX_BLOCK.fullmatch(path)
    table = _FLUX_SINGLE if match and match[1] else _FLUX_DOUBLE
    if not match or match[3] not in table:
        raise ValueError(f"{path} has no name in FLUX.1's original file")
    name, place = table[match[3]]
    return f"{'single' if match[1] else 'double'}_blocks.{match[2]}.{name}", place


def flux_paths(original: str) -> list[str]:
    """The layers of diffusers that one of FLUX.1's original file is made of, in the order of its outputs."""
    side, number, inner = original.split(".", 2)
    table, block = (_FLUX_DOUBLE, "transformer") if side == "double_blocks" else (_FLUX_SINGLE, "single_transformer")
    members = {place: path for path, (name, place) in table.items() if name == inner}
    return [f"{block}_blocks.{number}.{members[place]}" for place in sorted(members)]


COSMOS = {
    "attn1.to_q": "self_attn.q_proj",
    "attn1.to_k": "self_attn.k_proj",
    "attn1.to_v": "self_attn.v_proj",
    "attn1.to_out.0": "self_attn.output_proj",
    "attn2.to_q": "cross_attn.q_proj",
    "attn2.to_k": "cross_attn.k_proj",
    "attn2.to_v": "cross_attn.v_proj",
    "attn2.to_out.0": "cross_attn.output_proj",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}


def cosmos_path(path: str) -> str:
    """A layer's path in the original file of Cosmos and Anima, "blocks.0.self_attn.q_proj", from diffusers' path."""
    match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", path)
    if not match or match[2] not in COSMOS:
        raise ValueError(f"{path} has no name in Cosmos' original file")
    return f"blocks.{match[1]}.{COSMOS[match[2]]}"


# --- the file ------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A tensor as it is written: safetensors' name of its type, and its bits."""

    dtype: str
    array: Array


def stored(values: Array, precision: str) -> Stored:
    """fp32 values as a file of this save_precision holds them."""
    dtype = DTYPES[precision]
    array = np.array(values, dtype=np.float32, order="C")
    if dtype == "float16":
        array = array.astype(np.float16)
    elif dtype == "bfloat16":  # numpy has none: the upper half of a float32, rounded to the nearest, ties to even
        bits = array.view(np.uint32)
        array = np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, dtype=np.uint16)
    return Stored(dtype, array)


def file_bytes(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> bytes:
    """The content of a safetensors file."""
    specs = {
        name: TensorSpec(
            dtype=tensor.dtype,
            shape=tensor.array.shape,
            data_ptr=tensor.array.ctypes.data,
            data_len=tensor.array.nbytes,
        )
        for name, tensor in tensors.items()
    }
    return bytes(safetensors.serialize(specs, dict(metadata)))


def hashes(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> dict[str, str]:
    """kohya's sshs_model_hash and sshs_legacy_hash, over the file with its ss_* metadata alone."""
    data = file_bytes(tensors, {name: value for name, value in metadata.items() if name.startswith("ss_")})
    header = int.from_bytes(data[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(data[8 + header :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
    }
