"""Ranks and rates of a U-Net's numbered blocks, as sd-scripts writes them. No torch here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainer.models.families.facts import Blocks

if TYPE_CHECKING:
    from trainer.options.config import Config

RANKS = ("block_dims", "conv_block_dims")
ALPHAS = ("block_alphas", "conv_block_alphas")
RATES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
CURVES = ("cosine", "sine", "linear", "reverse_linear", "zeros")  # of rates over the blocks, with "+0.25" added or not


def numbers(text: str) -> tuple[float, ...]:
    """The numbers of a list; nothing between two commas is 0. Raises ValueError."""
    return tuple(float(part) if part.strip() else 0.0 for part in text.split(","))


def problem(config: Config, name: str) -> str | None:
    """What is wrong with a list for this architecture."""
    text, blocks = getattr(config, name), config.facts.blocks
    if not text or blocks is None:
        return None
    try:
        values = _weights(text, _length(blocks, name)) if name in RATES else numbers(text)
    except ValueError as error:
        return str(error) if name in RATES else f"{text!r} is not a list of numbers with commas between them"
    if name in RATES:
        most = _length(blocks, name)
        if len(numbers_or_none(text) or values) > most:
            return f"has more than the {most} blocks of {config.facts.title} there"
    elif len(values) != blocks.count:
        return f"has {len(values)} numbers, but {config.facts.title} has {blocks.count} blocks: give one for each"
    if name in RANKS and any(value != int(value) for value in values):
        return f"{text!r}: a rank is a whole number"
    if any(value < 0 or not math.isfinite(value) for value in values):
        return f"{text!r}: none can be below 0"
    return None


def numbers_or_none(text: str) -> tuple[float, ...] | None:
    """The numbers of a list; None where it is the name of a curve."""
    try:
        return numbers(text)
    except ValueError:
        return None


def rates(config: Config) -> tuple[float, ...] | None:
    """Every block's factor of the learning rate; None where none is given."""
    blocks = config.facts.blocks
    given = [getattr(config, name) for name in RATES]
    if blocks is None or not any(given):
        return None
    weights: list[float] = []
    for name, text in zip(RATES, given, strict=True):
        length = _length(blocks, name)
        weights += _weights(text, length) if text else [1.0] * length
    kept = [weight if weight > config.block_lr_zero_threshold else 0.0 for weight in weights]
    return (*[1.0] * blocks.base, *kept, *[1.0] * blocks.out)


def ranks(config: Config) -> tuple[int, ...] | None:
    """Every block's rank of its matrices; None where all have the same."""
    return tuple(map(int, numbers(config.block_dims))) if config.block_dims else None


def conv_ranks(config: Config) -> tuple[int, ...] | None:
    """Every block's rank of its larger kernels; None where all have the same."""
    return tuple(map(int, numbers(config.conv_block_dims))) if config.conv_block_dims else None


def _length(blocks: Blocks, name: str) -> int:
    return {"down_lr_weight": blocks.down, "mid_lr_weight": blocks.middle, "up_lr_weight": blocks.up}[name]


def _weights(text: str, length: int) -> list[float]:
    """A list of rates, filled up with 1; or a curve by its name. Raises ValueError."""
    given = numbers_or_none(text)
    if given is not None:
        return [*given[:length], *[1.0] * (length - len(given))]
    name, _, more = text.partition("+")
    places = [place / max(1, length - 1) for place in range(length)]
    shapes = {
        "cosine": [math.sin(math.pi * place / 2) for place in reversed(places)],
        "sine": [math.sin(math.pi * place / 2) for place in places],
        "linear": places,
        "reverse_linear": places[::-1],
        "zeros": [0.0] * length,
    }
    if name.strip() not in shapes:
        raise ValueError(f"{text!r} is neither a list of numbers nor one of {', '.join(CURVES)} (+0.25)")
    try:
        above = float(more) if more.strip() else 0.0
    except ValueError:
        raise ValueError(f"{text!r}: {more!r} is not a number") from None
    return [value + above for value in shapes[name.strip()]]
