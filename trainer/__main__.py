"""The command line: python -m trainer COMMAND; COMMANDS says which there are."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from trainer.runs.console import write_utf8
from trainer.tools import TOOLS

# Each command's module in trainer.commands, which is imported when the command is given, and what it does.
COMMANDS = {
    "train": ("train", "train a preset, or resume a run"),
    "queue": ("queue", "trainings in a row, one after another or one a GPU: add, list, run, remove ..."),
    "dataset": ("dataset", "report what the images of a preset are and what is wrong with them"),
    "drill": ("drill", "interrupt a few training steps on this machine and check that they resume bit-equal"),
    "environment": ("environment", "print what a result depends on besides options and images"),
    "verify": ("checkpoint", "check every byte of a checkpoint, of all those of a run, or of a model file"),
    "list": ("checkpoint", "list the checkpoints of a run"),
    "pin": ("checkpoint", "keep a checkpoint, however many newer ones there are"),
    "export": ("checkpoint", "write the model file of a checkpoint, in kohya's format"),
    "cache": ("cache", "list or prune caches of latents and text encoder outputs"),
    "evaluate": ("evaluate", "measure pictures of checkpoints or model files against the training's"),
    "sample": ("sample", "make sample images of checkpoints or model files after the training"),
    "report": ("report", "write a run as one HTML file that opens without a network, or as CSV"),
    **{name: ("tools", tool.help) for name, tool in TOOLS.items() if name != "verify"},
    "import": ("import_preset", "turn a preset of kohya_ss (JSON) or sd-scripts (TOML) into one of ours, key by key"),
}
INTERRUPTED = 130  # what a shell calls a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 finished, 1 failed, 3 refused, 4 stopped on request after saving."""
    write_utf8()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name, help=text) for name, (_, text) in COMMANDS.items()}
    chosen = arguments[0] if arguments else ""
    if chosen not in COMMANDS:
        parser.parse_args(arguments)  # says what there is
    module = importlib.import_module(f"trainer.commands.{COMMANDS[chosen][0]}")
    module.declare(chosen, parsers[chosen])
    given, rest = parser.parse_known_args(arguments)
    code: int = module.run(given, rest, parsers[chosen])
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
