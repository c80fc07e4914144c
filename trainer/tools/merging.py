"""Networks joined into one LoRA, or added to the weights of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.models.adapters import DORA
from trainer.models.network_layers import added, change
from trainer.refusal import Refused
from trainer.tools import Arguments, Progress, Result, folders, headers, model_layers, network
from trainer.tools.network import DOWN, PAIRS, Low, Named, Network
from trainer.tools.tensors import TensorSource, TensorWriter, refuse_existing


def merge(arguments: Arguments, progress: Progress) -> Result:
    """The tool; see tools.TOOLS. Raises Refused with everything that stands against it."""
    paths, target = [Path(file) for file in arguments["files"]], Path(arguments["output"])
    ratios = list(arguments["ratios"] or [1.0] * len(paths))
    problems = []
    if len(ratios) != len(paths):
        problems.append(f"ratios: {len(ratios)} for {len(paths)} files; give one for each, separated by commas")
    networks = []
    for path in paths:
        try:
            networks.append(network.read(path))
        except Refused as error:
            problems.append(str(error))
    try:
        refuse_existing(target)
    except Refused as error:
        problems.append(str(error))
    if arguments["model"] and arguments["rank"]:
        problems.append("rank: is of a joined LoRA; a model takes the networks whole, so leave it out")
    if problems:
        raise Refused("\n".join(problems))
    weighted = list(zip(networks, map(float, ratios), strict=True))
    if arguments["model"]:
        return _into_model(arguments, weighted, target, progress)
    return _into_one(arguments, weighted, target, progress)


# --- into one LoRA -------------------------------------------------------------------------------------------------

Weighted = Sequence[tuple[Network, float]]


@dataclass(frozen=True)
class _Source:
    """A network whose layers have names that those of the others have as well."""

    of: Network | Named
    ratio: float

    @property
    def names(self) -> Sequence[str]:
        return list(self.of.members if isinstance(self.of, Named) else self.of.layers)

    def low(self, name: str, rank: int | None) -> Low:
        """A layer as a product. `rank`: of what is none. Raises Refused."""
        entries = self.of.entries(name)
        pair = next((pair for pair in PAIRS if set(pair) <= entries.keys()), None)
        path = self.of.network.path if isinstance(self.of, Named) else self.of.path
        if DORA in entries:
            raise Refused(f"{path} is DoRA, which changes a base by its own norms: merge it into a model")
        if pair:
            down, up = entries[pair[0]], entries[pair[1]]
            scale = float(entries["alpha"]) / len(down) if "alpha" in entries else 1.0
            return Low(down, up, scale)
        if rank is None:
            raise Refused(f"{path} is no LoRA: its layers have no two matrices; give a --rank, and they are cut to it")
        down, up = network.factors_of(change(entries)).cut(rank)
        return Low(down, up, 1.0)


def _into_one(arguments: Arguments, weighted: Weighted, target: Path, progress: Progress) -> Result:
    sources = _with_common_names(weighted, arguments["family"])
    names = sorted({name for source in sources for name in source.names})
    first = weighted[0][0]
    precision = network.precision_of(arguments["save_precision"], first)
    rank, conv_rank = arguments["rank"], arguments["conv_rank"] or arguments["rank"]
    pair = PAIRS[1] if isinstance(sources[0].of, Network) and _is_folded(first) else PAIRS[0]
    entries = (*pair, "alpha")
    kept = whole = 0.0
    ranks: list[int] = []
    planned = [f"{name}.{entry}" for name in names for entry in entries]
    metadata = headers.joined([item.source.metadata for item, _ in weighted])
    metadata["ss_training_comment"] = "merged: " + " + ".join(
        f"{ratio:g} * {item.path.name}" for item, ratio in weighted
    )
    with TensorWriter(target, planned, metadata, hashed=pair == PAIRS[0]) as writer:
        for number, name in enumerate(names):
            holding = [source for source in sources if name in source.names]
            lows = [source.low(name, rank) for source in holding]
            down = torch.cat([low.down for low in lows])
            up = torch.cat([low.up * (low.scale * source.ratio) for low, source in zip(lows, holding, strict=True)], 1)
            if rank:
                factors = network.factors(down.to(arguments["device"]), up.to(arguments["device"]))
                most = min(conv_rank if lows[0].is_larger else rank, len(factors.values))
                squares = factors.values.double().square()
                kept, whole = kept + float(squares[:most].sum()), whole + float(squares.sum())
                down, up = factors.cut(most)
            ranks.append(len(down))
            layer = {pair[0]: down, pair[1]: up, "alpha": torch.tensor(float(len(down)))}
            for entry in sorted(layer):
                if entry != "alpha" or pair == PAIRS[0]:
                    writer.add(f"{name}.{entry}", layer[entry].to(precision))
            progress(number + 1, len(names))
        writer.metadata |= headers.ranks(ranks, [float(number) for number in ranks])
    result = {"output": str(target), "layers": len(names), "rank": max(ranks, default=0)}
    return result | ({"retained": math.sqrt(kept / whole) if whole else 1.0} if rank else {})


def _is_folded(item: Network) -> bool:
    """Whether a file has peft's entries and no alpha."""
    return not any("alpha" in entries or DOWN in entries for entries in item.layers.values())


def _with_common_names(weighted: Weighted, family: str) -> list[_Source]:
    """The networks under names that mean the same layers: as they are where all are written alike, else kohya's."""
    first = weighted[0][0]
    names = first.layers.keys()
    alike = all(
        (names <= item.layers.keys() or item.layers.keys() <= names) and _is_folded(item) == _is_folded(first)
        for item, _ in weighted
    )
    if alike:
        return [_Source(item, ratio) for item, ratio in weighted]
    named = [network.named(item, family) for item, _ in weighted]
    families_found = {one.namer.family for one in named}
    if len(families_found) > 1:
        raise Refused(f"the files are of different models ({', '.join(sorted(families_found))}); no LoRA fits both")
    return [_Source(one, ratio) for one, (_, ratio) in zip(named, weighted, strict=True)]


# --- into a model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """Rows of a tensor that a layer of a network changes. `rows`: of the layer, `place`: of the tensor."""

    of: Named
    name: str
    ratio: float
    rows: slice
    place: slice


def _into_model(arguments: Arguments, weighted: Weighted, target: Path, progress: Progress) -> Result:
    model = model_layers.read(Path(arguments["model"]), arguments["family"])
    changes: dict[tuple[Path, str], list[_Change]] = {}
    problems = []
    for item, ratio in weighted:
        one = network.named(item, model.namer.family)
        strange = [name for name in one.members if name not in model.pieces]
        if strange:
            problems.append(
                f"{item.path}: {network.some(strange)} have no place in {model.path}; is it the right model?"
            )
        for name in one.members:
            row = 0
            for piece in model.pieces.get(name, ()):
                height = piece.stop - piece.start
                wanted = _Change(one, name, ratio, slice(row, row + height), slice(piece.start, piece.stop))
                changes.setdefault((piece.source.path, piece.tensor), []).append(wanted)
                row += height
    if problems:
        raise Refused("\n".join(problems))
    total, done = sum(source.size for source in model.sources), 0

    def write(source: TensorSource, place: Path) -> None:
        nonlocal done
        with TensorWriter(place, source.entries, source.metadata, new=False) as writer:
            for tensor, entry in source.entries.items():
                wanted = changes.get((source.path, tensor))
                if wanted:
                    writer.add(tensor, _changed(source, tensor, wanted, arguments))
                else:
                    writer.copy(tensor, source)
                done += entry.end - entry.start
                progress(done, total)

    folders.write(model.path, target, {source.path: source for source in model.sources}, write)
    return {
        "output": str(target),
        "layers": len({change.name for found in changes.values() for change in found}),
        "tensors": len(changes),
    }


def _changed(source: TensorSource, tensor: str, wanted: Sequence[_Change], arguments: Arguments) -> Tensor:
    """A tensor with every network added, rounded once. Raises Refused where a shape does not fit."""
    stored = source.tensor(tensor)
    if not stored.is_floating_point():
        raise Refused(f"{tensor} of {source.path} is quantised, and nothing can be added to it; use the whole weights")
    device = arguments["device"]
    values = stored.to(device, torch.float32)
    for item in wanted:
        entries = {entry: value.to(device) for entry, value in item.of.entries(item.name).items()}
        try:
            values[item.place] = added(values[item.place], entries, item.ratio, item.rows)
        except RuntimeError as error:
            raise Refused(f"{item.name} of {item.of.network.path} does not fit {tensor}: {error}") from error
    return values.to("cpu", stored.dtype)
