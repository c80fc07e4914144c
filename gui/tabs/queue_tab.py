"""The Queue tab: trainings in a row. What is pressed changes the queue's files; a process of its own starts them."""

from __future__ import annotations

import functools
import logging
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from gui import look
from gui.places import Places
from gui.views import queue_view
from gui.wiring import QUIET, TELL_CLICKS, Updates
from trainer.checkpoints import remaining
from trainer.commands import queue_runner
from trainer.options import checks
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError
from trainer.runs import launch, queue
from trainer.runs.queue import Entry, QueueRefused

logger = logging.getLogger(__name__)
LOOK_SECONDS = 3.0


@functools.cache
def devices() -> list[str]:
    """The devices of this machine, which are looked for once."""
    return queue_runner.devices_here()


class QueueTab:
    def __init__(self, places: Places, message: gr.HTML) -> None:
        self._places = places
        self._message = message
        gr.HTML(
            "Trainings start in this order as soon as a device is free, whether this page is open or not. "
            "What fails does not stop the rest; what is interrupted goes on from its latest checkpoint."
        )
        with gr.Row(equal_height=False):
            self.pause = gr.Button("Pause the queue", elem_id="queue-pause", min_width=150)
            self.clear = gr.Button("Remove what has ended", elem_id="queue-clear", min_width=190)
        self.table = gr.HTML(elem_id="queue-table", js_on_load=TELL_CLICKS)
        self.timer = gr.Timer(LOOK_SECONDS)
        self.news = gr.Number(0, visible="hidden")  # changes when the queue does

    def outputs(self) -> set[Any]:
        return {self.table, self.pause}

    def wire(self, item: gr.Tab, edit: Callable[..., Updates], edited: set[Any], inputs: set[Any]) -> None:
        """`edit(data, entry, config)` puts an entry's options into the form; it changes `edited` and needs `inputs`."""
        self._edit = edit
        item.select(self.show, None, self.outputs(), **QUIET)
        self.timer.tick(self.look_for_news, {self.news}, {self.news}, queue=False, **QUIET)
        self.news.change(self.show, None, self.outputs(), queue=False, **QUIET)
        self.table.click(self.act, inputs, self.outputs() | edited | {self._message}, **QUIET)
        self.pause.click(self.pause_or_go_on, None, self.outputs() | {self._message}, **QUIET)
        self.clear.click(self.remove_ended, None, self.outputs() | {self._message}, **QUIET)

    # --- showing ----------------------------------------------------------------------------------------------------

    def show(self) -> Updates:
        try:
            waiting = queue.read(self._places.queue)
        except QueueRefused as error:
            return {self.table: look.note(str(error), kind="bad")}
        shown = queue_view.show(self._places.queue, waiting, devices(), time.time())
        return {self.table: shown, self.pause: "Go on" if waiting.paused else "Pause the queue"}

    def look_for_news(self, data: Mapping[Any, Any]) -> Updates:
        """Another number when the table is another."""
        stamp = zlib.crc32(repr(self.show()[self.table]).encode())
        return {self.news: gr.skip() if data[self.news] == stamp else stamp}

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(self, data: Mapping[Any, Any], event: gr.EventData) -> Updates:
        """A button of the table."""
        action, number = str(getattr(event, "action", "")), str(getattr(event, "value", ""))
        try:
            entry = queue.read(self._places.queue).entry(int(number) if number.isdecimal() else 0)
            done = self._do(action, entry, data)
        except (QueueRefused, ConfigError) as error:
            return self.show() | {self._message: look.note(str(error), kind="bad")}
        return self.show() | done

    def _do(self, action: str, entry: Entry, data: Mapping[Any, Any]) -> Updates:
        """Raises QueueRefused or ConfigError."""
        folder, number = self._places.queue, entry.number
        if action in ("up", "down"):
            waiting = [other.number for other in queue.read(folder).among("waiting")]
            place = waiting.index(number) if number in waiting else 0
            queue.move(folder, number, place - 1 if action == "up" else place + 1)
        elif action in ("now", "again"):
            queue.again(folder, number, at_once=action == "now")
            self._see_to_it()
        elif action == "remove":
            queue.remove(folder, number)
        elif action == "stop":
            queue.note_stop(folder, entry.folder)
            launch.ask_stop(entry.folder)
            return {self._message: look.note(f"{entry.name} was asked to save and stop.")}
        elif action == "edit":
            return self._edit(data, entry, queue.config_of(folder, entry))
        return {self._message: ""}

    def pause_or_go_on(self) -> Updates:
        try:
            paused = not queue.read(self._places.queue).paused
            queue.pause(self._places.queue, paused)
            self._see_to_it()
        except QueueRefused as error:
            return {self._message: look.note(str(error), kind="bad")}
        return self.show() | {self._message: ""}

    def remove_ended(self) -> Updates:
        try:
            queue.remove_ended(self._places.queue)
        except QueueRefused as error:
            return {self._message: look.note(str(error), kind="bad")}
        return self.show() | {self._message: ""}

    def _see_to_it(self) -> None:
        see_to_it(self._places)


def see_to_it(places: Places) -> None:
    """Start what works on the queue, if nothing does. Raises QueueRefused."""
    try:
        if queue_runner.needs_runner(places.queue):
            queue_runner.start_in_background(places.queue)
    except OSError as error:
        raise QueueRefused(f"what works on the queue cannot be started: {error}") from error


def add(places: Places, settings: Config) -> str:
    """Put a training into the queue and have it worked on; returns where it stands. Raises QueueRefused."""
    folder = places.queue
    entry = queue.add(folder, settings, places.home)
    places.remember_output_folder(entry.folder.path.parent)
    with queue.changing(folder) as waiting:
        for other in places.output_folders():
            queue.watch_folder(waiting, other)
    see_to_it(places)
    waiting = queue.read(folder)
    return queue_view.place_in_line(
        waiting, entry, remaining.ends(folder, waiting, devices(), time.time()), time.time()
    )


def values_of(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in OPTIONS}


def change(places: Places, number: int, values: Mapping[str, Any]) -> str:
    """Give an entry the form's options; returns what was done. Raises QueueRefused."""
    entry = queue.edit(places.queue, number, checks.build(dict(values)))
    see_to_it(places)
    return f"Entry {entry.number} of the queue, {entry.name}, has the form's options now."
