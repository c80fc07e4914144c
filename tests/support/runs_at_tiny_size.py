"""Whole runs on the tiny model, and what is compared of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.state import AcceleratorState

from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs import branches
from trainer.runs.events import read_events
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopSignals
from trainer.training import loop

STEPS = 8
COMPARED = ("epoch", "loss", "lr", "grad_norm", "batch")


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
    """Train in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with StopSignals() as signals:
        return loop.train(config, signals)


def distributed(config: Config, processes: int, folder: Path) -> None:
    """Train with the real command on several processes (gloo)."""
    preset = folder / f"{config.output_name}.toml"
    preset.write_text(to_toml(config))
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"),
            *("-m", "trainer", "train", "--config", str(preset)),
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        timeout=120,
    )


def events_of(config: Config, kind: str) -> list[dict[str, Any]]:
    """The run's events of one kind, in the order in which they were written."""
    events, _ = read_events(RunFolder(config.run_dir).events_file)
    return [event for event in events if event["event"] == kind]


def steps_of(config: Config) -> dict[int, tuple[Any, ...]]:
    """What was recorded of each step; a later session's record replaces an earlier one's."""
    return {event["global_step"]: tuple(event[name] for name in COMPARED) for event in events_of(config, "step")}


def tensors_of(config: Config, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Every tensor of the run's checkpoint at a step."""
    folder = RunFolder(config.run_dir).checkpoints / f"step-{step:08d}"
    return {
        f"{path.stem}/{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in safetensors.torch.load_file(path).items()
    }


def exported_tensors_of(config: Config) -> dict[str, torch.Tensor]:
    """Every tensor of the run's result."""
    return safetensors.torch.load_file(branches.last_file(config))


def assert_bit_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


def temporary_in(folder: Path) -> list[str]:
    """Whatever an interrupted write left, safetensors' own temporary files included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".tmp*"))
