"""Noise, targets, losses and their weights: pure functions of tensors and of the numbers they name."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Normal = NDArray[np.float32]
# At the last timestep of Stable Diffusion's schedule. Where zero_terminal_snr leaves less, down to nothing, losses
# that are divided by the signal's share are divided by this one, as in sd-scripts.
LEAST_SNR = 0.00468


def pyramid_noise(noise: Normal, draw: np.random.Generator, iterations: int, discount: float) -> Normal:
    """Multi-resolution noise, (channels, height, width), of unit deviation.

    Each layer is coarser by a random factor between 2 and 4 and weaker by `discount`.
    Source: https://wandb.ai/johnowhitaker/multires_noise/reports/Multi-Resolution-Noise-for-Diffusion-Model-Training
    """
    channels, height, width = noise.shape
    total = torch.from_numpy(noise.copy())
    for layer in range(iterations):
        factor = (draw.random() * 2 + 2) ** layer
        size = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = torch.from_numpy(draw.standard_normal((1, channels, *size), dtype=np.float32))
        total += F.interpolate(coarse, size=(height, width), mode="bilinear")[0] * discount**layer
        if min(size) == 1:
            break
    return (total / total.std()).numpy()


def signal_to_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio at each timestep, (batch,). Source: Hang et al. 2023, https://arxiv.org/abs/2303.09556."""
    alphas = alphas_cumprod[timesteps]
    return alphas / (1 - alphas)


def huber_threshold(timesteps: Tensor, alphas_cumprod: Tensor, schedule: str, c: float, scale: float) -> Tensor:
    """Where the Huber loss turns linear, (batch,), as the timestep demands.

    Source: Khrapov et al. 2024, https://arxiv.org/abs/2403.16728; the schedules are those of sd-scripts.
    """
    if schedule == "constant":
        return torch.full_like(timesteps, c * scale, dtype=torch.float32)
    if schedule == "exponential":
        return torch.exp(timesteps.float() * (math.log(c) / len(alphas_cumprod))) * scale
    if schedule == "snr":
        alphas = alphas_cumprod[timesteps]
        sigmas = ((1 - alphas) / alphas) ** 0.5
        return ((1 - c) / (1 + sigmas) ** 2 + c) * scale
    raise ValueError(f"unknown huber_schedule {schedule!r}")


def huber_threshold_of_flow(timesteps: Tensor, schedule: str, c: float, scale: float) -> Tensor:
    """The same for t from 0 to 1: constant, or falling exponentially from `scale` to `c` times it."""
    if schedule == "exponential":
        return torch.exp(timesteps.float() * math.log(c)) * scale
    return torch.full_like(timesteps, c * scale, dtype=torch.float32)


def sample_losses(
    prediction: Tensor,
    target: Tensor,
    loss_type: str,
    threshold: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The loss of each sample, (batch,), in fp32: the mean over all other dimensions.

    `threshold`: (batch,), of huber and smooth_l1 only. `mask`: (batch, 1, height, width), from 0 where nothing is
    learnt to 1; the mean is still over the whole picture, so that a small part teaches little, as in sd-scripts.
    """
    difference = prediction.float() - target.float()  # (batch, ...)
    if loss_type == "l2":
        loss = difference**2
    elif loss_type == "l1":
        loss = difference.abs()
    else:
        assert threshold is not None
        c = threshold.view(-1, *[1] * (difference.ndim - 1))
        loss = 2 * (torch.sqrt(difference**2 + c**2) - c)
        if loss_type == "huber":
            loss = loss * c
    if mask is not None:
        loss = loss * mask
    return loss.flatten(1).mean(1)


def loss_weights(
    snr: Tensor,
    *,
    v_prediction: bool,
    min_snr_gamma: float | None = None,
    scale_v_like_noise: bool = False,
    v_like_loss: float | None = None,
    debiased: bool = False,
) -> Tensor:
    """The weight of each sample's loss, (batch,), from its signal-to-noise ratio.

    Sources: min-SNR https://arxiv.org/abs/2303.09556; debiased estimation https://arxiv.org/abs/2310.08442;
    the v-prediction scales are those of sd-scripts.
    """
    weights = torch.ones_like(snr)
    if min_snr_gamma:
        if v_prediction:
            weights = weights * (snr.clamp(max=min_snr_gamma) / (snr + 1))
        else:
            weights = weights * (min_snr_gamma / snr).clamp(max=1)  # min(snr, gamma) / snr; 1 where no signal is left
    bounded = snr.clamp(max=1000)
    v_scale = bounded / (bounded + 1)
    divisor = bounded.clamp(min=LEAST_SNR)
    if scale_v_like_noise and v_prediction:
        weights = weights * v_scale
    if v_like_loss:
        weights = weights * (1 + v_like_loss / (divisor / (divisor + 1)))
    if debiased:
        weights = weights * (1 / (bounded + 1) if v_prediction else divisor.rsqrt())
    return weights
