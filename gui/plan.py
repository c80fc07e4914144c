"""What the form's training would amount to: steps, epochs, time, disk. Folders are listed, no picture is opened."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gui import form as forms
from gui import monitor
from gui.places import Places
from trainer import arrow_dataset, buckets, budget, config, files, manifest, resume, scan, subsets
from trainer.config import Config, ConfigError
from trainer.runs import RunFolder
from trainer.subsets import DatasetError

MOST_RUNS = 20  # the latest ones, among which one with the same settings is looked for
SIZE = (
    "pretrained_model_name_or_path", "network_dim", "conv_dim", "network_train_unet_only",
    "network_train_text_encoder_only", "optimizer_type", "use_ema",
)  # fmt: skip
SPEED = (
    *SIZE, "resolution", "train_batch_size", "gradient_accumulation_steps", "mixed_precision",
    "gradient_checkpointing", "cache_latents", "cache_text_encoder_outputs",
)  # fmt: skip


def told(places: Places, values: Mapping[str, Any]) -> list[str]:
    """Sentences about the training that the form describes; empty while its options are wrong or name no images."""
    checked = forms.check_values(values)
    if forms.wrong_values(values, checked) or not checked.values["train_data_dir"] or checked.values["dataset_config"]:
        return []
    settings = config.build(checked.values)
    try:
        arithmetic, total, each = _steps(places, settings)
    except (DatasetError, OSError) as error:
        return [str(error)]
    return [arithmetic, *_time(places, settings, total), _disk(places, settings, total, each)]


def _steps(places: Places, settings: Config) -> tuple[str, int, int]:
    """20 images × 10 repeats / batch 4 = 50 steps an epoch; the steps in all and of an epoch."""
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
        images = f"{counts[0][0]:,} images × {_count(counts[0][1], 'repeat')}"
    else:
        images = f"{sum(count for count, _ in counts):,} images in {len(counts)} folders, repeated {samples:,} times"
    held_out = ", fewer without the images held out for validation" if settings.validation_split else ""
    accumulated = settings.gradient_accumulation_steps
    whole = f" ({settings.train_batch_size} × {accumulated} accumulated)" if accumulated > 1 else ""
    return (
        f"{images}{regularised} / batch {batch}{whole} = {_count(each, 'step')} an epoch{held_out}; "
        f"{_count(total, 'step')} = {_epochs(total / each)}",
        total,
        each,
    )


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number:,} {noun}s"


def _epochs(number: float) -> str:
    return "1 epoch" if number == 1 else f"{number:,.0f} epochs" if number >= 10 else f"{number:.3g} epochs"


def _pictures_in(folder: Path) -> int:
    return _listed(folder, folder.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _listed(folder: Path, changed: int) -> int:
    """`changed` is when the folder last got or lost a file, so that a large one is listed once only."""
    return len(scan.list_pictures(folder))


# --- what earlier runs tell ----------------------------------------------------------------------------------------


def _alike(places: Places, settings: Config, options: tuple[str, ...]) -> list[RunFolder]:
    """Earlier runs with the same values of some options, the latest first."""
    found = []
    for run in places.known_runs()[:MOST_RUNS]:
        try:
            then = _config(run.config_file, run.config_file.stat().st_mtime_ns)
        except (ConfigError, OSError):
            continue
        if all(getattr(then, name) == getattr(settings, name) for name in options):
            found.append(run)
    return found


@functools.lru_cache(maxsize=64)
def _config(path: Path, changed: int) -> Config:
    return config.read_config(path)


def _time(places: Places, settings: Config, total: int) -> list[str]:
    for run in _alike(places, settings, SPEED):
        seconds = budget.seconds_per_step(run)
        if seconds is not None:
            return [f"about {monitor.duration(seconds * total)} at the speed of {run.path.name}"]
    return []


def _disk(places: Places, settings: Config, total: int, each: int) -> str:
    folder = places.home / settings.output_dir
    while not files.exists(folder):
        folder = folder.parent
    free = f"{monitor.size(shutil.disk_usage(folder).free)} free"
    sizes = [
        item.manifest.bytes
        for run in _alike(places, settings, SIZE)
        for item in manifest.listing(run.checkpoints)[:1]
        if item.manifest
    ]
    if not sizes:
        return free
    saves = budget.of(settings, 0, total, each, sizes[0], None).saves
    kept = budget.kept(settings, saves, total, each)
    room = monitor.size(kept * sizes[0])
    return f"{_count(kept, 'checkpoint')} of {monitor.size(sizes[0])} kept: {room}, {free}"
