"""FLUX.1: tokens with positions, CLIP's pooled vector and T5; dev is told its guidance, schnell is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxPipeline
from torch import Tensor

from trainer.models.families.facts import Facts
from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.latents import fold, picture, positions, tokens, unfold
from trainer.models.placement import Components
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt


class Flux(FlowFamily):
    """See `base.Family`."""

    def official(self, components: Components) -> Any:
        return FluxPipeline

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
        folded = fold(noisy)
        grid = positions(folded)
        mask = given.get("states_mask") if len(noisy) > 1 else None  # one caption fills its batch
        masked = {} if mask is None else {"attention_mask": F.pad(mask, (0, len(grid)), value=True)[:, None, None]}
        predicted = denoiser(
            hidden_states=tokens(folded),
            timestep=timesteps,
            guidance=given["guidance"] if denoiser.config.guidance_embeds else None,
            pooled_projections=given["pooled"],
            encoder_hidden_states=given["states"],
            txt_ids=torch.zeros(given["states"].shape[1], 3, dtype=grid.dtype, device=grid.device),
            img_ids=grid,
            joint_attention_kwargs=masked or None,
            return_dict=False,
        )[0]
        return unfold(picture(predicted, *folded.shape[2:]))

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": text["states"],
            "pooled_prompt_embeds": text["pooled"],
            "negative_prompt_embeds": negative["states"],
            "negative_pooled_prompt_embeds": negative["pooled"],
            "guidance_scale": prompt.embedded_guidance,
            "true_cfg_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        config = denoiser.config
        return {"states": (PROBED_TOKENS, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}

    def described(self, facts: Facts, denoiser: Any, prediction_type: str) -> tuple[str, str]:
        return facts.version, facts.architecture if denoiser.config.guidance_embeds else "flux-1-schnell"


FAMILY = Flux()
