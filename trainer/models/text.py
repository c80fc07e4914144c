"""Captions as named tensors: encoded, cached without padding, and put together again to a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainer.data.captions import Shown
from trainer.models.placement import Components

Rows = list[dict[str, Tensor]]
Arrays = dict[str, NDArray[Any]]
Tokenize = Callable[[Sequence[str]], dict[str, Tensor]]
MASK = "_mask"  # behind the name of a ragged tensor


class Text(Protocol):
    """How captions become what the denoiser is given besides the latents."""

    ragged: frozenset[str]  # tensors with as many rows as the caption has tokens
    precision: str  # of cached tensors: "float32" or "bfloat16"

    @property
    def tokenize(self) -> Tokenize | None:
        """Captions -> what `encode` reads, by name, each with the captions first; used in the loader's threads. None
        where `encode` reads the captions themselves."""
        ...

    def encode(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The conditioning, by name, from what `tokenize` gave or from "captions" and the pictures "shown" with them;
        ragged tensors padded, with a mask. Gradients pass where the encoder is trained."""
        ...

    def identity(self) -> str:
        """What decides `encode` besides the caption, the base model's content apart."""
        ...

    def probe(self) -> dict[str, Any]:
        """What `encode` reads of two short captions, whatever the options are."""
        ...


class TextSource(Protocol):
    """Where encoded captions are found."""

    def __call__(self, caption: str, shown: Shown | None = None) -> Arrays:
        """The arrays of a caption, and of the picture that the text encoder was shown with it."""
        ...


class PipelineText:
    """Captions encoded by the official pipeline's own encode_prompt; its encoders are never trained."""

    tokenize: Tokenize | None = None

    def __init__(
        self,
        components: Components,
        encode: Callable[[Sequence[str], Sequence[Image.Image | None]], Rows],
        *,
        identity: str,
        dtype: torch.dtype,
        ragged: frozenset[str] = frozenset(),
    ) -> None:
        """`encode`: a row of named tensors for each caption, ragged ones without padding; `dtype`: of the training."""
        self._components = components
        self._encode = encode
        self._identity = identity
        self.ragged = ragged
        self.precision = precision_for(dtype)

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        captions = batch["captions"]
        return joined(self._encode(captions, batch.get("shown") or [None] * len(captions)), self.ragged)

    def identity(self) -> str:
        return self._identity

    def probe(self) -> dict[str, Any]:
        return {"captions": ("a probe", "")}


def precision_for(dtype: torch.dtype) -> str:
    """In which precision text is cached: half of what it takes in fp32, unless the training is in fp32 itself. bfloat16
    also for fp16, in which some encoders overflow."""
    return "float32" if dtype == torch.float32 else "bfloat16"


def joined(rows: Sequence[Mapping[str, Tensor]], ragged: frozenset[str]) -> dict[str, Tensor]:
    """Rows as one batch: ragged tensors with zeros behind, and a mask that is true where a row has tokens."""
    batch = {}
    for name in rows[0]:
        tensors = [row[name] for row in rows]
        if name in ragged:
            batch[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
            lengths = torch.tensor([len(tensor) for tensor in tensors], device=tensors[0].device)
            batch[name + MASK] = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        else:
            batch[name] = torch.stack(tensors)
    return batch


def without_padding(given: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The rows of a ragged tensor; whole where the batch has no mask for it."""
    if name + MASK not in given:
        return list(given[name])
    return [row[mask] for row, mask in zip(given[name], given[name + MASK], strict=True)]


def equally_long(one: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str) -> list[dict[str, Tensor]]:
    """Two batches of a ragged tensor and its mask, the shorter one with zeros behind, which its mask hides."""
    longest = max(one[name].shape[1], other[name].shape[1])
    result = []
    for given in (one, other):
        missing = longest - given[name].shape[1]
        rest = (0, 0) * (given[name].ndim - 2)
        padded = torch.nn.functional.pad(given[name], (*rest, 0, missing))
        result.append({name: padded, name + MASK: torch.nn.functional.pad(given[name + MASK], (0, missing))})
    return result


def pooled_prompts(text: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A prompt and its negative as pipelines take them that are given pooled vectors as well."""
    return {
        "prompt_embeds": text["states"],
        "pooled_prompt_embeds": text["pooled"],
        "negative_prompt_embeds": negative["states"],
        "negative_pooled_prompt_embeds": negative["pooled"],
    }


def rows(batch: Mapping[str, Tensor], ragged: frozenset[str], precision: str) -> list[Arrays]:
    """A batch of `Text.encode` as arrays to be cached, one set a caption, on the host."""
    names = [name for name in batch if name.removesuffix(MASK) not in ragged or not name.endswith(MASK)]
    tensors = {name: batch[name].detach().cpu() for name in names}
    result = []
    for row in range(len(next(iter(tensors.values())))):
        arrays = {}
        for name, tensor in tensors.items():
            kept = tensor[row]
            if name in ragged:
                kept = kept[batch[name + MASK][row].cpu()]
            arrays[name] = to_array(kept, precision)
        result.append(arrays)
    return result


def to_array(tensor: Tensor, precision: str) -> NDArray[Any]:
    """A tensor as it is cached: numbers in fp32, or the bits of bfloat16 as uint16; masks and ids as they are."""
    if not tensor.is_floating_point():
        return tensor.numpy()
    if precision == "bfloat16":
        return tensor.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
    return tensor.float().numpy()


def to_tensor(array: NDArray[Any]) -> Tensor:
    """The inverse of `to_array`; a copy."""
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
