"""The Tools tab: a form for every tool, made from its declaration; what one does is watched and its result shown."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from gui import look
from gui.forms import form as forms
from gui.places import Places
from gui.server import runner, tool_runs
from gui.server.tool_runs import Use
from gui.views import dataset_view as view
from gui.wiring import QUIET, Data, Updates
from trainer.commands.tools import lines
from trainer.tools import TOOLS, Field, Tool

LOOK_SECONDS = 0.5
WRONG = ": error: argument --"  # before what argparse says of a value
ROWS = 3  # of a field that takes several lines
PLACEHOLDERS = {"files": "One path a line", "texts": "One a line", "numbers": "0.7, 1.0"}


class ToolsTab:
    def __init__(self, places: Places) -> None:
        self._places = places
        self.fields: dict[str, dict[str, Any]] = {}  # by tool and field
        self.starts: dict[str, gr.Button] = {}
        self.messages: dict[str, gr.HTML] = {}
        gr.HTML(
            "<p>What is done with model files. No file is written over; a closed page stops nothing. Paths begin in "
            "the folder of this page, as on the command line: <code>python -m trainer merge --help</code>.</p>"
        )
        with gr.Tabs():
            for name, tool in TOOLS.items():
                if tool.on_page:
                    with gr.Tab(tool.title, id=f"tool-{name}", elem_id=f"tool-{name}"):
                        self._build(name, tool)

    def _build(self, name: str, tool: Tool) -> None:
        gr.HTML(f"<p>{look.escaped(tool.help[:1].upper() + tool.help[1:])}.</p>")
        with gr.Row(equal_height=False):
            self.fields[name] = {field.name: _widget(name, field) for field in tool.fields}
        self.starts[name] = gr.Button(tool.title, variant="primary", elem_id=f"tool-{name}-start")
        self.messages[name] = gr.HTML(elem_id=f"tool-{name}-message")

    def wire(self, item: gr.Tab) -> None:
        item.select(self.show, None, set(self.messages.values()), **QUIET)
        for name, start in self.starts.items():
            inputs = set(self.fields[name].values())
            start.click(functools.partial(self.use, name), inputs, {self.messages[name]}, **QUIET)

    def show(self) -> Updates:
        """How the last use of each stands, after the page was opened anew."""
        return {self.messages[name]: shown(name, tool_runs.read(self._places, name)) for name in self.messages}

    def use(self, name: str, data: Data) -> Iterator[Updates]:
        """Start a tool, and show how far it is until it has ended."""
        message = self.messages[name]
        try:
            values = {field: data[widget] for field, widget in self.fields[name].items()}
            tool_runs.start(self._places, name, values)
        except runner.StartRefused as error:
            yield {message: look.note(view.printable(str(error)), kind="bad")}
            return
        last = ""
        while (tool_run := tool_runs.read(self._places, name)) is not None:
            if (now := shown(name, tool_run)) != last:
                yield {message: now}
                last = now
            if not tool_run.alive:
                return
            time.sleep(LOOK_SECONDS)


def shown(name: str, use: Use | None) -> str:
    """In HTML: how far a tool is, or what it did."""
    if use is None:
        return ""
    title = TOOLS[name].title
    if use.alive:
        return look.note(f"{title}: at work ...") + look.progress(title, use.share)
    result = use.result
    if result is None and WRONG in use.text:
        return look.note("Refused. Change this first:", [view.printable(use.text.rpartition(WRONG)[2])], kind="bad")
    if result is None:
        return look.note(f"{title} ended without a result.", kind="bad", log=use.text)
    if refusals := result.get("refusals"):
        return look.note("Refused. Change this first:", map(view.printable, refusals), kind="bad")
    if error := result.get("error"):
        return look.note(f"Failed: {view.printable(str(error))}", kind="bad")
    sentences = [view.printable(line) for line in lines(without_version(result))]
    bad = bool(result.get("problems"))
    return look.note("Something is wrong with the file:" if bad else "Done.", sentences, kind="bad" if bad else "good")


def without_version(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "version"}


def _widget(tool: str, field: Field) -> Any:
    """The widget of a field."""
    texts = {"label": forms.in_words(field.name), "info": field.help, "elem_id": f"tool-{tool}-{field.name}"}
    if field.kind == "flag":
        return gr.Checkbox(value=field.default, **texts)
    if field.kind == "choice":
        return gr.Dropdown([(choice or "as it is", choice) for choice in field.choices], value=field.default, **texts)
    several = field.kind in ("files", "texts")
    placeholder = PLACEHOLDERS.get(field.kind, "")
    more = {"lines": ROWS} if several else {"max_lines": 1}
    width = 160 if field.kind in ("number", "whole") else 320  # an empty number is a text here: gr.Number has none
    return gr.Textbox(value=field.default or "", placeholder=placeholder, min_width=width, **more, **texts)
