"""What the form's training would amount to: steps, epochs, time, disk. Folders are listed, no picture is opened."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gui.forms import form as forms
from gui.places import Places, placed
from gui.views import monitor
from trainer import files, quantities
from trainer.checkpoints import budget, checkpoint_size, resume
from trainer.checkpoints.checkpoint_size import SizeUnknown
from trainer.data import arrow_dataset, buckets, folder_scan, subsets
from trainer.data.subsets import DatasetError
from trainer.models.base_model import BaseModelMissing
from trainer.options import checks
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError
from trainer.runs.run_folder import RunFolder

MOST_RUNS = 20  # the latest ones, among which one with the same settings is looked for


@dataclass(frozen=True)
class Planned:
    """How long the training would be."""

    images: int
    steps: int
    steps_per_epoch: int


def told(places: Places, values: Mapping[str, Any]) -> list[str]:
    """Sentences about the training that the form describes; empty while its options are wrong or name no images."""
    checked = forms.check_values(values)
    if forms.wrong_values(values, checked) or not checked.values["train_data_dir"] or checked.values["dataset_config"]:
        return []
    settings = checks.build(checked.values)
    try:
        arithmetic, planned = _steps(places, settings)
    except (DatasetError, OSError) as error:
        return [str(error)]
    seconds, time_line = _time(places, settings, planned)
    at_stake = budget.at_stake(settings, 0, planned.steps, planned.steps_per_epoch, seconds)
    return [arithmetic, *time_line, *filter(None, [at_stake]), _disk(places, settings, planned)]


def _steps(places: Places, settings: Config) -> tuple[str, Planned]:
    """20 images × 10 repeats / batch 4 = 50 steps an epoch; and these numbers."""
    folder = str(places.home / settings.train_data_dir)
    if arrow_dataset.shards(Path(folder)):
        raise DatasetError("The images are inside Arrow or Parquet files; the start unpacks and counts them.")
    found = subsets.in_folder(folder, "train_data_dir", settings)[0]
    counts = [(_pictures_in(subset.folder), subset.num_repeats) for subset in found]
    samples = sum(count * repeats for count, repeats in counts)
    if not samples:
        raise DatasetError(f"There are no images in {folder}.")
    regularised = " + as many of regularisation" if settings.reg_data_dir else ""
    batch = resume.global_batch(settings, 1)
    each = buckets.steps_per_epoch(samples * (2 if regularised else 1), batch)
    total = settings.max_train_steps if settings.max_train_epochs is None else settings.max_train_epochs * each
    if len(counts) == 1:
        images = f"{counts[0][0]:,} images × {quantities.counted(counts[0][1], 'repeat')}"
    else:
        images = f"{sum(count for count, _ in counts):,} images in {len(counts)} folders, repeated {samples:,} times"
    held_out = ", fewer without the images held out for validation" if settings.validation_split else ""
    accumulated = settings.gradient_accumulation_steps
    whole = f" ({settings.train_batch_size} × {accumulated} accumulated)" if accumulated > 1 else ""
    return (
        f"{images}{regularised} / batch {batch}{whole} = {quantities.counted(each, 'step')} an epoch{held_out}; "
        f"{quantities.counted(total, 'step')} = {_epochs(total / each)}",
        Planned(sum(count for count, _ in counts), total, each),
    )


def _epochs(number: float) -> str:
    return "1 epoch" if number == 1 else f"{number:,.0f} epochs" if number >= 10 else f"{number:.3g} epochs"


def _pictures_in(folder: Path) -> int:
    return _listed(folder, folder.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _listed(folder: Path, changed: int) -> int:
    """`changed` is when the folder last got or lost a file, so that a large one is listed once only."""
    return len(folder_scan.list_pictures(folder))


# --- what earlier runs tell ----------------------------------------------------------------------------------------


def _alike(places: Places, settings: Config) -> list[RunFolder]:
    """Earlier runs with the same values of what decides the speed, the latest first."""
    found = []
    for run in places.known_runs()[:MOST_RUNS]:
        try:
            then = _config(run.config_file, run.config_file.stat().st_mtime_ns)
        except (ConfigError, OSError):
            continue
        if all(getattr(then, name) == getattr(settings, name) for name, known in OPTIONS.items() if known.sets_speed):
            found.append(run)
    return found


@functools.lru_cache(maxsize=64)
def _config(path: Path, changed: int) -> Config:
    return checks.read_config(path)


def _time(places: Places, settings: Config, planned: Planned) -> tuple[float | None, list[str]]:
    """Seconds of a step, and a sentence; None and none where no earlier run tells."""
    for run in _alike(places, settings):
        seconds = budget.seconds_per_step(run)
        if seconds is not None:
            return seconds, [f"about {monitor.duration(seconds * planned.steps)} at the speed of {run.path.name}"]
    return None, []


def _disk(places: Places, settings: Config, planned: Planned) -> str:
    folder = places.home / settings.output_dir
    free = f"{quantities.size(files.free_bytes(folder))} free"
    try:
        size = checkpoint_size.of_fresh_start(placed(places, settings), planned.images)
    except (SizeUnknown, BaseModelMissing):
        return f"{free}; what a checkpoint takes is known when the base model is here"
    saves = budget.of(settings, 0, planned.steps, planned.steps_per_epoch, size, None).saves
    kept = budget.kept(settings, saves, planned.steps, planned.steps_per_epoch)
    room = quantities.size(kept * size)
    return f"{quantities.counted(kept, 'checkpoint')} of about {quantities.size(size)} kept: {room}, {free}"
