"""Z-Image: a transformer that takes lists, counts time from noise to picture, and predicts what leads there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ZImagePipeline
from torch import Tensor, nn

from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.placement import Components
from trainer.models.text import without_padding
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt


class ZImage(FlowFamily):
    """See `base.Family`."""

    ragged = frozenset({"states"})

    def official(self, components: Components, *, controls: bool = False) -> Any:
        return ZImagePipeline

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        [states], _ = pipeline.encode_prompt(
            [caption],  # overwritten by the pipeline
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=config.max_sequence_length or 512,
        )
        return {"states": states}

    def predict(self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        pictures = list(noisy.unsqueeze(2).unbind())  # of one frame
        predicted = denoiser(pictures, 1 - timesteps, without_padding(given, "states"), return_dict=False)[0]
        return -torch.stack(predicted).squeeze(2)

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": list(text["states"]),
            "negative_prompt_embeds": list(negative["states"]),
            "guidance_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        return {"states": (PROBED_TOKENS, denoiser.config.cap_feat_dim)}


FAMILY = ZImage()
