"""Captions through CLIP text encoders, as sd-scripts does: chunks of 75 tokens, clip_skip, emphasis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.data import prompt_weights
from trainer.models.placement import Components
from trainer.models.text import precision_for
from trainer.options.config import Config
from trainer.options.sections.training import TEXTUAL_INVERSION

CHUNK = 75  # tokens of a caption that CLIP takes at a time
TOKENS = 77  # with those of begin and end


class ClipTokens:
    """Captions as tokens of one tokenizer."""

    def __init__(self, tokenizer: Any, config: Config) -> None:
        self.tokenizer = tokenizer
        self._config = config

    @property
    def length(self) -> int:
        """Tokens that the text encoder takes at a time."""
        return int(self.tokenizer.model_max_length)

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """tokens, (captions, chunks * 77), and with weighted_captions token_weights of the same shape."""
        chunks = self._config.max_token_length // CHUNK
        captions = [self._with_words(caption) for caption in captions]
        if not self._config.weighted_captions:
            return {"tokens": self.plain(captions, chunks)}
        rows = [self._weighted(caption, chunks) for caption in captions]
        return {
            "tokens": torch.stack([tokens for tokens, _ in rows]),
            "token_weights": torch.stack([weights for _, weights in rows]),
        }

    def _with_words(self, caption: str) -> str:
        """A caption with every token of the word that a textual inversion learns."""
        config = self._config
        if config.training_kind != TEXTUAL_INVERSION or config.num_vectors_per_token == 1:
            return caption
        return caption.replace(config.token_string, " ".join(config.token_strings))

    def probe(self) -> Tensor:
        """What passes through all that is trained."""
        trains_word = self._config.training_kind == TEXTUAL_INVERSION
        return self.plain([" ".join(self._config.token_strings) if trains_word else "a probe", ""])

    def plain(self, captions: Sequence[str], chunks: int = 1) -> Tensor:
        tokens: Tensor = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self._inner_length * chunks + 2,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return torch.stack([self._in_chunks(row, chunks) for row in tokens]) if chunks > 1 else tokens

    def _weighted(self, caption: str, chunks: int) -> tuple[Tensor, Tensor]:
        """A caption's tokens and their weights, cut off where there is no room for more."""
        room = self._inner_length * chunks
        tokens: list[int] = []
        weights: list[float] = []
        for text, weight in prompt_weights.parse(caption):
            pieces = self.tokenizer(text, add_special_tokens=False).input_ids
            tokens += pieces
            weights += [weight] * len(pieces)
        tokens, weights = tokens[:room], weights[:room]
        begin, end, pad = (
            self.tokenizer.bos_token_id,
            self.tokenizer.eos_token_id,
            self.tokenizer.pad_token_id,
        )
        padding = room - len(tokens)
        row = torch.tensor([begin, *tokens, end, *[pad] * padding])
        weighed = torch.tensor([1.0, *weights, 1.0, *[1.0] * padding], dtype=torch.float32)
        if chunks == 1:
            return row, weighed
        return self._in_chunks(row, chunks), self._split(weighed, chunks, weighed[-1])

    @property
    def _inner_length(self) -> int:
        """Tokens that the text encoder takes at a time, without those of begin and end."""
        return self.length - 2

    def _split(self, row: Tensor, chunks: int, last: Tensor) -> Tensor:
        """(chunks * inner + 2,) -> (chunks * (inner + 2),): each chunk between the row's first value and `last`."""
        inner = self._inner_length
        parts = [row[1 + start : 1 + start + inner] for start in range(0, inner * chunks, inner)]
        return torch.cat([torch.cat([row[:1], part, last.view(1)]) for part in parts])

    def _in_chunks(self, tokens: Tensor, chunks: int) -> Tensor:
        """A long row of tokens as chunks that begin and end like a caption, as sd-scripts cuts them."""
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        parts = self._split(tokens, chunks, tokens[-1]).view(chunks, -1)
        if pad != end:  # a chunk that is full ends with the end token, and an empty one begins with it
            full = (parts[:, -2] != end) & (parts[:, -2] != pad)
            parts[full, -1] = end
            parts[parts[:, 1] == pad, 1] = end
        return parts.reshape(-1)


class ClipText:
    """One CLIP text encoder; its conditioning is "states", (batch, tokens, width). See `text.Text`."""

    ragged: frozenset[str] = frozenset()
    precision = "float32"

    def __init__(self, components: Components, config: Config) -> None:
        self._components = components
        self._config = config
        self._tokens = ClipTokens(components["tokenizer"], config)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return self._tokens(captions)

    def probe(self) -> dict[str, Any]:
        return {"tokens": self._tokens.probe()}

    def identity(self) -> str:
        return identity(f"{self._components.parts.dtype_of('text_encoder')} clip_skip={self._skip}", self._config)

    @property
    def _skip(self) -> int:
        return self._config.clip_skip or 1

    def encode(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of the layer that clip_skip asks for, normalised."""
        encoder = self._components["text_encoder"]
        output = encoder(
            batch["tokens"].reshape(-1, self._tokens.length).to(encoder.device), output_hidden_states=self._skip > 1
        )
        if self._skip == 1:
            states = output.last_hidden_state
        else:
            inner = getattr(encoder, "text_model", encoder)
            states = inner.final_layer_norm(output.hidden_states[-self._skip])
        return {"states": weighted_and_joined(states, len(batch["tokens"]), batch.get("token_weights"))}


class TwoClipText:
    """CLIP-L and OpenCLIP-G of SDXL: "states", (batch, tokens, both widths), of the layer before the last of each, and
    "pooled", (batch, width of the second), of the caption's first chunk. See `text.Text`."""

    ragged: frozenset[str] = frozenset()
    encoders = ("text_encoder", "text_encoder_2")

    def __init__(self, components: Components, config: Config, dtype: torch.dtype) -> None:
        """`dtype`: of the training."""
        self._components = components
        self._config = config
        self.precision = precision_for(dtype)
        self._tokens = [ClipTokens(components[name], config) for name in ("tokenizer", "tokenizer_2")]

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        first, second = (tokens(captions) for tokens in self._tokens)
        return first | {f"{name}_2": tensor for name, tensor in second.items()}

    def probe(self) -> dict[str, Any]:
        first, second = (tokens.probe() for tokens in self._tokens)
        return {"tokens": first, "tokens_2": second}

    def identity(self) -> str:
        return identity(f"{self._components.parts.dtype_of('text_encoder')}", self._config)

    def encode(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        both = []
        for name, ending, tokens in zip(self.encoders, ("", "_2"), self._tokens, strict=True):
            encoder, ids = self._components[name], batch[f"tokens{ending}"]
            output = encoder(ids.reshape(-1, tokens.length).to(encoder.device), output_hidden_states=True)
            weights = batch.get(f"token_weights{ending}")
            both.append(weighted_and_joined(output.hidden_states[-2], len(ids), weights))
            chunks = ids.shape[1] // tokens.length
        return {"states": torch.cat(both, dim=-1), "pooled": output.text_embeds[::chunks]}


def identity(encoders: str, config: Config) -> str:
    """What decides an encoding: `encoders`, and how captions are cut and weighed."""
    settings = encoders
    if config.max_token_length > CHUNK:
        settings += f" tokens={config.max_token_length}"
    return f"{settings} weighted" if config.weighted_captions else settings


def weighted_and_joined(states: Tensor, batch: int, weights: Tensor | None) -> Tensor:
    """(batch * chunks, length, width) -> (batch, tokens, width), each token times its weight.

    Of several chunks, the first begin, all that is between, and the last end are kept.
    """
    length = states.shape[1]
    if weights is not None:
        states = states * weights.reshape(-1, length, 1).to(states.device, states.dtype)
    if len(states) == batch:
        return states
    states = states.view(batch, -1, *states.shape[1:])
    middle = states[:, :, 1:-1].flatten(1, 2)
    return torch.cat([states[:, 0, :1], middle, states[:, -1, -1:]], dim=1)
