"""python -m trainer queue add | list | run | ...: trainings in a row, one after another or one a GPU. No torch here."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.checkpoints import preflight, remaining
from trainer.commands import queue_runner
from trainer.commands.queue_runner import QueueRunner
from trainer.options.checks import resolve
from trainer.options.sources import read_arguments, read_toml
from trainer.quantities import brief_duration
from trainer.refusal import Refused
from trainer.runs import launch, queue
from trainer.runs.console import logging_to_console
from trainer.runs.queue import Entry
from trainer.runs.signals import StopSignals

DONE, FAILED, REFUSED, STOPPED = 0, 1, 3, 4
HELP = """
Each entry is a training with its complete options, as they were when it was added. Entries are started in their order
as soon as their devices are free, by a process (queue run, or the page) that leaves when nothing is left to do. What
fails does not stop the rest. A training whose process was killed, or that a shutdown stopped, goes on from its latest
checkpoint; one that was stopped on request, refused or failed waits for `again`.
"""
ACTIONS = {
    "add": "put a training at the end of the queue (--option value as in train)",
    "list": "say what is in the queue, how it stands and when it is expected to end",
    "run": "start what is in the queue, in this process, until nothing is left to do",
    "remove": "take entries out of the queue; their runs stay as they are",
    "move": "give an entry that waits another place",
    "edit": "change options of an entry that does not run (--option value)",
    "pause": "start nothing more; what runs goes on running",
    "resume": "go on after a pause",
    "now": "put an entry first, and start it even while the queue is paused",
    "again": "let an entry that was stopped, refused or failed wait again",
    "stop": "ask a running entry to save and stop",
}


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.epilog, parser.formatter_class = HELP, argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True)
    made = {
        name: actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in ACTIONS.items()
    }
    for action in made.values():
        action.add_argument("--queue", type=Path, help="the queue's folder (~/.local/state/rekindle/queue)")
        action.add_argument("--json", action="store_true", help="print JSON, for programs")
    made["add"].add_argument("--config", required=True, help="a preset (TOML)")
    made["add"].add_argument("--first", action="store_true", help="before all others that wait")
    for name in ("add", "edit"):
        made[name].add_argument("--gpus", type=_count, help="how many GPUs it takes (1)")
    made["add"].add_argument("--devices", type=_names, default=[], help="the GPUs it is to have, such as 0 or 0,2")
    for name in ("move", "edit", "now", "again", "stop"):
        made[name].add_argument("number", type=int, help="the entry's number in the list")
    made["move"].add_argument("place", type=_count, help="1: the next to start")
    made["remove"].add_argument("number", type=int, nargs="*", help="entries' numbers in the list")
    made["remove"].add_argument("--ended", action="store_true", help="every entry that has ended")
    made["run"].add_argument("--devices", type=_names, help="the GPUs that may be used (all, or CUDA_VISIBLE_DEVICES)")
    made["run"].add_argument("--background", action="store_true", help="as a process of its own; return at once")
    made["run"].add_argument(
        "--most_deaths", type=_count, default=queue_runner.MOST_DEATHS,
        help="how often in a row a training is started again whose process dies without saving (3)",
    )  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Do it; returns the exit code: 0 done, 1 a training of `run` failed, 3 refused, 4 `run` was asked to leave."""
    folder = arguments.queue or queue.usual_folder()
    if rest and arguments.action not in ("add", "edit"):
        print(f"Refused: unknown: {' '.join(rest)}", file=sys.stderr)
        return REFUSED
    try:
        if arguments.action == "run":
            return _run(folder, arguments)
        if arguments.action == "list":
            return _list(folder, as_json=arguments.json)
        changed = CHANGES[arguments.action](folder, arguments, rest)
    except Refused as refusal:
        lines = str(refusal).splitlines()
        if arguments.json:
            print(json.dumps({"version": 1, "refusals": lines}, indent=1))
        else:
            print("\n".join(f"Refused: {line}" for line in lines), file=sys.stderr)
        return REFUSED
    if arguments.json:
        print(json.dumps({"version": 1, "entries": [_row(entry, None) for entry in changed]}, indent=1))
    else:
        for entry in changed:
            print(f"{entry.number} {entry.name}: {'removed' if arguments.action == 'remove' else entry.state}")
        if arguments.action in ("add", "again", "now", "resume") and queue_runner.needs_runner(folder):
            print("Nobody works on the queue at the moment: python -m trainer queue run, or open the page.")
    return DONE


# --- changes -------------------------------------------------------------------------------------------------------


def _add(folder: Path, arguments: argparse.Namespace, rest: Sequence[str]) -> list[Entry]:
    config, notices = preflight.read_options(arguments.config, rest)
    for notice in notices:
        print(notice, file=sys.stderr)
    gpus = arguments.gpus or 1
    return [queue.add(folder, config, Path.cwd(), gpus=gpus, devices=arguments.devices, first=arguments.first)]


def _edit(folder: Path, arguments: argparse.Namespace, rest: Sequence[str]) -> list[Entry]:
    queue.read(folder).entry(arguments.number)
    config = resolve(read_toml(queue.config_file(folder, arguments.number)), read_arguments(rest))[0]
    return [queue.edit(folder, arguments.number, config, gpus=arguments.gpus)]


def _remove(folder: Path, arguments: argparse.Namespace, rest: Sequence[str]) -> list[Entry]:
    if not arguments.number and not arguments.ended:
        raise queue.QueueRefused("name the entries to remove by their numbers, or give --ended")
    removed = [queue.remove(folder, number) for number in arguments.number]
    return removed + (queue.remove_ended(folder) if arguments.ended else [])


def _move(folder: Path, arguments: argparse.Namespace, rest: Sequence[str]) -> list[Entry]:
    queue.move(folder, arguments.number, arguments.place - 1)
    return [queue.read(folder).entry(arguments.number)]


def _stop(folder: Path, arguments: argparse.Namespace, rest: Sequence[str]) -> list[Entry]:
    entry = queue.read(folder).entry(arguments.number)
    if entry.state != "running":
        raise queue.QueueRefused(f"entry {entry.number} ({entry.name}) is not running: it is {entry.state}")
    queue.note_stop(folder, entry.folder)
    launch.ask_stop(entry.folder)
    return [entry]


def _pause(folder: Path, arguments: argparse.Namespace, rest: Sequence[str]) -> list[Entry]:
    queue.pause(folder, arguments.action == "pause")
    return []


CHANGES: dict[str, Callable[[Path, argparse.Namespace, Sequence[str]], list[Entry]]] = {
    "add": _add,
    "edit": _edit,
    "remove": _remove,
    "move": _move,
    "stop": _stop,
    "pause": _pause,
    "resume": _pause,
    "now": lambda folder, known, rest: [queue.again(folder, known.number, at_once=True)],
    "again": lambda folder, known, rest: [queue.again(folder, known.number)],
}


# --- run and list --------------------------------------------------------------------------------------------------


def _run(folder: Path, arguments: argparse.Namespace) -> int:
    if arguments.background:
        try:
            queue_runner.start_in_background(folder)
        except OSError as error:
            raise queue.QueueRefused(f"the queue {folder} cannot be worked on: {error}") from error
        return DONE
    with logging_to_console(), StopSignals() as signals:
        devices = arguments.devices or queue_runner.devices_here()
        worker = QueueRunner(folder, devices, signals, arguments.most_deaths)
        worker.run()
        if signals.requested:
            logging.getLogger("trainer").info("Asked to leave; trainings that run go on, and nothing more is started.")
            return STOPPED
    return FAILED if any(entry.state in ("failed", "refused") for entry in worker.ended) else DONE


def _list(folder: Path, *, as_json: bool) -> int:
    waiting = queue.read(folder)
    expected = remaining.ends(folder, waiting, queue_runner.devices_here(), time.time())
    if as_json:
        rows = [_row(entry, expected.get(entry.number)) for entry in waiting.entries]
        print(json.dumps({"version": 1, "paused": waiting.paused, "entries": rows}, indent=1))
        return DONE
    if not waiting.entries:
        print("The queue is empty.")
    for entry in waiting.entries:
        print(_line(entry, expected.get(entry.number)))
    if waiting.paused:
        print("Paused: nothing more is started until python -m trainer queue resume.")
    elif queue_runner.needs_runner(folder):
        print("Nobody works on the queue at the moment: python -m trainer queue run, or open the page.")
    return DONE


def _row(entry: Entry, end: float | None) -> dict[str, Any]:
    row = asdict(entry)
    kept = ("number", "run", "state", "gpus", "devices", "on", "added", "started", "ended", "starts", "said")
    return {name: row[name] for name in kept} | {"name": entry.name, "expected_end": end}


def _line(entry: Entry, end: float | None) -> str:
    on = f" on {','.join(entry.on)}" if entry.state == "running" and any(entry.on) else ""
    when = f"  ends in about {brief_duration(max(0.0, end - time.time()))}" if end is not None else ""
    several = f"  {entry.gpus} GPUs" if entry.gpus > 1 else ""
    said = f"  {entry.said}" if entry.said else ""
    return f"{entry.number:>4}  {entry.state + on:<9}  {entry.name}{several}{when}{said}"
