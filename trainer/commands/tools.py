"""python -m trainer merge | extract | resize | convert | metadata: the tools for model files, from their one table."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from trainer import quantities
from trainer.refusal import Refused
from trainer.tools import TOOLS, Field, Result

DONE, FAILED, REFUSED = 0, 1, 3
SECONDS = 0.2  # between two lines of progress


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What a tool takes."""
    for field in TOOLS[command].fields:
        add(parser, field)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs; progress on stderr")


def add(parser: argparse.ArgumentParser, field: Field) -> None:
    """An argument of a tool."""
    help_text = field.help if field.default in (None, "", False) else f"{field.help} ({field.default})"
    positional = field.required and field.kind in ("file", "files")
    name = field.name if positional else f"--{field.name}"
    given: dict[str, Any] = {"help": help_text} if positional else {"help": help_text, "default": field.default}
    if field.kind == "flag":
        parser.add_argument(name, action="store_true", **given)
        return
    if field.required and not positional:
        given["required"] = True
    if field.kind == "files":
        given["nargs"] = "+"
    elif field.kind == "texts":
        given |= {"action": "append", "metavar": "TEXT"}
    elif field.kind == "choice":
        given["choices"] = field.choices
    else:
        readers = {"whole": _whole, "number": _number, "numbers": _numbers}
        reader = readers.get(field.kind)
        given["type"] = (lambda text: reader(field, text)) if reader else str
    parser.add_argument(name, **given)


def _whole(field: Field, text: str) -> int:
    if not text.strip().removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(_in_bounds(field, int(text)))


def _number(field: Field, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return _in_bounds(field, value)


def _numbers(field: Field, text: str) -> list[float]:
    return [_number(field, part) for part in text.split(",") if part.strip()]


def _in_bounds(field: Field, value: float) -> float:
    if field.low is not None and value < field.low:
        raise argparse.ArgumentTypeError(f"{value:g} is below {field.low:g}")
    if field.high is not None and value > field.high:
        raise argparse.ArgumentTypeError(f"{value:g} is above {field.high:g}")
    return value


def run(known: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run a tool; returns the exit code: 0 done, 1 failed or something is damaged, 3 refused."""
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    tool = TOOLS[known.command]
    arguments = {field.name: getattr(known, field.name, field.default) for field in tool.fields}
    output = Told(as_json=known.json)
    try:
        result = tool.run(arguments, output)
    except Refused as refusal:
        if known.json:
            print(json.dumps({"version": 1, "refusals": str(refusal).splitlines()}, indent=1))
        else:
            print("\n".join(f"Refused: {line}" for line in str(refusal).splitlines()), file=sys.stderr)
        return REFUSED
    except (OSError, MemoryError) as error:
        if known.json:
            print(json.dumps({"version": 1, "error": str(error)}))
        else:
            print(f"Failed: {error}", file=sys.stderr)
        return FAILED
    print(json.dumps({"version": 1, **result}, indent=1) if known.json else "\n".join(lines(result)))
    return FAILED if result.get("problems") else DONE


def lines(result: Result) -> list[str]:
    """A result for people."""
    shown = []
    for name, value in result.items():
        if name == "problems":
            shown += [f"PROBLEM: {problem}" for problem in value] or ["sound"]
        elif isinstance(value, dict):
            shown += [f"{name}:", *(f"  {key}: {_text(key, inner)}" for key, inner in value.items())]
        elif value is not None:
            shown.append(f"{name}: {_text(name, value)}")
    return shown


def _text(name: str, value: object) -> str:
    if name == "bytes" and isinstance(value, int):
        return quantities.size(value)
    if name in ("retained", "share") and isinstance(value, float):
        return f"{value:.2%}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Told:
    """Tells on stderr how far a tool is: people by a line that is written over, programs by lines of JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._due = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now < self._due:
            return
        self._due = now + SECONDS
        if self._as_json:
            print(json.dumps({"done": done, "total": total}), file=sys.stderr, flush=True)
        elif sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{done / max(1, total):4.0%}", end=end, file=sys.stderr, flush=True)
