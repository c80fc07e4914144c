"""Stable Diffusion XL: a U-Net that is told the picture's geometry, two CLIP text encoders; noise or v-prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from trainer.models import ddpm
from trainer.models.clip_text import TOKENS, TwoClipText
from trainer.models.families.facts import Facts
from trainer.models.latents import Latents
from trainer.models.placement import Components
from trainer.models.text import pooled_prompts
from trainer.options.config import Config
from trainer.recipe.objectives import Diffusion
from trainer.recipe.prompts import Prompt

SIZES = 6  # numbers of the geometry, each embedded


class StableDiffusionXL:
    """See `base.Family`."""

    def objective(self, components: Components, config: Config) -> Diffusion:
        return ddpm.objective(components, config)

    def latents(self, components: Components) -> Latents:
        return Latents(components)

    def text(self, components: Components, config: Config, dtype: torch.dtype) -> TwoClipText:
        return TwoClipText(components, config, dtype)

    def predict(self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        prediction: Tensor = denoiser(
            noisy,
            timesteps,
            given["states"],
            added_cond_kwargs={"text_embeds": given["pooled"], "time_ids": given["geometry"].to(noisy.dtype)},
            return_dict=False,
        )[0]
        return prediction

    def pipeline(self, components: Components, scheduler: Any, *, controls: bool = False) -> StableDiffusionXLPipeline:
        return StableDiffusionXLPipeline(
            vae=components["vae"],
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=components["unet"],
            scheduler=scheduler,
            add_watermarker=False,
        )

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {**pooled_prompts(text, negative), "guidance_scale": prompt.guidance_scale}

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        config = denoiser.config
        pooled = config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim
        return {"states": (TOKENS, config.cross_attention_dim), "pooled": (pooled,)}

    def described(self, facts: Facts, denoiser: Any, prediction_type: str) -> tuple[str, str]:
        return facts.version, facts.architecture


FAMILY = StableDiffusionXL()
