"""How long a dataset takes to be scanned, at first and again, and its fingerprint when nothing changed.

python -m tests.benchmarks.scan_time [--count 100000] [--folder FOLDER] [--keep]

The images are generated: JPEG, PNG and WebP of many sizes, each another file, each with a caption. The page cache is
warm, since they were just written; a disk that is slower than the digest of their bytes adds its own time.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from trainer.data import dataset
from trainer.options.config import Config

KINDS = (("jpg", "JPEG"), ("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))
ORIGINALS = 64  # of each kind; the others are these with a mark of their own behind the end of the picture
WORDS = ("1girl", "solo", "red hair", "outdoors", "smile", "castle", "night", "rain", "portrait", "blue eyes")


def generate(folder: Path, count: int) -> None:
    """Write the images that are not there yet, `count` in all, into ten kohya folders."""
    draw = np.random.default_rng(0)
    originals: list[tuple[str, bytes]] = []
    for extension, format_name in KINDS:
        for _ in range(ORIGINALS):
            width, height = (int(side) for side in draw.integers(320, 900, 2))
            coarse = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            path = folder / f"original.{extension}"
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, format_name)
            originals.append((extension, path.read_bytes()))
            path.unlink()
    for number in range(count):
        inner = folder / f"{1 + number % 10}_class {number % 10}"
        inner.mkdir(exist_ok=True)
        extension, data = originals[number % len(originals)]
        (inner / f"{number:07d}.{extension}").write_bytes(data + number.to_bytes(4, "big"))
        chosen = draw.permutation(len(WORDS))[:5]
        (inner / f"{number:07d}.txt").write_text(", ".join(WORDS[int(index)] for index in chosen))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def tell(what: str, times: list[tuple[float, float]]) -> None:
    wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{what}: {wall:.2f} s ({processor:.2f} s of processor time; median of {len(times)})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="images (100000)")
    parser.add_argument("--folder", type=Path, help="where the images are or will be (a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the images there, for the next time")
    known = parser.parse_args()
    root = known.folder or Path(tempfile.mkdtemp(prefix="scan-"))
    images = root / f"images-{known.count}"
    try:
        if not images.is_dir():
            images.mkdir(parents=True)
            generate(images, known.count)
        measure(images, root / "output")
    finally:
        shutil.rmtree(root / "output", ignore_errors=True)
        if not known.keep:
            shutil.rmtree(images, ignore_errors=True)


def peak_memory() -> int:
    """The most bytes of memory that this process ever had."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(images: Path, output: Path) -> None:
    shutil.rmtree(output, ignore_errors=True)
    config = Config(train_data_dir=str(images), output_dir=str(output), resolution="512")
    before = peak_memory()
    found: list[dataset.Scan] = []
    first = timed(lambda: found.append(dataset.scan(config)))
    count = len(found[0].entries)
    tell(f"first scan of {count:,} images", [first])
    peak = peak_memory()
    print(f"memory: {(peak - before) / count:.0f} bytes an image at the peak")
    tell("scan again, nothing changed", [timed(lambda: dataset.scan(config)) for _ in range(5)])
    tell("fingerprint of what was found", [timed(lambda: dataset.record(found[0], config)) for _ in range(5)])


if __name__ == "__main__":
    main()
