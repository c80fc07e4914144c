"""The machine that the page's server runs on, in words and numbers for the bar. No widget here."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from trainer import quantities
from trainer.runs import machine
from trainer.runs.machine import Gpu, Machine

SECONDS = 2.0  # a reading serves every page for so long

_lock = threading.Lock()
_last: dict[Path, tuple[float, Machine]] = {}


def now(disk: Path) -> Machine:
    """A reading at most SECONDS old. `disk`: a path on the disk that is told of."""
    with _lock:
        known = _last.get(disk)
        if known is None or time.monotonic() - known[0] > SECONDS:
            _last.clear()  # of the paths, one or two are asked for at a time
            known = _last[disk] = time.monotonic(), machine.read(disk)
        return known[1]


def told(disk: Path) -> list[dict[str, Any]]:
    """What the bar shows: for each thing its name, its words, and how full or busy it is where that has an end."""
    here = now(disk)
    shown = [_gpu(gpu, several=len(here.gpus) > 1) for gpu in here.gpus]
    shown.append({"name": "CPU", "words": f"{here.cpu:.0%}", "share": here.cpu})
    memory = f"{quantities.size(here.memory)} of {quantities.size(here.memory_total)}"
    shown.append({"name": "Memory", "words": memory, "share": here.memory / max(1, here.memory_total)})
    if here.disk_free is not None and here.disk_total:
        words = f"{quantities.size(here.disk_free)} free"
        shown.append({"name": "Disk", "words": words, "share": 1 - here.disk_free / here.disk_total})
    return shown


def _gpu(gpu: Gpu, *, several: bool) -> dict[str, Any]:
    """What its driver tells of a GPU; nothing of what it does not."""
    words = [] if gpu.load is None else [f"{gpu.load:.0%}"]
    share = None
    if gpu.memory is not None and gpu.memory_total:
        words.append(f"{quantities.size(gpu.memory)} of {quantities.size(gpu.memory_total)}")
        share = gpu.memory / gpu.memory_total
    if gpu.temperature is not None:
        words.append(f"{gpu.temperature:.0f} °C")
    if gpu.power is not None:
        words.append(f"{gpu.power:.0f} W")
    return {"name": f"GPU {gpu.index}" if several else "GPU", "words": " · ".join(words), "share": share}
