"""python -m trainer sample: sample images of checkpoints and model files whose training is over."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.sources import read_toml
from trainer.refusal import Refused

DONE, REFUSED = 0, 3
HELP = """
The prompts are those that the run was trained with, or --prompts. Pictures of a run's checkpoints and model files go
among its samples, where the browser shows them; the others into a folder beside. What is there already is not made
again.
"""


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog, parser.formatter_class = HELP, argparse.RawDescriptionHelpFormatter
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a checkpoint, a run or a model file")
    parser.add_argument("--config", help="a preset, for model files without a run beside them")
    parser.add_argument("--prompts", default="", help="prompts, one a line, or a file of them, as in sample_prompts")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each picture")


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run the command; returns the exit code: 0 done, 3 refused."""
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")

    def tell(words: str, **fields: Any) -> None:
        print(json.dumps(fields) if arguments.json else words, flush=True)

    try:
        config = resolve(read_toml(arguments.config))[0] if arguments.config else None
        return _sample(arguments, config, tell)
    except Refused as refusal:
        tell("\n".join(f"Refused: {line}" for line in str(refusal).splitlines()), refusal=str(refusal))
        return REFUSED


def _sample(arguments: argparse.Namespace, config: Config | None, tell: Any) -> int:
    import torch  # takes seconds; a wrong argument is told at once

    from trainer.judging import afterwards, subjects
    from trainer.judging.subjects import Painter

    chosen = subjects.find(arguments.paths, config)
    wanted = [item for subject in chosen for item in afterwards.wanted(subject, arguments.prompts, arguments.output)]
    missing = [item for item in wanted if not item.path.exists()]
    there = len(wanted) - len(missing)
    if there:
        tell(f"{there} of {len(wanted)} pictures are there already", done=there, total=len(wanted), path="")
    painter = Painter(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        for number, item in enumerate(afterwards.make(painter, missing), start=there + 1):
            tell(f"{number} of {len(wanted)}: {item.path}", done=number, total=len(wanted), path=str(item.path))
    except OSError as error:
        raise Refused(f"the pictures cannot be written: {error}") from error
    tell(f"{len(missing)} pictures made", pictures=[str(item.path) for item in wanted])
    return DONE
