"""An architecture that nobody trains, made of real classes: rectified flow, ragged text, names of its own. What a new
family needs is shown here: its facts, one object, a tiny model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel

from tests.support import tiny
from trainer.models.families.facts import FLOW, Facts, Part
from trainer.models.latents import Latents
from trainer.models.placement import Components
from trainer.models.text import PipelineText
from trainer.options.config import Config
from trainer.recipe.objectives import RectifiedFlow
from trainer.recipe.prompts import Prompt

WIDTH = 32
FACTS = Facts(
    title="Toy",
    module="tests.support.toy_family",
    pipelines=("ToyPipeline",),
    signature=(r"^toy\.",),
    components=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
    denoiser=Part("transformer", "lora_transformer", r"^transformer_blocks\.\d+\.(attn[12]|ff)\."),
    encoders=(Part("text_encoder", "", "", tokenizer="tokenizer"),),
    channels=4,
    factor=8,
    granularity=16,
    traits=frozenset({FLOW}),
    version="toy",
    architecture="toy-v1",
    keys="folded",
    defaults={"sample_sampler": "euler", "timestep_sampling": "shift", "discrete_flow_shift": 3.0},
    guidance=1.0,
)


class ToyPipeline:
    """A few Euler steps."""

    def __init__(self, transformer: nn.Module, scheduler: Any) -> None:
        self.transformer, self.scheduler = transformer, scheduler
        self.image_processor = VaeImageProcessor(vae_scale_factor=FACTS.factor)

    def set_progress_bar_config(self, **_: Any) -> None:
        """There is no bar."""

    def __call__(
        self,
        prompt_embeds: Tensor,
        mask: Tensor,
        height: int,
        width: int,
        num_inference_steps: int,
        generator: torch.Generator,
        output_type: str,
    ) -> Any:
        shape = (1, FACTS.channels, height // FACTS.factor, width // FACTS.factor)
        latents = torch.randn(shape, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            given = {"states": prompt_embeds, "states_mask": mask}
            predicted = FAMILY.predict(self.transformer, latents, t.view(1) / 1000, given)
            latents = self.scheduler.step(predicted, t, latents).prev_sample
        return SimpleNamespace(images=latents)


class Toy:
    def objective(self, components: Components, config: Config) -> RectifiedFlow:
        return RectifiedFlow(config, components["scheduler"].config)

    def latents(self, components: Components) -> Latents:
        return Latents(components)

    def text(self, components: Components, config: Config, dtype: torch.dtype) -> PipelineText:
        def encode(captions: Sequence[str], _: Sequence[Image.Image | None]) -> list[dict[str, Tensor]]:
            encoder, tokenizer = components["text_encoder"], components["tokenizer"]
            rows = (torch.tensor([tokenizer(caption, truncation=True).input_ids]) for caption in captions)
            return [{"states": encoder(row.to(encoder.device)).last_hidden_state[0]} for row in rows]

        return PipelineText(components, encode, identity=f"{dtype} toy", dtype=dtype, ragged=frozenset({"states"}))

    def predict(self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        length = given["states"].shape[1]
        mask = given.get("states_mask", torch.ones(len(noisy), length, device=noisy.device))
        predicted: Tensor = denoiser(
            noisy,
            encoder_hidden_states=given["states"],
            encoder_attention_mask=mask,
            timestep=timesteps * 1000,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return predicted

    def pipeline(self, components: Components, scheduler: Any, *, controls: bool = False) -> ToyPipeline:
        return ToyPipeline(components["transformer"], scheduler)

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {"prompt_embeds": text["states"], "mask": text["states_mask"]}

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        return {"states": (5, denoiser.config.caption_channels)}

    def described(self, facts: Facts, denoiser: Any, prediction_type: str) -> tuple[str, str]:
        return facts.version, facts.architecture


FAMILY = Toy()


def make_model(folder: Path) -> Path:
    """Write the tiny model in diffusers' folder format, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny.make_tokenizer(folder / "tokenizer-source")
        parts: dict[str, Any] = {
            "transformer": PixArtTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=FACTS.channels,
                out_channels=FACTS.channels,
                num_layers=2,
                cross_attention_dim=WIDTH,
                caption_channels=WIDTH,
                sample_size=8,
                patch_size=2,
                use_additional_conditions=False,
            ),
            "vae": tiny.make_vae(),
            "text_encoder": CLIPTextModel(tiny.text_config(tokenizer)),
            "tokenizer": tokenizer,
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        }
    libraries = {"vae": "diffusers", "transformer": "diffusers", "scheduler": "diffusers"}
    index: dict[str, Any] = {"_class_name": "ToyPipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [libraries.get(name, "transformers"), type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
