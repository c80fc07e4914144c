"""Stable Diffusion 1.x and 2.x: U-Net, one CLIP text encoder, VAE; noise or v-prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from trainer.models import ddpm
from trainer.models.clip_text import TOKENS, ClipText
from trainer.models.families.facts import Facts
from trainer.models.latents import Latents
from trainer.models.placement import Components
from trainer.options.config import Config
from trainer.recipe.objectives import Diffusion
from trainer.recipe.prompts import Prompt

V2_WIDTH = 1024  # of the text encoder's output; 768 in 1.x


class StableDiffusion:
    """See `base.Family`."""

    def objective(self, components: Components, config: Config) -> Diffusion:
        return ddpm.objective(components, config)

    def latents(self, components: Components) -> Latents:
        return Latents(components)

    def text(self, components: Components, config: Config, dtype: torch.dtype) -> ClipText:
        return ClipText(components, config)

    def predict(self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        prediction: Tensor = denoiser(noisy, timesteps, given["states"], return_dict=False)[0]
        return prediction

    def pipeline(self, components: Components, scheduler: Any, *, controls: bool = False) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=components["vae"],
            text_encoder=None,
            tokenizer=None,
            unet=components["unet"],
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": text["states"],
            "negative_prompt_embeds": negative["states"],
            "guidance_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        return {"states": (TOKENS, denoiser.config.cross_attention_dim)}

    def described(self, facts: Facts, denoiser: Any, prediction_type: str) -> tuple[str, str]:
        if denoiser.config.cross_attention_dim != V2_WIDTH:
            return facts.version, facts.architecture
        v = prediction_type == "v_prediction"
        return "sd_v2_v" if v else "sd_v2", "stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512"


FAMILY = StableDiffusion()
