"""Sample images during training, which do not disturb it."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence

import torch

from trainer import files
from trainer.models.families.base import Model
from trainer.recipe.prompts import Prompt
from trainer.runs.events import EventWriter
from trainer.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)


def make(
    model: Model,
    prompts: Sequence[Prompt],
    sampler: str,
    device: torch.device,
    run: RunFolder,
    events: EventWriter,
    step: int,
) -> None:
    """Make the prompts' images at a step one after another, write them to the run's samples folder and say so.

    A device that has no room for them or a disk that refuses them is an event and a warning; the training goes on. Its
    random state is addressed, and so is not touched.
    """
    for index, prompt in enumerate(prompts):
        events.write("sampling", step, done=index, total=len(prompts))
        try:
            (image,) = model.sample([prompt], sampler, device)
        except RuntimeError as error:  # most often the device's memory, which is too small for larger pictures
            advice = " Give smaller ones with --w and --h." if isinstance(error, torch.OutOfMemoryError) else ""
            message = f"the sample images cannot be made: {error}.{advice}"
            logger.warning("Step %d: %s The training goes on without them.", step, message)
            events.write("warning", step, kind="sample_failed", message=message)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            break
        name = f"step{step:08d}-{index:02d}-{prompt.seed}.png"
        data = io.BytesIO()
        image.save(data, "PNG")
        try:
            files.write_bytes(run.samples / name, data.getvalue())
        except OSError as error:
            logger.warning("The sample image %s cannot be written: %s", name, error)
            events.write("warning", step, kind="sample_failed", message=f"{name} cannot be written: {error}")
        else:
            events.write(
                "sample_saved",
                step,
                path=f"{run.samples.name}/{name}",
                prompt=prompt.text,
                index=index,
                seed=prompt.seed,
            )
    events.write("sampling", step, done=len(prompts), total=len(prompts))
