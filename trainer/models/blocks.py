"""The repeated blocks of a network, by the names of its tensors. No torch here.

They are what gradient checkpointing computes twice, and what can be streamed from the host's memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_BLOCK = re.compile(
    r"(?:.*\.)?(?:[a-z_]*transformer_blocks|resnets|layers|blocks|double_blocks|single_blocks|[a-z]+_refiner)\.\d+(?=\.)"
)
_ORIGINAL_BLOCK = re.compile(
    r"(?:.*\.)?(?:input_blocks|output_blocks|middle_block)\.\d+(?:\.\d+)?(?=\.(in|out)_layers)"
)


def block_of(name: str) -> str:
    """The path of the innermost block that a tensor belongs to; empty where it belongs to none."""
    match = _BLOCK.match(name) or _ORIGINAL_BLOCK.match(name)
    return match[0] if match else ""


def all_of(names: Iterable[str]) -> list[str]:
    """The paths of the blocks of a network with tensors of these names, by their numbers."""
    return sorted({block for name in names if (block := block_of(name))}, key=_natural)


def streamed(names: Iterable[str], count: int) -> list[str]:
    """Of the blocks of a network with tensors of these names, so many (all of them at the most), spread evenly, so that
    one is copied while others compute."""
    blocks = all_of(names)
    count = min(count, len(blocks))
    return [blocks[(2 * place + 1) * len(blocks) // (2 * count)] for place in range(count)]


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts the numbers in paths as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]
