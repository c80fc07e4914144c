"""About what a forward pass keeps for its backward pass, from the shapes of the weights alone. No torch here.

Counted as autograd keeps it where the weights are frozen and trained layers lie beside them: of a linear layer its
input, and its output for the operation that follows; of a convolution the input of its norm, of its activation and its
own. With gradient checkpointing the inputs of the repeated blocks stay, and one block at a time is whole.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from trainer.models.blocks import block_of
from trainer.models.file_header import Shape, Shapes

# Bytes of a number that is kept. In half precision it is not half: under autocast norms compute and keep fp32, and
# every trained layer keeps a copy of its input. HIDDEN: of what blocks hand on.
LINEAR = {"no": 4.0, "fp16": 2.5, "bf16": 2.5}
CONVOLUTION = {"no": 4.0, "fp16": 3.3, "bf16": 3.3}
HIDDEN = {"no": 4.0, "fp16": 2.0, "bf16": 2.0}

_ONCE = re.compile(  # what a block is told of the timestep and of the picture as a whole
    r"time_?(text_)?emb|emb_layers|label_emb|add_embedding|norm|adaln|mod(ulation)?(\.|_|$)|guidance|t_embedder"
)
_OF_TEXT = re.compile(r"attn2\.to_[kv]\.|\.add_|\.to_add_|context|(^|\.)txt_|text_embed|caption|cap_embedder")
_LEVEL = re.compile(r"(?:^|\.)(down_blocks|up_blocks|input_blocks|output_blocks)\.(\d+)\.")
_SHRINKS = re.compile(r"input_blocks\.(\d+)\.0\.op\.weight$")
_GROWS = re.compile(r"output_blocks\.(\d+)\.\d+\.conv\.weight$")


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps: of everything, of the blocks' inputs and what lies outside blocks, and of the
    largest block."""

    whole: float
    inputs: float
    block: float

    def most(self, *, checkpointing: bool, offloaded: bool = False) -> int:
        """At the height of the backward pass; what that needs itself is thought to be half of a block. `offloaded`:
        what stays with checkpointing is in the host's memory."""
        if not checkpointing:
            return round(self.whole + 0.5 * self.block)
        return round(1.5 * self.block + (0 if offloaded else self.inputs))


@dataclass(frozen=True)
class _Layer:
    block: str  # empty outside blocks
    width: int  # of the input
    places: int
    held: float  # bytes


def kept(
    shapes: Shapes, size: tuple[int, int], text: int, precision: str, *, rank: int = 0, convolutional: bool = False
) -> Kept:
    """Of one sample. `shapes`: of a network's tensors; `size`: rows and columns of its tokens, of latents where it is
    convolutional; `text`: tokens of a caption; `precision`: mixed_precision; `rank`: of trained layers."""
    layers = list(_layers(shapes, size, text, precision, rank, convolutional))
    blocks: dict[str, list[_Layer]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, []).append(layer)
    outside = sum(layer.held for layer in blocks.pop("", []))
    wholes = [sum(layer.held for layer in block) for block in blocks.values()]
    inputs = sum(_width(block) * max(layer.places for layer in block) for block in blocks.values())
    return Kept(sum(wholes) + outside, outside + inputs * HIDDEN[precision], max(wholes, default=0.0))


def _width(block: list[_Layer]) -> int:
    """Of what a block is given: what most of its layers take, or the first one of two."""
    return statistics.mode(layer.width for layer in block)


def _layers(
    shapes: Shapes, size: tuple[int, int], text: int, precision: str, rank: int, convolutional: bool
) -> Iterator[_Layer]:
    level_of = _levels(shapes) if convolutional else lambda name: 0
    reads_text = {block_of(name) for name in shapes if _OF_TEXT.search(name)}  # by layers that are only for it
    for name, shape in shapes.items():
        block = block_of(name)
        numbers, per_number = _numbers(name, shape, bool(block))
        if not numbers:
            continue
        places = math.prod(max(1, -(-side // 2 ** level_of(name))) for side in size)
        if _OF_TEXT.search(name):
            places = text
        elif block and not convolutional and block not in reads_text:
            places += text  # one sequence of both
        held = places * (numbers * per_number[precision] + rank * LINEAR[precision])
        yield _Layer(block, shape[1], places, held)


def _numbers(name: str, shape: Shape, in_block: bool) -> tuple[int, dict[str, float]]:
    """How many numbers a layer keeps at each place, and the table of their sizes; none where it is no such layer."""
    if not name.endswith(".weight") or len(shape) < 2 or _ONCE.search(name):
        return 0, LINEAR
    if math.prod(shape[2:]) > 1:
        sampler = "sampler" in name or "conv_in." in name or _SHRINKS.search(name) or _GROWS.search(name)
        return (1 if sampler else 3) * shape[1], CONVOLUTION
    if "shortcut" in name or "skip_connection" in name:
        return 0, LINEAR
    if in_block:
        return shape[0] + shape[1], LINEAR
    return (2 if "proj_in" in name else 1) * shape[1], LINEAR


def _levels(shapes: Shapes) -> Callable[[str], int]:
    """By the name of a tensor of a U-Net: how often its input has been halved, in diffusers' names or original ones."""
    down = max((int(match[2]) for name in shapes if (match := _LEVEL.search(name)) and "down" in match[1]), default=-1)
    shrinks = sorted(int(match[1]) for name in shapes if (match := _SHRINKS.search(name)))
    grows = sorted(int(match[1]) for name in shapes if (match := _GROWS.search(name)))

    def level(name: str) -> int:
        match = _LEVEL.search(name)
        kind, number = (match[1], int(match[2])) if match else ("", 0)
        if kind == "down_blocks":
            return number
        if kind == "up_blocks":
            return down - number - ("upsamplers" in name)
        if kind == "input_blocks":
            return sum(place < number for place in shrinks)
        if kind == "output_blocks":
            return len(shrinks) - sum(place < number for place in grows) - bool(_GROWS.search(name))
        return max(down, len(shrinks)) if re.search(r"(^|\.)(mid|middle)_block\.", name) else 0

    return level
