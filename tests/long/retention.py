"""python -m tests.long.retention --count 2000 [--steps 15] [--seed 0]: as test_retention.py, with more sequences."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.checkpoints.test_retention import Checkpoints


class Counted(Checkpoints):
    """Counts what the sequences amounted to."""

    sequences = 0
    counts: ClassVar[Counter[str]] = Counter()

    def teardown(self) -> None:
        super().teardown()
        type(self).sequences += 1
        self.counts.update(self.done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="sequences of saves, pins, deaths, damage, resumes")
    parser.add_argument("--steps", type=int, default=15, help="the longest sequence")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints.folder = Path(folder)
        wanted = settings(
            max_examples=given.count,
            stateful_step_count=given.steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(seed(given.seed)(Counted), settings=wanted)
    listed = ", ".join(f"{count} {what}" for what, count in sorted(Counted.counts.items()))
    seconds = time.monotonic() - started
    print(f"{Counted.sequences} sequences ({listed}): what has to stay stayed, always. {seconds:.0f} s")


if __name__ == "__main__":
    main()
