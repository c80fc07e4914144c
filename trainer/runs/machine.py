"""What a machine is doing now: its GPUs by NVML, processor, memory and disk by psutil. No torch here.

A machine without an NVIDIA GPU or without its driver has no GPUs here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml

RETRY_SECONDS = 300.0  # until a driver that was not there is looked for again


@dataclass(frozen=True)
class Gpu:
    """One GPU. None where the driver does not tell: some have no power sensor, virtual ones share theirs."""

    index: int
    name: str
    uuid: str
    load: float | None  # share of the last moment in which it worked, 0 to 1
    memory: int | None  # bytes in use, by whatever program
    memory_total: int | None
    temperature: float | None  # degrees Celsius
    power: float | None  # watts
    power_limit: float | None


@dataclass(frozen=True)
class Machine:
    """The machine at a moment. `disk_free` and `disk_total`: of the disk that was asked about."""

    cpu: float  # share of all cores since the last reading, 0 to 1
    memory: int  # bytes that programs hold
    memory_total: int
    disk_free: int | None
    disk_total: int | None
    gpus: tuple[Gpu, ...] = ()


class _Driver:
    """NVML, opened once and again after it failed. Its calls take about a millisecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = False
        self._not_before = 0.0

    def gpus(self) -> tuple[Gpu, ...]:
        with self._lock:
            try:
                if not self._open:
                    if time.monotonic() < self._not_before:
                        return ()
                    pynvml.nvmlInit()
                    self._open = True
                return tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
            except pynvml.NVMLError:  # no driver, or it was replaced meanwhile
                self._open = False
                self._not_before = time.monotonic() + RETRY_SECONDS
                return ()


_driver = _Driver()


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def told(ask: Callable[..., Any], *more: Any) -> Any:
        with contextlib.suppress(pynvml.NVMLError):
            return ask(handle, *more)
        return None

    load, memory = told(pynvml.nvmlDeviceGetUtilizationRates), told(pynvml.nvmlDeviceGetMemoryInfo)
    power, limit = told(pynvml.nvmlDeviceGetPowerUsage), told(pynvml.nvmlDeviceGetEnforcedPowerLimit)
    return Gpu(
        index=index,
        name=_text(told(pynvml.nvmlDeviceGetName)),
        uuid=_text(told(pynvml.nvmlDeviceGetUUID)),
        load=None if load is None else load.gpu / 100,
        memory=None if memory is None else int(memory.used),
        memory_total=None if memory is None else int(memory.total),
        temperature=told(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        power=None if power is None else power / 1000,
        power_limit=None if limit is None else limit / 1000,
    )


def _text(told: Any) -> str:
    return told.decode(errors="replace") if isinstance(told, bytes) else str(told or "")


def read(disk: Path) -> Machine:
    """The machine now. `disk`: a path on the disk that is asked about; what is above it where it is not there yet."""
    memory = psutil.virtual_memory()
    free = total = None
    for folder in (disk, *disk.parents):
        with contextlib.suppress(OSError):
            usage = psutil.disk_usage(str(folder))
            free, total = usage.free, usage.total
            break
    cpu, gpus = psutil.cpu_percent() / 100, _driver.gpus()
    return Machine(cpu, memory.total - memory.available, memory.total, free, total, gpus)


class Readings:
    """What a trainer tells of its machine, as the numbers of an event, at most once in `seconds`.

    `uuids`: the GPUs that it trains on. Of several, memory and power are added up, the load is the mean, the
    temperature that of the hottest.
    """

    def __init__(self, disk: Path, uuids: Sequence[str], seconds: float = 10.0) -> None:
        self._disk = disk
        self._uuids = frozenset(_plain(uuid) for uuid in uuids)
        self._seconds = seconds
        self._last = time.monotonic()
        psutil.cpu_percent()  # the next reading is of the time since this one

    def due(self) -> dict[str, float] | None:
        """The numbers, or None while the last ones are not old enough."""
        if time.monotonic() - self._last < self._seconds:
            return None
        self._last = time.monotonic()
        return dict(self._numbers(read(self._disk)))

    def _numbers(self, now: Machine) -> Iterator[tuple[str, float]]:
        yield "cpu", round(now.cpu, 3)
        yield "ram", now.memory
        if now.disk_free is not None:
            yield "disk_free", now.disk_free
        own = [gpu for gpu in now.gpus if _plain(gpu.uuid) in self._uuids]
        loads = [gpu.load for gpu in own if gpu.load is not None]
        memories = [gpu.memory for gpu in own if gpu.memory is not None]
        temperatures = [gpu.temperature for gpu in own if gpu.temperature is not None]
        powers = [gpu.power for gpu in own if gpu.power is not None]
        if loads:
            yield "gpu_load", round(sum(loads) / len(loads), 3)
        if memories:
            yield "gpu_memory", sum(memories)
        if temperatures:
            yield "gpu_temperature", max(temperatures)
        if powers:
            yield "gpu_power", round(sum(powers), 1)


def _plain(uuid: str) -> str:
    """torch writes a GPU's uuid without the prefix that NVML gives it."""
    return uuid.removeprefix("GPU-").lower()
