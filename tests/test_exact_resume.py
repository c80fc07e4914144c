"""A run that was interrupted ends bit-equal to one that was not: the promise, at zero tolerance."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState

from tests import tiny
from trainer import loop
from trainer.config import Config
from trainer.events import read_events
from trainer.runs import RunFolder
from trainer.signals import StopSignals

STEPS = 8
COMPARED = ("epoch", "loss", "lr", "grad_norm", "batch")

# Every value of every dimension appears, most pairs of them too.
COMBINATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "text encoder frozen": {"network_train_unet_only": True},
    "text encoder only": {"network_train_text_encoder_only": True, "max_data_loader_n_workers": 0},
    "accumulation": {"gradient_accumulation_steps": 4, "train_batch_size": 1},
    "no workers, cosine, warmup": {
        "max_data_loader_n_workers": 0,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2.0,
        "noise_offset": 0.1,
    },
    "cached latents, flip": {"cache_latents": True, "flip_aug": True, "vae_batch_size": 2},
    "everything cached on disk": {
        "cache_latents": True,
        "cache_latents_to_disk": True,
        "cache_text_encoder_outputs": True,
        "cache_text_encoder_outputs_to_disk": True,
        "network_train_unet_only": True,
        "caption_dropout_rate": 0.3,
    },
    "moving average": {"use_ema": True, "ema_decay": 0.9, "lr_scheduler": "linear"},
    "bf16": {"mixed_precision": "bf16", "gradient_accumulation_steps": 2},
    "bf16, checkpointing, dropout": {
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "network_dropout": 0.3,
        "use_ema": True,
    },
    "Lion, restarts, shuffled captions": {
        "optimizer_type": "Lion",
        "lr_scheduler": "cosine_with_restarts",
        "lr_scheduler_num_cycles": 2,
        "shuffle_caption": True,
        "keep_tokens": 1,
        "caption_tag_dropout_rate": 0.2,
    },
    "Prodigy": {"optimizer_type": "Prodigy", "learning_rate": 1.0, "optimizer_args": ("safeguard_warmup=True",)},
    "Adafactor, polynomial": {"optimizer_type": "Adafactor", "lr_scheduler": "polynomial", "lr_scheduler_power": 2.0},
    "SGD, real clipping": {"optimizer_type": "SGDNesterov", "max_grad_norm": 0.001},
    "buckets, random crop": {
        "enable_bucket": True,
        "min_bucket_reso": 32,
        "max_bucket_reso": 128,
        "bucket_reso_steps": 16,
        "random_crop": True,
        "gradient_accumulation_steps": 2,
        "conv_dim": 2,
    },
    "losses": {
        "loss_type": "huber",
        "min_snr_gamma": 5.0,
        "multires_noise_iterations": 4,
        "ip_noise_gamma": 0.1,
        "clip_skip": 2,
        "max_grad_norm": 0.0,
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = ((64, 64), (96, 48), (48, 96), (80, 64))
    return tiny.make_images(tmp_path_factory.mktemp("images"), count=7, repeats=2, sizes=sizes)


def config_for(model: Path, images: Path, output: Path, **options: Any) -> Config:
    defaults: dict[str, Any] = {
        "pretrained_model_name_or_path": str(model),
        "train_data_dir": str(images),
        "output_dir": str(output),
        "output_name": "run",
        "resolution": "64",
        "network_dim": 2,
        "network_alpha": 2.0,
        "learning_rate": 1e-3,
        "train_batch_size": 2,
        "max_train_steps": STEPS,
        "save_every_n_steps": 1,
        "keep_last_n_checkpoints": 0,
        "max_data_loader_n_workers": 2,
        "deterministic": True,
    }
    return Config(**{**defaults, **options})


def run(config: Config) -> loop.Ending:
    AcceleratorState._reset_state(reset_partial_state=True)
    with StopSignals() as signals:
        return loop.train(config, signals)


def steps_of(config: Config) -> dict[int, tuple[Any, ...]]:
    """What was recorded of each step; a later session's record replaces an earlier one's."""
    events, _ = read_events(RunFolder(config.run_dir).events_file)
    return {event["global_step"]: tuple(event[name] for name in COMPARED) for event in events if event["event"] == "step"}


def tensors_of(config: Config, step: int = STEPS) -> dict[str, torch.Tensor]:
    folder = RunFolder(config.run_dir).checkpoints / f"step-{step:08d}"
    return {
        f"{path.stem}/{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in safetensors.torch.load_file(path).items()
    }


def assert_bit_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


def copy_at(straight: Config, output: Path, step: int) -> Config:
    """A copy of the run as it was just after a step: its folder without the later checkpoints."""
    shutil.copytree(straight.output_dir, output)
    checkpoints = output / "run" / "checkpoints"
    for folder in checkpoints.iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    return straight.replace(output_dir=str(output), resume_from_checkpoint="latest")


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_run_resumed_after_any_step_ends_bit_equal_to_a_straight_one(
    name: str, model: Path, images: Path, tmp_path: Path
) -> None:
    straight = config_for(model, images, tmp_path / "straight", **COMBINATIONS[name])
    assert run(straight) == "finished"
    expected, weights = steps_of(straight), tensors_of(straight)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert len({row[1] for row in expected.values()}) == STEPS  # the losses differ, so equal ones prove something

    for step in range(1, STEPS):
        resumed = copy_at(straight, tmp_path / f"at{step}", step)
        # Neither the number of workers nor when it saves may matter.
        resumed = resumed.replace(max_data_loader_n_workers=2 - straight.max_data_loader_n_workers, save_every_n_steps=3)
        torch.manual_seed(step)  # nor what became of the global random numbers
        assert run(resumed) == "finished"
        assert steps_of(resumed) == expected
        assert_bit_equal(tensors_of(resumed), weights)
        shutil.rmtree(resumed.output_dir)


def test_two_resumes_in_a_row_end_bit_equal(model: Path, images: Path, tmp_path: Path) -> None:
    straight = config_for(model, images, tmp_path / "straight", network_dropout=0.2, flip_aug=True)
    run(straight)
    once = copy_at(straight, tmp_path / "once", 3)
    run(once.replace(max_train_steps=5))
    twice = copy_at(once, tmp_path / "twice", 5)
    run(twice)
    assert steps_of(twice) == steps_of(straight)
    assert_bit_equal(tensors_of(twice), tensors_of(straight))
