"""Samples a second that the loader makes of cached SD 1.5 latents, and whether a training ever waits for it.

    python -m tests.benchmarks.loader_time [--count 4000] [--seconds 5] [--rounds 5] [--workers 2]

Target: at least 2,000 samples a second with 2 workers, of latents of 512 x 512 pixels: mean and deviation from the
cache on disk, read and checked, VAE and training noise drawn, in batches of 4. Also with cached text encoder outputs
of SD 1.5 (77 x 768), which are larger than the latents. Then a consumer takes a step every --step-ms, as a training
would: the median and the worst of what it waits.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.cache_time import Nobody
from tests.support import tiny
from trainer.caching import filling, stores
from trainer.caching.filling import PREPARATION, Encoder
from trainer.caching.stores import DiskStore
from trainer.data import dataset
from trainer.data.dataset import Entry
from trainer.distributed.agreement import Agreement
from trainer.options.config import Config
from trainer.recipe import timesteps
from trainer.training.loader import Loader, Origin, Plan, Sources, Step

SETTINGS = {"model": "benchmark"}
BATCH = 4


def fail(_: object) -> Any:
    raise RuntimeError("nothing is to be encoded here")


def tokens(captions: Sequence[str]) -> dict[str, Tensor]:
    return {"tokens": torch.zeros((len(captions), 77), dtype=torch.int64)}


def prepare(folder: Path, count: int, workers: int) -> tuple[Config, tuple[Entry, ...]]:
    """A cache of `count` random latents and captions, and the images that they would be of."""
    tiny.make_images(folder / "images", count=1)
    config = Config(
        train_data_dir=str(folder / "images"),
        cache_dir=str(folder / "cache"),
        train_batch_size=BATCH,
        max_data_loader_n_workers=workers,
        **tiny.CACHED,
    )
    (entry,) = dataset.scan(config).entries
    latents = DiskStore(config.cache_path, "latents", {**SETTINGS, "batch": 1, "preparation": PREPARATION}, {})
    text = DiskStore(config.cache_path, "text", {**SETTINGS, "batch": config.text_encoder_batch_size}, {})
    draw = np.random.default_rng(0)
    entries = []
    for number in range(count):
        digest = f"{number:016x}" * 4
        entries.append(replace(entry, digest=digest, id=digest[:32], caption=f"n {number}"))
        mean, std = (draw.standard_normal((4, 64, 64), dtype=np.float32) for _ in range(2))
        latents.put(stores.latent_key(entries[-1], False), {"mean": mean, "std": std})
        text.put(stores.text_key(f"n {number}"), {"states": draw.standard_normal((77, 768), dtype=np.float32)})
    text.put(stores.text_key(""), {"states": np.zeros((77, 768), np.float32)})
    for store in (latents, text):
        store.finish_writing()
    return config, tuple(entries)


def sources_of(config: Config, entries: tuple[Entry, ...], *, with_text: bool) -> Sources:
    encoder: Encoder[Any] = Encoder(fail, SETTINGS, {}, nullcontext)
    latents = filling.latent_source(config, entries, encoder, Agreement(), Nobody())
    text = filling.text_source(config, entries, encoder, Agreement(), Nobody()) if with_text else None
    return Sources(tokens, latents, text, 4, 8, torch.device("cpu"), timesteps.from_config(config))


def rate(steps: Iterator[Step], seconds: float) -> tuple[float, float]:
    """Samples a second on the clock, and a second of processor time."""
    for _ in range(20):
        next(steps)
    wall, processor, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        done += next(steps).samples
    return done / (time.perf_counter() - wall), done / (time.process_time() - processor)


def waits(steps: Iterator[Step], step_seconds: float, count: int = 200) -> list[float]:
    """What a consumer that is busy for so long each step waits for the next batch."""
    next(steps)
    waited = []
    for _ in range(count):
        time.sleep(step_seconds)
        started = time.perf_counter()
        next(steps)
        waited.append(time.perf_counter() - started)
    return waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4000, help="images")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--step-ms", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config, entries = prepare(Path(name), arguments.count, arguments.workers)
        plan = Plan(config, entries, 1, Origin())
        for with_text in (False, True):
            loader = Loader(config, plan, sources_of(config, entries, with_text=with_text))
            rates = [rate(loader.steps(1000 * number), arguments.seconds) for number in range(arguments.rounds)]
            wall, processor = np.median(rates, axis=0)
            what = "latents and text encoder outputs" if with_text else "latents"
            print(
                f"{what}: {wall:,.0f} samples/s with {arguments.workers} workers "
                f"({processor:,.0f} for each second of processor time; "
                f"rounds: {', '.join(f'{each[0]:,.0f}' for each in rates)})",
                flush=True,
            )
            waited = waits(loader.steps(0), arguments.step_ms / 1e3)
            print(
                f"{what}: a step every {arguments.step_ms:.0f} ms waits {statistics.median(waited) * 1e3:.2f} ms "
                f"for its batch (median; worst {max(waited) * 1e3:.1f} ms)",
                flush=True,
            )


if __name__ == "__main__":
    main()
