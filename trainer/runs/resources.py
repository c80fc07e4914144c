"""What a run uses of its machine: measured at a bounded rate on a thread of its own, written as events. No torch here.

The GPU is read through NVIDIA's management library (nvidia-ml-py); without it, or without such a GPU, only its figures
are left out.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from trainer import read_speed
from trainer.options.sections.watching import Watching
from trainer.recipe.conditions import DiskRoom, GpuHeat
from trainer.runs import alarm_kinds
from trainer.runs.events import EventWriter

logger = logging.getLogger(__name__)
JOULES = 3.6e6  # in a kilowatt-hour
COOLER = 5  # degrees below the limit at which a pause ends
PAUSE_SECONDS = 1.0  # between two looks during a pause
LOOK_SECONDS = 2.0  # between two looks outside one
LONGEST_PAUSE = 300.0  # other processes of the run wait meanwhile, and give up after ten minutes


@dataclass(frozen=True)
class GpuSample:
    """What a GPU does now; None is what the driver does not tell."""

    name: str
    load: float | None  # 0 to 1
    temperature: float | None  # degrees Celsius
    watts: float | None
    memory: int | None  # bytes in use, by any program
    memory_total: int | None
    throttled: bool  # by heat


class Gpus(Protocol):
    """The GPUs of a run."""

    def read(self) -> list[GpuSample]:
        """One sample of each; none where there is none."""
        ...


class NoGpus:
    """A machine whose GPUs cannot be read."""

    def read(self) -> list[GpuSample]:
        return []


class NvidiaGpus:
    """GPUs by their UUIDs, as torch and nvidia-smi call them."""

    def __init__(self, uuids: Sequence[str]) -> None:
        """Raises ImportError without nvidia-ml-py, pynvml.NVMLError without a driver or such a GPU."""
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}") for uuid in uuids]
        self._hot = (
            pynvml.nvmlClocksEventReasonSwThermalSlowdown
            if hasattr(pynvml, "nvmlClocksEventReasonSwThermalSlowdown")
            else pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
        ) | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown

    def read(self) -> list[GpuSample]:
        return [self._sample(handle) for handle in self._handles]

    def _sample(self, handle: Any) -> GpuSample:
        nvml = self._nvml
        load = self._asked(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        memory = self._asked(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        milliwatts = self._asked(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        reasons = self._asked(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
        return GpuSample(
            name=str(self._asked(lambda: nvml.nvmlDeviceGetName(handle)) or "GPU"),
            load=load,
            temperature=self._asked(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            watts=None if milliwatts is None else milliwatts / 1000,
            memory=memory and memory.used,
            memory_total=memory and memory.total,
            throttled=bool(reasons & self._hot),
        )

    def _asked(self, question: Callable[[], Any]) -> Any:
        """The answer; None where this GPU or driver has none."""
        with contextlib.suppress(self._nvml.NVMLError):
            return question()
        return None


def find_gpus(uuids: Sequence[str]) -> Gpus:
    """The GPUs with these UUIDs, as far as they can be read."""
    if not uuids:
        return NoGpus()
    try:
        return NvidiaGpus(uuids)
    except ImportError:
        logger.info("The GPU's temperature and power are not recorded: pip install nvidia-ml-py")
    except Exception as error:  # noqa: BLE001 - NVMLError, whose class is only there when the import went well
        logger.info("The GPU's temperature and power are not recorded: %s", error)
    return NoGpus()


def gpus_here() -> Gpus:
    """Every NVIDIA GPU of this machine, as far as they can be read. Without the package or a driver: none, silently."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount())]
        return NvidiaGpus([str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles])
    except ImportError:
        return NoGpus()
    except Exception as error:  # noqa: BLE001 - NVMLError, whose class is only there when the import went well
        logger.debug("no GPU can be read: %s", error)
        return NoGpus()


class Recorder:
    """Writes what a run uses as `resources` events, and the alarms that follow from it.

    An event has cpu (0 to 1 of all cores), process_cpu (cores that this process keeps busy), memory and memory_total
    (bytes of RAM; memory: this process), disk_free (bytes), read_bytes and read_seconds (of images and caches since the
    event before, by all threads together), gpus (a list of GpuSamples' fields), energy_kwh (of the
    GPUs since the session began; None where it is not known) and, where a price is given, cost.
    """

    def __init__(
        self,
        options: Watching,
        events: EventWriter,
        gpus: Gpus,
        folder: Path,
        *,
        step: Callable[[], int],
        save_bytes: Callable[[], int | None],
    ) -> None:
        """`step` and `save_bytes` are asked at each sample: the run's step, and what a save takes if it is known."""
        self._options = options
        self._events = events
        self._gpus = gpus
        self._folder = folder
        self._step = step
        self._save_bytes = save_bytes
        self._process = psutil.Process()
        self._read = read_speed.TRAINED.total
        self._disk = DiskRoom(options)
        self._heat: dict[int, GpuHeat] = {}
        self._joules: float | None = None
        self._last: tuple[float, float] | None = None  # time and watts of the sample before
        psutil.cpu_percent()  # the first answer counts from here
        self._process.cpu_percent()

    def record(self, now: float) -> None:
        """Take a sample at `now`, in seconds of a clock that never goes back, and write it."""
        samples = self._gpus.read()
        free = self._free()
        before, self._read = self._read, read_speed.TRAINED.total
        read = self._read.since(before)
        self._count_energy(now, samples)
        memory = psutil.virtual_memory()
        kwh = None if self._joules is None else self._joules / JOULES
        price = self._options.electricity_price
        step = self._step()
        self._events.write(
            "resources",
            step,
            cpu=psutil.cpu_percent() / 100,
            process_cpu=self._process.cpu_percent() / 100,
            memory=self._process.memory_info().rss,
            memory_total=memory.total,
            disk_free=free,
            read_bytes=read.bytes,
            read_seconds=read.seconds,
            gpus=[vars(sample) for sample in samples],
            energy_kwh=kwh,
            **({"cost": kwh * price} if kwh is not None and price else {}),
        )
        if not self._options.alarms:
            return
        alarms = [] if free is None else list(self._disk.add(now, free, self._save_bytes()))
        for place, sample in enumerate(samples):
            heat = self._heat.setdefault(place, GpuHeat(self._options))
            alarms += heat.add(sample.temperature, sample.throttled)
        for alarm in alarms:
            fields = alarm_kinds.warning(alarm.kind, alarm.seen)
            logger.warning("%s", fields["message"])
            self._events.write("warning", step, **fields)

    def _free(self) -> int | None:
        try:
            return shutil.disk_usage(self._folder).free
        except OSError:
            return None

    def _count_energy(self, now: float, samples: Sequence[GpuSample]) -> None:
        """Add what was used since the sample before, at the mean of its power and this one's."""
        lines = [sample.watts for sample in samples if sample.watts is not None]
        if not lines:
            self._last = None
            return
        watts = sum(lines)
        if self._last:
            then, before = self._last
            self._joules = (self._joules or 0.0) + (before + watts) / 2 * (now - then)
        self._last = now, watts


@contextlib.contextmanager
def recorded(recorder: Recorder, every_seconds: float) -> Iterator[None]:
    """Within, a thread takes a sample now and then, the first one at once. 0 seconds: none at all."""
    if not every_seconds:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while True:
            try:
                recorder.record(time.monotonic())
            except (OSError, psutil.Error) as error:
                logger.debug("no sample of the machine: %s", error)
            if over.wait(every_seconds):
                return

    thread = threading.Thread(target=watch, name="resources", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)


class Cooling:
    """Pauses a training between two steps while a GPU is too hot."""

    def __init__(self, limit: int, gpus: Gpus, stopping: Callable[[], bool]) -> None:
        """`limit`: degrees Celsius, 0 for none. `stopping` is asked during a pause, which then ends."""
        self._limit = limit
        self._gpus = gpus
        self._stopping = stopping
        self._looked = -LOOK_SECONDS

    def wait(self) -> float:
        """Return when the GPUs are cool enough, and how long that took in seconds. Looks every LOOK_SECONDS only."""
        began = time.monotonic()
        if not self._limit or began - self._looked < LOOK_SECONDS:
            return 0.0
        self._looked = began
        if self._hottest() < self._limit:
            return 0.0
        logger.info("A GPU is at %d °C: the training pauses until it is cooler", self._hottest())
        while (
            self._hottest() > self._limit - COOLER and not self._stopping() and time.monotonic() - began < LONGEST_PAUSE
        ):
            time.sleep(PAUSE_SECONDS)
        self._looked = time.monotonic()
        return self._looked - began

    def _hottest(self) -> float:
        return max((sample.temperature for sample in self._gpus.read() if sample.temperature is not None), default=0.0)
