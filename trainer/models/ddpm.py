"""The noise schedule of models that were trained as DDPM, and what they predict."""

from __future__ import annotations

import logging
from typing import Any

from diffusers import DDPMScheduler

from trainer.models import file_header
from trainer.models.base_model import BaseModelMissing
from trainer.models.placement import Components
from trainer.options.config import Config
from trainer.recipe.objectives import Diffusion

logger = logging.getLogger(__name__)
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"  # empty tensors with which single files say so


def objective(components: Components, config: Config) -> Diffusion:
    """What the scheduler, the file's own marks and the options say. Raises BaseModelMissing where it is neither noise
    nor v."""
    path = components.parts.path
    marks = file_header.shapes(path) if path.is_file() else {}
    changes: dict[str, Any] = {}
    if config.v_parameterization or V_PREDICTION in marks:
        changes["prediction_type"] = "v_prediction"
    if config.zero_terminal_snr or ZERO_SNR in marks:
        changes["rescale_betas_zero_snr"] = True
    noise_scheduler = DDPMScheduler.from_config(components["scheduler"].config, **changes)
    predicts = noise_scheduler.config.prediction_type
    if predicts not in ("epsilon", "v_prediction"):
        raise BaseModelMissing(
            f"pretrained_model_name_or_path: {path} predicts {predicts}, which {config.facts.title} does not"
        )
    if config.scale_v_pred_loss_like_noise_pred and predicts == "epsilon":
        logger.warning("scale_v_pred_loss_like_noise_pred has no effect: this model predicts noise, not v")
    return Diffusion(config, noise_scheduler)
