"""The tools for model files as processes of their own, which the page only watches: a closed page stops none of them.

In <state>/tools/, each tool's last use has
    <tool>.json   its process, and what it was given
    <tool>.log    what it prints: JSON lines of its progress, and at the end its result
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gui.places import Places
from gui.server import console_log, runner
from trainer import files
from trainer.runs import detached, run_folder
from trainer.tools import TOOLS, Field

LINES = 20  # of what else it printed, shown where it failed


@dataclass(frozen=True)
class Use:
    """How a tool's last use stands. `share`: of what is to be done, 0 to 1; `result`: once it has ended; `text`: what
    it printed besides."""

    alive: bool
    share: float
    result: Mapping[str, Any] | None
    text: str


def words(tool: str, values: Mapping[str, Any]) -> list[str]:
    """The command's arguments of the values that the page's fields have, those that are empty left out."""
    before: list[str] = []
    after: list[str] = []
    for field in TOOLS[tool].fields:
        value = values.get(field.name)
        texts = _texts(field, value)
        if field.kind == "flag":
            before += [f"--{field.name}"] if value is True else []
        elif field.required and field.kind in ("file", "files"):
            after += [f"./{text}" if text.startswith("-") else text for text in texts]
        else:
            before += [f"--{field.name}={text}" for text in texts]
    return [*before, *after]


def _texts(field: Field, value: Any) -> list[str]:
    if value is None or isinstance(value, bool):
        return []
    if field.kind in ("files", "texts"):
        return [line.strip() for line in str(value).splitlines() if line.strip()]
    text = str(value).strip()
    return [text] if text and text != field.default else []


def missing(tool: str, values: Mapping[str, Any]) -> list[str]:
    """The fields that have to be filled in and are not."""
    return [field.name for field in TOOLS[tool].fields if field.required and not _texts(field, values.get(field.name))]


def _file(places: Places, tool: str, suffix: str) -> Path:
    return places.state / "tools" / f"{tool}{suffix}"


def start(places: Places, tool: str, values: Mapping[str, Any]) -> None:
    """Begin a use of a tool. Raises StartRefused."""
    if empty := missing(tool, values):
        raise runner.StartRefused(f"Fill in first: {', '.join(empty)}")
    before = read(places, tool)
    if before is not None and before.alive:
        raise runner.StartRefused(f"{TOOLS[tool].title} is at work already.")
    command = [sys.executable, "-m", "trainer", tool, *words(tool, values), "--json"]
    try:
        _file(places, tool, "").parent.mkdir(parents=True, exist_ok=True)
        with _file(places, tool, ".log").open("wb") as log:
            process = detached.start(command, places.home, log)
        here = {
            "pid": process.pid,
            "process_start": run_folder.process_start(process.pid),
            "boot_id": run_folder.boot_id(),
        }
        files.write_bytes(_file(places, tool, ".json"), files.json_bytes(here))
    except (OSError, ValueError) as error:
        raise runner.StartRefused(f"{TOOLS[tool].title} could not be started: {error}") from error
    threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie


def read(places: Places, tool: str) -> Use | None:
    """The tool's last use as it stands; None where there was none."""
    try:
        process = json.loads(_file(places, tool, ".json").read_text(encoding="utf-8"))
        alive = run_folder.is_alive(process)
        text = console_log.tail(_file(places, tool, ".log"))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    share, others = 0.0, []
    for line in text.splitlines():
        progress = None
        with contextlib.suppress(ValueError):
            progress = json.loads(line)
        if isinstance(progress, dict) and progress.keys() == {"done", "total"}:
            share = progress["done"] / max(1, progress["total"])
        else:
            others.append(line)
    result = _result(others)
    return Use(alive, share, result, "" if result else "\n".join(others[-LINES:]))


def _result(lines: Sequence[str]) -> Mapping[str, Any] | None:
    """The JSON object that the last lines are; None where they are none."""
    for start in (place for place, line in enumerate(lines) if line.startswith("{")):
        with contextlib.suppress(ValueError):
            answer = json.loads("\n".join(lines[start:]))
            if isinstance(answer, dict) and "version" in answer:
                return answer
    return None
