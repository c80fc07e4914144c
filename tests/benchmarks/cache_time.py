"""How fast pictures are cached against the bare encoder, and how fast a cache takes and gives values.

    python -m tests.benchmarks.cache_time [--count 24] [--size 512] [--rounds 5] [--records 4000]

Target: at least 90 % of the bare encoder's pictures a second, which is the tiny VAE's on pixels that are ready, in the
same batches, in turns in one process. Caching also reads, scales and checks the pictures, and writes the latents.
Records are those of SD 1.5 at 512 x 512 pixels: mean and deviation, 4 x 64 x 64 each, in fp32.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support import tiny
from trainer.caching import filling
from trainer.caching.filling import Encoder, PictureGroups
from trainer.caching.packs import Packs
from trainer.data import dataset
from trainer.distributed.agreement import Agreement
from trainer.models import model as models
from trainer.options.config import Config


class Nobody:
    def __call__(self, done: int, total: int) -> None:
        """Nothing is told."""

    def finished(self, total: int, computed: int) -> None:
        """Nothing is told."""


def timed(work: Callable[[], object]) -> NDArray[np.float64]:
    """Seconds on the clock, and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - wall, time.process_time() - processor])


def encoding_ratios(folder: Path, count: int, size: int, rounds: int) -> NDArray[np.float64]:
    """Speed of caching over that of the bare encoder in each round, by the clock and by processor time: (rounds, 2)."""
    model_folder = tiny.make_model(folder / "model")
    tiny.make_images(folder / "images", count=count, sizes=((size, size), (size * 5 // 4, size)))
    config = Config(
        train_data_dir=str(folder / "images"),
        resolution=str(size),
        vae_batch_size=4,
        cache_latents=True,
        cache_latents_to_disk=True,
        network_train_unet_only=True,
    )
    device = torch.device("cpu")
    model = models.load(config, model_folder, torch.float32, device)
    entries = dataset.scan(config).entries
    groups = PictureGroups(entries, batch=config.vae_batch_size, encode=model.encode_images)
    ready: list[Tensor] = [groups.prepare(number) for number in range(len(groups))]
    encoder: Encoder[Tensor] = Encoder(model.encode_images, {"model": "tiny"}, {}, nullcontext)
    ratios = []
    for number in range(rounds + 1):  # the first one warms up
        cold = config.replace(cache_dir=str(folder / f"cache{number}"))
        bare = timed(lambda: [model.encode_images(pixels) for pixels in ready])
        cached = timed(partial(filling.latent_source, cold, entries, encoder, Agreement(), Nobody()))
        print(f"bare encoder {count / bare[0]:.1f} pictures/s, caching {count / cached[0]:.1f}/s", flush=True)
        ratios.append(bare / cached)
    return np.array(ratios[1:])


def record_rates(folder: Path, records: int) -> tuple[float, float]:
    """Records a second that a cache takes, and that one thread reads and checks."""
    draw = np.random.default_rng(0)
    values = {name: draw.standard_normal((4, 64, 64), dtype=np.float32) for name in ("mean", "std")}
    keys = [hashlib.sha256(str(number).encode()).digest()[:16] for number in range(records)]
    packs = Packs(folder)
    started = time.perf_counter()
    for key in keys:
        packs.put(key, values)
    packs.finish_writing()
    written = time.perf_counter() - started
    packs.refresh()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for key in keys:
            packs.get(key)
        seconds.append(time.perf_counter() - started)
    return records / written, records / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="pictures")
    parser.add_argument("--size", type=int, default=512, help="their shorter side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=4000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        written, read = record_rates(Path(name) / "records", arguments.records)
        print(f"records of 131 kB: {written:,.0f}/s written and flushed, {read:,.0f}/s read and checked", flush=True)
        ratios = encoding_ratios(Path(name), arguments.count, arguments.size, arguments.rounds)
    wall, processor = np.median(ratios, axis=0)
    listed = ", ".join(f"{ratio:.3f}" for ratio in ratios[:, 0])
    print(f"speed of the bare encoder reached: {wall:.3f} (rounds: {listed}); by processor time {processor:.3f}")


if __name__ == "__main__":
    main()
