"""Pictures to latents and back, and the layouts in which denoisers take them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.models.base_model import BaseModelMissing
from trainer.models.placement import Components


class Codec(Protocol):
    """Turns pictures into latents, in the layout in which they are trained and cached, and back."""

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (batch, 3, height, width) from -1 to 1 -> mean and deviation, (batch, channels, height / factor,
        width / factor), in fp32 on the VAE's device."""
        ...

    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        """What the official pipeline returns as latents -> pixels (batch, 3, height, width)."""
        ...


class Latents:
    """An AutoencoderKL's latents, scaled as its config says.

    The VAE computes in its own precision: the training's autocast would run it in half precision in spite of
    no_half_vae, and would give other latents than the cache has.
    """

    def __init__(self, components: Components) -> None:
        self._components = components

    @property
    def _vae(self) -> Any:
        vae = self._components["vae"]
        facts = self._components.parts.facts
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if (vae.config.latent_channels, factor) != (facts.channels, facts.factor):
            raise BaseModelMissing(
                f"vae: its latents have {vae.config.latent_channels} channels of {factor} pixels a side, those of "
                f"{facts.title} {facts.channels} of {facts.factor}"
            )
        return vae

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae = self._vae
        with torch.autocast(vae.device.type, enabled=False):
            distribution = vae.encode(self._input(pixels.to(vae.device, vae.dtype))).latent_dist
        return self._normalised(distribution.mean.float(), distribution.std.float())

    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        vae = self._vae
        latents = self._restored(latents)
        with torch.autocast(vae.device.type, enabled=False):
            pixels: Tensor = vae.decode(latents.to(vae.dtype)).sample
        return pixels

    def _input(self, pixels: Tensor) -> Tensor:
        return pixels

    def _normalised(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation as they are trained."""
        scale, shift = self._scale_and_shift(mean)
        return (mean - shift) * scale, std * scale

    def _restored(self, latents: Tensor) -> Tensor:
        scale, shift = self._scale_and_shift(latents)
        return latents / scale + shift

    def _scale_and_shift(self, like: Tensor) -> tuple[Any, Any]:
        """Numbers, or tensors a channel where the config has statistics of each (some SDXL files)."""
        config = self._vae.config
        means, stds = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if means is not None and stds is not None:
            shape = (1, -1, *[1] * (like.ndim - 2))
            mean, std = (torch.tensor(values).view(shape).to(like.device, like.dtype) for values in (means, stds))
            return config.scaling_factor / std, mean
        return config.scaling_factor, getattr(config, "shift_factor", None) or 0.0


# --- layouts -------------------------------------------------------------------------------------------------------


def fold(latents: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch, 4 * channels, height / 2, width / 2): squares into channels."""
    batch, channels, height, width = latents.shape
    squares = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels * 4, height // 2, width // 2)


def unfold(folded: Tensor) -> Tensor:
    """The inverse of `fold`."""
    batch, channels, height, width = folded.shape
    squares = folded.view(batch, channels // 4, 2, 2, height, width)
    return squares.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, height * 2, width * 2)


def tokens(latents: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch, height * width, channels), row by row."""
    return latents.flatten(2).transpose(1, 2)


def picture(sequence: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `tokens`, for so many rows and columns; what follows them in the sequence is left out."""
    taken = sequence[:, : height * width]
    return taken.transpose(1, 2).unflatten(2, (height, width))
