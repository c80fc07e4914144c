"""The caption of one use of an image: dropped, shuffled and thinned as the options say. No torch here."""

from __future__ import annotations

from trainer import randomness
from trainer.config import Config


def captions_vary(config: Config) -> bool:
    """Whether an image's caption differs from one use to the next, apart from being dropped whole."""
    return config.shuffle_caption or config.caption_tag_dropout_rate > 0


def plain_caption(caption: str, config: Config) -> str:
    """The caption with prefix and suffix, nothing shuffled or left out."""
    return " ".join(part for part in (config.caption_prefix, caption, config.caption_suffix) if part)


def caption_of_use(caption: str, config: Config, image: str, epoch: int, repeat: int) -> str:
    """What becomes of a caption in one use of the image with this id, drawn by the use's address."""
    if config.caption_dropout_every_n_epochs and (epoch + 1) % config.caption_dropout_every_n_epochs == 0:
        return ""
    draw = randomness.generator(config.seed, "caption", image, epoch, repeat)
    if draw.random() < config.caption_dropout_rate:
        return ""
    if not captions_vary(config):
        return plain_caption(caption, config)
    separator = config.caption_separator
    parts = [part.strip() for part in caption.split(separator) if part.strip()]
    kept, rest = parts[: config.keep_tokens], parts[config.keep_tokens :]
    if config.shuffle_caption:
        rest = [rest[index] for index in draw.permutation(len(rest))]
    if config.caption_tag_dropout_rate > 0:
        rest = [part for part in rest if draw.random() >= config.caption_tag_dropout_rate]
    joined = f"{separator} ".join(kept + rest)
    return " ".join(part for part in (config.caption_prefix, joined, config.caption_suffix) if part)
