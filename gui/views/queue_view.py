"""The queue as a table: what waits, what runs, when it is expected to end, and what can be done with it. No widget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from gui import look
from gui.look import Html
from trainer.checkpoints import remaining
from trainer.quantities import brief_duration, counted
from trainer.runs import queue
from trainer.runs.queue import Entry, Queue

WORDS = {"refused": "did not start"}
HEADINGS = ("No.", "Run", "State", "Devices", "Expected end", "")


def show(folder: Path, waiting_list: Queue, devices: Sequence[str], now: float) -> str:
    """In HTML; a sentence where the queue is empty."""
    if not waiting_list.entries:
        return look.note("The queue is empty. Add to queue, above, puts the form's training into it.")
    expected = remaining.ends(folder, waiting_list, devices, now)
    waiting = [entry.number for entry in waiting_list.among("waiting")]
    rows = [
        [
            str(entry.number),
            entry.name,
            _state(entry),
            _devices(entry),
            _end(entry, expected, now),
            _buttons(entry, waiting),
        ]
        for entry in waiting_list.entries
    ]
    return summary(waiting_list) + look.table(HEADINGS, rows, name="The queue")


def summary(waiting_list: Queue) -> str:
    """How many wait and run; that it is paused."""
    waiting, running = len(waiting_list.among("waiting")), len(waiting_list.among("running"))
    if waiting_list.paused:
        return look.note(f"Paused: {counted(waiting, 'training')} waiting, and nothing more is started.", kind="warn")
    return look.line(f"{running} running, {waiting} waiting.")


def _state(entry: Entry) -> Html:
    badge = (
        f'<span class="badge {look.escaped(entry.state)}">{look.escaped(WORDS.get(entry.state, entry.state))}</span>'
    )
    again = f" {look.escaped(f'{entry.starts} starts')}" if entry.starts > 1 else ""
    said = f"<br>{look.escaped(entry.said)}" if entry.said else ""
    return Html(badge + again + said)


def _devices(entry: Entry) -> str:
    if any(entry.on) and entry.state == "running":
        return ", ".join(entry.on)
    wanted = ", ".join(entry.devices) if entry.devices else "any"
    return wanted if entry.gpus == 1 else f"{wanted}, {entry.gpus} at once"


def _end(entry: Entry, expected: dict[int, float], now: float) -> str:
    if entry.ended is not None:
        return time.strftime("%d %b %H:%M", time.localtime(entry.ended))
    if entry.number not in expected:
        return "not known yet"
    end = expected[entry.number]
    form = "%H:%M" if end - now < 86400 else "%d %b %H:%M"
    return f"{time.strftime(form, time.localtime(end))}, in about {brief_duration(max(0.0, end - now))}"


def _buttons(entry: Entry, waiting: Sequence[int]) -> Html:
    number, buttons = str(entry.number), []
    if entry.state == "waiting":
        place = waiting.index(entry.number)
        if place:
            buttons.append(look.button("Up", "up", number, of=entry.name))
        if place < len(waiting) - 1:
            buttons.append(look.button("Down", "down", number, of=entry.name))
        buttons.append(look.button("Run now", "now", number, of=entry.name))
    if entry.state in ("stopped", "failed", "refused"):
        buttons.append(look.button("Try again", "again", number, of=entry.name))
    if entry.state == "running":
        buttons.append(look.button("Stop and save", "stop", number, of=entry.name))
    if entry.state not in ("running", "finished"):
        buttons.append(look.button("Edit", "edit", number, of=entry.name))
    if entry.state != "running":
        buttons.append(look.button("Remove", "remove", number, of=entry.name))
    return Html("".join(buttons))


def place_in_line(waiting: Queue, entry: Entry, expected: dict[int, float], now: float) -> str:
    """Where a new entry stands, in a sentence."""
    before = [other for other in waiting.among(*queue.OPEN) if other.number != entry.number]
    ends = [expected[other.number] for other in before if other.number in expected]
    when = f", in about {brief_duration(max(0.0, max(ends) - now))}" if before and len(ends) == len(before) else ""
    after = f" It begins after {before[-1].name}{when}." if before else " It begins as soon as the device is free."
    return f"{entry.name} was added to the queue.{after}"
