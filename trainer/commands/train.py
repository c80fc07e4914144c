"""python -m trainer train: a training, from the first word to the exit code.

What takes seconds to import comes after everything that can be refused without it, and is told of.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.options.problems import ConfigError
from trainer.options.writing import reference
from trainer.refusal import Refused
from trainer.runs import on_finish
from trainer.runs.console import is_main_process, logging_to_console
from trainer.runs.failures import TrainingFailed, advice_for
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopRequested, StopSignals

FINISHED, FAILED, REFUSED, STOPPED = 0, 1, 3, 4
EXIT_CODES = {"finished": FINISHED, "cached": FINISHED, "stopped": STOPPED, "refused": REFUSED, "failed": FAILED}
logger = logging.getLogger("trainer")


@dataclass(frozen=True)
class TrainingEnd:
    """How a training ended. `ended`: a key of EXIT_CODES; `reasons`: why it was refused or failed, a line each."""

    ended: str
    reasons: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.ended]

    def as_json(self) -> str:
        """One line, for programs."""
        return json.dumps({"version": 1, **dataclasses.asdict(self), "exit_code": self.exit_code})


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.usage = "python -m trainer train --config FILE [--dry-run] [--json] [--option value ...]"
    parser.epilog = (
        "Options, and what a changed one means for a resume "
        "(locked: refused; trajectory: refused unless in resume_allow; free):\n" + reference()
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False
    parser.add_argument(
        "--config", required=True, help="a preset (TOML); every option can also be given as an argument"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="describe the training that would begin, and change nothing"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON for programs: what --dry-run finds, or, when a training ends, how it ended",
    )


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Train, or describe the training; returns the exit code."""
    if arguments.dry_run:
        return dry_run(arguments.config, rest, as_json=arguments.json)
    ending = train(arguments.config, rest)
    if arguments.json and is_main_process():
        print(ending.as_json(), flush=True)
    return ending.exit_code


def train(preset: str, rest: Sequence[str]) -> TrainingEnd:
    """Train what a preset and the command line describe; then do what is wanted when a session ends."""
    with logging_to_console() as console, StopSignals() as signals:
        try:
            with signals.at_once(STOPPED, "Stopped before the first step; there was nothing to save."):
                logger.info("Reading %s", preset)
                from trainer.checkpoints import preflight

                config, notices = preflight.read_options(preset, rest)
                for notice in notices:
                    logger.warning("%s", notice)
                if not config.resume_from_checkpoint:
                    preflight.require_fresh(config)
                logger.info("Loading PyTorch and diffusers, which takes some seconds")
                from trainer.models import base_model

                with base_model.read_ahead(config):
                    from trainer.training import loop

            try:
                ending = loop.train(config, signals, console)
            finally:
                on_finish.tell(RunFolder(config.run_dir))
        except Refused as refusal:
            reasons = tuple(str(refusal).splitlines())
            for line in reasons:
                logger.error("Refused: %s", line)
            return TrainingEnd("refused", reasons)
        except StopRequested:
            logger.info("Stopped before the first step; there was nothing to save.")
            return TrainingEnd("stopped")
        except Exception as error:  # noqa: BLE001 - the last resort, so that the way out is the last thing in the log
            tell_failure(error)
            return TrainingEnd("failed", (str(error) or type(error).__name__,))
        if ending == "stopped":
            logger.info("Stopped and saved. Continue with --resume_from_checkpoint latest.")
        elif ending == "cached":
            logger.info("The caches in %s are ready. Nothing was trained: cache_only.", config.cache_path)
        else:
            logger.info("Finished.")
        return TrainingEnd(ending)


def tell_failure(error: Exception) -> None:
    """Log an error that ended the training: its traceback for those who can read it, then what to do."""
    from trainer.data.pictures import PictureError

    if isinstance(error, TrainingFailed | PictureError):
        is_told = isinstance(error, TrainingFailed) and error.told
        logger.log(logging.INFO if is_told else logging.ERROR, "Failed: %s. %s", error, error.advice)
    else:
        logger.error("Failed: %s", error, exc_info=error)
        logger.error("%s", advice_for(error))


def dry_run(preset: str, rest: Sequence[str], *, as_json: bool) -> int:
    """Print what a training would be and every reason why it may not begin."""
    from trainer.checkpoints import preflight

    try:
        config, notices = preflight.read_options(preset, rest)
    except ConfigError as error:
        if as_json:
            print(json.dumps({"version": 1, "refusals": [str(problem) for problem in error.problems]}, indent=1))
        else:
            print("\n".join(f"Refused: {problem}" for problem in error.problems))
        return REFUSED
    from trainer import devices  # torch, which only the environment and the device need
    from trainer.training import beginning, environment

    refusals = []
    here = room = None
    try:
        accelerator = beginning.make_accelerator(config)
        here = environment.describe(config, accelerator.device, accelerator.num_processes)
        room = devices.memory_total(accelerator.device)
    except Refused as refusal:
        refusals.append(str(refusal))
    processes = here["processes"] if here else 1
    looked = preflight.examine(config, processes=processes, environment=here, gpu_memory=room)
    looked = dataclasses.replace(looked, refusals=(*refusals, *looked.refusals))
    if as_json:
        print(json.dumps({**looked.as_json(), "option_notices": notices}, indent=1))
    else:
        print("\n".join([*notices, *looked.lines()]))
    return REFUSED if looked.refusals else FINISHED
