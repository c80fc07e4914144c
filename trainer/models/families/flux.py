"""FLUX.1: tokens with positions, CLIP's pooled vector and T5; dev is told its guidance, schnell is not; Kontext is
given a control picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from torch import Tensor

from trainer.models.families.facts import Facts
from trainer.models.flow import PROBED_TOKENS, FlowFamily, folded_prediction
from trainer.models.placement import Components
from trainer.models.text import pooled_prompts
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt


class Flux(FlowFamily):
    """See `base.Family`."""

    def official(self, components: Components, *, controls: bool = False) -> Any:
        return FluxKontextPipeline if controls else FluxPipeline

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        limit = config.max_sequence_length or 512
        if not config.apply_t5_attn_mask:
            states, pooled, _ = pipeline.encode_prompt(caption, device=device, max_sequence_length=limit)
            return {"states": states[0], "pooled": pooled[0]}
        # What is masked in T5 and in the denoiser has no effect on the rest: it may as well not be there.
        padded = pipeline.tokenizer_2(
            caption, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        counting = padded.input_ids[:, : max(1, int(padded.attention_mask.sum()))]
        states = pipeline.text_encoder_2(counting.to(device))[0]
        return {"states": states[0], "pooled": pipeline._get_clip_prompt_embeds(caption, device=device)[0]}

    def ragged_with(self, config: Config) -> frozenset[str]:
        return frozenset({"states"}) if config.apply_t5_attn_mask else frozenset()

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return folded_prediction(
            denoiser,
            noisy,
            given["states"],
            given.get("control"),
            given.get("states_mask") if len(noisy) > 1 else None,  # one caption fills its batch
            timestep=timesteps,
            guidance=given["guidance"] if denoiser.config.guidance_embeds else None,
            pooled_projections=given["pooled"],
        )

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        sizes = {"max_area": prompt.width * prompt.height, "_auto_resize": False} if prompt.control else {}
        return {
            **pooled_prompts(text, negative),
            "guidance_scale": prompt.embedded_guidance,
            "true_cfg_scale": prompt.guidance_scale,
            **sizes,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        config = denoiser.config
        return {"states": (PROBED_TOKENS, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}

    def described(self, facts: Facts, denoiser: Any, prediction_type: str) -> tuple[str, str]:
        return facts.version, facts.architecture if denoiser.config.guidance_embeds else "flux-1-schnell"


FAMILY = Flux()
