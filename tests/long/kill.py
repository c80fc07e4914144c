"""python -m tests.long.kill --count 300 [--seed 0]: as test_kill.py, with more kills."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests.support import kills, tiny
from tests.support.forked_trainer import Server
from tests.support.kills import KINDS, Tally, train_straight, train_through_kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="kills, shared out over the kinds of runs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    here = Path(tempfile.mkdtemp())
    with Server() as trainers:
        model = tiny.make_model(here / "model")
        images = tiny.make_images(here / "images", 7, 2, ((64, 64), (96, 48), (48, 96), (80, 64)))
        for number, (kind, options) in enumerate(KINDS.items()):
            count = (given.count + number) // len(KINDS)
            straight = train_straight(trainers, model, images, here / f"straight{number}", **options)
            draw, tally = random.Random(f"{given.seed} {kind}"), Tally()
            while tally.kills < count:
                output = here / "killed"
                wanted = min(kills.MOST_KILLS_OF_A_RUN, count - tally.kills)
                train_through_kills(trainers, straight, output, draw, wanted, tally)
                shutil.rmtree(output)
                print(f"\r{kind}: {tally}", end="", flush=True)
            print(f"\r{kind}: {tally}: every run ended bit-equal")
    print(f"{time.monotonic() - started:.0f} s")
    shutil.rmtree(here)  # kept where something failed


if __name__ == "__main__":
    main()
