"""The table of kinds of training: what each adds to a model's layers, and what a file of it holds. No torch here.

A kind's torch half is a file beside this one with an `adapter(config)` (see `base.Adapter`), imported only to train.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from trainer.models import keys
from trainer.models.adapters import selection
from trainer.models.adapters.selection import Ranked
from trainer.models.file_header import Shape, Shapes
from trainer.models.keys import Array, Naming
from trainer.options.config import Config
from trainer.options.network_kinds import ON_INPUT
from trainer.options.problems import ConfigError, Problem
from trainer.options.sections.training import TEXTUAL_INVERSION

if TYPE_CHECKING:
    from trainer.models.adapters.base import Adapter

Tensors = Mapping[str, Array]
T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """A layer that is trained. `path`: its own, in its component; `shape`: of its weight."""

    path: str
    shape: Shape
    rank: int


@dataclass(frozen=True)
class Kind:
    """A kind of training. The trained parameters of a layer are called "<component>.<path>.<entry>".

    `shapes`: those of a layer, by entry; `to_file`: the tensors of a model file, in fp32, from the trained parameters;
    `zeros`: the entries that begin as zeros.
    """

    module: str
    shapes: Callable[[Layer, Config], Shapes]
    to_file: Callable[[Tensors, Naming, Config], dict[str, Array]]
    zeros: tuple[str, ...]


# --- LoRA ----------------------------------------------------------------------------------------------------------


def _lora_shapes(layer: Layer, config: Config) -> Shapes:
    ones = tuple(1 for _ in layer.shape[2:])
    return {"lora_A.weight": (layer.rank, *layer.shape[1:]), "lora_B.weight": (layer.shape[0], layer.rank, *ones)}


def _dora_shapes(layer: Layer, config: Config) -> Shapes:
    outputs, *rest = layer.shape
    magnitude = (1, outputs, *(1 for _ in rest[1:])) if len(rest) > 1 else (outputs,)
    return {**_lora_shapes(layer, config), DORA: magnitude}


def _lora_file(weights: Tensors, naming: Naming, config: Config) -> dict[str, Array]:
    return keys.lora_file(weights, naming, lambda ours: alpha_of(config, ours))


def _dora_file(weights: Tensors, naming: Naming, config: Config) -> dict[str, Array]:
    tensors = keys.unjoined_file(weights, naming, lambda ours: alpha_of(config, ours))
    for ours, entries in by_layer(weights, (DORA, "lora_A.weight")).items():
        ones = (1 for _ in entries["lora_A.weight"].shape[1:])
        tensors[f"{naming.layer(ours)}.{DORA}"] = entries[DORA].reshape(-1, *ones)
    return tensors


# --- products of more than two matrices ----------------------------------------------------------------------------


def _has_kernel(layer: Layer) -> bool:
    return math.prod(layer.shape[2:]) > 1


def _loha_shapes(layer: Layer, config: Config) -> Shapes:
    """LyCORIS' LoHa: two products of thin matrices, multiplied; with Tucker's form, a core for the kernel in each."""
    rank, (outputs, inputs, *kernel) = layer.rank, layer.shape
    if config.use_tucker and _has_kernel(layer):
        core, a, b = (rank, rank, *kernel), (rank, outputs), (rank, inputs)
        return {name: shape for n in "12" for name, shape in _of(n, a, b).items()} | dict.fromkeys(
            ("hada_t1", "hada_t2"), core
        )
    a, b = (outputs, rank), (rank, inputs * math.prod(kernel))
    return {name: shape for n in "12" for name, shape in _of(n, a, b).items()}


def _of(number: str, a: Shape, b: Shape) -> dict[str, Shape]:
    return {f"hada_w{number}_a": a, f"hada_w{number}_b": b}


def divided(dimension: int, factor: int) -> tuple[int, int]:
    """Two whole numbers, the smaller first, whose product is a dimension: `factor` and its rest where that divides it,
    otherwise the pair that comes nearest to the square root without its smaller number going beyond `factor` (-1: any).

    LyCORIS' rule, on which the shapes in its files depend.
    """
    if 0 < factor <= dimension and dimension % factor == 0:
        small, large = sorted((factor, dimension // factor))
        return small, large
    most = dimension if factor < 0 else factor
    small, large = 1, dimension
    for number in range(2, math.isqrt(dimension) + 1):
        if dimension % number == 0 and number <= most:
            small, large = number, dimension // number
    return small, large


def _lokr_shapes(layer: Layer, config: Config) -> Shapes:
    """LyCORIS' LoKr: a small matrix times a large one, by Kronecker; each whole, or a product of thin ones."""
    rank, (outputs, inputs, *kernel) = layer.rank, layer.shape
    (small_in, large_in), (small_out, large_out) = divided(inputs, config.factor), divided(outputs, config.factor)
    shapes: dict[str, Shape] = {}
    if config.decompose_both and rank < max(small_out, small_in) / 2:
        shapes |= {"lokr_w1_a": (small_out, rank), "lokr_w1_b": (rank, small_in)}
    else:
        shapes["lokr_w1"] = (small_out, small_in)
    if rank >= max(large_out, large_in) / 2:
        shapes["lokr_w2"] = (large_out, large_in, *kernel)
    elif config.use_tucker and _has_kernel(layer):
        shapes |= {"lokr_t2": (rank, rank, *kernel), "lokr_w2_a": (rank, large_out), "lokr_w2_b": (rank, large_in)}
    else:
        shapes |= {"lokr_w2_a": (large_out, rank), "lokr_w2_b": (rank, large_in * math.prod(kernel))}
    return shapes


def is_whole(entries: Iterable[str]) -> bool:
    """Whether both matrices of a LoKr layer are whole: it has no rank then, and its alpha means nothing."""
    return {"lokr_w1", "lokr_w2"} <= set(entries)


def _product_file(weights: Tensors, naming: Naming, config: Config) -> dict[str, Array]:
    """The parameters as they are and alpha. Readers take no notice of it where both of LoKr's matrices are whole, and
    neither does the training."""
    tensors: dict[str, Array] = {}
    for ours, entries in by_layer(weights, PRODUCTS).items():
        name = naming.layer(ours)
        tensors |= {f"{name}.{entry}": values for entry, values in entries.items()}
        alpha = 1.0 if is_whole(entries) else alpha_of(config, ours)
        tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    return tensors


# --- changes of the weight by itself -------------------------------------------------------------------------------


def on_input(config: Config, path: str) -> bool:
    """Whether (IA)^3 scales what comes into this layer; LyCORIS' preset of that name does where it narrows."""
    return config.train_on_input or (config.network_preset == "ia3" and bool(ON_INPUT.search(path)))


def _ia3_shapes(layer: Layer, config: Config) -> Shapes:
    size = layer.shape[1] if on_input(config, layer.path) else layer.shape[0]
    return {IA3: (1, size, *(1 for _ in layer.shape[2:])) if len(layer.shape) > 2 else (size,)}


def _ia3_file(weights: Tensors, naming: Naming, config: Config) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for ours, entries in by_layer(weights, (IA3,)).items():
        name, (_, _, path) = naming.layer(ours), ours.partition(".")
        tensors[f"{name}.weight"] = entries[IA3]
        tensors[f"{name}.on_input"] = np.array(float(on_input(config, path)), np.float32)
    return tensors


def _glora_shapes(layer: Layer, config: Config) -> Shapes:
    rank, (outputs, inputs, *kernel) = layer.rank, layer.shape
    ones = tuple(1 for _ in kernel)
    return {
        "a1.weight": (inputs, rank, *ones),
        "a2.weight": (rank, inputs, *ones),
        "b1.weight": (outputs, rank, *ones),
        "b2.weight": (rank, inputs, *kernel),
    }


def _glora_file(weights: Tensors, naming: Naming, config: Config) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for ours, entries in by_layer(weights, GLORA).items():
        tensors |= {f"{naming.layer(ours)}.{entry}": values for entry, values in entries.items()}
        tensors[f"{naming.layer(ours)}.alpha"] = np.array(alpha_of(config, ours), np.float32)
    return tensors


def _oft_shapes(layer: Layer, config: Config) -> Shapes:
    """LyCORIS' Diag-OFT: the outputs in blocks, each rotated; the rank is a block's size, as nearly as it divides."""
    size, number = divided(layer.shape[0], layer.rank)
    shapes: dict[str, Shape] = {"oft_blocks": (number, size, size)}
    if config.rescaled:
        shapes["rescale"] = (layer.shape[0], *(1 for _ in layer.shape[1:]))
    return shapes


def _oft_file(weights: Tensors, naming: Naming, config: Config) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for ours, entries in by_layer(weights, OFT).items():
        tensors |= {f"{naming.layer(ours)}.{entry}": values for entry, values in entries.items()}
        tensors[f"{naming.layer(ours)}.alpha"] = np.array(config.constraint, np.float32)
    return tensors


# --- a new word ----------------------------------------------------------------------------------------------------


def _embedding_shapes(layer: Layer, config: Config) -> Shapes:
    """`layer`: the text encoder's embedding of tokens."""
    return {"embedding": (config.num_vectors_per_token, layer.shape[1])}


def _embedding_file(weights: Tensors, naming: Naming, config: Config) -> dict[str, Array]:
    """kohya's file, which diffusers reads under the name that it is given."""
    if len(weights) == 1:
        return dict(zip(OF_ONE_ENCODER, weights.values(), strict=True))
    return {EMBEDDING_FILE[name.partition(".")[0]]: values for name, values in weights.items()}


# --- the table -----------------------------------------------------------------------------------------------------

DORA = "dora_scale"
IA3 = "weight"
GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
OFT = ("oft_blocks", "rescale")
HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
PRODUCTS = (*HADAMARD, *KRONECKER)
_LORA, _PRODUCTS, _LYCORIS = (f"trainer.models.adapters.{name}" for name in ("lora", "products", "lycoris"))
_FINETUNE = "trainer.models.adapters.finetune"
OF_ONE_ENCODER = ("emb_params",)
EMBEDDING_FILE = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # of two
NEW_WORD = Kind("trainer.models.adapters.embedding", _embedding_shapes, _embedding_file, ())

KINDS: dict[str, Kind] = {
    "lora": Kind(_LORA, _lora_shapes, _lora_file, ("lora_B.weight",)),
    "rslora": Kind(_LORA, _lora_shapes, _lora_file, ("lora_B.weight",)),
    "dora": Kind(_LORA, _dora_shapes, _dora_file, ("lora_B.weight",)),
    "loha": Kind(_PRODUCTS, _loha_shapes, _product_file, ("hada_w2_a",)),
    "lokr": Kind(_PRODUCTS, _lokr_shapes, _product_file, ("lokr_w2", "lokr_w2_b")),
    "ia3": Kind(_LYCORIS, _ia3_shapes, _ia3_file, (IA3,)),
    "glora": Kind(_LYCORIS, _glora_shapes, _glora_file, ("a2.weight", "b2.weight")),
    "diag-oft": Kind(_LYCORIS, _oft_shapes, _oft_file, ("oft_blocks",)),
}


def kind_of(config: Config) -> Kind:
    """The kind that a config trains, of networks and of what is like one: small, and beside the base model."""
    return NEW_WORD if config.training_kind == TEXTUAL_INVERSION else KINDS[config.network_kind]


def load(config: Config) -> Adapter:
    """The torch half of the kind that a config trains. Raises ConfigError where a package is missing."""
    check(config)
    module = _FINETUNE if config.fine_tunes else kind_of(config).module
    adapter: Adapter = importlib.import_module(module).adapter(config)
    return adapter


def check(config: Config) -> None:
    """Raise ConfigError where the kind needs a package that is not installed."""
    extra = config.kind.extra
    if extra and importlib.util.find_spec(extra) is None:
        message = f"{config.kind.title} needs a package that is not installed: pip install 'rekindle[{extra}]'"
        raise ConfigError([Problem("network_kind", message)])


# --- layers and names ----------------------------------------------------------------------------------------------


def by_layer(weights: Tensors, entries: Iterable[str]) -> dict[str, dict[str, Array]]:
    """The entries of each layer that has one of these, by "<component>.<path>"."""
    layers: dict[str, dict[str, Array]] = {}
    for name, values in weights.items():
        for entry in entries:
            if name.endswith(f".{entry}"):
                layers.setdefault(name.removesuffix(f".{entry}"), {})[entry] = values
    return layers


def ranked_of(config: Config, ours: str) -> Ranked:
    """Rank and alpha of a trained layer, "<component>.<path>"."""
    component, _, path = ours.partition(".")
    part = next(part for part in config.facts.parts if part.component == component)
    return selection.rank_of(config, part, path, larger=part.has_larger_kernel(path)) or Ranked(0, 0.0)


def rate_groups(config: Config, component: str, parameters: Mapping[str, T]) -> list[tuple[str, list[T], float]]:
    """A component's parameters, given by name, as groups (name, parameters, peak learning rate): each block with a
    rate of its own is one, and so are the second matrices of each under LoRA+."""
    peak, ratio = config.peak_learning_rates[component], config.plus_ratios.get(component, 1.0)
    rates = config.block_rates if component == config.facts.denoiser.component else None
    groups: dict[str, tuple[list[T], float]] = {}
    for name, parameter in parameters.items():
        group, rate = component, peak
        if rates:
            path = name.removeprefix(f"{component}.").removesuffix(f".{entry_of(name)}")
            block = selection.block_of(config, path)
            group, rate = f"{component} block {block}", peak * rates[block or 0]
        if ratio != 1 and name.endswith(config.kind.plus):
            group, rate = f"{group} plus", rate * ratio
        groups.setdefault(group, ([], rate))[0].append(parameter)
    in_order = sorted(groups, key=lambda group: group.endswith(" plus"))
    return [(group, *groups[group]) for group in in_order]


def entry_of(name: str) -> str:
    """What the name of a parameter ends with, after its layer's path."""
    entries = (*("lora_A.weight", "lora_B.weight", DORA), *PRODUCTS, *GLORA, *OFT, IA3)
    return next(entry for entry in entries if name.endswith(f".{entry}"))


def alpha_of(config: Config, ours: str) -> float:
    """alpha as a file tells it, whose readers scale by alpha / rank: rsLoRA scales by alpha / sqrt(rank)."""
    rank, alpha = ranked_of(config, ours)
    return alpha * math.sqrt(rank) if config.network_kind == "rslora" else alpha


def naming_of(config: Config) -> Naming:
    """How a model file of this config names its tensors."""
    targets = {part.component: (part.prefix, part.path_prefix) for part in config.trained_parts}
    return Naming(config.facts.keys, targets)


def tensors_of_file(weights: Tensors, naming: Naming, config: Config) -> dict[str, keys.Stored]:
    """What a model file of these weights holds, in the precision that save_precision asks for."""
    tensors = kind_of(config).to_file(weights, naming, config)
    return {name: keys.stored(values, config.save_precision) for name, values in tensors.items()}
