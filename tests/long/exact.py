"""Runs resumed after every one of their steps, over combinations that meet every pair of options' values.

    python -m tests.long.exact --combinations 40 [--first 0] [--steps 8] [--seed 0]

As test_exact_resume.py, with more combinations: losses, learning rates, gradient norms, images, captions and timesteps
of every step, and in the end weights, optimizer, moving average and model file, at zero tolerance.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import shutil
import tempfile
import time
from pathlib import Path

from tests.support import exactness, tiny
from tests.support.exactness import all_pairs, check_every_resume, options_of, pairs_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--combinations", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="leave out the combinations before this one")
    parser.add_argument("--steps", type=int, default=8, help="steps of each run")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    started = time.monotonic()
    here = Path(tempfile.mkdtemp())
    model = tiny.make_model(here / "model")
    images = tiny.make_images(here / "images", 7, 2, ((64, 64), (96, 48), (48, 96), (80, 64)))
    met, resumes = set(), 0
    chosen = list(exactness.combinations(given.first + given.combinations, given.seed))
    for number, combination in itertools.islice(enumerate(chosen, start=1), given.first, None):
        what = ", ".join(f"{name}: {value}" for name, value in combination.items() if options_of({name: value}))
        print(f"{number}. {what or 'the defaults'}", flush=True)
        resumes += check_every_resume(model, images, here / str(number), options_of(combination), given.steps)
        met |= pairs_of(combination)
        shutil.rmtree(here / str(number))  # kept where something failed
    pairs = all_pairs()
    print(
        f"{given.combinations} combinations, {len(met & pairs)} of {len(pairs)} pairs of values; resumed after every "
        f"step, {resumes} resumes: every one bit-equal. {time.monotonic() - started:.0f} s"
    )
    shutil.rmtree(here)


if __name__ == "__main__":
    main()
