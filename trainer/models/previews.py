"""Sample pictures through the official pipeline, with the weights as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from PIL import Image

from trainer.models.families.facts import FLOW
from trainer.options.sections.samples import SAMPLERS
from trainer.recipe.prompts import Prompt

if TYPE_CHECKING:
    from trainer.models.model import Model, TextSource


@torch.no_grad()
def draw(
    model: Model, prompts: Sequence[Prompt], sampler: str, device: torch.device, cached: TextSource | None
) -> list[Image.Image]:
    """See `Model.sample`."""
    training = model.training
    model.eval()
    try:
        with model.components.lent(["vae"], device):
            pipeline = model.family.pipeline(model.components, scheduler(model, sampler))
            pipeline.set_progress_bar_config(disable=True)
            return [one_picture(model, pipeline, prompt, device, cached) for prompt in prompts]
    finally:
        model.train(training)


def scheduler(model: Model, sampler: str) -> Any:
    """diffusers' scheduler for a sampler, on the model's own schedule. Raises KeyError where it does not fit."""
    if sampler not in SAMPLERS:
        sampler = model.config.facts.defaults["sample_sampler"]
    chosen = SAMPLERS[sampler].flow if FLOW in model.config.facts.traits else SAMPLERS[sampler].ddpm
    if chosen is None:
        raise KeyError(f"{sampler} cannot sample {model.config.facts.title}")
    name, changes = chosen
    settings = {**model.objective.sampling(), **changes}
    settings.pop("_class_name", None)
    return getattr(diffusers, name).from_config(settings)


def one_picture(
    model: Model, pipeline: Any, prompt: Prompt, device: torch.device, cached: TextSource | None
) -> Image.Image:
    """One prompt's picture."""
    with model.autocast():
        if cached is None:
            with model.lent_encoders(device):
                text, negative = (model.conditioning_of(caption, None) for caption in (prompt.text, prompt.negative))
        else:
            text, negative = (model.conditioning_of(caption, cached) for caption in (prompt.text, prompt.negative))
        latents = pipeline(
            **model.family.sample(text, negative, prompt),
            width=prompt.width,
            height=prompt.height,
            num_inference_steps=prompt.steps,
            generator=torch.Generator("cpu").manual_seed(prompt.seed),
            output_type="latent",
        ).images
    pixels = model.latents.decode(latents, prompt.height, prompt.width)
    images: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return images[0]
