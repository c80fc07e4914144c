"""Lumina Image 2.0: time from noise to picture, captions behind a system prompt, which negative prompts do without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import Lumina2Pipeline
from torch import Tensor

from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.placement import Components
from trainer.models.text import equally_long
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt


class Lumina2(FlowFamily):
    """See `base.Family`."""

    ragged = frozenset({"states", "alone"})

    def official(self, components: Components, *, controls: bool = False) -> Any:
        return Lumina2Pipeline

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        """Also "alone", without the system prompt: so a negative prompt of the sample images is encoded."""
        states, mask, alone, mask_alone = pipeline.encode_prompt(
            caption,
            negative_prompt=caption,
            device=device,
            max_sequence_length=config.max_sequence_length or 256,
        )
        return {"states": states[0][mask[0].bool()], "alone": alone[0][mask_alone[0].bool()]}

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        states = given["states"]
        whole = torch.ones(states.shape[:2], device=states.device)
        predicted: Tensor = denoiser(
            hidden_states=noisy,
            timestep=1 - timesteps,
            encoder_hidden_states=states,
            encoder_attention_mask=given.get("states_mask", whole).long(),
            return_dict=False,
        )[0]
        return -predicted

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        alone = {"states": negative["alone"], "states_mask": negative["alone_mask"]}
        text, negative = equally_long(text, alone, "states")
        return {
            "prompt_embeds": text["states"],
            "prompt_attention_mask": text["states_mask"].long(),
            "negative_prompt_embeds": negative["states"],
            "negative_prompt_attention_mask": negative["states_mask"].long(),
            "guidance_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        return {"states": (PROBED_TOKENS, denoiser.config.cap_feat_dim)}


FAMILY = Lumina2()
