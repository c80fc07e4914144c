"""The caption of one use of an image: chosen, dropped, shuffled and thinned as the options say. No torch here.

The steps and their order are those of sd-scripts; prefix and suffix take part in shuffling and count for keep_tokens.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from trainer import randomness
from trainer.options.config import Config
from trainer.options.conflicts import VARY_CAPTIONS


class Shown(NamedTuple):
    """A picture file that a text encoder looks at, by its content."""

    file: str
    digest: str  # SHA-256 of the file


WILDCARD = re.compile(r"\{([^{}]+)\}")
PIECE = re.compile(r"[^\W\d_]+|\d|(?:[^\w\s]|_)+")  # what CLIP's tokenizer never joins: words, digits, marks
ESCAPED = {"{{": "\0", "}}": "\1"}  # a doubled brace is a brace; no caption holds these characters


def captions_vary(config: Config) -> bool:
    """Whether an image's caption differs from one use to the next, apart from being dropped whole."""
    return any(getattr(config, name) for name in VARY_CAPTIONS)


def plain_caption(caption: str, config: Config) -> str:
    """The caption of every use when nothing varies it: its first line with prefix and suffix."""
    return _joined(_with_affixes(_first_line(caption), config), config)


def caption_of_use(caption: str, config: Config, image: str, epoch: int, repeat: int, warmed: float = 1.0) -> str:
    """What becomes of a caption in one use of the image with this id, drawn by the use's address.

    `warmed`: how much of token_warmup_step is over, from 0 to 1.
    """
    if config.caption_dropout_every_n_epochs and (epoch + 1) % config.caption_dropout_every_n_epochs == 0:
        return ""
    draw = randomness.generator(config.seed, "caption", image, epoch, repeat)
    if draw.random() < config.caption_dropout_rate:
        return ""
    if not captions_vary(config):
        return plain_caption(caption, config)
    if config.enable_wildcard:
        caption = choose(caption, randomness.generator(config.seed, "wildcard", image, epoch, repeat))
    text = _with_affixes(_first_line(caption), config)
    if not (config.shuffle_caption or config.caption_tag_dropout_rate > 0 or warmed < 1):
        return _joined(text, config)
    first, middle, last = _parts(text, config)
    if warmed < 1:
        middle = middle[: int(warmed * (len(middle) - config.token_warmup_min)) + config.token_warmup_min]
    if config.shuffle_caption:
        middle = [middle[index] for index in draw.permutation(len(middle))]
    if config.caption_tag_dropout_rate > 0:
        middle = [part for part in middle if draw.random() >= config.caption_tag_dropout_rate]
    return _finished([*first, *middle, *last], config)


def choose(caption: str, draw: np.random.Generator) -> str:
    """One of the caption's lines, with one of {a|b|c} for each such group; {{ and }} stand for braces."""
    lines = [line.strip() for line in caption.splitlines() if line.strip()] or [""]
    text = lines[int(draw.integers(len(lines)))]
    for doubled, mark in ESCAPED.items():
        text = text.replace(doubled, mark)

    def one(match: re.Match[str]) -> str:
        choices = match[1].split("|")
        return choices[int(draw.integers(len(choices)))]

    text = WILDCARD.sub(one, text)
    for doubled, mark in ESCAPED.items():
        text = text.replace(mark, doubled[0])
    return text


def about_tokens(text: str) -> int:
    """How many tokens CLIP makes of a text, without its vocabulary: hardly ever fewer, often a few more."""
    return sum(1 if piece.isascii() else len(piece) for piece in PIECE.findall(text))


def is_cut_off(caption: str, config: Config) -> bool:
    """Whether a caption, or one of its lines where each may be chosen, is probably longer than max_token_length."""
    lines = caption.splitlines() if config.enable_wildcard else [caption]
    texts = [plain_caption(line, config) for line in lines]
    limit = config.max_token_length
    return any(not (text.isascii() and len(text) <= limit) and about_tokens(text) > limit for text in texts)


def _first_line(caption: str) -> str:
    return next(iter(caption.strip().splitlines()), "").strip()


def _with_affixes(caption: str, config: Config) -> str:
    return " ".join(part for part in (config.caption_prefix, caption, config.caption_suffix) if part)


def _parts(text: str, config: Config) -> tuple[list[str], list[str], list[str]]:
    """The parts that stay first, those that may be moved or left out, and those that stay last."""

    def split(piece: str) -> list[str]:
        return [part.strip() for part in piece.split(config.caption_separator) if part.strip()]

    mark = config.keep_tokens_separator
    if mark and mark in text:
        first, _, rest = text.partition(mark)
        middle, _, last = rest.partition(mark)
        return split(first), split(middle), split(last)
    parts = split(text)
    return parts[: config.keep_tokens], parts[config.keep_tokens :], []


def _joined(text: str, config: Config) -> str:
    """The text as it is, but for the marks that only tell what to keep."""
    if config.keep_tokens_separator and config.keep_tokens_separator in text:
        first, middle, last = _parts(text, config)
        return _finished([*first, *middle, *last], config)
    return _separated(text, config)


def _finished(parts: list[str], config: Config) -> str:
    return _separated(f"{config.caption_separator} ".join(parts), config)


def _separated(text: str, config: Config) -> str:
    """Parts held together by the secondary separator until now become parts of their own."""
    if not config.secondary_separator:
        return text
    return text.replace(config.secondary_separator, config.caption_separator)
