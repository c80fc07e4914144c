"""Stable Diffusion 3 and 3.5: latents as they are, both CLIPs and T5 in one sequence, CLIP's pooled vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.placement import Components
from trainer.models.text import pooled_prompts
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt
from trainer.recipe.timesteps import TRAIN_STEPS


class StableDiffusion3(FlowFamily):
    """See `base.Family`."""

    def official(self, components: Components, *, controls: bool = False) -> Any:
        return StableDiffusion3Pipeline

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        states, _, pooled, _ = pipeline.encode_prompt(
            caption,
            caption,
            caption,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=config.max_sequence_length or 256,
        )
        return {"states": states[0], "pooled": pooled[0]}

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        predicted: Tensor = denoiser(
            hidden_states=noisy,
            timestep=timesteps * TRAIN_STEPS,
            encoder_hidden_states=given["states"],
            pooled_projections=given["pooled"],
            return_dict=False,
        )[0]
        return predicted

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {**pooled_prompts(text, negative), "guidance_scale": prompt.guidance_scale}

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        config = denoiser.config
        return {"states": (PROBED_TOKENS, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}


FAMILY = StableDiffusion3()
