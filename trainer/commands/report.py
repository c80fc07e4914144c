"""python -m trainer report: a run as one HTML file, or its curves as CSV. No torch here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer import files
from trainer.judging import curves, report
from trainer.refusal import Refused
from trainer.runs.run_folder import RunFolder, read_run

DONE, REFUSED = 0, 3


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--csv", action="store_true", help="write every step's numbers as CSV instead")
    parser.add_argument("--to", type=Path, help="the file to write (report.html or steps.csv in the run's folder)")


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run the command; returns the exit code: 0 done, 3 refused."""
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    folder = RunFolder(arguments.run)
    try:
        if read_run(folder) is None:
            raise Refused(f"{arguments.run} is no run: it has no run.json")
        text = curves.as_csv(curves.read(folder)) if arguments.csv else report.write(folder)
        target = arguments.to or folder.path / ("steps.csv" if arguments.csv else "report.html")
        files.write_text(target, text)
    except (Refused, OSError) as error:
        print(f"Refused: {error}", file=sys.stderr)
        return REFUSED
    print(target)
    return DONE
