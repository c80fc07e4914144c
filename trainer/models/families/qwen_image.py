"""Qwen-Image: tokens whose positions follow from the picture's size, captions of any length, a video's VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.latents import VideoLatents, fold, picture, tokens, unfold
from trainer.models.placement import Components
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt


class QwenImage(FlowFamily):
    """See `base.Family`."""

    ragged = frozenset({"states"})

    def official(self, components: Components) -> Any:
        return QwenImagePipeline

    def latents(self, components: Components) -> VideoLatents:
        return VideoLatents(components)

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        limit = config.max_sequence_length or 1024
        states, _ = pipeline.encode_prompt(caption, device=device, max_sequence_length=limit)
        return {"states": states[0]}

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        folded = fold(noisy)
        batch, _, height, width = folded.shape
        predicted = denoiser(
            hidden_states=tokens(folded),
            timestep=timesteps,
            encoder_hidden_states=given["states"],
            encoder_hidden_states_mask=given.get("states_mask") if batch > 1 else None,  # one caption fills its batch
            img_shapes=[[(1, height, width)]] * batch,
            return_dict=False,
        )[0]
        return unfold(picture(predicted, height, width))

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": text["states"],
            "negative_prompt_embeds": negative["states"],
            "true_cfg_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        return {"states": (PROBED_TOKENS, denoiser.config.joint_attention_dim)}


FAMILY = QwenImage()
