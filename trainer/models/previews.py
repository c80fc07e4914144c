"""Sample pictures through the official pipeline, with the weights as they are."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

from trainer.data import buckets, pictures
from trainer.data.augmentation import RESAMPLING, cut_at
from trainer.data.dataset import CONTROL_STEP
from trainer.models import flow
from trainer.models.families.facts import FLOW
from trainer.models.text import TextSource
from trainer.options.config import Config
from trainer.options.sections.samples import SAMPLERS
from trainer.recipe.prompts import Prompt
from trainer.refusal import Refused

if TYPE_CHECKING:
    from trainer.models.model import Model

Conditioning = dict[str, Tensor]  # of one caption, as a batch of one


@torch.no_grad()
def draw(
    model: Model, prompts: Sequence[Prompt], sampler: str, device: torch.device, cached: TextSource | None
) -> Generator[Image.Image, None, None]:
    """See `Model.samples`. Raises Refused."""
    if model.shows_controls and any(prompt.control is None for prompt in prompts):
        raise Refused("a model that edits pictures draws nothing without one: name it in each prompt, after --cn")
    training = model.training
    model.eval()
    try:
        texts = conditionings(model, prompts, device, cached)
        with model.components.lent(["vae"], device), model.as_it_will_be_used():
            pipelines = {}
            for controls in {prompt.control is not None for prompt in prompts}:
                made = model.family.pipeline(model.components, scheduler(model, sampler), controls=controls)
                made.set_progress_bar_config(disable=True)
                pipelines[controls] = made
            for prompt, (text, negative) in zip(prompts, texts, strict=True):
                yield one_picture(model, pipelines[prompt.control is not None], prompt, text, negative)
    finally:
        model.train(training)


def conditionings(
    model: Model, prompts: Sequence[Prompt], device: torch.device, cached: TextSource | None
) -> list[tuple[Conditioning, Conditioning]]:
    """The conditioning of each prompt and of its negative; what has to be encoded is encoded in one go, so that text
    encoders are on the device once and then not beside the VAE."""
    with model.autocast(), nullcontext() if cached else model.lent_encoders(device):
        return [
            (
                model.conditioning_of(prompt.text, cached, prompt.control),
                model.conditioning_of(prompt.negative, cached, prompt.control),
            )
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


def control_of(prompt: Prompt, config: Config) -> Image.Image:
    """The prompt's control picture, scaled as control pictures are in the training, as if the sample were its image;
    some pipelines scale it once more. Raises PictureError."""
    assert prompt.control
    picture = pictures.open_shown(prompt.control)
    size = (prompt.width, prompt.height)
    if config.control_area:
        size = buckets.of_area(picture.size, config.control_area, CONTROL_STEP)
    return cut_at(picture.size, size).apply(picture, size, RESAMPLING["lanczos"])


def one_picture(model: Model, pipeline: Any, prompt: Prompt, text: Conditioning, negative: Conditioning) -> Image.Image:
    """One prompt's picture."""
    with model.autocast():
        latents = pipeline(
            **model.family.sample(model.denoiser, text, negative, prompt),
            **({"image": control_of(prompt, model.config)} if prompt.control else {}),
            width=prompt.width,
            height=prompt.height,
            num_inference_steps=prompt.steps,
            generator=torch.Generator("cpu").manual_seed(prompt.seed),
            output_type="latent",
        ).images
    pixels = model.latents.decode(latents, prompt.height, prompt.width)
    images: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return images[0]
