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
        channels, factor = self._layout(vae)
        if (channels, factor) != (facts.channels, facts.factor):
            raise BaseModelMissing(
                f"vae: its latents have {channels} channels of {factor} pixels a side, those of {facts.title} "
                f"{facts.channels} of {facts.factor}"
            )
        return vae

    def _layout(self, vae: Any) -> tuple[int, int]:
        """How many channels its latents have as they are trained, and how many pixels a side each is."""
        return vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae = self._vae
        with torch.autocast(vae.device.type, enabled=False):
            distribution = vae.encode(self._input(pixels.to(vae.device, vae.dtype))).latent_dist
        return self._normalised(distribution.mean.float(), distribution.std.float())

    def decode(self, latents: Tensor, height: int, width: int) -> Tensor:
        vae = self._vae
        if latents.ndim == 3:
            latents = self._picture(latents, height, width)
        latents = self._restored(latents)
        with torch.autocast(vae.device.type, enabled=False):
            pixels: Tensor = vae.decode(latents.to(vae.device, vae.dtype)).sample
        return self._output(pixels)

    def _input(self, pixels: Tensor) -> Tensor:
        """What the VAE takes of pictures."""
        return pixels

    def _output(self, pixels: Tensor) -> Tensor:
        """Pictures, of what the VAE gives."""
        return pixels

    def _picture(self, sequence: Tensor, height: int, width: int) -> Tensor:
        """Latents in their layout, of tokens that are squares of two by two."""
        side = 2 * self._components.parts.facts.factor
        return unfold(picture(sequence, height // side, width // side))

    def _normalised(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation as they are trained."""
        scale, shift = self._scale_and_shift(mean)
        return (mean - shift) * scale, std * scale

    def _restored(self, latents: Tensor) -> Tensor:
        """What the VAE decodes."""
        scale, shift = self._scale_and_shift(latents)
        return latents / scale + shift

    def _scale_and_shift(self, like: Tensor) -> tuple[Any, Any]:
        """Numbers, or tensors a channel where the config has statistics of each (some SDXL files)."""
        config = self._vae.config
        factor = getattr(config, "scaling_factor", None) or 1.0
        means, stds = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if means is not None and stds is not None:
            shape = (1, -1, *[1] * (like.ndim - 2))
            mean, std = (torch.tensor(values).view(shape).to(like.device, like.dtype) for values in (means, stds))
            return factor / std, mean
        return factor, getattr(config, "shift_factor", None) or 0.0


class VideoLatents(Latents):
    """The latents of one frame of a video's VAE (Qwen-Image's), each channel scaled by its statistics."""

    def _layout(self, vae: Any) -> tuple[int, int]:
        return vae.config.z_dim, 2 ** len(vae.config.temperal_downsample)

    def _input(self, pixels: Tensor) -> Tensor:
        return pixels.unsqueeze(2)

    def _output(self, pixels: Tensor) -> Tensor:
        return pixels.squeeze(2)

    def _normalised(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        return super()._normalised(mean.squeeze(2), std.squeeze(2))

    def _restored(self, latents: Tensor) -> Tensor:
        return super()._restored(latents if latents.ndim == 5 else latents.unsqueeze(2))


class BatchNormLatents(Latents):
    """FLUX.2's latents: squares of two by two as channels, each channel scaled by the VAE's running statistics."""

    def __init__(self, components: Components, epsilon: float | None = None) -> None:
        """`epsilon`: added to the variance instead of what the VAE's config says."""
        super().__init__(components)
        self._epsilon = epsilon

    def _layout(self, vae: Any) -> tuple[int, int]:
        channels, side = super()._layout(vae)
        return 4 * channels, 2 * side

    def _picture(self, sequence: Tensor, height: int, width: int) -> Tensor:
        side = self._components.parts.facts.factor
        return picture(sequence, height // side, width // side)

    def _normalised(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        return super()._normalised(fold(mean), fold(std))

    def _restored(self, latents: Tensor) -> Tensor:
        if latents.shape[1] != self._components.parts.facts.channels:
            return latents  # some of its pipelines have restored them already
        return unfold(super()._restored(latents))

    def _scale_and_shift(self, like: Tensor) -> tuple[Tensor, Tensor]:
        vae = self._vae
        mean, variance = (
            values.float().view(1, -1, 1, 1).to(like.device) for values in (vae.bn.running_mean, vae.bn.running_var)
        )
        epsilon = vae.config.batch_norm_eps if self._epsilon is None else self._epsilon
        return (variance + epsilon).rsqrt(), mean


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


def positions(latents: Tensor, frame: int = 0) -> Tensor:
    """Frame, row and column of each token of (batch, channels, height, width): (height * width, 3)."""
    sizes = (1, *latents.shape[2:])
    places = (torch.arange(size, device=latents.device, dtype=torch.float32) for size in sizes)
    return torch.cartesian_prod(*places) + torch.tensor([float(frame), 0.0, 0.0], device=latents.device)


def with_control(latents: Tensor, control: Tensor | None, frame: int) -> tuple[Tensor, Tensor]:
    """Tokens of (batch, channels, height, width), and the position of each as `positions` has it; behind them those of
    a control picture, in a frame of its own."""
    if control is None:
        return tokens(latents), positions(latents)
    places = torch.cat([positions(latents), positions(control, frame)])
    return torch.cat([tokens(latents), tokens(control)], dim=1), places
