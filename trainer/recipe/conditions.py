"""Alarms over what a training runs on: its speed, its disk, its GPU. No torch here.

They belong to the machine and the session, not to the steps, so that no checkpoint holds them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from trainer import quantities
from trainer.options.sections.watching import Watching
from trainer.recipe.alarms import Alarm

SETTLING = 3  # intervals at the beginning of a session, in which things are compiled and caches filled
INTERVALS = 30  # that make a speed
IN_A_ROW = 3  # samples of the GPU
PACE_SECONDS = 600.0  # over which a disk's pace is measured at least
PACE_SAMPLES = 60


class Throughput:
    """Compares the speed of now with that of the beginning of the session, each the median of some intervals."""

    def __init__(self, options: Watching) -> None:
        self._options = options
        self._seen = 0
        self._first: list[float] = []
        self._last: list[tuple[float, float]] = []
        self._slow_before = False
        self._told = False

    def add(self, step_seconds: float, data_seconds: float) -> Alarm | None:
        """Take the mean seconds per step over an interval, and of waiting for data among them."""
        self._seen += 1
        if self._seen <= SETTLING:
            return None
        if len(self._first) < INTERVALS:
            self._first.append(step_seconds)
            return None
        self._last.append((step_seconds, data_seconds))
        if len(self._last) < INTERVALS:
            return None
        usual = statistics.median(self._first)
        now, data = (statistics.median(interval[place] for interval in self._last) for place in (0, 1))
        self._last = []
        slow, slow_before = now > self._options.alarm_slowdown * usual, self._slow_before
        self._slow_before = slow
        if not slow:
            self._told = False
        if not (slow and slow_before) or self._told:
            return None
        self._told = True
        waits = f", of which {data:.3g} s are waiting for data" if data > 0.2 * now else ""
        return Alarm(
            "slow",
            f"a step takes {now:.3g} s{waits}; at the beginning of the session it took {usual:.3g} s",
        )


class SlowReading:
    """Sees that the disk with the images comes close to what the training takes, before steps begin to wait for it."""

    def __init__(self, options: Watching, readers: int) -> None:
        """`readers`: threads that read."""
        self._limit = options.alarm_storage
        self._readers = max(1, readers)
        self._seen: list[tuple[float, float]] = []
        self._told = False

    def add(self, step_seconds: float, read_seconds: float) -> Alarm | None:
        """Take the mean seconds per step over an interval, and the seconds that threads spent reading for a step."""
        self._seen.append((step_seconds, read_seconds / self._readers))
        if len(self._seen) < INTERVALS or not self._limit:
            return None
        step, read = (statistics.median(interval[place] for interval in self._seen) for place in (0, 1))
        self._seen = []
        slow = read > self._limit * step
        told, self._told = self._told, slow
        if not slow or told:
            return None
        return Alarm(
            "slow_images",
            f"while a step takes {step:.3g} s, each of {self._readers} threads reads for {read:.3g} s "
            f"({100 * read / step:.0f} %)",
        )


class SlowSaves:
    """Sees that checkpoints take so long to write that one will soon have to wait for the one before."""

    def __init__(self, options: Watching) -> None:
        self._limit = options.alarm_storage
        self._before: float | None = None
        self._told = False

    def add(self, ended: float, write_seconds: float, size: int) -> Alarm | None:
        """Take when a checkpoint was written, in seconds of a clock that never goes back, how long that took, and its
        bytes."""
        began = ended - write_seconds
        before, self._before = self._before, began
        if before is None or not self._limit:
            return None
        between = began - before
        slow = write_seconds > self._limit * between
        told, self._told = self._told, slow
        if not slow or told:
            return None
        return Alarm(
            "slow_saves",
            f"a checkpoint of {quantities.size(size)} took {write_seconds:.3g} s to write and to read back "
            f"({quantities.size(size / max(write_seconds, 1e-9))} a second), and one is written every {between:.3g} s",
        )


class DiskRoom:
    """Watches the free space of the disk that the run is written to."""

    def __init__(self, options: Watching) -> None:
        self._options = options
        self._samples: list[tuple[float, float]] = []  # (seconds, free bytes), at least a share of PACE_SECONDS apart
        self._told: set[str] = set()

    def add(self, seconds: float, free: float, save_bytes: int | None) -> Iterator[Alarm]:
        """Take the free bytes at a time. `save_bytes`: what one save takes; None while it is not known."""
        saves = self._options.alarm_disk_saves
        if save_bytes and saves and free < saves * save_bytes:
            if "disk_small" not in self._told:
                self._told.add("disk_small")
                yield Alarm(
                    "disk_small",
                    f"{quantities.size(free)} are free, and one save takes about {quantities.size(save_bytes)}",
                )
        else:
            self._told.discard("disk_small")
        if self._samples and seconds - self._samples[-1][0] < PACE_SECONDS / 20:
            return
        self._samples = [*self._samples[1 - PACE_SAMPLES :], (seconds, free)]
        hours = self._hours_left()
        if hours is None or not hours < self._options.alarm_disk_hours:
            self._told.discard("disk_filling")
        elif "disk_filling" not in self._told:
            self._told.add("disk_filling")
            yield Alarm(
                "disk_filling",
                f"{quantities.size(free)} are free, and at the pace of the last "
                f"{(seconds - self._samples[0][0]) / 60:.0f} minutes that is used up in {hours:.1f} hours",
            )

    def _hours_left(self) -> float | None:
        """Until the disk is full, by the slower of the paces of the two halves of what was seen; None: it never is.

        One large file makes a pace in one half only.
        """
        (began, most), (ended, least) = self._samples[0], self._samples[-1]
        if len(self._samples) < 3 or ended - began < PACE_SECONDS:
            return None
        middle_time, middle = self._samples[len(self._samples) // 2]
        pace = min((most - middle) / (middle_time - began), (middle - least) / (ended - middle_time))
        return least / pace / 3600 if pace > 0 else None


class GpuHeat:
    """Watches the temperature of the GPU, and whether it runs slower because of it."""

    def __init__(self, options: Watching) -> None:
        self._options = options
        self._row = {"gpu_hot": 0, "gpu_throttled": 0}

    def add(self, temperature: float | None, throttled: bool) -> Iterator[Alarm]:
        """Take a sample, in degrees Celsius. `throttled`: the driver says that heat slows the GPU down."""
        limit = self._options.alarm_gpu_temperature
        hot = bool(limit) and temperature is not None and temperature >= limit
        for kind, holds in (("gpu_hot", hot), ("gpu_throttled", throttled)):
            self._row[kind] = self._row[kind] + 1 if holds else 0
        if self._row["gpu_hot"] == IN_A_ROW:
            yield Alarm("gpu_hot", f"the GPU is at {temperature:.0f} °C")
        if self._row["gpu_throttled"] == IN_A_ROW:
            at = "" if temperature is None else f", at {temperature:.0f} °C"
            yield Alarm("gpu_throttled", f"the driver has lowered the GPU's clock because of heat{at}")
