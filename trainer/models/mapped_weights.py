"""Weights that are mapped from their files, and how the memory of what was copied from them is given back.

safetensors are mapped, not read: a weight is in memory once it is touched, and stays until the whole file is let go,
which it is not while another weight of it is in use. So a weight that is copied, into another layout, is there twice.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

_MAPPED = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d* +/", re.MULTILINE)  # of files, not of memory
Ranges = Sequence[tuple[int, int]]  # of addresses, in order


def to_channels_last(network: nn.Module) -> None:
    """Lay the weights of convolutions out as their kernels want them, each once in memory."""
    ranges = _mapped()
    for parameter in network.parameters():
        if parameter.ndim == 4:
            before = parameter.data
            parameter.data = before.contiguous(memory_format=torch.channels_last)
            if parameter.data_ptr() != before.data_ptr():
                _give_back(before, ranges)


def _mapped() -> Ranges:
    """Where files are mapped in this process; nowhere where the system does not tell."""
    if sys.platform != "linux":
        return []
    mapped = _MAPPED.findall(Path("/proc/self/maps").read_text())
    return sorted((int(start, 16), int(end, 16)) for start, end in mapped)


def _give_back(tensor: Tensor, ranges: Ranges) -> None:
    """Let go of the pages that a tensor alone lies on; where it is used after all, they are read from its file again.
    Nothing happens to tensors that are not mapped from one."""
    if sys.platform != "linux":
        return
    page = mmap.PAGESIZE
    start, end = -(-tensor.data_ptr() // page) * page, (tensor.data_ptr() + tensor.nbytes) // page * page
    place = bisect.bisect_right(ranges, (start, sys.maxsize)) - 1
    if start < end and place >= 0 and end <= ranges[place][1]:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
