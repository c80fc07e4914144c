"""python -m trainer dataset: what the images of a preset are, and what is wrong with their files. No torch here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoints import preflight
from trainer.data import dataset_report, portrait
from trainer.data.dataset_report import Report
from trainer.data.portrait import Shift
from trainer.refusal import Refused
from trainer.runs import kept_portraits
from trainer.runs.run_folder import RunFolder

DONE, REFUSED = 0, 3


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.usage = (
        "python -m trainer dataset --config FILE [--deep] [--against RUN] [--all] [--json] [--option value ...]"
    )
    parser.allow_abbrev = False
    parser.add_argument("--config", required=True, help="a preset")
    parser.add_argument("--deep", action="store_true", help="decode every picture: finds hidden damage and near copies")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RUN",
        help="also say how far the images have moved from those that a run was trained with",
    )
    parser.add_argument("--all", action="store_true", help="name every file, not the first ten of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Print the report; returns the exit code: 0 done, 3 refused."""
    try:
        config, _ = preflight.read_options(arguments.config, rest, to_train=False)
        made = dataset_report.make(config, deep=arguments.deep, progress=tell_progress)
        shifts = shifts_against(arguments.against, made) if arguments.against else None
    except Refused as refusal:
        if arguments.json:
            print(json.dumps({"version": 1, "refusal": str(refusal)}, indent=1))
        else:
            print("\n".join(f"Refused: {line}" for line in str(refusal).splitlines()))
        return REFUSED
    if arguments.json:
        more = {} if shifts is None else {"shifts": [shift.as_json() for shift in shifts]}
        print(json.dumps({**made.as_json(), **more}, indent=1))
    else:
        print("\n".join(made.lines(sys.maxsize if arguments.all else 10)))
        if shifts is not None:
            print("\n".join([f"Against the images of {arguments.against}:", *portrait.lines(shifts)]))
    return REFUSED if made.refusal else DONE


def shifts_against(folder: Path, made: Report) -> list[Shift]:
    """How far the images have moved from those that a run was trained with last. Raises Refused."""
    then = kept_portraits.newest(RunFolder(folder))
    if then is None:
        raise Refused(f"--against: {folder} keeps no portrait of its images; a run writes one (dataset_portrait)")
    now = portrait.portrait(made.found.entries, "", made.config.caption_separator)
    assert now is not None  # nobody ended it
    return portrait.compare(then, now)


def tell_progress(done: int, total: int) -> None:
    """How far a look at files is, for someone who waits at a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} files", end="\n" if done == total else "", file=sys.stderr, flush=True)
