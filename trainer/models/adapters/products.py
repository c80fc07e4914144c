"""LoHa and LoKr layers: put into a model with peft, with LyCORIS' shapes and beginnings, filled from its files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, inject_adapter_in_model
from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor, nn

from trainer import randomness
from trainer.models import adapters
from trainer.models.adapters import HADAMARD, PRODUCTS, Layer, is_whole
from trainer.models.adapters.base import Target, keep_reached, read_file, refuse_misfits
from trainer.models.adapters.lora import NAME, patterns, trained
from trainer.models.keys import Naming
from trainer.options.config import Config

NORMAL = {"hada_w1_b": 1.0, "hada_w1_a": 0.1, "hada_w2_b": 1.0, "hada_t1": 0.1, "hada_t2": 0.1}  # deviations


class Products:
    """See `base.Adapter`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.kind = adapters.kind_of(config)

    def add(self, target: Target, config: Config) -> None:
        """As LyCORIS begins them: nothing is added at first. No global random numbers are read."""
        ranks = trained(target, config)
        commonest, dims, alphas = patterns(ranks)
        settings: dict[str, Any] = {
            "r": commonest.rank,
            "alpha": commonest.alpha,
            "target_modules": list(ranks),
            "rank_pattern": dims,
            "alpha_pattern": alphas,
            "rank_dropout": config.rank_dropout,
            "module_dropout": config.module_dropout,
            "init_weights": False,
        }
        is_hadamard = config.network_kind == "loha"
        target.module.requires_grad_(False)
        inject_adapter_in_model(LoHaConfig(**settings) if is_hadamard else LoKrConfig(**settings), target.module, NAME)
        for path, layer in layers(target).items():
            weight = layer.get_base_layer().get_parameter("weight")
            shapes = self.kind.shapes(Layer(path, tuple(weight.shape), ranks[path].rank), config)
            draw = randomness.generator(config.seed, "init", target.name, path)
            for entry in entries_of(layer):  # peft's own, whose shapes are not always LyCORIS'
                del getattr(layer, entry)[NAME]
            for entry, shape in shapes.items():
                begun = torch.from_numpy(self._begun(entry, shape, draw))
                getattr(layer, entry)[NAME] = nn.Parameter(begun.to(weight.device))
            if is_whole(shapes):
                layer.scaling[NAME] = 1.0
            if config.module_dropout:
                keep_reached(layer, list(entries_of(layer).values()))

    def _begun(self, entry: str, shape: tuple[int, ...], draw: Any) -> Any:
        if entry in self.kind.zeros:
            values = draw.uniform(0.0, 0.0, shape)
        elif entry in HADAMARD:
            values = draw.normal(0.0, NORMAL[entry], shape)
        else:
            bound = 1 / math.sqrt(math.prod(shape[1:]))  # Kaiming uniform with a = sqrt(5)
            values = draw.uniform(-bound, bound, shape)
        return values.astype("float32")

    def parameters(self, target: Target) -> dict[str, nn.Parameter]:
        return {
            f"{target.name}.{path}.{entry}": parameter
            for path, layer in layers(target).items()
            for entry, parameter in entries_of(layer).items()
        }

    @torch.no_grad()
    def limit_norms(self, target: Target, most: float) -> None:
        """As LyCORIS does it: the first matrix is scaled. The host does not wait for the device."""
        for layer in layers(target).values():
            norm = layer.get_delta_weight(NAME).norm()
            factor = (most / norm).clamp(max=1)
            entries = entries_of(layer)
            first = next(entries[name] for name in ("hada_w1_a", "lokr_w1", "lokr_w1_a") if name in entries)
            first.mul_(torch.where(torch.isfinite(norm) & (norm > 0), factor, torch.ones_like(factor)))

    def from_file(self, targets: Sequence[Target], naming: Naming, path: Path) -> None:
        tensors = read_file(path)
        problems: list[str] = []
        copies: list[tuple[nn.Parameter, Tensor]] = []
        for target in targets:
            for layer_path, layer in layers(target).items():
                problems += _take(tensors, naming.layer(f"{target.name}.{layer_path}"), layer, copies)
        problems += [f"{name} has no place in this network" for name in tensors]
        refuse_misfits(path, problems)
        with torch.no_grad():
            for parameter, loaded in copies:
                parameter.copy_(loaded)


def adapter(config: Config) -> Products:
    """The adapter of a config."""
    return Products(config)


def layers(target: Target) -> Mapping[str, LycorisLayer]:
    """The layers of a component by path, in the model's order."""
    return {path: layer for path, layer in target.module.named_modules() if isinstance(layer, LycorisLayer)}


def entries_of(layer: LycorisLayer) -> dict[str, nn.Parameter]:
    """A layer's trained parameters by the ends of their names."""
    every = ((entry, getattr(layer, entry, {})) for entry in PRODUCTS)
    return {entry: parameters[NAME] for entry, parameters in every if NAME in parameters}


def _take(
    tensors: dict[str, Tensor], name: str, layer: LycorisLayer, copies: list[tuple[nn.Parameter, Tensor]]
) -> list[str]:
    """Take a layer out of a file's tensors; what is wrong with it. `copies` get (parameter, its new value)."""
    entries = entries_of(layer)
    alpha = tensors.pop(f"{name}.alpha", None)
    result = {entry: tensors.pop(f"{name}.{entry}", None) for entry in entries}
    if missing := [entry for entry, values in result.items() if values is None]:
        return [f"{name} has no {missing[0]} in it: another kind, rank or factor"]
    own = layer.scaling[NAME] * layer.r[NAME]
    if not is_whole(entries) and alpha is not None and not math.isclose(float(alpha), own, rel_tol=1e-3):
        return [f"{name} has alpha {float(alpha):g}, network_alpha is {own:g}: set it to {float(alpha):g}"]
    problems = []
    for entry, values in result.items():
        assert values is not None
        if values.shape == entries[entry].shape:
            copies.append((entries[entry], values))
        else:
            shapes = f"the shape {tuple(values.shape)} instead of {tuple(entries[entry].shape)}"
            problems.append(f"{name}.{entry} has {shapes}: set network_dim, conv_dim and factor as in its training")
    return problems
