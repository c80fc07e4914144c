"""The command line: python -m trainer train | queue | dataset | cache | verify | list | pin | export | drill | ..."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence

from trainer.checkpoints import preflight
from trainer.commands import cache, checkpoint, drill, queue
from trainer.data import dataset_report
from trainer.data.pictures import PictureError
from trainer.options.problems import ConfigError
from trainer.options.writing import reference
from trainer.refusal import Refused
from trainer.runs.console import logging_to_console
from trainer.runs.failures import TrainingFailed, advice_for
from trainer.runs.signals import StopRequested, StopSignals

FINISHED, FAILED, REFUSED, STOPPED = 0, 1, 3, 4
logger = logging.getLogger("trainer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 finished, 1 failed, 3 refused, 4 stopped on request after saving."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser(
        "train",
        help="train a preset, or resume a run",
        usage="python -m trainer train --config FILE [--dry-run [--json]] [--option value ...]",
        epilog="Options, and what a changed one means for a resume "
        "(locked: refused; trajectory: refused unless in resume_allow; free):\n" + reference(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    training.add_argument(
        "--config", required=True, help="a preset (TOML); every option can also be given as an argument"
    )
    training.add_argument(
        "--dry-run", action="store_true", help="describe the training that would begin, and change nothing"
    )
    training.add_argument("--json", action="store_true", help="with --dry-run: print JSON, for programs")
    looking = commands.add_parser(
        "dataset",
        help="report what the images of a preset are and what is wrong with them",
        usage="python -m trainer dataset --config FILE [--deep] [--all] [--json] [--option value ...]",
        allow_abbrev=False,
    )
    looking.add_argument("--config", required=True, help="a preset")
    looking.add_argument(
        "--deep", action="store_true", help="decode every picture: finds hidden damage and near copies"
    )
    looking.add_argument("--all", action="store_true", help="name every file, not the first ten of each kind")
    looking.add_argument("--json", action="store_true", help="print JSON, for programs")
    drilling = commands.add_parser(
        "drill", help="interrupt a few training steps on this machine and check that they resume bit-equal"
    )
    drilling.add_argument("--config", required=True, help="a preset")
    drilling.add_argument("--steps", type=int, default=8, help="steps of the rehearsal (4 or more)")
    drilling.add_argument("--json", action="store_true", help="print the verdict and its figures as JSON, for programs")
    telling = commands.add_parser("environment", help="print what a result depends on besides options and images")
    telling.add_argument("--config", required=True, help="a preset")
    checkpoint.add_to(commands)
    cache.add_to(commands)
    queue.add_to(commands)
    known, rest = parser.parse_known_args(arguments)
    if known.command == "train":
        if known.json and not known.dry_run:
            training.error("--json goes with --dry-run; a training writes its events to the run folder")
        if known.dry_run:
            return dry_run(known.config, rest, as_json=known.json)
        return train(known.config, rest)
    if known.command == "dataset":
        return look_at_dataset(known.config, rest, deep=known.deep, every=known.all, as_json=known.json)
    if known.command == "drill":
        return drill.run(known.config, rest, steps=known.steps, as_json=known.json)
    if known.command == "environment":
        return tell_environment(known.config, rest)
    if known.command == "queue":
        return queue.run(known, rest)
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    if known.command == "cache":
        return cache.run(known)
    return checkpoint.run(known)


# --- train ---------------------------------------------------------------------------------------------------------


def train(preset: str, rest: Sequence[str]) -> int:
    """Train what a preset and the command line describe."""
    with logging_to_console() as console, StopSignals() as signals:
        try:
            config, notices = preflight.read_options(preset, rest)
            for notice in notices:
                logger.warning("%s", notice)
            from trainer.training import loop  # torch and diffusers take seconds; a wrong option is told at once

            ending = loop.train(config, signals, console)
        except Refused as refusal:
            for line in str(refusal).splitlines():
                logger.error("Refused: %s", line)
            return REFUSED
        except StopRequested:
            logger.info("Stopped before the first step; there was nothing to save.")
            return STOPPED
        except Exception as error:  # noqa: BLE001 - the last resort, so that the way out is the last thing in the log
            return tell_failure(error)
        if ending == "stopped":
            logger.info("Stopped and saved. Continue with --resume_from_checkpoint latest.")
            return STOPPED
        if ending == "cached":
            logger.info("The caches in %s are ready. Nothing was trained: cache_only.", config.cache_path)
            return FINISHED
        logger.info("Finished.")
        return FINISHED


def dry_run(preset: str, rest: Sequence[str], *, as_json: bool) -> int:
    """Print what a training would be and every reason why it may not begin."""
    try:
        config, notices = preflight.read_options(preset, rest)
    except ConfigError as error:
        if as_json:
            print(json.dumps({"version": 1, "refusals": [str(problem) for problem in error.problems]}, indent=1))
        else:
            print("\n".join(f"Refused: {problem}" for problem in error.problems))
        return REFUSED
    from trainer.training import beginning, environment  # torch, which only the comparison of the environment needs

    refusals = []
    here = None
    try:
        accelerator = beginning.make_accelerator(config)
        here = environment.describe(config, accelerator.device, accelerator.num_processes)
    except Refused as refusal:
        refusals.append(str(refusal))
    looked = preflight.look(config, processes=here["processes"] if here else 1, environment=here)
    looked = dataclasses.replace(looked, refusals=(*refusals, *looked.refusals))
    if as_json:
        print(json.dumps({**looked.as_json(), "option_notices": notices}, indent=1))
    else:
        print("\n".join([*notices, *looked.lines()]))
    return REFUSED if looked.refusals else FINISHED


def tell_progress(done: int, total: int) -> None:
    """How far a look at files is, for someone who waits at a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} files", end="\n" if done == total else "", file=sys.stderr, flush=True)


def look_at_dataset(preset: str, rest: Sequence[str], *, deep: bool, every: bool, as_json: bool) -> int:
    """Print what the images are and what is wrong with their files."""
    try:
        config, _ = preflight.read_options(preset, rest, to_train=False)
        made = dataset_report.make(config, deep=deep, progress=tell_progress)
    except Refused as refusal:
        if as_json:
            print(json.dumps({"version": 1, "refusal": str(refusal)}, indent=1))
        else:
            print("\n".join(f"Refused: {line}" for line in str(refusal).splitlines()))
        return REFUSED
    if as_json:
        print(json.dumps(made.as_json(), indent=1))
    else:
        print("\n".join(made.lines(sys.maxsize if every else 10)))
    return REFUSED if made.refusal else FINISHED


def tell_environment(preset: str, rest: Sequence[str]) -> int:
    """Print what environment.json of a checkpoint saved here would say, as JSON."""
    try:
        config, _ = preflight.read_options(preset, rest, to_train=False)
        from trainer.training import beginning, environment  # torch, which takes seconds

        accelerator = beginning.make_accelerator(config)
    except Refused as refusal:
        print(f"Refused: {refusal}", file=sys.stderr)
        return REFUSED
    print(json.dumps(environment.describe(config, accelerator.device, accelerator.num_processes), indent=1))
    return FINISHED


def tell_failure(error: Exception) -> int:
    """Log an error that ended the training: its traceback for those who can read it, then what to do."""
    if isinstance(error, TrainingFailed | PictureError):
        told = isinstance(error, TrainingFailed) and error.told
        logger.log(logging.INFO if told else logging.ERROR, "Failed: %s. %s", error, error.advice)
    else:
        logger.error("Failed: %s", error, exc_info=error)
        logger.error("%s", advice_for(error))
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
