"""python -m tests.long.corruption --count 3000 [--seed 0]: as test_corruption.py, with more damages."""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests.support import damages, tiny
from tests.support.damages import DAMAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="damages, shared out over every file and kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    here = Path(tempfile.mkdtemp())
    images = tiny.make_images(here / "images", 7, 2, ((64, 64), (96, 48), (48, 96), (80, 64)))
    sound = damages.train_sound(tiny.make_model(here / "model"), images, here)
    refused: collections.Counter[str] = collections.Counter()
    for number in range(given.count):
        file, kind = DAMAGES[number % len(DAMAGES)]
        config = sound.copy(here / "damaged")
        damages.damage(sound, config, file, kind, random.Random(f"{given.seed} {number}"))
        damages.check_refused(config, file)
        refused[kind] += 1
        shutil.rmtree(config.output_dir)
    for kind, count in refused.items():
        print(f"{kind}: {count} of {count} refused, the checkpoint before it taken")
    print(f"{given.count} damages, {time.monotonic() - started:.0f} s")
    shutil.rmtree(here)  # kept where something failed


if __name__ == "__main__":
    main()
