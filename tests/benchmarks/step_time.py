"""Seconds per step of the training loop against a bare loop: same model, tensors ready, nothing logged.

    python -m tests.benchmarks.step_time [--rounds 5] [--steps 6]

Both run in turns in one process; the median of the rounds' ratios is what counts, since a machine's speed drifts.
Target: at least 0.97 of the bare speed.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from torch import nn

from tests.support import tiny
from trainer.models import adapters
from trainer.models import model as models
from trainer.options.config import Config
from trainer.runs.events import read_events
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopSignals
from trainer.training import loop

CHANNELS = (160, 320)
SIDE = 32  # latents


def make_model(folder: Path) -> Path:
    """The tiny model with a U-Net so large that a step takes well over half a second on two cores."""
    tiny.make_model(folder)
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=CHANNELS,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    ).save_pretrained(folder / "unet")
    return folder


def bare(config: Config, model_folder: Path, steps: int) -> list[float]:
    """Seconds of each step of a loop that does nothing but train."""
    torch.use_deterministic_algorithms(True)
    model = models.load(config, model_folder, torch.float32, torch.device("cpu"))
    module = model.module().train()
    parameters = [
        parameter for target in model.targets for parameter in adapters.load(config).parameters(target).values()
    ]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, fused=True)
    shape = (config.train_batch_size, 4, SIDE, SIDE)
    batch = {
        "latent_mean": torch.randn(shape),
        "latent_std": torch.ones(shape),
        "latent_noise": torch.randn(shape),
        "noise": torch.randn(shape),
        "timesteps": torch.randint(0, 1000, (config.train_batch_size,)),
        "text.states": torch.from_numpy(
            np.stack([row["states"] for row in model.encode_captions(["a thing"] * config.train_batch_size)])
        ),
    }
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        module(batch).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    return seconds


def ours(config: Config) -> list[float]:
    """Seconds between the steps of the real loop, as its events have them, data included."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with StopSignals() as signals:
        loop.train(config, signals)
    events, _ = read_events(RunFolder(config.run_dir).events_file)
    return [event["step_seconds"] for event in events if event["event"] == "step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_folder = make_model(folder / "model")
        images = tiny.make_images(folder / "images", count=8, sizes=((SIDE * 8, SIDE * 8),))
        config = Config(
            pretrained_model_name_or_path=str(model_folder),
            train_data_dir=str(images),
            output_dir=str(folder),
            resolution=str(SIDE * 8),
            network_dim=16,
            network_train_unet_only=True,
            cache_latents=True,
            cache_text_encoder_outputs=True,
            train_batch_size=2,
            max_train_steps=arguments.steps + 1,
        )
        ratios = []
        for number in range(arguments.rounds):
            theirs = bare(config, model_folder, arguments.steps + 1)[1:]  # the first step warms up
            mine = ours(config.replace(output_name=f"round{number}"))[1:]
            medians = statistics.median(theirs), statistics.median(mine)
            ratios.append(medians[0] / medians[1])
            print(f"round {number + 1}: bare {medians[0]:.3f} s, loop {medians[1]:.3f} s a step", flush=True)
    listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"speed of the bare loop reached: {statistics.median(ratios):.3f} (rounds: {listed})")


if __name__ == "__main__":
    main()
