"""Which layers a config trains, and at what rank. No torch here: headers alone tell a checkpoint's size."""

from __future__ import annotations

from typing import NamedTuple

from trainer.models import keys
from trainer.models.families.facts import Part
from trainer.options import blocks
from trainer.options.config import Config
from trainer.options.network_kinds import ATTENTION, FULL, OF_IA3


class Ranked(NamedTuple):
    """The rank of a trained layer, and what its product is scaled by, times that rank."""

    rank: int
    alpha: float


def ranked(config: Config, part: Part, path: str, *, larger: bool, original: bool = False) -> Ranked | None:
    """A layer's rank and alpha; None where it is not trained.

    `larger`: its kernel has more than one pixel; `original`: the path is one of a single file in its original names.
    """
    if not _is_chosen(config, part, path, larger=larger, original=original):
        return None
    return rank_of(config, part, path, larger=larger, original=original)


def _is_chosen(config: Config, part: Part, path: str, *, larger: bool, original: bool) -> bool:
    preset = config.network_preset
    if preset == "":
        convolutions = config.trains_convolutions and (larger or not config.conv_kernels_only)
        return part.trains(path, convolutions=convolutions, original=original)
    if preset.startswith(FULL):
        return part.trains(path, convolutions=True, outer=True, original=original) and not (larger and preset != FULL)
    return part.trains(path, convolutions=False, original=original) and is_wanted(config, path)


def is_wanted(config: Config, path: str) -> bool:
    """Whether network_preset leaves a layer in, of those that are always trained."""
    wanted = {"attn-only": ATTENTION, "ia3": OF_IA3}.get(config.network_preset)
    return wanted is None or bool(wanted.search(path))


def rank_of(config: Config, part: Part, path: str, *, larger: bool, original: bool = False) -> Ranked | None:
    """Rank and alpha that the options give a layer; None where they give its block none."""
    plain = Ranked(config.network_dim, config.network_alpha or config.network_dim)
    dim = config.conv_dim
    conv = Ranked(dim, config.conv_alpha or dim) if dim else plain
    block = None if part.tokenizer else block_of(config, path, original=original)
    if block is None:
        return conv if larger else plain
    rates = config.block_rates
    if rates and rates[block] == 0:
        return None
    ranks, alphas, otherwise = blocks.ranks(config), config.block_alphas, plain
    if larger:
        own_alpha = config.conv_alpha if config.trains_convolutions else plain.alpha
        ranks, alphas, otherwise = blocks.conv_ranks(config), config.conv_block_alphas, Ranked(conv.rank, own_alpha)
    rank = ranks[block] if ranks else otherwise.rank
    alpha = blocks.numbers(alphas)[block] if alphas else otherwise.alpha
    return Ranked(rank, alpha or rank) if rank else None


def block_of(config: Config, path: str, *, original: bool = False) -> int | None:
    """The number of a denoiser's layer's block; None where no option names blocks."""
    numbered = config.facts.blocks
    options = (*blocks.RANKS, *blocks.ALPHAS, *blocks.RATES)
    if numbered is None or not any(getattr(config, name) for name in options):
        return None
    return numbered.number(path if original else keys.original_unet_path(path))
