"""The table of kinds of training: what each adds to a model's layers, and what a file of it holds. No torch here.

A kind's torch half is a file beside this one with an `ADAPTER` (see `base.Adapter`), imported only to train.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.models import keys
from trainer.models.file_header import Shape, Shapes
from trainer.models.keys import Array, Naming
from trainer.options.config import Config

if TYPE_CHECKING:
    from trainer.models.adapters.base import Adapter


@dataclass(frozen=True)
class Kind:
    """A kind of training.

    `shapes`: the trained parameters, by the ends of their names, beside a layer whose weight has a shape, at a rank;
    `to_file`: the tensors of a model file, in fp32, from the trained parameters in our names.
    """

    module: str
    shapes: Callable[[Shape, int], Shapes]
    to_file: Callable[[Mapping[str, Array], Naming, Config], dict[str, Array]]


def _lora_shapes(shape: Shape, rank: int) -> Shapes:
    ones = tuple(1 for _ in shape[2:])
    return {"lora_A.weight": (rank, *shape[1:]), "lora_B.weight": (shape[0], rank, *ones)}


def _lora_file(weights: Mapping[str, Array], naming: Naming, config: Config) -> dict[str, Array]:
    def alpha(down: Shape) -> float:
        """conv_alpha where the kernel is larger than one pixel."""
        if len(down) == 4 and down[2:] != (1, 1):
            return config.conv_alpha or config.conv_dim or 1
        return config.network_alpha or config.network_dim

    return keys.lora_file(weights, naming, alpha)


KINDS: dict[str, Kind] = {
    "lora": Kind("trainer.models.adapters.lora", _lora_shapes, _lora_file),
}


def kind_of(config: Config) -> Kind:
    """The kind that a config trains."""
    return KINDS["lora"]


def load(config: Config) -> Adapter:
    """The torch half of the kind that a config trains."""
    adapter: Adapter = importlib.import_module(kind_of(config).module).ADAPTER
    return adapter


def naming_of(config: Config) -> Naming:
    """How a model file of this config names its tensors."""
    targets = {part.component: (part.prefix, part.path_prefix) for part in config.trained_parts}
    return Naming(config.facts.keys, targets)


def tensors_of_file(weights: Mapping[str, Array], naming: Naming, config: Config) -> dict[str, keys.Stored]:
    """What a model file of these weights holds, in the precision that save_precision asks for."""
    tensors = kind_of(config).to_file(weights, naming, config)
    return {name: keys.stored(values, config.save_precision) for name, values in tensors.items()}
