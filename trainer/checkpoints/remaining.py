"""How long trainings still take, by what earlier runs tell: for the plan of one, and for the queue. No torch here."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.checkpoints import budget, resume
from trainer.data import addresses, arrow_dataset, buckets, epochs, folder_scan, subsets
from trainer.data.epochs import Origin
from trainer.data.subsets import DatasetError
from trainer.options import checks
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError
from trainer.runs import queue, run_folder
from trainer.runs.events import read_events
from trainer.runs.queue import Entry, Queue
from trainer.runs.run_folder import RunFolder

MOST_RUNS = 20  # the latest ones, among which one with the same settings is looked for


# --- how much there is to do ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Amount:
    """What folders of images and options make: (images, repeats) of each folder, the samples of an epoch, steps."""

    folders: tuple[tuple[int, int], ...]
    samples: int
    batch: int
    steps_per_epoch: int
    steps: int

    @property
    def images(self) -> int:
        return sum(count for count, _ in self.folders)


def amount(config: Config, home: Path) -> Amount:
    """What a training on one process amounts to, from the names in its folders; no picture is opened.

    `home`: where relative paths begin. Raises DatasetError or OSError.
    """
    folder = str(addresses.placed(home, config.train_data_dir))
    if not files.exists(Path(folder)) and addresses.is_address(config.train_data_dir):
        raise DatasetError("The images are elsewhere; the start copies them here and counts them.")
    if arrow_dataset.shards(Path(folder)):
        raise DatasetError("The images are inside Arrow or Parquet files; the start unpacks and counts them.")
    folders = subsets.in_folder(folder, "train_data_dir", config)[0]
    counts = tuple((_pictures_in(subset.folder), subset.num_repeats) for subset in folders)
    samples = sum(count * repeats for count, repeats in counts)
    if not samples:
        raise DatasetError(f"There are no images in {folder}.")
    batch = resume.global_batch(config, 1)
    each = buckets.steps_per_epoch(samples * (2 if config.reg_data_dir else 1), batch)
    total = epochs.last_step(config.max_train_steps, config.max_train_epochs, each, Origin())
    return Amount(counts, samples, batch, each, total)


def _pictures_in(folder: Path) -> int:
    return _listed(folder, folder.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _listed(folder: Path, changed: int) -> int:
    """`changed` is when the folder last got or lost a file, so that a large one is listed once only."""
    return len(folder_scan.list_pictures(folder))


# --- how fast it goes ----------------------------------------------------------------------------------------------


def pace(config: Config, runs: Iterable[RunFolder]) -> tuple[RunFolder, float] | None:
    """The first of the runs with the same values of what decides the speed, and its seconds per step."""
    for run in runs:
        try:
            then = _config(run.config_file, run.config_file.stat().st_mtime_ns)
        except (ConfigError, OSError):
            continue
        if all(getattr(then, name) == getattr(config, name) for name, option in OPTIONS.items() if option.sets_speed):
            seconds = budget.seconds_per_step(run)
            if seconds is not None:
                return run, seconds
    return None


@functools.lru_cache(maxsize=64)
def _config(path: Path, changed: int) -> Config:
    return checks.read_config(path)


def _reached(run: RunFolder) -> tuple[int, int | None]:
    """The run's last recorded step, and its length where its latest events tell it."""
    try:
        size = run.events_file.stat().st_size
    except OSError:
        return 0, None
    step, total = 0, None
    for event in read_events(run.events_file, max(0, size - budget.TAIL))[0]:
        step = event["global_step"]
        total = event.get("total_steps", total)
    return step, total


# --- the queue -----------------------------------------------------------------------------------------------------


def ends(folder: Path, waiting: Queue, devices: Sequence[str], now: float) -> dict[int, float]:
    """When each entry that has not ended is expected to end, in seconds since 1970; left out where it is not known."""
    runs = run_folder.find_runs([Path(name) for name in waiting.folders])[:MOST_RUNS]
    lengths = {
        entry.number: _seconds_left(queue.config_file(folder, entry.number), entry, runs)
        for entry in waiting.among(*queue.OPEN)
    }
    return planned_ends(waiting, lengths, devices, now)


def _seconds_left(file: Path, entry: Entry, runs: Sequence[RunFolder]) -> float | None:
    """How long an entry still takes once it has its devices; None where it is not known."""
    try:
        config = _config(file, file.stat().st_mtime_ns)
        step, total = _reached(entry.folder) if entry.starts else (0, None)
        if total is None:
            counts_epochs = config.max_train_epochs is not None
            total = amount(config, Path(entry.home)).steps if counts_epochs else config.max_train_steps
    except (ConfigError, DatasetError, OSError):
        return None
    own = budget.seconds_per_step(entry.folder) if entry.starts else None
    alike = pace(config, runs) if own is None else None
    seconds = own if own is not None else alike[1] if alike else None
    return None if seconds is None else seconds * max(0, total - step)


def planned_ends(
    waiting: Queue, lengths: Mapping[int, float | None], devices: Sequence[str], now: float
) -> dict[int, float]:
    """The ends of running and waiting entries when each takes so many seconds and the devices are given out in order.

    Behind an entry of unknown length nothing is known of its devices.
    """
    free = dict.fromkeys(devices, now)
    result = {}
    for entry in waiting.among("running"):
        length = lengths.get(entry.number)
        result[entry.number] = now + (math.inf if length is None else length)
        free |= {device: result[entry.number] for device in entry.on if device in free}
    for entry in waiting.among("waiting"):
        if waiting.paused and not entry.at_once:
            continue
        wanted = [name for name in entry.devices if name in free] or list(free)
        given = sorted(wanted, key=lambda device: free[device])[: min(entry.gpus, len(free))]
        length = lengths.get(entry.number)
        result[entry.number] = max(free[device] for device in given) + (math.inf if length is None else length)
        free |= dict.fromkeys(given, result[entry.number])
    return {number: end for number, end in result.items() if math.isfinite(end)}
