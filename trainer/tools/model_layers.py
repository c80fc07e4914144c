"""Where a model's files have the weights that networks change: in diffusers' names or in original ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.models import base_model, families, keys, layer_names
from trainer.models.base_model import BaseModelMissing
from trainer.models.families.facts import Part
from trainer.models.file_header import Shape
from trainer.models.layer_names import LayersUnknown, Namer
from trainer.refusal import Refused
from trainer.tools.tensors import TensorSource

FULL, HALF = ".safetensors", ".fp16.safetensors"
OPEN_CLIP = {
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
DENOISER_ALONE = re.compile(r"^(model\.diffusion_model\.|diffusion_model\.|transformer\.)?")


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor, that is outputs of its layer."""

    tensor: str
    start: int
    stop: int
    source: TensorSource

    def values(self) -> Tensor:
        """In fp32."""
        return self.source.values(self.tensor)[self.start : self.stop]


@dataclass(frozen=True)
class ModelLayers:
    """A model's files, and the pieces of which each layer is made that a network can change, by kohya's name."""

    path: Path
    namer: Namer
    sources: tuple[TensorSource, ...]
    pieces: Mapping[str, tuple[Piece, ...]]

    def weight(self, name: str) -> Tensor:
        """A layer's weight in fp32."""
        return torch.cat([piece.values() for piece in self.pieces[name]])

    def shape(self, name: str) -> Shape:
        """Of a layer's weight."""
        pieces = self.pieces[name]
        first = pieces[0].source.entries[pieces[0].tensor].shape
        return (sum(piece.stop - piece.start for piece in pieces), *first[1:])

    def is_larger(self, name: str) -> bool:
        """Whether a layer's kernel has more than one pixel."""
        return self.shape(name)[2:] not in ((), (1, 1))


def read(path: Path, family: str = families.AUTO) -> ModelLayers:
    """Raises Refused where it is no model of a family that is known, or of no sound files."""
    if wrong := base_model.unusable(path):
        raise Refused(wrong)
    if not path.exists():
        raise Refused(f"there is no file or folder {path}")
    try:
        detected = base_model.detect(path) if family == families.AUTO else family
    except BaseModelMissing as error:
        raise Refused(str(error).removeprefix("pretrained_model_name_or_path: ")) from error
    if detected is None:
        raise LayersUnknown(f"it cannot be told what kind of model {path} is; say so with --family")
    namer = Namer(detected)
    result: dict[str, list[tuple[int, Piece]]] = {}
    sources = []
    for component, source in _sources(path, namer):
        sources.append(source)
        for name, place, piece in _layers(source, namer, component):
            result.setdefault(name, []).append((place, piece))
    pieces = {
        name: tuple(piece for _, piece in sorted(parts, key=lambda part: part[0])) for name, parts in result.items()
    }
    return ModelLayers(path, namer, tuple(sources), pieces)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a component's folder: in full precision, where it has both."""
    there = sorted(folder.glob(f"*{FULL}"))
    full = [path for path in there if not path.name.endswith(HALF) and ".fp16-" not in path.name]
    return full or there


def _sources(path: Path, namer: Namer) -> Iterator[tuple[str, TensorSource]]:
    """(component, file) of everything that networks can change; of a single file, without a component."""
    if path.is_file():
        yield "", TensorSource(path)
        return
    for part in namer.parts:
        files_of = weight_files(path / part.component)
        if not files_of and part is namer.facts.denoiser:
            raise Refused(f"{path / part.component} has no safetensors file")
        yield from ((part.component, TensorSource(file)) for file in files_of)


def _layers(source: TensorSource, namer: Namer, component: str) -> Iterator[tuple[str, int, Piece]]:
    """(kohya's name, place among what is one layer there, piece) of each layer of a file."""
    for tensor, entry in source.entries.items():
        if len(entry.shape) not in (2, 4):
            continue
        rows = entry.shape[0]
        for own, path, start, stop in _paths(tensor, entry.shape, namer, component, source):
            try:
                name = namer.kohya(own, path)
                place = keys.flux_place(path)[1] if namer.facts.keys == "fused" and "transformer_blocks" in path else 0
            except (LayersUnknown, ValueError):
                continue  # norms, embeddings: no network has them
            yield name, place, Piece(tensor, start, stop if stop is not None else rows, source)


Placed = tuple[str, str, int, int | None]  # component, path, first row, end of the rows


def _paths(tensor: str, shape: Shape, namer: Namer, component: str, source: TensorSource) -> Iterator[Placed]:
    """The layers whose weights a tensor holds."""
    if component:
        if tensor.endswith(".weight"):
            yield component, tensor.removesuffix(".weight"), 0, None
        return
    for part in namer.parts:
        if part.original and tensor.startswith(part.original):
            inner = tensor.removeprefix(part.original)
            yield from (
                _original_unet(part, inner, source) if part is namer.facts.denoiser else _encoder(part, inner, shape)
            )
            return
    if namer.facts.denoiser_alone and tensor.endswith(".weight"):
        path = DENOISER_ALONE.sub("", tensor).removesuffix(".weight")
        if namer.facts.keys == "cosmos" and path.startswith("blocks."):
            path = namer.layer(f"{keys.ORIGINAL}{path}")[1]
        yield namer.facts.denoiser.component, path, 0, None


def _original_unet(part: Part, inner: str, source: TensorSource) -> Iterator[Placed]:
    layers = resnets_a_block(source.entries, part.original)
    path = layer_names.diffusers_unet_path(inner.removesuffix(".weight"), layers)
    if inner.endswith(".weight") and path:
        yield part.component, path, 0, None


def resnets_a_block(names: Mapping[str, object], prefix: str) -> int:
    """How many a down block has, from where an original U-Net file has its first way down."""
    pattern = re.compile(rf"{re.escape(prefix)}input_blocks\.(\d+)\.0\.op\.weight")
    downs = [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
    return min(downs) - 1 if downs else keys.LAYERS_A_BLOCK


def _encoder(part: Part, inner: str, shape: Shape) -> Iterator[Placed]:
    """A text encoder in transformers' names, or in OpenCLIP's, where queries, keys and values are one."""
    inner = inner.removeprefix("model.") if inner.startswith("model.transformer.") else inner
    match = RESBLOCK.match(inner)
    if match is None:
        if inner.startswith("transformer.text_model.") and inner.endswith(".weight"):
            yield part.component, inner.removeprefix("transformer.").removesuffix(".weight"), 0, None
        return
    layer = f"text_model.encoder.layers.{match[1]}"
    if match[2] == "attn.in_proj_weight":
        height = shape[0] // 3
        for place, one in enumerate("qkv"):
            yield part.component, f"{layer}.self_attn.{one}_proj", place * height, (place + 1) * height
    elif (name := match[2].removesuffix(".weight")) in OPEN_CLIP:
        yield part.component, f"{layer}.{OPEN_CLIP[name]}", 0, None
