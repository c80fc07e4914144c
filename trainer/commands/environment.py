"""python -m trainer environment: what environment.json of a checkpoint that is saved here would say."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from trainer.checkpoints import preflight
from trainer.refusal import Refused

DONE, REFUSED = 0, 3


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--config", required=True, help="a preset")


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Print it as JSON; returns the exit code: 0 done, 3 refused."""
    try:
        config, _ = preflight.read_options(arguments.config, rest, to_train=False)
        from trainer.training import beginning, environment  # torch, which takes seconds

        accelerator = beginning.make_accelerator(config)
    except Refused as refusal:
        print(f"Refused: {refusal}", file=sys.stderr)
        return REFUSED
    print(json.dumps(environment.describe(config, accelerator.device, accelerator.num_processes), indent=1))
    return DONE
