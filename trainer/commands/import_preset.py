"""python -m trainer import: turns presets of kohya_ss and sd-scripts into ours. No torch here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import files
from trainer.options.kohya import translation
from trainer.options.kohya.translation import Imported
from trainer.options.problems import ConfigError, Problem

DONE, FAILED, REFUSED = 0, 1, 3
LARGEST = 256 << 10  # bytes; a preset with every key has about 8,000


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("file", help="the preset")
    parser.add_argument("--output", metavar="PRESET", help="where to write it (TOML); without it, nothing is written")
    parser.add_argument(
        "--leave-out", metavar="KEYS", default="", help="keys to ignore although they are refused, comma-separated"
    )
    parser.add_argument("--json", action="store_true", help="print every key's fate as JSON, for programs")


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Print what becomes of every key, and write the preset; returns the exit code: 0 done, 1 failed, 3 refused."""
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    leave_out = [key.strip() for key in arguments.leave_out.split(",") if key.strip()]
    try:
        imported = read(Path(arguments.file), leave_out)
        text = translation.preset_text(imported, Path(arguments.file).name) if not imported.refusals else ""
    except ConfigError as error:
        if arguments.json:
            print(json.dumps({"version": 1, "refusals": [str(problem) for problem in error.problems]}, indent=1))
        else:
            print("\n".join(f"Refused: {problem}" for problem in error.problems))
        return REFUSED
    print(json.dumps(as_json(imported), indent=1) if arguments.json else "\n".join(imported.lines()))
    if imported.refusals:
        return REFUSED
    if arguments.output:
        return write(Path(arguments.output), text, quiet=arguments.json)
    return DONE


def read(path: Path, leave_out: list[str]) -> Imported:
    """Raises ConfigError when the file cannot be read."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ConfigError([Problem("", f"{path} is no preset: it has more than {LARGEST:,} bytes")])
        text = files.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("", f"{path} cannot be read: {error}")]) from error
    return translation.read(text, path.name, leave_out)


def write(target: Path, text: str, *, quiet: bool) -> int:
    """Write the preset where nothing is yet."""
    if target.exists():
        print(f"Refused: {target} is there already; choose another name, or move it away")
        return REFUSED
    try:
        files.write_text(target, text)
    except OSError as error:
        print(f"Failed: {target} cannot be written: {error}")
        return FAILED
    if not quiet:
        print(f"Written: {target}")
    return DONE


def as_json(imported: Imported) -> dict[str, Any]:
    """The same as `lines`, for programs."""
    return {
        "version": 1,
        "source": imported.form,
        "trainer": imported.trainer,
        "family": imported.family,
        "refusals": list(imported.refusals),
        "keys": [
            {"key": fate.key, "value": fate.value, "outcome": fate.outcome, "message": fate.message}
            for fate in imported.fates
        ],
        "remarks": list(imported.remarks),
        "options": {} if imported.refusals else imported.checked.values,
    }
