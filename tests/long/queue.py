"""python -m tests.long.queue --count 50 [--seed 0]: as test_queue_kills.py, with more kills and all five trainings."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests.support import tiny
from tests.support.browser import serving
from tests.support.queue_kills import KINDS, PageHost, Tally, train_straight, work_through_kills

MOST_KILLS_OF_A_QUEUE = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=12.0, help="seconds between two kills at most")
    given = parser.parse_args()
    started = time.monotonic()
    here = Path(tempfile.mkdtemp())
    model = tiny.make_model(here / "model")
    images = tiny.make_images(here / "images", 7, 2, ((64, 64), (96, 48), (48, 96), (80, 64)))
    straight = train_straight(model, images, here / "straight", list(KINDS))
    draw, tally = random.Random(given.seed), Tally()
    (here / "home").mkdir()
    with serving(here / "home") as served:
        host = PageHost(served)
        while tally.count < given.count:
            output = here / f"killed{tally.queues}"
            wanted = min(MOST_KILLS_OF_A_QUEUE, given.count - tally.count)
            work_through_kills(host, straight, output, draw, wanted, tally, given.pause)
            print(f"{tally}; every training finished once, bit-equal ({time.monotonic() - started:.0f} s)", flush=True)
    shutil.rmtree(here)  # kept where something failed


if __name__ == "__main__":
    main()
