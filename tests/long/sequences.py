"""python -m tests.long.sequences --count 2000 [--steps 25] [--real 20] [--seed 0]: as test_sequences.py, with more of
them; and restarts of the real training at random steps, which have to end bit-equal to one restart."""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar
from unittest import mock

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.checkpoints.test_sequences import Sequences
from tests.support import tiny
from tests.support.exactness import RATE_DECISIONS, check_restarts


class Counted(Sequences):
    """Counts what the sequences amounted to."""

    sequences = 0
    counts: ClassVar[Counter[str]] = Counter()

    def teardown(self) -> None:
        super().teardown()
        type(self).sequences += 1
        self.counts.update(self.done)


def on_paper(count: int, steps: int, number: int) -> None:
    started = time.monotonic()
    # Nothing here loses its power, so nothing waits for the disk.
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(os, "fsync"):
        Counted.folder = Path(folder)
        wanted = settings(
            max_examples=count,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(seed(number)(Counted), settings=wanted)
    listed = ", ".join(f"{count} {what}" for what, count in sorted(Counted.counts.items()))
    seconds = time.monotonic() - started
    print(f"{Counted.sequences} sequences ({listed}): what has to be true was, always. {seconds:.0f} s", flush=True)


def for_real(count: int, number: int) -> None:
    started, restarts = time.monotonic(), 0
    here = Path(tempfile.mkdtemp())
    model = tiny.make_model(here / "model")
    images = tiny.make_images(here / "images", 7, 2, ((64, 64), (96, 48), (48, 96), (80, 64)))
    draw = random.Random(number)
    for sequence in range(count):
        name = draw.choice(list(RATE_DECISIONS))
        at = sorted(draw.sample(range(1, 8), draw.randint(2, 4)))
        check_restarts(model, images, here / str(sequence), RATE_DECISIONS[name], at)
        restarts += len(at)
        shutil.rmtree(here / str(sequence))  # kept where something failed
    seconds = time.monotonic() - started
    print(f"{count} real runs restarted {restarts} times: each bit-equal to one restart. {seconds:.0f} s")
    shutil.rmtree(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="sequences on paper")
    parser.add_argument("--steps", type=int, default=25, help="the longest sequence")
    parser.add_argument("--real", type=int, default=20, help="runs of the real training")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    on_paper(given.count, given.steps, given.seed)
    for_real(given.real, given.seed)


if __name__ == "__main__":
    main()
