"""From the end of the scan to the first batch of a large cached dataset, at any step; and memory for each image.

    python -m tests.benchmarks.first_batch [--count 100000] [--rounds 5] [--folder FOLDER]

Target: at most 2 s at every step, and memory that does not grow with the step. Counted are the fingerprint of the
dataset, the order of its epochs, opening the caches and finding that nothing is missing, and the batch itself: all
that depends on the number of images. Images are generated, and so are the cached values, which are only opened. With
--folder they are kept there for the next time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.scan_time import generate
from tests.support import tiny
from trainer.caching import filling, stores
from trainer.caching.filling import PREPARATION, Encoder, PictureGroups
from trainer.caching.stores import DiskStore
from trainer.data import dataset
from trainer.data.dataset import Scan
from trainer.distributed.agreement import Agreement
from trainer.options.config import Config
from trainer.recipe import timesteps
from trainer.training.loader import Loader, Origin, Plan, Sources

STEPS = (0, 1_000_000)
SETTINGS = {"model": "benchmark"}
TOKENS, WIDTH = 77, 32
Result = TypeVar("Result")
Parts = dict[str, list[tuple[float, float]]]  # name -> seconds on the clock and of processor time in each round


class Nobody:
    """Is told the progress, and insists that nothing has to be computed."""

    def __call__(self, done: int, total: int) -> None:
        if done < total:
            raise RuntimeError(f"{total - done} values are not in the cache; remove the folder and generate it again")

    def finished(self, total: int, computed: int) -> None:
        """There is nothing to tell."""


def fail(_: object) -> Any:
    raise RuntimeError("nothing is to be encoded here")


PICTURES: Encoder[Tensor] = Encoder(fail, SETTINGS, {}, nullcontext)
CAPTIONS: Encoder[Sequence[str]] = Encoder(fail, SETTINGS, {}, nullcontext)


def fill(config: Config, found: Scan) -> None:
    """Put a value for every picture and caption that has none."""
    latents = DiskStore(config.cache_path, "latents", {**SETTINGS, "batch": 1, "preparation": PREPARATION}, {})
    groups = PictureGroups(found.entries, batch=1, encode=fail)
    for number in range(len(groups)):
        (entry, _), (key,) = groups.members(number)[0], groups.keys(number)
        if latents.missing([key]):
            shape = (4, entry.bucket[1] // 8, entry.bucket[0] // 8)
            latents.put(key, {"mean": np.zeros(shape, np.float32), "std": np.ones(shape, np.float32)})
    latents.finish_writing()
    text = DiskStore(config.cache_path, "text", {**SETTINGS, "batch": config.text_encoder_batch_size}, {})
    for caption in stores.texts_of(found.entries):
        if text.missing([stores.text_key(caption)]):
            text.put(stores.text_key(caption), {"states": np.zeros((TOKENS, WIDTH), np.float32)})
    text.finish_writing()


def sources_of(config: Config, found: Scan) -> Sources:
    agreement = Agreement()
    latents = filling.latent_source(config, found.entries, PICTURES, agreement, Nobody())
    text = filling.text_source(config, found.entries, CAPTIONS, agreement, Nobody())
    return Sources(fail, latents, text, 4, 8, torch.device("cpu"), timesteps.from_config(config))


def timed(parts: Parts, name: str, work: Callable[[], Result]) -> Result:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    parts.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - processor))
    return result


def measure(config: Config, found: Scan, step: int, parts: Parts) -> None:
    """Add the seconds of each part of one start at a step."""
    timed(parts, "fingerprint", lambda: dataset.record(found, config))
    plan = timed(parts, "order", lambda: Plan(config, found.entries, 1, Origin()))
    sources = timed(parts, "caches", lambda: sources_of(config, found))
    steps = Loader(config, plan, sources).steps(step)
    timed(parts, "first batch", lambda: next(steps))
    steps.close()


def memory(config: Config, found: Scan, step: int) -> tuple[float, float]:
    """Bytes for each image that a training keeps beside the scan's own list, and at most while it starts."""
    tracemalloc.start()
    plan = Plan(config, found.entries, 1, Origin())
    steps = Loader(config, plan, sources_of(config, found)).steps(step)
    next(steps)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    steps.close()
    return kept / len(found.entries), most / len(found.entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the images and the cache are made, or are already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        config = Config(
            train_data_dir=str(folder / "images"),
            output_dir=str(folder / "output"),
            resolution="64",
            enable_bucket=True,
            min_bucket_reso=32,
            bucket_reso_steps=8,
            train_batch_size=4,
            **tiny.CACHED,
            caption_dropout_rate=0.1,
        )
        if not (folder / "images").is_dir():
            print("generating ...", flush=True)
            (folder / "images").mkdir(parents=True)
            generate(folder / "images", arguments.count)
        found = dataset.scan(config)
        fill(config, found)
        print(f"{len(found.entries):,} images, {found.samples:,} samples an epoch", flush=True)
        for step in STEPS:
            parts: Parts = {}
            for _ in range(arguments.rounds):
                measure(config, found, step, parts)
            medians = {name: np.median(seconds, axis=0) for name, seconds in parts.items()}
            wall, processor = np.median(np.sum(list(parts.values()), axis=0), axis=0)
            each = ", ".join(f"{name} {seconds[1]:.2f} s" for name, seconds in medians.items())
            print(
                f"at step {step:>9,}: {wall:.2f} s from the scan to the first batch; "
                f"{processor:.2f} s of processor time ({each})",
                flush=True,
            )
        for step in STEPS:
            kept, most = memory(config, found, step)
            print(f"at step {step:>9,}: {kept:.0f} bytes kept for each image, at most {most:.0f} while it starts")


if __name__ == "__main__":
    main()
