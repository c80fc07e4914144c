"""A network's file, layer by layer: read in any program's names, computed with as products, written in any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.models import families, keys, layer_names
from trainer.models.adapters import DORA, PRODUCTS
from trainer.models.layer_names import Namer
from trainer.models.network_layers import ENTRIES, change
from trainer.refusal import Refused
from trainer.tools.tensors import PRECISIONS, TensorSource

DOWN, UP = "lora_down.weight", "lora_up.weight"
PAIRS = ((DOWN, UP), ("lora_A.weight", "lora_B.weight"))
SOME = 5  # names in a message


class Low(NamedTuple):
    """A change of a weight as a product, in fp32: scale * up @ down. `down` (rank, inputs, ...), `up` (outputs, rank,
    ...); `magnitude` of DoRA."""

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def is_larger(self) -> bool:
        """Whether the kernel has more than one pixel."""
        return self.down[0, 0].numel() > 1


class Factors(NamedTuple):
    """The singular values of a product, and what makes them up: left * values @ right. `shape`: of the weight."""

    left: Tensor  # (outputs, number)
    values: Tensor  # falling
    right: Tensor  # (number, inputs)
    shape: tuple[int, ...]

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """The best product of this rank, as (down, up), with the values shared between both."""
        root = self.values[:rank].sqrt()
        ones = (1 for _ in self.shape[2:])
        down = (root[:, None] * self.right[:rank]).reshape(len(root), *self.shape[1:])
        return down.contiguous(), (self.left[:, :rank] * root).reshape(self.shape[0], len(root), *ones).contiguous()


def factors(down: Tensor, up: Tensor) -> Factors:
    """Of up @ down, without computing it: two thin matrices are orthogonalised, and what is left is of their rank."""
    shape = (len(up), *down.shape[1:])
    q_up, r_up = torch.linalg.qr(up.flatten(1).double())
    q_down, r_down = torch.linalg.qr(down.flatten(1).double().T)
    left, values, right = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return Factors((q_up @ left).float(), values.float(), (right @ q_down.T).float(), shape)


def factors_of(delta: Tensor) -> Factors:
    """Of a whole change."""
    left, values, right = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    return Factors(left, values, right, tuple(delta.shape))


@dataclass(frozen=True)
class Network:
    """A file of a network. `layers`: the file's name of a layer -> what comes after it -> the tensor."""

    source: TensorSource
    layers: Mapping[str, Mapping[str, str]]

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def precision(self) -> torch.dtype:
        """What its matrices are stored in."""
        entry = next(iter(next(iter(self.layers.values())).values()))
        dtype = self.source.entries[entry].dtype
        return {"F16": torch.float16, "BF16": torch.bfloat16}.get(dtype, torch.float32)

    def entries(self, name: str) -> dict[str, Tensor]:
        """A layer's tensors in fp32."""
        return {entry: self.source.values(tensor) for entry, tensor in self.layers[name].items()}

    def low(self, name: str) -> Low | None:
        """A layer as a product of two matrices; None where it is of another kind."""
        there = self.layers[name]
        pair = next((pair for pair in PAIRS if set(pair) <= there.keys()), None)
        if pair is None:
            return None
        down, up = (self.source.values(there[entry]) for entry in pair)
        alpha = float(self.source.values(there["alpha"])) if "alpha" in there else float(len(down))
        magnitude = self.source.values(there[DORA]) if DORA in there else None
        return Low(down, up, alpha / len(down), magnitude)

    def delta(self, name: str) -> Tensor:
        """What a layer adds to its weight, whatever it is computed from, perhaps in another shape."""
        return change(self.entries(name))


def read(path: Path) -> Network:
    """Raises Refused where the file is no network whose layers can be computed with."""
    source = TensorSource(path)
    layers, others = layer_names.layers_of(source.entries, ENTRIES)
    if others or not layers:
        raise Refused(
            f"{path} has {some(others)}: only LoRA, DoRA, LoHa, LoKr and whole differences are understood"
            if layers
            else f"{path} is no network: it has no layer of a LoRA, LoHa or LoKr"
        )
    return Network(source, layers)


def precision_of(asked: str, network: Network) -> torch.dtype:
    """What a new file is stored in."""
    return PRECISIONS[asked] if asked else network.precision


def some(names: list[str]) -> str:
    """The first of many names, for a message."""
    more = f" and {len(names) - SOME} more" if len(names) > SOME else ""
    return f"{', '.join(names[:SOME])}{more}"


# --- other names ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A network with its layers under kohya's names, those that are one in kohya's files joined.

    `members`: kohya's name -> (path, name in the file) of each layer that it is made of, in the order of its outputs.
    """

    network: Network
    namer: Namer
    members: Mapping[str, list[tuple[str, str]]]

    def entries(self, name: str) -> dict[str, Tensor]:
        """A layer's tensors under kohya's entries, in fp32."""
        members = self.members[name]
        if len(members) == 1 and not self._lacks_others(members[0][0]):
            return self._of_one(members[0][1])
        return self._joined(name, members)

    def _of_one(self, file_name: str) -> dict[str, Tensor]:
        low = self.network.low(file_name)
        if low is None:
            return self.network.entries(file_name)
        extra = {} if low.magnitude is None else {DORA: low.magnitude}
        return as_kohya(low.down, low.up, low.scale * low.rank) | extra

    def _lacks_others(self, path: str) -> bool:
        """Whether a layer is only a part of one of kohya's."""
        if self.namer.facts.keys != "fused" or "transformer_blocks." not in path:
            return False
        return len(_heights(keys.flux_place(path)[0], 1)) > 1

    def _joined(self, name: str, members: list[tuple[str, str]]) -> dict[str, Tensor]:
        """Parts of a layer as one; what the file does not have of it adds nothing."""
        lows: dict[int, Low] = {}
        for path, file_name in members:
            low = self.network.low(file_name)
            if low is None or low.magnitude is not None:
                raise Refused(f"{file_name} of {self.network.path} is part of a layer of kohya's, and only LoRA joins")
            lows[keys.flux_place(path)[1]] = low
        first = next(iter(lows.values()))
        outputs = _heights(keys.flux_place(members[0][0])[0], first.down.shape[1])
        ups = [
            lows[place].up * (lows[place].scale / first.scale) if place in lows else torch.zeros(height, 0)
            for place, height in enumerate(outputs)
        ]
        down = torch.cat([lows[place].down for place in sorted(lows)])
        return as_kohya(down, torch.block_diag(*ups), first.scale * len(down))


def _heights(original: str, inputs: int) -> list[int]:
    """The outputs of the layers that are one in FLUX.1's original file, which is as wide as its inputs inside; those
    of its feed-forward part are four times as many."""
    if original.endswith(".qkv"):
        return [inputs] * 3
    return [inputs] * 3 + [4 * inputs] if original.endswith(".linear1") else [inputs]


def as_kohya(down: Tensor, up: Tensor, alpha: float) -> dict[str, Tensor]:
    return {DOWN: down, UP: up, "alpha": torch.tensor(alpha)}


def named(network: Network, family: str = families.AUTO) -> Named:
    """Raises LayersUnknown where the family cannot be told, or has not all of the layers."""
    metadata = network.source.metadata
    namer = Namer(layer_names.family_of(list(network.layers), metadata, family))
    members: dict[str, list[tuple[str, str]]] = {}
    strange = []
    for name in network.layers:
        try:
            component, path = namer.layer(name)
            members.setdefault(namer.kohya(component, path), []).append((path, name))
        except layer_names.LayersUnknown:
            strange.append(name)
    if strange:
        raise layer_names.LayersUnknown(f"{network.path}: {some(strange)} cannot be layers of {namer.facts.title}")
    if namer.facts.keys == "fused":
        for parts in members.values():
            parts.sort(key=lambda part: _place(part[0]))
    doubled = [name for name, parts in members.items() if len({path for path, _ in parts}) < len(parts)]
    if doubled:
        raise Refused(f"{network.path} has several layers for {some(doubled)}")
    return Named(network, namer, members)


def _place(path: str) -> int:
    try:
        return keys.flux_place(path)[1]
    except ValueError:
        return 0


def in_form(form: str, namer: Namer, name: str, entries: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a layer, given under kohya's name and entries, as another program names them.

    Raises Refused where its names have none for it.
    """
    if form == "kohya":
        yield from ((f"{name}.{entry}", tensor) for entry, tensor in entries.items())
        return
    component, path = namer.layer(name)
    denoiser = namer.facts.denoiser
    is_denoiser = component == denoiser.component
    if form == "lycoris" and not is_denoiser:
        yield from ((f"{name}.{entry}", tensor) for entry, tensor in entries.items())
        return
    parts: Mapping[str, Mapping[str, Tensor]] = {path: entries}
    if is_denoiser and namer.facts.keys == "fused":
        parts = _apart(namer, name, entries)
    for inner, own in parts.items():
        if form == "lycoris":
            flat = f"{layer_names.LYCORIS}{inner.replace('.', '_')}"
            yield from ((f"{flat}.{entry}", tensor) for entry, tensor in own.items())
            continue
        if DOWN not in own or set(own) & {DORA, *PRODUCTS}:
            raise Refused(
                f"{name} is no plain LoRA, and diffusers' names have no other: convert it to kohya or lycoris"
            )
        scale = float(own["alpha"]) / len(own[DOWN]) if "alpha" in own else 1.0
        prefixed = f"{component}.{inner}"
        yield f"{prefixed}.lora_A.weight", own[DOWN]
        yield f"{prefixed}.lora_B.weight", own[UP] * scale


def _apart(namer: Namer, name: str, entries: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """diffusers' layers that one of FLUX.1's original file is made of. Raises Refused where it cannot be divided."""
    component, original = namer.layer(name)
    if not layer_names.ORIGINAL_FLUX.match(original):
        return {original: dict(entries)}
    paths = keys.flux_paths(original)
    if len(paths) == 1:
        return {paths[0]: dict(entries)}
    if DOWN not in entries or DORA in entries:
        raise Refused(f"{name} joins {len(paths)} layers of diffusers, and only LoRA can be taken apart")
    inputs, outputs = entries[DOWN].shape[1], len(entries[UP])
    heights = [inputs] * min(3, len(paths)) + ([outputs - 3 * inputs] if len(paths) > 3 else [])
    prefix = namer.naming.targets[component][0]
    tensors = {f"{name}.{entry}": tensor for entry, tensor in entries.items()}
    divided = keys.unfused(tensors, namer.naming, component, dict(zip(paths, heights, strict=True)))
    return {
        path: {
            entry: torch.as_tensor(divided[f"{prefix}_{path}".replace(".", "_") + f".{entry}"])
            for entry in (DOWN, UP, "alpha")
        }
        for path in paths
    }
