"""Combinations of options that between them meet every pair of values, and runs resumed after each of their steps."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.runs_at_tiny_size import (
    STEPS,
    assert_bit_equal,
    config_for,
    exported_tensors_of,
    run,
    steps_of,
    tensors_of,
)
from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Given

Options = dict[str, Any]
Choice = tuple[str, str]  # (dimension, value)

DIMENSIONS: dict[str, dict[str, Options]] = {
    "trained": {
        "both": {},
        "U-Net": {"network_train_unet_only": True},
        "text encoder": {"network_train_text_encoder_only": True},
        "U-Net with convolutions": {"network_train_unet_only": True, "conv_dim": 2},
    },
    "optimizer": {
        "AdamW": {},
        "Lion": {"optimizer_type": "Lion"},
        "Prodigy": {"optimizer_type": "Prodigy", "learning_rate": 1.0},
        "Adafactor": {"optimizer_type": "Adafactor"},
        "SGD": {"optimizer_type": "SGDNesterov", "max_grad_norm": 0.001},
    },
    "precision": {"fp32": {}, "bf16": {"mixed_precision": "bf16"}},
    "accumulation": {"1": {}, "4": {"gradient_accumulation_steps": 4, "train_batch_size": 1}},
    "workers": {"2": {}, "0": {"max_data_loader_n_workers": 0}},
    "average": {"none": {}, "moving": {"use_ema": True, "ema_decay": 0.9}},
    "latents": {
        "encoded": {},
        "cached": {"cache_latents": True},
        "cached on disk": {"cache_latents": True, "cache_latents_to_disk": True, "vae_batch_size": 2},
    },
    "captions": {
        "as they are": {},
        "varied": {
            "shuffle_caption": True,
            "keep_tokens": 1,
            "caption_dropout_rate": 0.3,
            "caption_tag_dropout_rate": 0.2,
        },
        "cached": {"cache_text_encoder_outputs": True},
    },
    "pictures": {
        "square": {},
        "buckets": {
            "enable_bucket": True,
            "min_bucket_reso": 32,
            "max_bucket_reso": 128,
            "bucket_reso_steps": 16,
        },
        "random crops": {"random_crop": True},
    },
    "mirrored": {"no": {}, "yes": {"flip_aug": True}},
    "learning rate": {
        "constant": {},
        "constant with warmup": {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 2.0},
        "linear": {"lr_scheduler": "linear"},
        "cosine with warmup": {"lr_scheduler": "cosine", "lr_warmup_steps": 0.25},
        "restarts": {"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 2},
        "polynomial": {"lr_scheduler": "polynomial", "lr_scheduler_power": 2.0},
    },
    "dropout": {"none": {}, "some": {"network_dropout": 0.3}},
    "activations": {"kept": {}, "computed twice": {"gradient_checkpointing": True}},
    "loss": {
        "l2": {},
        "huber, min-SNR": {"loss_type": "huber", "min_snr_gamma": 5.0},
        "l1, noise offset": {"loss_type": "l1", "noise_offset": 0.1, "noise_offset_random_strength": True},
        "noise of several sizes": {"multires_noise_iterations": 4, "ip_noise_gamma": 0.1, "clip_skip": 2},
    },
}


RATE_DECISIONS: dict[str, Options] = {
    "a factor and a warm-up": {"resume_lr_scale": 0.5, "resume_warmup_steps": 3},
    "restart": {"resume_lr_policy": "restart", "lr_scheduler": "cosine", "lr_warmup_steps": 0.25},
    "stretch": {"resume_lr_policy": "stretch", "lr_scheduler": "linear", "max_train_steps": STEPS + 2},
    "restart, a factor, moving average": {
        "resume_lr_policy": "restart",
        "resume_lr_scale": 0.25,
        "lr_scheduler": "polynomial",
        "use_ema": True,
        "ema_decay": 0.9,
        "network_dropout": 0.2,
    },
}


def options_of(combination: dict[str, str]) -> Options:
    """The options that a value for each dimension stands for."""
    return {name: value for choice in combination.items() for name, value in DIMENSIONS[choice[0]][choice[1]].items()}


def is_valid(combination: dict[str, str]) -> bool:
    try:
        options = {"family": "sd", **options_of(combination)}  # whose rules hold, too
        resolve({name: Given(value, "") for name, value in options.items()})
    except ConfigError:
        return False
    return True


def pairs_of(combination: dict[str, str]) -> set[tuple[Choice, Choice]]:
    return set(itertools.combinations(sorted(combination.items()), 2))


def all_pairs() -> set[tuple[Choice, Choice]]:
    """Every pair of values of two dimensions that can go together."""
    choices = [(dimension, value) for dimension, values in DIMENSIONS.items() for value in values]
    pairs = itertools.combinations(sorted(choices), 2)
    return {pair for pair in pairs if pair[0][0] != pair[1][0] and is_valid(dict(pair))}


def combinations(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """`count` valid combinations, each chosen to meet as many pairs as possible that none before it has met."""
    draw = random.Random(seed)
    left = all_pairs()
    for _ in range(count):
        drawn = [{name: draw.choice(list(values)) for name, values in DIMENSIONS.items()} for _ in range(300)]
        best = max((one for one in drawn if is_valid(one)), key=lambda one: len(pairs_of(one) & left))
        left -= pairs_of(best)
        yield best


def copy_at(straight: Config, output: Path, step: int) -> Config:
    """A copy of the run as it was just after a step: its folder without the later checkpoints."""
    shutil.copytree(straight.output_dir, output)
    checkpoints = output / "run" / "checkpoints"
    for folder in checkpoints.iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    return straight.replace(output_dir=str(output), resume_from_checkpoint="latest")


def check_every_resume(model: Path, images: Path, folder: Path, options: Options, steps: int = STEPS) -> int:
    """A straight run, and one resumed after each of its steps, compared at zero tolerance; returns how many."""
    straight = config_for(model, images, folder / "straight", max_train_steps=steps, **options)
    assert run(straight) == "finished"
    expected, weights, exported = steps_of(straight), tensors_of(straight, steps), exported_tensors_of(straight)
    assert sorted(expected) == list(range(1, steps + 1))
    assert len({row[1] for row in expected.values()}) == steps  # the losses differ, so equal ones prove something

    for step in range(1, steps):
        resumed = copy_at(straight, folder / f"at{step}", step)
        # Neither the number of workers nor when it saves may matter.
        workers = 2 - straight.max_data_loader_n_workers
        resumed = resumed.replace(max_data_loader_n_workers=workers, save_every_n_steps=3)
        torch.manual_seed(step)  # nor what became of the global random numbers
        assert run(resumed) == "finished"
        assert steps_of(resumed) == expected
        assert_bit_equal(tensors_of(resumed, steps), weights)
        assert_bit_equal(exported_tensors_of(resumed), exported)
        shutil.rmtree(resumed.output_dir)
    return steps - 1


def check_restarts(model: Path, images: Path, folder: Path, options: Options, at: Sequence[int]) -> None:
    """A run restarted after each of these steps by one command, compared with one restarted after the first only.

    The decisions of the command are about the learning rate, and are taken at the first restart.
    """
    decided = {name: options[name] for name in options if name.startswith("resume_") or name == "max_train_steps"}
    plain = {name: value for name, value in options.items() if name not in decided}
    straight = config_for(model, images, folder / "straight", **plain)
    assert run(straight) == "finished"
    command = straight.replace(**decided)
    once = copy_at(command, folder / "once", at[0])
    assert run(once) == "finished"
    expected, last = steps_of(once), command.max_train_steps
    assert expected != steps_of(straight)
    often = copy_at(command, folder / "often0", at[0])
    for number, step in enumerate(at[1:], start=1):
        assert run(often) == "finished"
        often = copy_at(often, folder / f"often{number}", step)
        (often.run_dir / "run.json").unlink()  # as if the machine was another: the checkpoint alone has to tell
    assert run(often) == "finished"
    assert steps_of(often) == expected
    assert_bit_equal(tensors_of(often, last), tensors_of(once, last))
    assert_bit_equal(exported_tensors_of(often), exported_tensors_of(once))
