"""The options of the section Loss. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.options.declaration import option


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Loss and noise"""

    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = option(
        "l2", "Loss function.", on_resume="trajectory", in_header=True
    )
    huber_schedule: Literal["constant", "exponential", "snr"] = option(
        "snr",
        "How huber_c follows the timestep.",
        on_resume="trajectory",
        advanced=True,
        in_header=True,
    )
    huber_c: float = option(
        0.1,
        "Where huber and smooth_l1 turn from quadratic to linear.",
        low=1e-6,
        on_resume="trajectory",
        advanced=True,
        in_header=True,
    )
    huber_scale: float = option(
        1.0, "Factor on huber_c.", low=1e-6, on_resume="trajectory", advanced=True, in_header=True
    )
    min_snr_gamma: float | None = option(
        None,
        "Min-SNR weighting of the loss; 5 is usual. Empty or 0: off.",
        low=0,
        on_resume="trajectory",
        in_header=True,
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False, "Weight the v-prediction loss like noise prediction.", on_resume="trajectory", advanced=True
    )
    v_pred_like_loss: float | None = option(
        None, "Add a v-prediction-like loss with this weight.", low=0, on_resume="trajectory", advanced=True
    )
    debiased_estimation_loss: bool = option(False, "Debiased estimation loss.", on_resume="trajectory", advanced=True)
    noise_offset: float | None = option(
        None,
        "Strength of a random offset of the noise in each channel, for darker and lighter images. Empty: off.",
        low=0,
        high=1,
        on_resume="trajectory",
        in_header=True,
    )
    noise_offset_random_strength: bool = option(
        False,
        "Draw the offset's strength at random between 0 and noise_offset.",
        on_resume="trajectory",
        advanced=True,
        shapes="noise_offset",
        in_header=True,
    )
    adaptive_noise_scale: float | None = option(
        None,
        "Add the latents' absolute mean, times this, to noise_offset.",
        on_resume="trajectory",
        advanced=True,
        shapes="noise_offset",
        in_header=True,
    )
    multires_noise_iterations: int = option(
        0,
        "Layers of multi-resolution noise. 0: off.",
        low=0,
        high=64,
        on_resume="trajectory",
        advanced=True,
        in_header=True,
    )
    multires_noise_discount: float = option(
        0.3,
        "How fast those layers fade.",
        low=0,
        high=1,
        on_resume="trajectory",
        advanced=True,
        shapes="multires_noise_iterations",
        in_header=True,
    )
    ip_noise_gamma: float | None = option(
        None,
        "Input perturbation noise; 0.1 is usual. Empty: off.",
        low=0,
        on_resume="trajectory",
        advanced=True,
        in_header=True,
    )
    ip_noise_gamma_random_strength: bool = option(
        False,
        "Draw the perturbation's strength at random between 0 and ip_noise_gamma.",
        on_resume="trajectory",
        advanced=True,
        shapes="ip_noise_gamma",
        in_header=True,
    )
    zero_terminal_snr: bool = option(
        False,
        "Rescale the noise schedule so that its last timestep is pure noise; for v-prediction.",
        on_resume="trajectory",
        in_header=True,
    )
    min_timestep: int = option(0, "Lowest timestep to train.", low=0, high=999, on_resume="trajectory", advanced=True)
    max_timestep: int = option(
        1000, "Train only timesteps below this one.", low=1, high=1000, on_resume="trajectory", advanced=True
    )
