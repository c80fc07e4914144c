"""What a result depends on besides options and data: versions, device, threads, switches."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from trainer.models import quantising
from trainer.options.config import Config

ENVIRONMENT_VERSION = 1
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "safetensors", "pillow", "tokenizers")


def make_deterministic(config: Config) -> None:
    """Set the switches on which bit-equal results depend. To be called before the GPU is first used."""
    if not config.deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # needed for deterministic matrix products
    # Not warn_only: under it the attention kernels of a GPU keep their backward passes that are not deterministic.
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # Filling new memory with a known value only helps to find bugs, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe(config: Config, device: torch.device, processes: int) -> dict[str, Any]:
    """environment.json: two sessions with equal descriptions compute equal bits."""
    description: dict[str, Any] = {
        "version": ENVIRONMENT_VERSION,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "mixed_precision": config.mixed_precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        description |= {
            "device": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    elif device.type != "cpu":
        description["device"] = device.type
    for package in PACKAGES:
        description[package] = metadata.version(package)
    for package in filter(None, (config.optimizer.package, quantising.package_of(config))):
        description[package] = metadata.version(package)
    return description
