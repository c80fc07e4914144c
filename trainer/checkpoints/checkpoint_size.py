"""About how large a checkpoint will be, from the options and the headers of the base model's files. No torch here."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.file_memory import stamp_of
from trainer.models import base_model
from trainer.options.config import Config

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # by the name of a parameter

MOST_HEADER = 100 << 20  # bytes; a header of Stable Diffusion has a hundred thousand
ENTRY = 66  # bytes that a safetensors header has for a tensor beside its name
DOCUMENTS = 7_500  # bytes of config, state, environment and manifest
AN_IMAGE = 320  # bytes of dataset.json for an image

# Inside a model of diffusers or of the original authors, see the classes that families/sd.py gives to its targets.
_LINEAR = re.compile(r"\.attentions\.\d+\.|\.transformer_blocks\.|\.\d+\.1\.proj_(in|out)\.|\.middle_block\.1\.proj_")
_OUTER = re.compile(r"(^|\.)(conv_in|conv_out|input_blocks\.0\.0|diffusion_model\.out\.2)\.weight$")
_TEXT = re.compile(r"(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.weight$")
_OPEN_CLIP = re.compile(r"\.resblocks\.(\d+)\.(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_(fc|proj)\.weight)$")


class SizeUnknown(Exception):
    """The base model's files do not tell; the message says why."""


# --- what is trained -----------------------------------------------------------------------------------------------


def trained(config: Config, model: Path) -> Shapes:
    """The shapes of the LoRA parameters that a base model gets. Raises SizeUnknown.

    `model`: a diffusers folder or a single .safetensors file.
    """
    found: dict[str, Shape] = {}
    if config.trains_unet:
        layers = _unet(_tensors(model, "unet"))
        for name, shape in layers.items():
            is_conv = math.prod(shape[2:]) > 1
            rank = config.conv_dim if is_conv else config.network_dim
            if rank:
                found |= _matrices(f"unet.{name}", shape, rank)
    if config.trains_text_encoder:
        for name, shape in _text_encoder(_tensors(model, "text_encoder")).items():
            found |= _matrices(f"text_encoder.{name}", shape, config.network_dim)
    return found


def _matrices(name: str, shape: Shape, rank: int) -> dict[str, Shape]:
    """LoRA's two matrices beside a layer whose weight has this shape: (out, in) or (out, in, height, width)."""
    ones = tuple(1 for _ in shape[2:])
    return {f"{name}.lora_A.weight": (rank, *shape[1:]), f"{name}.lora_B.weight": (shape[0], rank, *ones)}


def _unet(tensors: Shapes) -> dict[str, Shape]:
    """The layers that can get LoRA layers."""
    layers = {}
    for name, shape in tensors.items():
        is_conv = math.prod(shape[2:]) > 1
        wanted = not _OUTER.search(name) if is_conv else _LINEAR.search(f".{name}")
        if name.endswith(".weight") and len(shape) in (2, 4) and wanted:
            layers[name.removeprefix("model.diffusion_model.").removesuffix(".weight")] = shape
    return _some(layers, "U-Net")


def _text_encoder(tensors: Shapes) -> dict[str, Shape]:
    layers = {
        name.removeprefix("cond_stage_model.transformer.").removesuffix(".weight"): shape
        for name, shape in tensors.items()
        if _TEXT.search(name)
    }
    open_clip = {name: match for name in tensors if (match := _OPEN_CLIP.search(name))}
    last = max((int(match[1]) for match in open_clip.values()), default=0)
    for name, match in open_clip.items():  # SD 2.x: queries, keys and values in one; its last layer is not used
        if int(match[1]) == last:
            continue
        shape = tensors[name]
        if "in_proj" in name:
            layers |= {f"{name}.{part}": (shape[0] // 3, *shape[1:]) for part in "qkv"}
        else:
            layers[name] = shape
    return _some(layers, "text encoder")


def _some(layers: dict[str, Shape], part: str) -> dict[str, Shape]:
    if not layers:
        raise SizeUnknown(f"the files of the base model show no layers of a {part}")
    return layers


# --- headers -------------------------------------------------------------------------------------------------------


def _tensors(model: Path, component: str) -> Shapes:
    """The shapes of a component's tensors; of all tensors of a single file."""
    prefix = {"unet": "model.diffusion_model.", "text_encoder": "cond_stage_model."}[component]
    if model.is_file():
        tensors = _header(model, stamp_of(model))
        return {name: shape for name, shape in tensors.items() if name.startswith(prefix)}
    every = sorted((model / component).glob("*.safetensors"))
    whole = [path for path in every if not re.search(r"\.(fp16|non_ema)\b", path.name)]
    if not every:
        raise SizeUnknown(f"there is no .safetensors file in {model / component}")
    return {name: shape for path in whole or every for name, shape in _header(path, stamp_of(path)).items()}


@functools.lru_cache(maxsize=16)
def _header(path: Path, stamp: str | None) -> Shapes:
    """The shapes that a safetensors file declares. `stamp`: of its content, so that it is read once."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MOST_HEADER:
                raise ValueError("its header is too large")
            declared = json.loads(file.read(length))
        return {name: tuple(map(int, entry["shape"])) for name, entry in declared.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SizeUnknown(f"the header of {path} cannot be read: {error}") from error


# --- what is kept of it --------------------------------------------------------------------------------------------


def of_fresh_start(config: Config, images: int) -> int:
    """About what a checkpoint takes, where the base model is on this machine. Raises SizeUnknown or BaseModelMissing.

    `images`: how many the dataset has.
    """
    components = base_model.COMPONENTS[config.family]
    model = base_model.locate(config.pretrained_model_name_or_path, components, download=False)
    return estimate(config, trained(config, model), images)


def estimate(config: Config, parameters: Shapes, images: int) -> int:
    """About how many bytes a checkpoint takes; `images`: how many the dataset has."""
    arguments = config.optimizer_arguments

    def tensors() -> Iterator[tuple[str, int]]:
        for name, shape in parameters.items():
            size = 4 * math.prod(shape)
            yield name, size
            if config.use_ema or config.optimizer.averages:
                yield name, size
            begins_as_zeros = "lora_B" in name and not config.network_weights
            for entry, held in config.optimizer.keeps(shape, arguments, begins_as_zeros).items():
                yield f"{name}/{entry}", held

    return sum(size + len(name) + ENTRY for name, size in tensors()) + DOCUMENTS + images * AN_IMAGE
