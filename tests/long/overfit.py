"""What all weights learn in 200 steps is found again by the official pipeline, of every family of rectified flow.

    python -m tests.long.overfit [--steps 200] [VARIANT ...]

The suite has the same with 35 steps. A minute or two in all on one core; exits with 1 where the pixels of what is drawn
are not at least as much like the latent's as they have to be.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.models.test_every_family import overfitted
from tests.support import tiny_families
from trainer.models import families
from trainer.models.families.facts import FLOW

ALIKE = 0.95  # correlation

VARIANTS = [name for name in tiny_families.FAMILIES if FLOW in families.TABLE[name.split()[0]].traits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    failed = []
    for name in arguments.variants or VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            before, after = overfitted(tiny_families.FAMILIES[name].make(Path(folder) / "model"), arguments.steps)
        print(f"{name:12}  {before:6.3f} -> {after:.3f}", flush=True)
        if after < ALIKE:
            failed.append(name)
    raise SystemExit(f"below {ALIKE}: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
