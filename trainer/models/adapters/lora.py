"""LoRA layers, plain, rank-stabilised or decomposed (DoRA): put into a model with peft, filled from kohya's files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer import randomness
from trainer.models.adapters import DORA
from trainer.models.adapters.base import Target, read_file, refuse_misfits
from trainer.models.adapters.selection import Ranked
from trainer.models.keys import Naming, in_our_names
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem

NAME = "default"  # peft's, of the one adapter there is


def patterns(ranks: Mapping[str, Ranked]) -> tuple[Ranked, dict[str, int], dict[str, float]]:
    """The commonest rank and alpha, and peft's patterns for the layers that have others."""
    commonest = Counter(ranks.values()).most_common(1)[0][0]
    others: dict[Ranked, list[str]] = {}
    for path, ranked in ranks.items():
        if ranked != commonest:
            others.setdefault(ranked, []).append(path)
    every = {"|".join(map(re.escape, paths)): ranked for ranked, paths in others.items()}
    dims = {pattern: ranked.rank for pattern, ranked in every.items()}
    return commonest, dims, {pattern: ranked.alpha for pattern, ranked in every.items()}


def trained(target: Target, config: Config) -> dict[str, Ranked]:
    """The paths of a component's layers with their ranks. Raises ConfigError where none are left."""
    ranks = {path: ranked for path, (_, ranked) in target.layers(config).items()}
    if not ranks:
        message = f"{config.network_preset or 'block_dims'} leaves no layer of the {target.name} to train"
        raise ConfigError([Problem("network_preset" if config.network_preset else "block_dims", message)])
    return ranks


class Lora:
    """See `base.Adapter`."""

    def add(self, target: Target, config: Config) -> None:
        """Kaiming uniform (a = sqrt(5)) and zeros, as kohya's are; no global random numbers are read."""
        ranks = trained(target, config)
        commonest, dims, alphas = patterns(ranks)
        decomposed = config.network_kind == "dora"
        lora = LoraConfig(
            r=commonest.rank,
            lora_alpha=commonest.alpha,
            target_modules=list(ranks),
            rank_pattern=dims,
            alpha_pattern=alphas,
            init_lora_weights=False,
            use_rslora=config.network_kind == "rslora",
            use_dora=decomposed,
        )
        target.module.requires_grad_(False)
        inject_adapter_in_model(lora, target.module, NAME)
        for path, layer in layers(target).items():
            down, up = layer.lora_A[NAME], layer.lora_B[NAME]
            for matrix in (down, up):
                matrix.to(torch.float32)
                matrix.requires_grad_(True)
            with torch.no_grad():
                bound = 1 / math.sqrt(down.weight[0].numel())
                draw = randomness.generator(config.seed, "init", target.name, path)
                values = draw.uniform(-bound, bound, tuple(down.weight.shape)).astype("float32")
                down.weight.copy_(torch.from_numpy(values))
                up.weight.zero_()
            if decomposed:
                _decompose(layer)
            if config.network_dropout or config.rank_dropout:
                down.register_forward_hook(_dropout(config.network_dropout, config.rank_dropout))
            if config.module_dropout:
                up.register_forward_hook(_module_dropout(config.module_dropout))

    def parameters(self, target: Target) -> dict[str, nn.Parameter]:
        return {
            f"{target.name}.{path}.{entry}": parameter
            for path, layer in layers(target).items()
            for entry, parameter in entries_of(layer).items()
        }

    @torch.no_grad()
    def limit_norms(self, target: Target, most: float) -> None:
        """As sd-scripts does it: both matrices by the same factor. The host does not wait for the device."""
        for layer in layers(target).values():
            down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
            norm = _norm_of_product(up.flatten(1), down.flatten(1)) * layer.scaling[NAME]
            factor = (most / norm).clamp(max=1).sqrt()
            factor = torch.where(torch.isfinite(norm) & (norm > 0), factor, torch.ones_like(factor))
            down.mul_(factor)
            up.mul_(factor)

    def from_file(self, targets: Sequence[Target], naming: Naming, path: Path) -> None:
        tensors = read_file(path)
        problems: list[str] = []
        copies: list[tuple[Tensor, Tensor]] = []
        plain = Naming("kohya", naming.targets)  # diffusers' paths, where kohya's are others
        for target in targets:
            sizes = {path: len(layer.get_base_layer().weight) for path, layer in layers(target).items()}
            tensors = in_our_names(tensors, naming, target.name, sizes)
            for layer_path, layer in layers(target).items():
                name = naming.kohya(target.name, layer_path)
                others = {naming.kohya(target.name, layer_path), plain.kohya(target.name, layer_path)}
                matrices = _take(tensors, sorted(others), f"{target.name}.{layer_path}")
                if matrices is None:
                    problems.append(f"{name} is not in it")
                else:
                    problems += _copies(name, layer, matrices, copies)
        problems += [f"{name} has no place in this network" for name in tensors]
        refuse_misfits(path, problems)
        with torch.no_grad():
            for weight, loaded in copies:
                weight.copy_(loaded.reshape(weight.shape))


def adapter(config: Config) -> Lora:
    """The adapter of a config; it is the same for all three kinds, which peft tells apart."""
    return Lora()


Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


def _dropout(rate: float, ranks: float) -> Hook:
    """What kohya leaves out between the two matrices (peft would leave out inputs): values, then whole ranks."""

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if rate:
            output = F.dropout(output, rate, module.training)
        if ranks and module.training:
            last = output.ndim - 1 if isinstance(module, nn.Linear) else 1  # where the ranks are
            shape = [size if place in (0, last) else 1 for place, size in enumerate(output.shape)]
            output = output * ((torch.rand(shape, device=output.device) > ranks) / (1 - ranks)).to(output.dtype)
        return output

    return hook


def _module_dropout(rate: float) -> Hook:
    """A layer that is left out gives nothing; its gradient is then zero."""

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not module.training:
            return output
        return output * (torch.rand((), device=output.device) >= rate).to(output.dtype)

    return hook


def _norm_of_product(up: Tensor, down: Tensor) -> Tensor:
    """The Frobenius norm of up @ down, from two matrices of the rank's size instead of the weight's."""
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt()


def layers(target: Target) -> Mapping[str, LoraLayer]:
    """The LoRA layers of a component by path, in the model's order."""
    return {path: layer for path, layer in target.module.named_modules() if isinstance(layer, LoraLayer)}


def entries_of(layer: LoraLayer) -> dict[str, nn.Parameter]:
    """A layer's trained parameters by the ends of their names."""
    entries = {f"{matrix}.weight": getattr(layer, matrix)[NAME].weight for matrix in ("lora_A", "lora_B")}
    if NAME in layer.lora_magnitude_vector:
        entries[DORA] = layer.lora_magnitude_vector[NAME].weight
    return entries


def _decompose(layer: LoraLayer) -> None:
    """Begin DoRA's magnitudes as the norms of the base's rows: peft has measured them with other matrices."""
    weight = layer.get_base_layer().weight.detach().float()
    norms = weight.flatten(1).norm(dim=1)
    magnitude = layer.lora_magnitude_vector[NAME]
    magnitude.weight = nn.Parameter(norms.reshape(magnitude.weight.shape))


# --- files ---------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A layer as a file holds it. `alpha`: None where it is folded into `up`; `magnitude`: of DoRA."""

    down: Tensor
    up: Tensor
    alpha: float | None
    magnitude: Tensor | None


def _take(tensors: dict[str, Tensor], kohya: Sequence[str], ours: str) -> Found | None:
    """Take a layer out of a file's tensors: in kohya's form, or in diffusers', whose alpha is folded in."""
    forms = [(name, ("lora_down", "lora_up"), False) for name in kohya] + [(ours, ("lora_A", "lora_B"), True)]
    for name, (first, second), folded in forms:
        down, up = tensors.pop(f"{name}.{first}.weight", None), tensors.pop(f"{name}.{second}.weight", None)
        if down is not None and up is not None:
            alpha, magnitude = tensors.pop(f"{name}.alpha", None), tensors.pop(f"{name}.{DORA}", None)
            if alpha is None:
                return Found(down, up, None if folded else float(down.shape[0]), magnitude)
            return Found(down, up, float(alpha), magnitude)
    return None


def _copies(name: str, layer: LoraLayer, found: Found, copies: list[tuple[Tensor, Tensor]]) -> list[str]:
    """What is wrong with a layer of a file; `copies` get (weight, its new value) where it fits."""
    rank, scale = layer.r[NAME], layer.scaling[NAME]
    if found.down.shape[0] != rank:
        own = found.down.shape[0]
        return [f"{name} has rank {own}, network_dim is {rank}: set it to {own}"]
    if found.alpha is not None and not math.isclose(found.alpha, scale * rank, rel_tol=1e-3):
        return [
            f"{name} has alpha {found.alpha:g}, network_alpha is {scale * rank:g}: set it to {found.alpha:g}",
        ]
    up = found.up / scale if found.alpha is None else found.up
    problems = []
    entries = entries_of(layer)
    given = {"lora_A.weight": found.down, "lora_B.weight": up}
    if found.magnitude is not None:
        given[DORA] = found.magnitude
    if (DORA in entries) != (DORA in given):
        return [f"{name} is {'no ' if DORA in entries else ''}DoRA: set network_kind to the file's kind"]
    for entry, loaded in given.items():
        weight = entries[entry]
        same = entry == DORA or weight.shape[:2] == loaded.shape[:2]
        if weight.numel() == loaded.numel() and same:
            copies.append((weight, loaded))
        else:
            problems.append(f"{name} has the shape {tuple(loaded.shape)} instead of {tuple(weight.shape)}")
    return problems
