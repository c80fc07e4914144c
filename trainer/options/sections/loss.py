"""The options of the section Loss. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.models.families.facts import DDPM, FLOW, GUIDANCE
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
        traits=(DDPM,),
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False,
        "Weight the v-prediction loss like noise prediction.",
        on_resume="trajectory",
        advanced=True,
        traits=(DDPM,),
    )
    v_pred_like_loss: float | None = option(
        None,
        "Add a v-prediction-like loss with this weight.",
        low=0,
        on_resume="trajectory",
        advanced=True,
        traits=(DDPM,),
    )
    debiased_estimation_loss: bool = option(
        False,
        "Debiased estimation loss.",
        on_resume="trajectory",
        advanced=True,
        traits=(DDPM,),
    )
    noise_offset: float | None = option(
        None,
        "Strength of a random offset of the noise in each channel, for darker and lighter images. Empty: off.",
        low=0,
        high=1,
        on_resume="trajectory",
        in_header=True,
        traits=(DDPM,),
    )
    noise_offset_random_strength: bool = option(
        False,
        "Draw the offset's strength at random between 0 and noise_offset.",
        on_resume="trajectory",
        advanced=True,
        shapes="noise_offset",
        in_header=True,
        traits=(DDPM,),
    )
    adaptive_noise_scale: float | None = option(
        None,
        "Add the latents' absolute mean, times this, to noise_offset.",
        on_resume="trajectory",
        advanced=True,
        shapes="noise_offset",
        in_header=True,
        traits=(DDPM,),
    )
    multires_noise_iterations: int = option(
        0,
        "Layers of multi-resolution noise. 0: off.",
        low=0,
        high=64,
        on_resume="trajectory",
        advanced=True,
        in_header=True,
        traits=(DDPM,),
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
        traits=(DDPM,),
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
        traits=(DDPM,),
    )
    min_timestep: int = option(0, "Lowest timestep to train.", low=0, high=999, on_resume="trajectory", advanced=True)
    max_timestep: int = option(
        1000, "Train only timesteps below this one.", low=1, high=1000, on_resume="trajectory", advanced=True
    )
    timestep_sampling: Literal[
        "auto", "uniform", "sigmoid", "shift", "flux_shift", "flux2_shift", "qwen_shift", "krea2_shift", "sigma"
    ] = option(
        "auto",
        "How often each timestep is trained: evenly, more in the middle (sigmoid), that shifted towards noise (shift "
        "by discrete_flow_shift, the others by the picture's size as the model of that name does), or as "
        "weighting_scheme says (sigma). auto: as usual for the model.",
        on_resume="trajectory",
        traits=(FLOW,),
    )
    sigmoid_scale: float = option(
        1.0,
        "How wide the sigmoid of timestep_sampling is spread; 0.5 stays nearer to the middle.",
        low=1e-3,
        on_resume="trajectory",
        advanced=True,
        traits=(FLOW,),
    )
    discrete_flow_shift: float | None = option(
        None,
        "How far timestep_sampling is shifted towards noise; 1 is not at all. Empty: as usual for the model.",
        low=1e-3,
        high=100,
        on_resume="trajectory",
        traits=(FLOW,),
    )
    weighting_scheme: Literal["none", "sigma_sqrt", "cosmap", "logit_normal", "mode"] = option(
        "none",
        "Weight of each timestep in the loss (sigma_sqrt, cosmap), or how often timestep_sampling = sigma trains each "
        "(logit_normal, mode).",
        on_resume="trajectory",
        advanced=True,
        traits=(FLOW,),
    )
    logit_mean: float = option(
        0.0, "Mean of weighting_scheme = logit_normal.", on_resume="trajectory", advanced=True, traits=(FLOW,)
    )
    logit_std: float = option(
        1.0,
        "Deviation of weighting_scheme = logit_normal.",
        low=1e-3,
        on_resume="trajectory",
        advanced=True,
        traits=(FLOW,),
    )
    mode_scale: float = option(
        1.29, "Scale of weighting_scheme = mode.", on_resume="trajectory", advanced=True, traits=(FLOW,)
    )
    guidance_scale: float | None = option(
        None,
        "Guidance value given to the model in training; 1 for guidance-distilled models. Not the guidance of the "
        "sample images. Empty: as usual for the model.",
        low=0,
        high=100,
        on_resume="trajectory",
        advanced=True,
        traits=(GUIDANCE,),
    )
