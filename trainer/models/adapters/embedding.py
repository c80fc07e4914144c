"""Textual inversion: a new word of the text encoders (https://arxiv.org/abs/2208.01618).

Its rows lie in fp32 beside the frozen embedding, so that nothing else of it can change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import randomness
from trainer.models.adapters import EMBEDDING_FILE, OF_ONE_ENCODER
from trainer.models.adapters.base import NetworkFileError, Target, read_file
from trainer.models.keys import Naming
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem

ROWS = "embedding"


class WithRows(nn.Module):
    """An embedding whose tokens from `first` on are trained rows."""

    def __init__(self, frozen: nn.Embedding, rows: Tensor, first: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.rows = nn.Parameter(rows)
        self.first = first

    @property
    def weight(self) -> Tensor:
        """What transformers asks for the type and the device of."""
        return self.frozen.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., tokens) -> (..., tokens, width)."""
        place = tokens - self.first
        is_ours = (place >= 0) & (place < len(self.rows))
        embedded: Tensor = self.frozen(tokens.masked_fill(is_ours, 0))
        ours = self.rows[place.masked_fill(~is_ours, 0)].to(embedded.dtype)
        return torch.where(is_ours[..., None], ours, embedded)


class Embedding:
    """See `base.Adapter`."""

    def add(self, target: Target, config: Config) -> None:
        target.module.requires_grad_(False)
        encoder: Any = target.module
        frozen = encoder.get_input_embeddings()
        names = config.token_strings
        begins_as = target.tokenizer(config.init_word, add_special_tokens=False).input_ids if config.init_word else []
        if target.tokenizer.add_tokens(list(names)) != len(names):
            message = f"{config.token_string!r} is a word that the tokenizer has already; choose another"
            raise ConfigError([Problem("token_string", message)])
        weight = frozen.weight.detach().float()
        if begins_as:
            rows = weight[[begins_as[place % len(begins_as)] for place in range(len(names))]].clone()
        else:
            draw = randomness.generator(config.seed, "init", target.name, ROWS)
            values = draw.standard_normal((len(names), weight.shape[1]), dtype="float32")
            rows = weight.mean(0) + weight.std(0) * torch.from_numpy(values).to(weight.device)
        encoder.set_input_embeddings(WithRows(frozen, rows, target.tokenizer.convert_tokens_to_ids(names[0])))

    def parameters(self, target: Target) -> Mapping[str, nn.Parameter]:
        return {f"{target.name}.{ROWS}": rows_of(target).rows}

    def from_file(self, targets: Sequence[Target], naming: Naming, path: Path) -> None:
        tensors = read_file(path, "weights")
        names = OF_ONE_ENCODER if len(targets) == 1 else tuple(EMBEDDING_FILE[target.name] for target in targets)
        if len(targets) == 1 and len(tensors) == 1:
            tensors = dict(zip(names, tensors.values(), strict=True))  # diffusers calls it by the word
        copies = []
        for target, name in zip(targets, names, strict=True):
            rows = rows_of(target).rows
            if name not in tensors:
                raise NetworkFileError(f"weights: {path} has no {name}: it is of another kind or of another model")
            loaded = tensors[name].reshape(-1, tensors[name].shape[-1])
            if loaded.shape != rows.shape:
                raise NetworkFileError(
                    f"weights: {path} has {len(loaded)} vectors of {loaded.shape[1]} numbers in {name}, not "
                    f"{len(rows)} of {rows.shape[1]}: set num_vectors_per_token, or take one of this model"
                )
            copies.append((rows, loaded))
        with torch.no_grad():
            for rows, loaded in copies:
                rows.copy_(loaded)

    def limit_norms(self, target: Target, most: float) -> None:
        raise NotImplementedError("an embedding has no change of the weights")


def rows_of(target: Target) -> WithRows:
    """Where a text encoder has the trained rows."""
    encoder: Any = target.module
    embeddings = encoder.get_input_embeddings()
    assert isinstance(embeddings, WithRows)
    return embeddings


def adapter(config: Config) -> Embedding:
    """The adapter of a config."""
    return Embedding()
