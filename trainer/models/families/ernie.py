"""ERNIE-Image: FLUX.2's latents as they are, captions of any length with their lengths beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ErnieImagePipeline
from torch import Tensor

from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.latents import BatchNormLatents
from trainer.models.placement import Components
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt
from trainer.recipe.timesteps import TRAIN_STEPS

EPSILON = 1e-5  # with which the model was trained; the VAE's config says another


class Ernie(FlowFamily):
    """See `base.Family`."""

    ragged = frozenset({"states"})

    def official(self, components: Components, *, controls: bool = False) -> Any:
        return ErnieImagePipeline

    def latents(self, components: Components) -> BatchNormLatents:
        return BatchNormLatents(components, EPSILON)

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        if config.max_sequence_length:
            pipeline.tokenizer.model_max_length = config.max_sequence_length
        [states] = pipeline.encode_prompt(caption, device)
        return {"states": states}

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        states = given["states"]
        whole = torch.full((len(states),), states.shape[1], device=states.device)
        predicted: Tensor = denoiser(
            hidden_states=noisy,
            timestep=timesteps * TRAIN_STEPS,
            text_bth=states,
            text_lens=given["states_mask"].sum(dim=1) if "states_mask" in given else whole,
            return_dict=False,
        )[0]
        return predicted

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": list(text["states"]),
            "negative_prompt_embeds": list(negative["states"]),
            "guidance_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        return {"states": (PROBED_TOKENS, denoiser.config.text_in_dim)}


FAMILY = Ernie()
