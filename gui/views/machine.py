"""The machine that the page's server runs on, in words and numbers for the bar. No widget here."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from trainer import quantities
from trainer.runs import resources
from trainer.runs.resources import Gpus, GpuSample

SECONDS = 2.0  # a reading serves every page for so long
LOOK_SECONDS = 300.0  # between two looks for GPUs: a driver can be loaded meanwhile, or fail


class Readings:
    """What the machine does, read at most every SECONDS."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gpus: Gpus = resources.NoGpus()
        self._looked = -LOOK_SECONDS
        self._last: tuple[float, Path, list[dict[str, Any]]] | None = None
        psutil.cpu_percent()  # the next answer is of the time since this one

    def told(self, disk: Path) -> list[dict[str, Any]]:
        """What the bar shows: the name and the words of each thing. `disk`: a path on the disk that is told of."""
        with self._lock:
            now = time.monotonic()
            if self._last is None or self._last[1] != disk or now - self._last[0] > SECONDS:
                if now - self._looked > LOOK_SECONDS:
                    self._gpus, self._looked = resources.gpus_here(), now
                self._last = now, disk, self._read(disk)
            return self._last[2]

    def _read(self, disk: Path) -> list[dict[str, Any]]:
        samples = self._gpus.read()
        names = ["GPU"] if len(samples) == 1 else [f"GPU {place}" for place in range(len(samples))]
        shown = [{"name": name, "words": _words(gpu)} for name, gpu in zip(names, samples, strict=True)]
        memory = psutil.virtual_memory()
        used = f"{quantities.size(memory.total - memory.available)} of {quantities.size(memory.total)}"
        shown += [{"name": "CPU", "words": f"{psutil.cpu_percent():.0f} %"}, {"name": "Memory", "words": used}]
        for folder in (disk, *disk.parents):  # what is above it where it is not there yet
            with contextlib.suppress(OSError):
                shown.append({"name": "Disk", "words": f"{quantities.size(psutil.disk_usage(str(folder)).free)} free"})
                break
        return shown


def _words(gpu: GpuSample) -> str:
    """What its driver tells of a GPU; nothing of what it does not."""
    words = [] if gpu.load is None else [f"{gpu.load:.0%}".replace("%", " %")]
    if gpu.memory is not None and gpu.memory_total:
        words.append(f"{quantities.size(gpu.memory)} of {quantities.size(gpu.memory_total)}")
    if gpu.temperature is not None:
        words.append(f"{gpu.temperature:.0f} °C")
    if gpu.watts is not None:
        words.append(f"{gpu.watts:.0f} W")
    return " · ".join(words)
