"""Krea 2: one sequence of text and picture; the states of twelve layers of its text encoder at every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import Krea2Pipeline
from torch import Tensor

from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.latents import VideoLatents, fold, picture, positions, tokens, unfold
from trainer.models.placement import Components
from trainer.models.text import equally_long
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt


class Krea2(FlowFamily):
    """See `base.Family`."""

    ragged = frozenset({"states"})

    def official(self, components: Components, *, controls: bool = False) -> Any:
        return Krea2Pipeline

    def latents(self, components: Components) -> VideoLatents:
        return VideoLatents(components)

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        """Without the padding in its middle: all text stands at one position, and nothing attends to padding."""
        limit = config.max_sequence_length or 512
        states, mask = pipeline.encode_prompt(caption, device=device, max_sequence_length=limit)
        return {"states": states[0][mask[0]]}

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        folded = fold(noisy)
        places = F.pad(positions(folded), (0, 0, given["states"].shape[1], 0))  # all text stands at zero
        predicted = denoiser(
            hidden_states=tokens(folded),
            encoder_hidden_states=given["states"],
            timestep=timesteps,
            position_ids=places,
            encoder_attention_mask=given.get("states_mask") if len(noisy) > 1 else None,  # one caption fills its batch
            return_dict=False,
        )[0]
        return unfold(picture(predicted, *folded.shape[2:]))

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        text, negative = equally_long(text, negative, "states")
        return {
            "prompt_embeds": text["states"],
            "prompt_embeds_mask": text["states_mask"],
            "negative_prompt_embeds": negative["states"],
            "negative_prompt_embeds_mask": negative["states_mask"],
            "guidance_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        config = denoiser.config
        return {"states": (PROBED_TOKENS, config.num_text_layers, config.text_hidden_dim)}


FAMILY = Krea2()
