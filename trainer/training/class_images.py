"""Draws the class images of a DreamBooth training with the base model, before images are looked at."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging

import torch

from trainer import devices, files
from trainer.checkpoints import preflight
from trainer.data import class_images
from trainer.models import base_model
from trainer.models import model as models
from trainer.options.config import OPTIONS, Config
from trainer.recipe import prompts
from trainer.runs.signals import StopSignals

logger = logging.getLogger(__name__)
KEPT = ("base_weights", "base_weights_multiplier")  # of the options about networks: they are part of the base model


def make(config: Config, device: torch.device, dtype: torch.dtype, signals: StopSignals) -> None:
    """Draw the class images that are missing. Those that a stop or a crash left are not made again.

    Raises BaseModelMissing, ConfigError, ClassImagesRefused, StopRequested or OSError.
    """
    if not config.num_class_images:
        return
    config, path = preflight.locate_model(config)
    [prompt] = prompts.read(config.replace(sample_prompts=config.class_prompt))
    described = dataclasses.asdict(prompt) | {
        "first_seed": config.seed,
        "sampler": config.sample_sampler,
        "precision": config.mixed_precision,
        "base_model": base_model.digests(config, path),
    }
    described.pop("seed")
    class_images.require_same(config, json.loads(json.dumps(described)))
    numbers = class_images.missing(config)
    if not numbers:
        return
    logger.info("Drawing %d class images of %r into %s", len(numbers), prompt.text, config.reg_data_dir)
    model = models.load(as_it_is(config), path, dtype, device)
    model.to(device)
    wanted = [dataclasses.replace(prompt, seed=config.seed + number) for number in numbers]
    with contextlib.closing(model.samples(wanted, config.sample_sampler, device)) as images:
        for number, image in zip(numbers, images, strict=True):
            signals.raise_if_requested()
            target = class_images.path_of(config, number)
            data = io.BytesIO()
            image.save(data, "PNG")
            caption = target.with_suffix(config.caption_extensions[0])
            files.write_text(caption, prompt.text + "\n")
            files.write_bytes(target, data.getvalue())
            if (number + 1) % 10 == 0:
                logger.info("Class image %d of %d", number + 1, config.num_class_images)
    del model
    devices.give_back_memory(device)


def as_it_is(config: Config) -> Config:
    """The config whose model draws as the base model does: with a network that has learnt nothing."""
    network = {
        name: option.default for name, option in OPTIONS.items() if option.section == "Network" and name not in KEPT
    }
    others = {"training_kind": "network", "full_bf16": False, "gradient_checkpointing": False, "fp8_base": False}
    others |= {"blocks_to_swap": 0, "cpu_offload_checkpointing": False, "torch_compile": False}
    small = {"network_dim": 1, "network_train_unet_only": True, "dim_from_weights": False, "network_weights": ""}
    return config.replace(**network | others | small)
