"""What a layer of a network in a file changes of its weight; LyCORIS' formulas."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.models.adapters import DORA, PRODUCTS

# What a layer's tensors in a file end with, by what its change is computed from.
LORA = ({"lora_down.weight", "lora_up.weight"}, {"lora_A.weight", "lora_B.weight"})
ENTRIES = frozenset({*LORA[0], *LORA[1], *PRODUCTS, "alpha", DORA, "diff"})
EVERY_ROW = slice(None)


def added(weight: Tensor, entries: Mapping[str, Tensor], multiplier: float, rows: slice = EVERY_ROW) -> Tensor:
    """A weight, in fp32, with a layer of a network added to it. Raises RuntimeError where the shapes do not fit.

    `rows`: the outputs of the layer that the weight is of, where files have several layers as one.
    """
    on_host = {name: tensor.to(weight.device) for name, tensor in entries.items()}
    whole_change = change(on_host)
    delta = whole_change.reshape(-1, *weight.shape[1:])[rows].reshape(weight.shape)
    if DORA not in entries:
        return weight + multiplier * delta
    whole = weight + delta
    magnitude = on_host[DORA]
    on_output = magnitude.shape[0] == whole_change.shape[0]
    magnitude = magnitude[rows] if on_output else magnitude
    norms = whole.flatten(1).norm(dim=1) if on_output else whole.transpose(0, 1).flatten(1).norm(dim=1)
    shape = [-1 if place == (0 if on_output else 1) else 1 for place in range(weight.ndim)]
    return weight + multiplier * (whole * (magnitude.reshape(shape) / norms.reshape(shape)) - weight)


def change(entries: Mapping[str, Tensor]) -> Tensor:
    """What a layer of a network adds to a weight, perhaps in another shape; LyCORIS' formulas.

    Raises RuntimeError where it is none that is known.
    """
    names = set(entries)
    for pair in LORA:
        if pair <= names:
            down, up = entries[min(pair)], entries[max(pair)]
            return up.flatten(1) @ down.flatten(1) * _scale(entries, down.shape[0])
    if "diff" in names:
        return entries["diff"]
    if "hada_w1_a" in names:
        first, second = (_product(entries, f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}") for n in (1, 2))
        return first * second * _scale(entries, entries["hada_w1_b"].shape[0])
    if names & {"lokr_w1", "lokr_w1_a"} and names & {"lokr_w2", "lokr_w2_a"}:
        small = entries["lokr_w1"] if "lokr_w1" in names else _product(entries, "lokr_w1_a", "lokr_w1_b")
        large = entries["lokr_w2"] if "lokr_w2" in names else _product(entries, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        thin = next((entries[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in names), None)
        small = small.reshape(*small.shape, *[1] * (large.ndim - 2))
        return torch.kron(small, large.contiguous()) * (_scale(entries, thin) if thin else 1.0)
    raise RuntimeError(f"it has only {', '.join(sorted(names))}")


def _product(entries: Mapping[str, Tensor], a: str, b: str, core: str = "") -> Tensor:
    """Two thin matrices, with Tucker's core between them where there is one."""
    if core in entries:
        return torch.einsum("i j ..., j r, i p -> p r ...", entries[core], entries[b], entries[a])
    return entries[a] @ entries[b]


def _scale(entries: Mapping[str, Tensor], rank: int) -> float:
    return float(entries["alpha"]) / rank if "alpha" in entries else 1.0
