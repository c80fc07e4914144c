"""Builds the page and serves it. The page keeps no state of a run: a timer reads the run's folder."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import threading
import time
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

import fastapi
import gradio as gr

from gui import look, routes
from gui.forms import draft as drafts
from gui.forms import form as forms
from gui.forms import presets
from gui.places import Places, usual_places
from gui.server import runner, security, serving, sessions
from gui.server.early_script import EarlyScript
from gui.server.security import Guard
from gui.tabs import launching, live, queue_tab, resume_tab, run_bar, train_tab
from gui.tabs.dataset_tab import DatasetTab
from gui.tabs.monitor_tab import MonitorTab, add_output_folder
from gui.tabs.preset_handlers import PresetHandlers
from gui.tabs.queue_tab import QueueTab
from gui.tabs.resume_tab import ResumeTab
from gui.tabs.run_bar import RunBar
from gui.tabs.runs_tab import RunsTab
from gui.tabs.samples_tab import SamplesTab
from gui.tabs.tools_tab import ToolsTab
from gui.tabs.train_tab import TrainTab
from gui.views import dataset_view, runs, thumbnails
from gui.views.monitor import View, Watch
from gui.wiring import QUIET, Updates, stamp_of_list
from trainer.options import checks
from trainer.options.config import Config
from trainer.runs import launch, queue
from trainer.runs.console import write_utf8
from trainer.runs.queue import Entry, QueueRefused
from trainer.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)
QUEUE_SECONDS = 0.05  # how often Gradio's queue looks for events; by itself it does so every millisecond
TABS = ("tab-train", "tab-queue", "tab-dataset", "tab-resume", "tab-monitor", "tab-samples", "tab-runs", "tab-tools")

# For the js_on_load of a widget that nobody sees: charts.js calls for its event when there is something to show.
CALLED_BY_THE_SCRIPT = "window.rekindleNews = () => trigger('click', {});"

# --- the page ------------------------------------------------------------------------------------------------------


class Page:
    """All widgets and what they do. A handler gets the data of its inputs by widget and returns updates by widget."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.watch = Watch()
        kept = {"delete_cache": (3600, 3600)}  # seconds; uploads that nobody took
        with gr.Blocks(title="Rekindle", analytics_enabled=False, fill_width=True, **kept) as self.blocks:
            gr.HTML('<div id="page-title">Rekindle<small>Training that resumes exactly</small></div>')
            self.bar = RunBar()
            self.question = self.bar.question
            with gr.Tabs(selected="tab-train") as self.tabs:
                with gr.Tab("Train", id="tab-train", elem_id="tab-train"):
                    self.train = TrainTab(places, self.bar.form_run)
                with gr.Tab("Queue", id="tab-queue", elem_id="tab-queue") as queue_item:
                    self.queue = QueueTab(places, self.bar.message)
                with gr.Tab("Dataset", id="tab-dataset", elem_id="tab-dataset") as dataset_item:
                    self.dataset = DatasetTab(places)
                with gr.Tab("Resume", id="tab-resume", elem_id="tab-resume") as resume_item:
                    self.resume = ResumeTab(places, self.train, self.bar.picker, self.bar.message)
                with gr.Tab("Monitor", id="tab-monitor", elem_id="tab-monitor") as monitor_item:
                    self.monitor = MonitorTab()
                with gr.Tab("Samples", id="tab-samples", elem_id="tab-samples"):
                    self.samples = SamplesTab(places)
                with gr.Tab("Runs", id="tab-runs", elem_id="tab-runs") as runs_item:
                    self.runs = RunsTab(places, self.watch, self.bar.picker, self.bar.message, self.question)
                with gr.Tab("Tools", id="tab-tools", elem_id="tab-tools") as tools_item:
                    self.tools = ToolsTab(places)
            self.tab = gr.Textbox("", visible="hidden")  # the one that this browser had open last
            self.seen = gr.State({})  # what this page was last shown, so that only what changed is sent
            self.news = gr.HTML(visible="hidden", elem_id="run-news", js_on_load=CALLED_BY_THE_SCRIPT)
            self.form = self.train.form
            self.presets = PresetHandlers(places, self.train, self.bar.message, self.question)
            self._wire(resume_item)
            self._wire_queue(queue_item)
            self.dataset.wire(self.train, dataset_item, QUIET)
            self.monitor.wire(places, self.bar.picker, monitor_item)
            self.monitor.remember(self.blocks)
            self.tools.wire(tools_item)
            self.runs.wire(runs_item, self.monitor.compare, self.tabs)

    def _wire(self, resume_item: gr.Tab) -> None:
        options = self.form.inputs()
        watched = {self.bar.picker, self.seen, self.bar.awaited, self.bar.message} | self.samples.inputs()
        run_parts = self.bar.outputs() | self.samples.outputs()
        message = self.bar.message
        run_parts |= {self.bar.picker, self.seen, self.bar.awaited, message}

        draft = self.train.outputs()
        lists = {self.train.opened_with, self.bar.opened_with}
        opening = (self.open, watched | {self.tab}, run_parts | draft | lists | {self.tabs})
        self.blocks.load(*opening, js=_as_before(watched | {self.tab}, self.bar.picker, self.tab), **QUIET).then(
            None, js="() => { rekindleOpened(); rekindleCharts.opened(); }", api_visibility="private"
        )
        self.news.click(self.refresh, watched, run_parts, queue=False, **QUIET)
        self.bar.picker.input(self.choose_run, watched, run_parts | {message}, **QUIET)
        # A list that is sent again would undo what was chosen in it meanwhile: it is sent only when it is another.
        output_dir = self.form.widgets["output_dir"]
        run_lists = {output_dir, self.bar.listed, self.bar.opened_with}
        self.bar.picker.focus(self.look_for_runs, run_lists, {self.bar.listed}, queue=False, **QUIET)
        self.bar.listed.change(self.list_runs, {self.bar.picker}, {self.bar.picker}, queue=False, **QUIET)

        add = {self.monitor.folder, self.bar.picker}
        self.monitor.add_folder.click(self.add_output_folder, add, {message, self.bar.picker}, **QUIET)

        asking = run_parts | {message, self.tabs} | self.question.outputs()
        one_by_one = QUIET | {"concurrency_limit": 1}
        self.bar.start.click(self.start, options | watched, asking, **one_by_one)
        self.bar.resume.click(self.resume_run, options | watched, asking, **one_by_one)
        self.bar.enqueue.click(self.add_to_queue, options, {message}, **one_by_one)
        self.bar.stop.click(self.stop, watched, run_parts | {message}, **QUIET)
        self.bar.save.click(self.save_now, watched, {message, self.bar.awaited}, **QUIET)
        self.bar.sample.click(self.sample_now, watched, {message, self.bar.awaited}, **QUIET)
        self.bar.kill.click(self.ask_kill, watched, {message} | self.question.outputs(), **QUIET)
        self.bar.command.click(self.print_command, options, {message}, **QUIET)
        self.question.no.click(self.question.close, None, self.question.outputs(), **QUIET)
        answered = asking | self.runs.outputs() | self.train.about_outputs()
        answered |= {self.train.picker, self.train.name, self.train.about}
        self.question.yes.click(
            self.answer,
            watched | options | {self.runs.archived, self.question.pending, self.train.base, self.train.picker},
            answered,
            **QUIET,
        )
        self.question.other.click(self.answer_otherwise, options | watched | {self.question.pending}, asking, **QUIET)
        self.presets.wire()

        self.resume.wire(resume_item)
        self.samples.wire(self.bar.picker, self.watch)

    def _wire_queue(self, item: gr.Tab) -> None:
        tab, message = self.train, self.bar.message
        draft = self.form.inputs() | {tab.base, tab.stamp}
        row = {tab.edit_row, tab.edit_text, tab.editing}
        self.queue.wire(item, self.edit_entry, tab.outputs() | row | {self.tabs}, draft)
        tab.edit_save.click(self.save_entry, draft | {tab.editing}, row | {message, self.tabs}, **QUIET)
        tab.edit_leave.click(self.leave_entry, None, row | {message}, **QUIET)

    # --- watching ---------------------------------------------------------------------------------------------------

    def open(self, data: Mapping[Any, Any]) -> Updates:
        """A page was opened or reloaded: the form as it was left, the latest run, fresh lists."""
        draft = drafts.read(self.places.draft_file) or train_tab.first_draft(self.places)
        updates = self.refresh({**data, self.seen: {}})
        run = runs.chosen(self.places, data[self.bar.picker])
        if run is not None:
            updates[self.bar.picker] = gr.update(choices=runs.choices(self.places), value=str(run.path))
        can_undo = self.places.put_aside_file.exists()
        return (
            updates
            | self.train.show_draft(draft, undo=can_undo, present=self.form.as_built())
            | {self.train.stamp: self.train.fillings.opened()}
            | {self.train.opened_with: stamp_of_list(train_tab.preset_choices(self.places))}
            | {self.bar.opened_with: stamp_of_list(runs.choices(self.places))}
            | {self.tabs: gr.update(selected=data[self.tab]) if data[self.tab] in TABS else gr.skip()}
        )

    def choose_run(self, data: Mapping[Any, Any]) -> Updates:
        return self.refresh(data) | {self.bar.message: ""}

    def refresh(self, data: Mapping[Any, Any]) -> Updates:
        """What changed since this page was last shown something."""
        view, updates = self._watched(data)
        return updates | self.show(view, data)

    def _watched(self, data: Mapping[Any, Any]) -> tuple[View | None, Updates]:
        """The run that the picker names, as it is now; where it names none, the latest and its choice."""
        value = data[self.bar.picker]
        updates: Updates = {}
        run = runs.chosen(self.places, value)
        if run is None:
            picker = run_bar.picker_update(self.places, None)
            run = runs.chosen(self.places, picker["value"])
            if run is not None or value:
                updates[self.bar.picker] = picker
        view = self.watch.look(run) if run is not None else None
        return view, updates | self.bar.forget(view, data)

    def show(self, view: View | None, data: Mapping[Any, Any]) -> Updates:
        """The widgets that tell of the run, as far as they do not show what the page was shown last."""
        seen = dict(data[self.seen] or {})
        updates: Updates = {}
        for widget, update in self.bar.show(view, live.news(self.places, view)).items():
            key = f"bar {widget.elem_id}"
            if seen.get(key, "") != update:
                seen[key] = update
                updates[widget] = update
        condition = (view.name, view.condition) if view is not None else None
        if seen.setdefault("condition", condition) != condition:  # the picker tells it
            seen["condition"] = condition
            updates[self.bar.picker] = gr.update(choices=runs.choices(self.places))
        pictures, seen["samples"] = self.samples.show(view, seen.get("samples"), data)
        return updates | pictures | {self.seen: seen}

    def look_for_runs(self, data: Mapping[Any, Any]) -> Updates:
        """A new number when there are other runs to choose from, those in the form's output folder among them."""
        folder = data[self.form.widgets["output_dir"]]
        if isinstance(folder, str) and folder.strip() and "\0" not in folder:
            path = self.places.home / folder.strip()
            if runner.has_runs(path):
                self.places.remember_output_folder(path)
        now = stamp_of_list(runs.choices(self.places))
        shown = data[self.bar.listed] or data[self.bar.opened_with]
        return {self.bar.listed: gr.skip() if now == shown else now}

    def list_runs(self, data: Mapping[Any, Any]) -> Updates:
        return {self.bar.picker: run_bar.picker_update(self.places, data[self.bar.picker])}

    def add_output_folder(self, data: Mapping[Any, Any]) -> Updates:
        message = add_output_folder(self.places, data[self.monitor.folder])
        return {self.bar.message: message, self.bar.picker: run_bar.picker_update(self.places, data[self.bar.picker])}

    # --- acting on a run --------------------------------------------------------------------------------------------

    def start(self, data: Mapping[Any, Any]) -> Updates:
        checked = launching.check(self.places, self.form.values(data))
        if checked.exists is not None:
            settings = checks.build(forms.check_values(self.form.values(data)).values)
            return {self.bar.message: ""} | self.question.ask(
                f"The run {settings.output_name} already holds checkpoints, up to step {checked.exists:,}. Resume it "
                "with the form's options, or begin afresh? The old run is kept then, under another name.",
                "start-resumed", "", yes=f"Resume from step {checked.exists:,}", no="Neither",
                other=("Begin afresh", "start-afresh"), grave=False,
            )  # fmt: skip
        if checked.settings is None:
            return {self.bar.message: launching.not_started(checked.problems)} | self.question.close()
        return self.question.close() | self._begin(data, checked.settings, checked.notices)

    def _begin(self, data: Mapping[Any, Any], settings: Config, notices: list[str]) -> Updates:
        run, message = launching.begin(self.places, settings, notices)
        if run is None:
            return {self.bar.message: message}
        picker = gr.update(choices=runs.choices(self.places), value=str(run.path))
        updates = self.show(self.watch.look(run), data)
        return updates | {
            self.bar.message: message,
            self.bar.picker: picker,
            self.tabs: gr.update(selected="tab-monitor"),
        }

    def start_resumed(self, data: Mapping[Any, Any], subject: str) -> Updates:
        """Start was pressed where the run exists, and it is to go on."""
        return self._start_with(data, resume_from_checkpoint="latest")

    def start_afresh(self, data: Mapping[Any, Any], subject: str) -> Updates:
        """Start was pressed where the run exists, and the old one is to be moved aside."""
        return self._start_with(data, overwrite_run=True)

    def _start_with(self, data: Mapping[Any, Any], **changes: Any) -> Updates:
        checked = launching.check(self.places, {**self.form.values(data), **changes})
        if checked.settings is None:
            return {self.bar.message: launching.not_started(checked.problems)}
        return self._begin(data, checked.settings, checked.notices)

    def resume_run(self, data: Mapping[Any, Any]) -> Updates:
        """Continue the watched run from its latest checkpoint with its own options; ask where the form differs."""
        run = runs.chosen(self.places, data[self.bar.picker])
        if run is None:
            return {self.bar.message: look.note("There is no run to resume.")}
        differing = launching.differences(self.places, run, self.form.values(data))
        if differing:
            named = ", ".join(differing[: launching.MOST_NAMED]) + (" ..." if differing[launching.MOST_NAMED :] else "")
            return {self.bar.message: ""} | self.question.ask(
                f"The form has other values than {run.path.name} was trained with: {named}. Resume with the run's own "
                "options (exactly as if it had never stopped), or look at the differences first?",
                "resume-own", str(run.path), yes="Resume with its own options", no="Neither",
                other=("Look at the differences", "resume-look"), grave=False,
            )  # fmt: skip
        return self.question.close() | self.resume_own(data, str(run.path))

    def resume_own(self, data: Mapping[Any, Any], path: str) -> Updates:
        values, message = resume_tab.adopted(self.places, runs.chosen(self.places, path))
        if values is None:
            return {self.bar.message: message}
        if launching.has_checkpoints(RunFolder(Path(path))) is None:
            values["resume_from_checkpoint"] = ""
        checked = launching.check(self.places, values)
        if checked.settings is None:
            return {self.bar.message: launching.not_started(checked.problems)}
        return self._begin(data, checked.settings, checked.notices)

    def resume_look(self, data: Mapping[Any, Any], path: str) -> Updates:
        text = "Choose Latest under Continue from; the differences are listed below it."
        return {self.tabs: gr.update(selected="tab-resume"), self.bar.message: look.note(text)}

    def add_to_queue(self, data: Mapping[Any, Any]) -> Updates:
        checked = launching.check(self.places, self.form.values(data))
        if checked.settings is None:
            return {self.bar.message: launching.not_started(checked.problems)}
        if refusals := launching.why_not_resumed(self.places, checked.settings):
            return {self.bar.message: look.note("Not queued; the trainer would refuse:", refusals, kind="bad")}
        try:
            return {self.bar.message: launching.add_to_queue(self.places, checked.settings)}
        except QueueRefused as error:
            return {self.bar.message: look.note(f"Not queued. {error}", kind="bad")}

    def edit_entry(self, data: Mapping[Any, Any], entry: Entry, config: Config) -> Updates:
        """Put the options of an entry of the queue into the form."""
        text = f"The form has the options of entry {entry.number} of the queue, {entry.name}."
        filled = self.presets.fill(data, queue_tab.values_of(config), f"queue {entry.number}: {entry.name}")
        return filled | {
            self.train.edit_row: gr.update(visible=True),
            self.train.edit_text: look.note(text),
            self.train.editing: entry.number,
            self.tabs: gr.update(selected="tab-train"),
            self.bar.message: "",
        }

    def save_entry(self, data: Mapping[Any, Any]) -> Updates:
        """Give the entry that is edited the form's options."""
        checked = forms.check_values(self.form.values(data))
        if checked.problems:
            return {self.bar.message: look.note("Change this first:", forms.linked(checked.problems), kind="bad")}
        try:
            changed = queue_tab.change(self.places, data[self.train.editing], checked.values)
        except QueueRefused as error:
            return {self.bar.message: look.note(f"Not saved. {error}", kind="bad")}
        return self.leave_entry() | {
            self.bar.message: look.note(changed, kind="good"),
            self.tabs: gr.update(selected="tab-queue"),
        }

    def leave_entry(self) -> Updates:
        return {self.train.edit_row: gr.update(visible=False), self.train.editing: 0, self.bar.message: ""}

    def stop(self, data: Mapping[Any, Any]) -> Updates:
        run = runs.chosen(self.places, data[self.bar.picker])
        if run is None:
            return {self.bar.message: look.note("There is no run to stop.")}
        self._note_stop(run)
        loading = not self.watch.look(run).history.stepped
        asked = launch.ask_stop(run, before_first_step=loading)
        message = "" if asked else look.note(f"{run.path.name} is not running.")
        return self.show(self.watch.look(run), data) | {self.bar.message: message}

    def save_now(self, data: Mapping[Any, Any]) -> Updates:
        run = runs.chosen(self.places, data[self.bar.picker])
        if run is None or not runner.ask(run, "save"):
            return {self.bar.message: look.note("No run is in progress that could be saved.")}
        now = time.strftime("%H:%M:%S")
        text = f"A checkpoint was requested at {now}; it is written after the current step."
        return self.bar.await_it(self.watch.look(run), "saves", look.note(text))

    def sample_now(self, data: Mapping[Any, Any]) -> Updates:
        run = runs.chosen(self.places, data[self.bar.picker])
        if run is None or not runner.ask(run, "sample"):
            return {self.bar.message: look.note("No run is in progress that could make samples.")}
        if not run_bar.has_prompts(run):
            text = "The run has no sample_prompts, so there is nothing to sample."
            return {self.bar.message: look.note(text, kind="warn")}
        now = time.strftime("%H:%M:%S")
        text = f"Samples were requested at {now}; they are made after the current step."
        return self.bar.await_it(self.watch.look(run), "samplings", look.note(text))

    def print_command(self, data: Mapping[Any, Any]) -> Updates:
        return {self.bar.message: train_tab.print_command(self.places, self.form.values(data))}

    def ask_kill(self, data: Mapping[Any, Any]) -> Updates:
        run = runs.chosen(self.places, data[self.bar.picker])
        if run is None or not runner.is_active(run):
            return {self.bar.message: look.note("No run is in progress that could be killed.")}
        return {self.bar.message: ""} | self.question.ask(
            f"End {run.path.name} at once, without saving? What it did since its last checkpoint is lost. "
            "Stop training saves first.",
            "kill", str(run.path), yes="Kill it", no="Let it run",
        )  # fmt: skip

    def answer(self, data: Mapping[Any, Any]) -> Updates:
        """The question was answered with yes."""
        action, _, subject = data[self.question.pending]
        actions = {
            "kill": self.kill,
            "delete": self.presets.delete,
            "replace": self.presets.replace,
            "start-resumed": self.start_resumed,
            "resume-own": self.resume_own,
            "delete-run": self.runs.delete,
            "delete-result": self.runs.delete_result,
        }
        return self.question.close() | (actions[action](data, subject) if action else {})

    def answer_otherwise(self, data: Mapping[Any, Any]) -> Updates:
        """The question was answered with its second answer."""
        _, action, subject = data[self.question.pending]
        actions = {"start-afresh": self.start_afresh, "resume-look": self.resume_look}
        return self.question.close() | (actions[action](data, subject) if action else {})

    def _note_stop(self, run: RunFolder) -> None:
        """What a person ends is not started again by the queue."""
        try:
            queue.note_stop(self.places.queue, run)
        except QueueRefused as error:
            logger.warning("the queue: %s", error)

    def kill(self, data: Mapping[Any, Any], path: str) -> Updates:
        run = runs.chosen(self.places, path)
        if run is not None:
            self._note_stop(run)
        if run is None or not runner.kill(run):
            return {self.bar.message: look.note("It had already ended by itself.")}
        return self.show(self.watch.look(run), data) | {
            self.bar.message: look.note(f"{run.path.name} was killed.", kind="warn")
        }


def make_application(places: Places, *, root_path: str = "") -> security.App:
    """The page as an ASGI application. It lets everybody in: put a Guard around it."""
    for folder in (places.state, places.thumbnails, places.uploads):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    thumbnails.prune(places.thumbnails)
    gr.set_static_paths([places.thumbnails])
    # Gradio serves whatever lies in its folder of uploads, which is by itself one for all its pages on the machine.
    os.environ["GRADIO_TEMP_DIR"] = str(places.uploads)
    server = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = Page(places)
    routes.add(server, places, page.watch)
    page.blocks._queue.sleep_when_free = QUEUE_SECONDS
    sessions.bound(page.blocks, server)
    mounted = gr.mount_gradio_app(
        server,
        page.blocks,
        path="/",
        root_path=root_path or None,
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=security.LARGEST_BODY,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=look.theme(),
        css=look.CSS + dataset_view.CSS + presets.headings(places, "preset-picker"),
        head=look.script(forms.index()),
    )
    return EarlyScript(mounted)


def _as_before(inputs: set[Any], picker: gr.Dropdown, tab: gr.Textbox) -> str:
    """A script that gives these inputs of an event the run and the tab that this browser was left with."""
    order = sorted(inputs, key=lambda widget: int(widget._id))  # as Gradio has the inputs that are a set
    return (
        f"(...data) => {{ const {{ run, tab }} = rekindleCharts.view; data[{order.index(picker)}] = run; "
        f"data[{order.index(tab)}] = tab; return data; }}"
    )


# --- the server ----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="app.py", description="Train Stable Diffusion LoRAs in the browser.")
    parser.add_argument("--listen", default="127.0.0.1", metavar="HOST", help="address to listen on (127.0.0.1)")
    parser.add_argument("--server_port", type=int, default=7860, metavar="N", help="port (7860)")
    parser.add_argument("--username", default="", help="ask for this name (or the variable REKINDLE_USERNAME)")
    parser.add_argument("--password", default="", help="and this password (or the variable REKINDLE_PASSWORD)")
    parser.add_argument("--headless", action="store_true", help="never open a browser")
    parser.add_argument("--inbrowser", action="store_true", help="open a browser")
    parser.add_argument("--root_path", default="", metavar="P", help="the path a reverse proxy serves this under")
    parser.add_argument(
        "--allowed_host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name the server answers under, such as that of a reverse proxy",
    )
    parser.add_argument(
        "--browse",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder inside which the page may show what there is, to choose paths from (the folder where relative "
        "paths begin); may be given again, or as REKINDLE_BROWSE",
    )
    given = parser.parse_args(arguments)
    given.username = given.username or os.environ.get("REKINDLE_USERNAME", "")
    given.password = given.password or os.environ.get("REKINDLE_PASSWORD", "")
    if bool(given.username) != bool(given.password):
        parser.error("--username and --password go together")
    if missing := [folder for folder in given.browse if not Path(folder).expanduser().is_dir()]:
        parser.error(f"--browse: there is no folder {', '.join(missing)}")
    if not 0 <= given.server_port <= 65535:
        parser.error("--server_port is between 0 and 65535")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until SIGTERM or Ctrl+C. Returns the exit code; 2 when it cannot be served."""
    write_utf8()
    given = parse(arguments)
    serving.keep_heap_small()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    places = usual_places()
    if given.browse:
        places = dataclasses.replace(places, browse=tuple(Path(one).expanduser().resolve() for one in given.browse))
    os.chdir(places.home)  # relative paths mean the same here and in the trainer
    try:
        listener = serving.bind(given.listen, given.server_port)
    except OSError as error:
        print(f"Cannot listen on {given.listen}:{given.server_port}: {error.strerror or error}.", file=sys.stderr)
        print("Another program may use that port: choose one with --server_port N.", file=sys.stderr)
        return 2
    port = listener.getsockname()[1]
    try:
        guarded = security.is_loopback(given.listen) or given.username
        token = "" if guarded else security.kept_token(places.token_file)
        policy = security.make_policy(
            given.listen,
            port,
            username=given.username,
            password=given.password,
            token=token,
            allowed_hosts=given.allowed_host,
        )
        application = Guard(make_application(places, root_path=given.root_path), policy)
    except OSError as error:
        print(f"{places.state} cannot be used: {error}. Set XDG_STATE_HOME to a folder that can.", file=sys.stderr)
        return 2
    server = serving.make_server(application)
    address = f"http://{serving.reachable(given.listen)}:{port}/"
    if token:
        print(f"Rekindle: {address}?token={token}", flush=True)
        print(f"The token is kept in {places.token_file}; whoever has it can use this server.", flush=True)
    else:
        print(f"Rekindle: {address}", flush=True)
    if given.inbrowser and not given.headless:
        opened = f"{address}?token={token}" if token else address
        threading.Timer(1.0, webbrowser.open, [opened]).start()
    threading.Thread(target=serving.keep_queue_going, args=(places.queue,), daemon=True).start()
    server.run(sockets=[listener])
    if os.environ.get(serving.STOP_RUNS) == "1":
        serving.stop_runs(places)
    return 0
