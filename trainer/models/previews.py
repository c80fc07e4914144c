"""Sample pictures through the official pipeline, with the weights as they are."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

from trainer.models import flow
from trainer.models.families.facts import FLOW
from trainer.options.sections.samples import SAMPLERS
from trainer.recipe.prompts import Prompt

if TYPE_CHECKING:
    from trainer.models.model import Model, TextSource

Conditioning = dict[str, Tensor]  # of one caption, as a batch of one


@torch.no_grad()
def draw(
    model: Model, prompts: Sequence[Prompt], sampler: str, device: torch.device, cached: TextSource | None
) -> Generator[Image.Image, None, None]:
    """See `Model.samples`."""
    training = model.training
    model.eval()
    try:
        texts = conditionings(model, prompts, device, cached)
        with model.components.lent(["vae"], device), model.as_it_will_be_used():
            pipeline = model.family.pipeline(model.components, scheduler(model, sampler))
            pipeline.set_progress_bar_config(disable=True)
            for prompt, (text, negative) in zip(prompts, texts, strict=True):
                yield one_picture(model, pipeline, prompt, text, negative)
    finally:
        model.train(training)


def conditionings(
    model: Model, prompts: Sequence[Prompt], device: torch.device, cached: TextSource | None
) -> list[tuple[Conditioning, Conditioning]]:
    """The conditioning of each prompt and of its negative; what has to be encoded is encoded in one go, so that text
    encoders are on the device once and then not beside the VAE."""
    with model.autocast(), nullcontext() if cached else model.lent_encoders(device):
        return [
            (model.conditioning_of(prompt.text, cached), model.conditioning_of(prompt.negative, cached))
            for prompt in prompts
        ]


def scheduler(model: Model, sampler: str) -> Any:
    """diffusers' scheduler for a sampler, on the model's own schedule. Raises KeyError where it does not fit."""
    if sampler not in SAMPLERS:
        sampler = model.config.facts.defaults["sample_sampler"]
    chosen = SAMPLERS[sampler].flow if FLOW in model.config.facts.traits else SAMPLERS[sampler].ddpm
    if chosen is None:
        raise KeyError(f"{sampler} cannot sample {model.config.facts.title}")
    name, changes = chosen
    if FLOW in model.config.facts.traits:
        return flow.sampler(name, changes, model.objective.sampling())
    settings = {**model.objective.sampling(), **changes}
    settings.pop("_class_name", None)
    return getattr(diffusers, name).from_config(settings)


def one_picture(model: Model, pipeline: Any, prompt: Prompt, text: Conditioning, negative: Conditioning) -> Image.Image:
    """One prompt's picture."""
    with model.autocast():
        latents = pipeline(
            **model.family.sample(model.denoiser, text, negative, prompt),
            width=prompt.width,
            height=prompt.height,
            num_inference_steps=prompt.steps,
            generator=torch.Generator("cpu").manual_seed(prompt.seed),
            output_type="latent",
        ).images
    pixels = model.latents.decode(latents, prompt.height, prompt.width)
    images: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return images[0]
