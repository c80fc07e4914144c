"""What a LoRA file says of its network: ranks and alphas, from its header and its smallest tensors. No torch here."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path

from trainer.models import file_header
from trainer.models.file_header import HeaderUnreadable, Shape
from trainer.options.config import Config
from trainer.refusal import Refused

DOWN = re.compile(r"(.+)\.(lora_down|lora_A)\.weight$")
SCALARS = {"F64": "<d", "F32": "<f", "F16": "<e"}


class RanksUnknown(Refused):
    """The file's ranks cannot be taken over; the message says why and what to do."""


def with_ranks_of_file(config: Config) -> Config:
    """The config with rank and alpha of the file that network_weights names, where dim_from_weights asks for it.

    Raises RanksUnknown where it is no LoRA file, or has layers of different ranks.
    """
    if not config.trains_network or not (config.dim_from_weights and config.network_weights):
        return config
    path = Path(config.network_weights)
    try:
        shapes = file_header.shapes(path)
    except HeaderUnreadable as error:
        raise RanksUnknown(f"dim_from_weights: {error}; set network_dim and turn it off") from error
    alphas = _alphas(path)
    kinds: dict[bool, set[tuple[int, float]]] = {False: set(), True: set()}  # by whether their kernels are larger
    for name, shape in shapes.items():
        if match := DOWN.match(name):
            rank = shape[0]
            kinds[_is_larger(shape)].add((rank, alphas.get(match[1], float(rank))))
    plain, larger = kinds[False], kinds[True]
    if not plain:
        raise RanksUnknown(f"dim_from_weights: {path} is no LoRA file: it has no lora_down; turn it off")
    if len(plain) > 1 or len(larger) > 1:
        ranks = ", ".join(f"rank {rank} with alpha {alpha:g}" for rank, alpha in sorted(plain | larger))
        raise RanksUnknown(
            f"dim_from_weights: the layers of {path} differ ({ranks}), and all layers of a kind have one rank here: "
            "turn it off and begin without this file"
        )
    [(rank, alpha)] = plain
    changes = {"network_dim": rank, "network_alpha": alpha, "conv_dim": None, "conv_alpha": config.conv_alpha}
    for conv_rank, conv_alpha in larger:
        changes |= {"conv_dim": conv_rank, "conv_alpha": conv_alpha}
    return config.replace(**changes)


def _is_larger(shape: Shape) -> bool:
    return math.prod(shape[2:]) > 1


def _alphas(path: Path) -> dict[str, float]:
    """Each layer's alpha."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        declared = json.loads(file.read(length))
        result = {}
        for name, entry in declared.items():
            if name.endswith(".alpha"):
                start, end = entry["data_offsets"]
                file.seek(8 + length + start)
                result[name.removesuffix(".alpha")] = _scalar(file.read(end - start), entry["dtype"])
    return result


def _scalar(data: bytes, dtype: str) -> float:
    if dtype == "BF16":
        data, dtype = b"\0\0" + data, "F32"
    return float(struct.unpack(SCALARS[dtype], data)[0])
