"""python -m tests.long.mirror --count 100 [--seed 0]: runs that lose their machines and the way to their mirror."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests.support import kills, tiny
from tests.support.forked_trainer import Server
from tests.support.kills import train_straight
from tests.support.mirror_kills import LONG_ENOUGH, Losses, storage, train_through_losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="machines to lose")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    here = Path(tempfile.mkdtemp())
    losses, draw = Losses(), random.Random(given.seed)
    with storage() as connection, Server() as trainers:
        model = tiny.make_model(here / "model")
        images = tiny.make_images(here / "images", 7, 2, ((64, 64), (96, 48), (48, 96), (80, 64)))
        straight = train_straight(trainers, model, images, here / "straight", **LONG_ENOUGH)
        while losses.machines < given.count:
            most = min(kills.MOST_KILLS_OF_A_RUN, given.count - losses.machines)
            train_through_losses(trainers, straight, here, connection, draw, most, losses)
            print(f"\r{losses}", end="", flush=True)
    print(f"\r{losses}: every run ended bit-equal; {time.monotonic() - started:.0f} s")
    shutil.rmtree(here)  # kept where something failed


if __name__ == "__main__":
    main()
