"""A LoRA with a smaller rank, by the singular values of each layer."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.models.adapters import DORA
from trainer.refusal import Refused
from trainer.tools import Arguments, Progress, Result, headers, network, ranks
from trainer.tools.network import PAIRS, Network
from trainer.tools.tensors import TensorWriter


def resize(arguments: Arguments, progress: Progress) -> Result:
    """The tool; see tools.TOOLS. A layer keeps its names and its scale, alpha / rank. Raises Refused."""
    wanted, target = ranks.cutting(arguments), Path(arguments["output"])
    source = network.read(Path(arguments["file"]))
    _require_lora(source)
    precision = network.precision_of(arguments["save_precision"], source)
    account, alphas = ranks.Account(), []
    metadata = headers.carried(source.source.metadata)
    planned = list(source.source.entries)
    with TensorWriter(target, planned, metadata, hashed=True) as writer:
        for number, name in enumerate(sorted(source.layers)):
            low, entries = source.low(name), source.layers[name]
            assert low is not None
            factors = network.factors(low.down.to(arguments["device"]), low.up.to(arguments["device"]))
            rank = wanted.chosen(factors.values, larger=low.is_larger)
            account.note(name, factors.values, rank, low.scale)
            alphas.append(low.scale * rank)
            down, up = factors.cut(rank)
            pair = next(pair for pair in PAIRS if pair[0] in entries)
            changed = {pair[0]: down, pair[1]: up, "alpha": torch.tensor(low.scale * rank)}
            for entry in sorted(entries):
                if entry == DORA:
                    writer.copy(entries[entry], source.source)
                else:
                    writer.add(entries[entry], changed[entry].to(precision))
            progress(number + 1, len(source.layers))
        writer.metadata |= headers.ranks(list(account.ranks.values()), alphas)
        writer.metadata["ss_training_comment"] = _comment(arguments, source)
    return {"output": str(target), **account.as_json()}


def _require_lora(source: Network) -> None:
    others = [name for name, entries in source.layers.items() if not any(set(pair) <= entries.keys() for pair in PAIRS)]
    if others:
        raise Refused(
            f"{source.path} is no LoRA: {network.some(others)} have no two matrices. Merge it with a --rank instead, "
            "which makes a LoRA of it"
        )


def _comment(arguments: Arguments, source: Network) -> str:
    method = arguments["dynamic_method"]
    how = f"{method} {arguments['dynamic_param']:g}" if method != "fixed" else f"rank {arguments['rank']}"
    before = source.source.metadata.get("ss_training_comment", "")
    return f"{before}; resized: {how}".removeprefix("; ")[:500]
