"""Anima: a video's transformer for one frame; a conditioner turns Qwen3's states and T5's tokens into its text."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ClassifierFreeGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.transformers import transformer_cosmos
from diffusers.modular_pipelines.anima.before_denoise import (
    AnimaPrepareLatentsStep,
    AnimaSetTimestepsStep,
    AnimaTextConditioningStep,
    AnimaTextInputStep,
)
from diffusers.modular_pipelines.anima.denoise import AnimaDenoiseStep
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from diffusers.modular_pipelines.modular_pipeline import SequentialPipelineBlocks
from torch import Tensor

from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.latents import VideoLatents
from trainer.models.placement import Components
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt

FACTOR = 8  # pixels of a latent

if not hasattr(transformer_cosmos, "transforms"):  # torchvision is not there, and this is all that is asked of it
    transformer_cosmos.transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=lambda mask, size, interpolation: F.interpolate(mask, size)),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )


class Encoders:
    """What the steps of the official pipeline that encode text take."""

    def __init__(self, text_encoder: Any, tokenizer: Any, t5_tokenizer: Any, text_conditioner: Any) -> None:
        self.text_encoder, self.tokenizer, self.t5_tokenizer = text_encoder, tokenizer, t5_tokenizer
        self.text_conditioner = text_conditioner


class Steps(SequentialPipelineBlocks):
    """The steps of the official pipeline from encoded text to latents."""

    model_name = "anima"
    block_classes = (AnimaTextInputStep, AnimaPrepareLatentsStep, AnimaSetTimestepsStep, AnimaDenoiseStep)
    block_names = ("input", "prepare_latents", "set_timesteps", "denoise")


class Sampling:
    """Those steps, called as other pipelines are."""

    def __init__(self, transformer: Any, vae: Any, scheduler: Any) -> None:
        self._pipeline = Steps().init_pipeline()
        self._pipeline.update_components(transformer=transformer, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=2 * FACTOR)

    def set_progress_bar_config(self, **settings: Any) -> None:
        self._pipeline.set_progress_bar_config(**settings)

    def __call__(self, guidance_scale: float, output_type: str, **arguments: Any) -> Any:
        self._pipeline.update_components(guider=ClassifierFreeGuidance(guidance_scale=guidance_scale))
        return SimpleNamespace(images=self._pipeline(**arguments, output="latents"))


class Anima(FlowFamily):
    """See `base.Family`."""

    def official(self, components: Components, *, controls: bool = False) -> Any:
        return Encoders

    def latents(self, components: Components) -> VideoLatents:
        return VideoLatents(components)

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        encoded = AnimaTextEncoderStep.encode_prompt(
            pipeline,
            [caption],
            prepare_unconditional_embeds=False,
            max_sequence_length=config.max_sequence_length or 512,
            device=device,
        )
        dtype = pipeline.text_conditioner.dtype
        names = ("qwen_prompt_embeds", "qwen_attention_mask", "t5_input_ids", "t5_attention_mask")
        states = AnimaTextConditioningStep._condition_prompt_embeds(
            pipeline,
            **{name: encoded[name] for name in names},
            device=device,
            conditioning_dtype=dtype,
            output_dtype=dtype,
        )
        return {"states": states[0]}

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        height, width = noisy.shape[2:]
        predicted: Tensor = denoiser(
            hidden_states=noisy.unsqueeze(2),
            timestep=timesteps,
            encoder_hidden_states=given["states"],
            padding_mask=noisy.new_zeros(1, 1, height * FACTOR, width * FACTOR),
            return_dict=False,
        )[0]
        return predicted.squeeze(2)

    def pipeline(self, components: Components, scheduler: Any, *, controls: bool = False) -> Sampling:
        return Sampling(components["transformer"], components["vae"], scheduler)

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": text["states"],
            "negative_prompt_embeds": negative["states"],
            "guidance_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        return {"states": (PROBED_TOKENS, denoiser.config.text_embed_dim)}


FAMILY = Anima()
