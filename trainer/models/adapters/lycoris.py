"""(IA)^3, GLoRA and Diag-OFT layers of the package lycoris-lora, filled from its files."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import randomness
from trainer.models import adapters
from trainer.models.adapters import Layer, on_input
from trainer.models.adapters.base import Target, keep_reached, read_file, refuse_misfits
from trainer.models.adapters.lora import trained
from trainer.models.keys import Naming
from trainer.options.config import Config

CHILD = "lycoris"  # what a layer's network is called beside its weight
CLASSES = {"ia3": "ia3.IA3Module", "glora": "glora.GLoRAModule", "diag-oft": "diag_oft.DiagOFTModule"}


class Lycoris:
    """See `base.Adapter`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.kind = adapters.kind_of(config)
        os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")  # plain kernels: equal bits, nothing to compile
        module, _, name = CLASSES[config.network_kind].partition(".")
        logging.getLogger("LyCORIS").setLevel(logging.WARNING)
        self.network_class: Any = getattr(importlib.import_module(f"lycoris.modules.{module}"), name)

    def add(self, target: Target, config: Config) -> None:
        """As LyCORIS begins them: nothing is changed at first. The global random numbers stay as they are."""
        ranks = trained(target, config)
        target.module.requires_grad_(False)
        for path, ranked in ranks.items():
            layer = target.module.get_submodule(path)
            with torch.random.fork_rng(devices=[]):
                network = self.network_class(
                    path,
                    layer,
                    lora_dim=ranked.rank,
                    alpha=ranked.alpha,
                    module_dropout=config.module_dropout,
                    train_on_input=on_input(config, path),
                    constraint=config.constraint,
                    rescaled=config.rescaled,
                    bypass_mode=False,
                )
            self._begin(network, layer, target.name, path, ranked.rank)
            network.to(next(layer.parameters()).device)
            network.requires_grad_(True)
            network.apply_to()
            layer.add_module(CHILD, network)
            if config.module_dropout:
                keep_reached(layer, list(network.parameters()))

    def _begin(self, network: nn.Module, layer: nn.Module, component: str, path: str, rank: int) -> None:
        """Give what does not begin as zeros or ones values of the layer's own address: Kaiming uniform, a = sqrt(5)."""
        draw = randomness.generator(self.config.seed, "init", component, path)
        shapes = self.kind.shapes(Layer(path, tuple(layer.get_parameter("weight").shape), rank), self.config)
        with torch.no_grad():
            for entry, shape in shapes.items():
                parameter = network.get_parameter(entry)
                if parameter.shape != shape:
                    raise RuntimeError(f"{path}.{entry} has the shape {tuple(parameter.shape)} instead of {shape}")
                if entry not in (*self.kind.zeros, "rescale"):
                    bound = 1 / math.sqrt(math.prod(shape[1:]))
                    parameter.copy_(torch.from_numpy(draw.uniform(-bound, bound, shape).astype("float32")))

    def parameters(self, target: Target) -> dict[str, nn.Parameter]:
        return {
            f"{target.name}.{path}.{entry}": parameter
            for path, network in networks(target).items()
            for entry, parameter in network.named_parameters()
        }

    def from_file(self, targets: Sequence[Target], naming: Naming, path: Path) -> None:
        tensors = read_file(path)
        problems: list[str] = []
        copies: list[tuple[nn.Parameter, Tensor]] = []
        for target in targets:
            for layer_path, network in networks(target).items():
                problems += self._take(tensors, naming, f"{target.name}.{layer_path}", network, copies)
        problems += [f"{name} has no place in this network" for name in tensors]
        refuse_misfits(path, problems)
        with torch.no_grad():
            for parameter, loaded in copies:
                parameter.copy_(loaded.reshape(parameter.shape))

    def _take(
        self,
        tensors: dict[str, Tensor],
        naming: Naming,
        ours: str,
        network: nn.Module,
        copies: list[tuple[nn.Parameter, Tensor]],
    ) -> list[str]:
        """Take a layer out of a file's tensors; what is wrong with it."""
        name, expected = naming.layer(ours), self._told(ours)
        problems = []
        for entry, own in expected.items():
            other = tensors.pop(f"{name}.{entry}", None)
            if other is not None and not math.isclose(float(other), own, rel_tol=1e-3):
                problems.append(f"{name} has {entry} {float(other):g} instead of {own:g}: set its options")
        for entry, parameter in network.named_parameters():
            loaded = tensors.pop(f"{name}.{entry}", None)
            if loaded is None:
                problems.append(f"{name}.{entry} is not in it")
            elif loaded.numel() != parameter.numel():
                shapes = f"{tuple(loaded.shape)} instead of {tuple(parameter.shape)}"
                problems.append(f"{name}.{entry} has the shape {shapes}")
            else:
                copies.append((parameter, loaded))
        return problems

    def _told(self, ours: str) -> dict[str, float]:
        """What a file tells of a layer besides its weights."""
        if self.config.network_kind == "ia3":
            return {"on_input": float(on_input(self.config, ours.partition(".")[2]))}
        if self.config.network_kind == "diag-oft":
            return {"alpha": self.config.constraint}
        return {"alpha": adapters.alpha_of(self.config, ours)}


def adapter(config: Config) -> Lycoris:
    """The adapter of a config."""
    return Lycoris(config)


def networks(target: Target) -> Mapping[str, nn.Module]:
    """What is trained beside each layer of a component, by the layer's path, in the model's order."""
    child = f".{CHILD}"
    return {path.removesuffix(child): module for path, module in target.module.named_modules() if path.endswith(child)}
