"""Qwen-Image: tokens whose positions follow from the picture's size, captions of any length, a video's VAE; models that
edit are given a control picture, which the text encoder looks at too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImagePipeline
from PIL import Image
from torch import Tensor

from trainer.data.buckets import of_area
from trainer.data.dataset import CONTROL_STEP
from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.latents import VideoLatents, fold, picture, unfold, with_control
from trainer.models.placement import Components
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt

SHOWN_AREA, EDITED_AREA = 384 * 384, 1024 * 1024  # pixels of what Edit-Plus and Edit show to the text encoder


class QwenImage(FlowFamily):
    """See `base.Family`."""

    ragged = frozenset({"states"})

    def official(self, components: Components, *, controls: bool = False) -> Any:
        """As model_index.json says: a model for editing has a template of its own for captions."""
        name = components.parts.pipeline_name
        return getattr(diffusers, name) if name in components.parts.facts.edits else QwenImagePipeline

    def latents(self, components: Components) -> VideoLatents:
        return VideoLatents(components)

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        limit = config.max_sequence_length or 1024
        states, _ = pipeline.encode_prompt(caption, device=device, max_sequence_length=limit)
        return {"states": states[0]}

    def encode_shown(
        self, pipeline: Any, caption: str, shown: Image.Image, device: torch.device, config: Config
    ) -> dict[str, Tensor]:
        """The picture is scaled as the official pipelines do: Edit shows it larger than Edit-Plus (2509, 2511)."""
        plus = isinstance(pipeline, QwenImageEditPlusPipeline)
        size = of_area(shown.size, SHOWN_AREA if plus else EDITED_AREA, CONTROL_STEP)
        picture = pipeline.image_processor.resize(shown, size[1], size[0])
        states, _ = pipeline.encode_prompt(caption, image=[picture] if plus else picture, device=device)
        return {"states": states[0]}

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        folded = fold(noisy)
        control = fold(given["control"]) if "control" in given else None
        batch, _, height, width = folded.shape
        sizes = [(1, *latents.shape[2:]) for latents in (folded, control) if latents is not None]
        predicted = denoiser(
            hidden_states=with_control(folded, control, frame=1)[0],  # positions follow from the sizes
            timestep=timesteps,
            encoder_hidden_states=given["states"],
            encoder_hidden_states_mask=given.get("states_mask") if batch > 1 else None,  # one caption fills its batch
            img_shapes=[sizes] * batch,
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
