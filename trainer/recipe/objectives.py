"""What a model is trained to predict, from what, and how its error counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from diffusers import DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor

from trainer.options.config import Config
from trainer.recipe import losses


class Objective(Protocol):
    """A way to train a denoiser. Latents and noise are (batch, ...) in one layout, timesteps (batch,)."""

    prediction_type: str  # as diffusers' schedulers name it
    probed: tuple[int | float, int | float]  # timesteps of the probe, which need no care

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser sees of the latents."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What it should predict."""
        ...

    def losses(self, prediction: Tensor, target: Tensor, timesteps: Tensor, mask: Tensor | None) -> Tensor:
        """Each sample's weighted loss, (batch,), in fp32. `mask`: see `losses.sample_losses`."""
        ...

    def sampling(self) -> dict[str, Any]:
        """The settings of a scheduler that samples what is trained."""
        ...


class Diffusion:
    """Noise or v of a DDPM schedule, by the scheduler's prediction_type."""

    probed = (250, 750)

    def __init__(self, config: Config, noise_scheduler: DDPMScheduler) -> None:
        self._config = config
        self.noise_scheduler = noise_scheduler
        self.prediction_type: str = noise_scheduler.config.prediction_type

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        noisy: Tensor = self.noise_scheduler.add_noise(latents, noise, timesteps)
        return noisy

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type != "v_prediction":
            return noise
        velocity: Tensor = self.noise_scheduler.get_velocity(latents, noise, timesteps)
        return velocity

    def losses(self, prediction: Tensor, target: Tensor, timesteps: Tensor, mask: Tensor | None) -> Tensor:
        config = self._config
        alphas_cumprod = self.noise_scheduler.alphas_cumprod.to(timesteps.device)
        threshold = None
        if config.loss_type in ("huber", "smooth_l1"):
            threshold = losses.huber_threshold(
                timesteps, alphas_cumprod, config.huber_schedule, config.huber_c, config.huber_scale
            )
        loss = losses.sample_losses(prediction, target, config.loss_type, threshold, mask)
        if not (
            config.min_snr_gamma
            or config.scale_v_pred_loss_like_noise_pred
            or config.v_pred_like_loss
            or config.debiased_estimation_loss
        ):
            return loss
        return loss * losses.loss_weights(
            losses.signal_to_noise(alphas_cumprod, timesteps),
            v_prediction=self.prediction_type == "v_prediction",
            min_snr_gamma=config.min_snr_gamma,
            scale_v_like_noise=config.scale_v_pred_loss_like_noise_pred,
            v_like_loss=config.v_pred_like_loss,
            debiased=config.debiased_estimation_loss,
        )

    def sampling(self) -> dict[str, Any]:
        # A schedule that ends in pure noise has to be sampled from its very end.
        spacing = "trailing" if self._config.zero_terminal_snr else "leading"
        common = {"timestep_spacing": spacing, "steps_offset": 1, "clip_sample": False}
        return {**self.noise_scheduler.config, **common}


class RectifiedFlow:
    """The velocity from picture to noise along a straight line. Source: https://arxiv.org/abs/2209.03003."""

    prediction_type = "flow"
    probed = (0.25, 0.75)

    def __init__(self, config: Config, scheduler: Mapping[str, Any]) -> None:
        """`scheduler`: the settings of the model's own, for sampling."""
        self._config = config
        self._scheduler = scheduler

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        t = timesteps.view(-1, *[1] * (latents.ndim - 1))
        return (1 - t) * latents + t * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents

    def losses(self, prediction: Tensor, target: Tensor, timesteps: Tensor, mask: Tensor | None) -> Tensor:
        config = self._config
        threshold = None
        if config.loss_type in ("huber", "smooth_l1"):
            threshold = losses.huber_threshold_of_flow(
                timesteps, config.huber_schedule, config.huber_c, config.huber_scale
            )
        loss = losses.sample_losses(prediction, target, config.loss_type, threshold, mask)
        if config.weighting_scheme not in ("sigma_sqrt", "cosmap"):
            return loss
        weights: Tensor = compute_loss_weighting_for_sd3(config.weighting_scheme, timesteps.float())
        return loss * weights

    def sampling(self) -> dict[str, Any]:
        return dict(self._scheduler)
