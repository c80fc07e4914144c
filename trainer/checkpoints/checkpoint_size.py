"""About how large a checkpoint will be, from the options and the headers of the base model's files. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.models import adapters, base_model, file_header
from trainer.models.adapters import Layer, selection
from trainer.models.families.facts import Part
from trainer.models.file_header import HeaderUnreadable, Shape, Shapes
from trainer.options.config import Config
from trainer.options.sections.training import TEXTUAL_INVERSION
from trainer.options.writing import to_toml

ENTRY = 66  # bytes that a safetensors header has for a tensor beside its name
DOCUMENTS = 4_900  # bytes of state and environment
AN_IMAGE = 320  # bytes of dataset.json for an image

TOKENS = re.compile(r"(^|\.)token_embedding\.weight$")
NOT_LEARNT = re.compile(r"(^|\.)(position_ids|pos_embed\.pos_embed|logit_scale)$")  # though it is in the files

_OPEN_CLIP = re.compile(r"\.resblocks\.(\d+)\.(attn\.in_proj_weight|attn\.out_proj\.weight|mlp\.c_(fc|proj)\.weight)$")


class SizeUnknown(Exception):
    """The base model's files do not tell; the message says why."""


# --- what is trained -----------------------------------------------------------------------------------------------


def trained(config: Config, model: Path) -> Shapes:
    """The shapes of the trained parameters that a base model gets. Raises SizeUnknown.

    `model`: a diffusers folder or a single .safetensors file.
    """
    parameters: dict[str, Shape] = {}
    if config.fine_tunes:
        return {
            f"{part.component}.{name}": shape
            for part in config.trained_parts
            for name, shape in _tensors(model, part, alone=part == config.facts.denoiser).items()
            if not NOT_LEARNT.search(name)
        }
    kind = adapters.kind_of(config)
    for part in config.trained_parts:
        layers = _layers(config, part, model)
        if not layers:
            raise SizeUnknown(f"the files of the base model show no layers of its {part.component}")
        for layer in layers:
            shapes = kind.shapes(layer, config)
            path = "" if config.training_kind == TEXTUAL_INVERSION else f"{layer.path}."
            parameters |= {f"{part.component}.{path}{name}": value for name, value in shapes.items()}
    return parameters


def _layers(config: Config, part: Part, model: Path) -> list[Layer]:
    """The layers of a component that are trained."""
    original = model.is_file()
    layers: list[Layer] = []
    if config.training_kind == TEXTUAL_INVERSION:
        tables = {name: shape for name, shape in _tensors(model, part).items() if TOKENS.search(name)}
        return [Layer(path, shape, 0) for path, shape in tables.items()]
    for name, shape in _tensors(model, part).items():
        path = name.removeprefix(part.original).removesuffix(".weight")
        if name.endswith(".weight") and len(shape) in (2, 4):
            larger = math.prod(shape[2:]) > 1
            if given := selection.ranked(config, part, path, larger=larger, original=original):
                layers.append(Layer(path, shape, given.rank))
    if part.tokenizer and original:
        for path, shape in _open_clip(_tensors(model, part), drops_last=part.drops_last).items():
            if selection.is_wanted(config, path):
                layers.append(Layer(path, shape, config.network_dim))
    return layers


def _open_clip(tensors: Shapes, *, drops_last: bool) -> dict[str, Shape]:
    """The layers of a text encoder in OpenCLIP's names: queries, keys and values in one."""
    matches = {name: match for name in tensors if (match := _OPEN_CLIP.search(name))}
    last = max((int(match[1]) for match in matches.values()), default=0)
    layers: dict[str, Shape] = {}
    for name, match in matches.items():
        shape = tensors[name]
        if drops_last and int(match[1]) == last:
            continue
        if "in_proj" in name:
            layers |= {f"{name}.{part}": (shape[0] // 3, *shape[1:]) for part in "qkv"}
        else:
            layers[name] = shape
    return layers


# --- headers -------------------------------------------------------------------------------------------------------


def _tensors(model: Path, part: Part, *, alone: bool = False) -> Shapes:
    """The shapes of a component's tensors. `alone`: of a transformer's file all, whatever they are called."""
    if not model.is_file():
        return in_folder(model / part.component)
    if alone and not part.original:
        return in_file(model)
    if not part.original:
        raise SizeUnknown(f"the tensors of {model} have other names than those of diffusers")
    return {name: shape for name, shape in in_file(model).items() if name.startswith(part.original)}


def in_file(path: Path) -> Shapes:
    """The shapes of a file's tensors. Raises SizeUnknown."""
    try:
        return file_header.shapes(path)
    except HeaderUnreadable as error:
        raise SizeUnknown(str(error)) from error


def in_folder(folder: Path) -> Shapes:
    """The shapes of the tensors in a folder of weights, those of other variants apart. Raises SizeUnknown."""
    every = sorted(folder.glob("*.safetensors"))
    whole = [path for path in every if not re.search(r"\.(fp16|non_ema)\b", path.name)]
    if not every:
        raise SizeUnknown(f"there is no .safetensors file in {folder}")
    return {name: shape for path in whole or every for name, shape in in_file(path).items()}


# --- what is kept of it --------------------------------------------------------------------------------------------


def of_fresh_start(config: Config, images: int) -> int:
    """About what a checkpoint takes, where the base model is on this machine. Raises SizeUnknown or BaseModelMissing.

    `images`: how many the dataset has.
    """
    model = base_model.locate(config.pretrained_model_name_or_path, config.family, download=False)
    settled = base_model.settle(config, model)
    return estimate(settled, trained(settled, model), images)


def estimate(config: Config, parameters: Shapes, images: int) -> int:
    """About how many bytes a checkpoint takes; `images`: how many the dataset has."""
    without_gradient = idle(config, parameters)
    number = 2 if config.full_bf16 else 4

    def tensors() -> Iterator[tuple[str, int]]:
        for name, shape in parameters.items():
            if config.fine_tunes and name in without_gradient:
                continue
            yield name, number * math.prod(shape)
            if config.use_ema or config.optimizer.averages:
                yield name, 4 * math.prod(shape)
            if name not in without_gradient:
                yield from ((f"{name}/{entry}", held) for entry, held in moments(config, name, shape).items())

    documents = DOCUMENTS + len(to_toml(config)) + images * AN_IMAGE
    return sum(size + len(name) + ENTRY for name, size in tensors()) + documents


def idle(config: Config, parameters: Shapes) -> set[str]:
    """The trained parameters that never get a gradient, and of which the optimizer keeps nothing."""
    return {
        name
        for part in config.trained_parts
        for name in part.idle_among(name for name in parameters if name.startswith(f"{part.component}."))
    }


def moments(config: Config, name: str, shape: Shape) -> dict[str, int]:
    """The bytes of each tensor that the optimizer keeps of a trained parameter."""
    zeros = () if config.fine_tunes else tuple(f".{entry}" for entry in adapters.kind_of(config).zeros)
    begins_as_zeros = name.endswith(zeros) and not config.network_weights
    return config.optimizer.keeps(shape, config.optimizer_arguments, begins_as_zeros)
