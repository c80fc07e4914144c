"""What the kinds of accelerator call differently: NVIDIA's and AMD's (cuda) and Apple's (mps)."""

from __future__ import annotations

import torch


def give_back_memory(device: torch.device) -> None:
    """Let other programs have what this one keeps of the device's memory and does not use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def memory_used(device: torch.device) -> int | None:
    """Bytes of the device's memory: the most ever used, of an Apple GPU what is used now; None where it has none of its
    own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else None


def memory_total(device: torch.device) -> int | None:
    """Bytes of memory that a GPU has; None where the device has none of its own."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no memory left. Apple's says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "MPS backend out of memory" in str(error)
    )
