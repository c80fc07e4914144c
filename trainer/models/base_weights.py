"""Networks from files that become part of the base model while another one is trained (`base_weights`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.adapters.base import NetworkFileError, read_file
from trainer.models.keys import Naming, in_our_names
from trainer.models.network_layers import ENTRIES, added
from trainer.models.parts import Parts
from trainer.options.config import Config

ORIGINAL = "diffusion_model"  # what some files of transformers call the denoiser


class MergedParts(Parts):
    """A base model's components with networks from files added to their weights when they are loaded."""

    def __init__(self, config: Config, path: Path, dtype: torch.dtype) -> None:
        """Raises NetworkFileError where a file cannot be read or is of a kind that cannot be added."""
        super().__init__(config, path, dtype)
        self._parts = (self.facts.denoiser, *self.facts.encoders)  # trained or not
        self._naming = Naming(
            self.facts.keys, {part.component: (part.prefix, part.path_prefix) for part in self._parts}
        )
        self._files = [
            (file, by_layer(Path(file)), multiplier)
            for file, multiplier in zip(config.base_weights, config.base_weights_multipliers, strict=True)
        ]
        self._keeps = not config.base_weights_in_samples
        self._without: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}  # the weights as they were, by component
        for file, layers, _ in self._files:
            for name in layers:
                if not any(self._is_of(name, part.component) for part in self._parts):
                    raise NetworkFileError(f"base_weights: {name} of {file} belongs to no component of this model")

    def _load(self, component: str) -> dict[str, Any]:
        loaded = super()._load(component)
        for name, module in loaded.items():
            if isinstance(module, nn.Module) and name in self._naming.targets:
                self._add_to(name, module)
        return loaded

    def _is_of(self, name: str, component: str) -> bool:
        """Whether a layer in a file is one of a component, by the beginning of its name."""
        beginnings = [f"{self._naming.targets[component][0]}_", f"{component}."]
        if component == self.facts.denoiser.component:
            beginnings.append(f"{ORIGINAL}.")
        return name.startswith(tuple(beginnings))

    def _is_named(self, component: str, path: str) -> bool:
        """Whether files of the family can have a layer, which those around the blocks have no name for."""
        try:
            in_our_names({}, self._naming, component, {path: 0})
        except ValueError:
            return False
        return True

    def _names(self, component: str, path: str) -> set[str]:
        """What files may call a layer."""
        names = {Naming("kohya", self._naming.targets).kohya(component, path), f"{component}.{path}"}
        if component == self.facts.denoiser.component:
            names.add(f"{ORIGINAL}.{path}")
            with contextlib.suppress(ValueError):  # it has no name there, so no file has it
                names.add(self._naming.kohya(component, path))
        return names

    @torch.no_grad()
    def _add_to(self, component: str, module: nn.Module) -> None:
        places = {
            name: layer
            for path, layer in module.named_modules()
            if _is_layer(layer)
            for name in self._names(component, path)
        }
        kept: dict[nn.Parameter, Tensor] = {}
        sizes = {
            path: len(layer.get_parameter("weight"))
            for path, layer in module.named_modules()
            if _is_layer(layer) and self._is_named(component, path)
        }
        for file, joined, multiplier in self._files:
            layers = by_entry(in_our_names(flat(joined), self._naming, component, sizes))
            for name, entries in layers.items():
                if not self._is_of(name, component):
                    continue
                if name not in places:
                    raise NetworkFileError(f"base_weights: {name} of {file} has no place in this model's {component}")
                weight = places[name].get_parameter("weight")
                if not weight.is_floating_point():
                    raise NetworkFileError("base_weights: nothing can be added to quantised weights; load them whole")
                if self._keeps and weight not in kept:
                    kept[weight] = weight.detach().to("cpu", copy=True)
                try:
                    changed = added(weight.detach().float(), entries, multiplier)
                except RuntimeError as error:
                    raise NetworkFileError(f"base_weights: {name} of {file} does not fit: {error}") from error
                weight.copy_(changed)
        if self._keeps:
            self._without[component] = list(kept.items())

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Within, the weights of what was loaded are the base model's own, where samples are to be drawn so."""
        pairs = [pair for component in self._without.values() for pair in component]
        merged = [weight.detach().to("cpu", copy=True) for weight, _ in pairs]
        with torch.no_grad():
            for weight, own in pairs:
                weight.copy_(own)
        try:
            yield
        finally:
            with torch.no_grad():
                for (weight, _), value in zip(pairs, merged, strict=True):
                    weight.copy_(value)

    def forget(self, component: str) -> None:
        super().forget(component)
        self._without.pop(component, None)


def by_layer(path: Path) -> dict[str, dict[str, Tensor]]:
    """A file's tensors by the layer that they belong to. Raises NetworkFileError where they cannot be added."""
    tensors = read_file(path, "base_weights")
    for name in tensors:
        if not any(name.endswith(f".{entry}") for entry in ENTRIES):
            raise NetworkFileError(
                f"base_weights: {path} has {name}; LoRA, DoRA, LoHa, LoKr and whole differences can be added to a base"
            )
    return by_entry({name: tensor.float() for name, tensor in tensors.items()})


def by_entry(tensors: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Tensors by their layer's name and by what comes after it."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        entry = next(entry for entry in ENTRIES if name.endswith(f".{entry}"))
        layers.setdefault(name.removesuffix(f".{entry}"), {})[entry] = torch.as_tensor(tensor)
    return layers


def flat(layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of layers by their whole names."""
    return {f"{name}.{entry}": tensor for name, entries in layers.items() for entry, tensor in entries.items()}


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)
