"""The Runs tab: every run with what can be done with it, and the model files of the one that is watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from gui import look
from gui.places import Places
from gui.server import runner
from gui.tabs.question import Question
from gui.tabs.sampling_panel import SamplingPanel
from gui.views import results, runs
from gui.views.monitor import Watch
from gui.views.runs import Summary
from gui.wiring import QUIET, TELL_CLICKS, Updates
from trainer.refusal import Refused
from trainer.runs import manifest, shelf

HEADINGS = ("Run", "Status", "Steps", "Loss", "Last active", "Folder", "")
Data = Mapping[Any, Any]
# For the js_on_load of the table: what does not match the filter is hidden in a new one too.
FILTER_ANEW = "new MutationObserver(() => rekindleFilter()).observe(element, { childList: true, subtree: true });"


class RunsTab:
    def __init__(self, places: Places, watch: Watch, picker: gr.Dropdown, message: gr.HTML, question: Question) -> None:
        self._places = places
        self._watch = watch
        self._picker = picker
        self._message = message
        self._question = question
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.filter = gr.Textbox(
                label="Filter", placeholder="A name, a status or a folder", elem_id="runs-filter", max_lines=1, scale=3
            )  # fmt: skip
            self.archived = gr.Checkbox(label="Archived ones too", elem_id="runs-archived", min_width=170, scale=0)
            self.rescan = gr.Button("Rescan", elem_id="runs-rescan", scale=0, min_width=110)
        self.table = gr.HTML(elem_id="runs-table", js_on_load=TELL_CLICKS + FILTER_ANEW)
        with gr.Row(visible=False, equal_height=False, elem_classes="beside") as self.renaming:
            self.name = gr.Textbox(label="New name", elem_id="runs-name", max_lines=1, scale=3)
            self.rename = gr.Button("Rename", elem_id="runs-rename", variant="primary", scale=0, min_width=110)
            self.leave = gr.Button("Leave it", elem_id="runs-rename-no", scale=0, min_width=110)
        self.renamed = gr.State("")  # the run that gets another name
        gr.HTML("<h3>Results: the model files of the run shown above</h3>")
        self.results = gr.HTML(elem_id="results-table", js_on_load=TELL_CLICKS)
        self.sampling = SamplingPanel(places, picker, message)

    def outputs(self) -> set[Any]:
        """What `listed` returns updates of."""
        return {self.table, self.results, self.sampling.sources}

    def wire(self, item: gr.Tab, compare: gr.Dropdown, tabs: gr.Tabs) -> None:
        """`compare`: what the Monitor tab draws besides the run that is watched."""
        seen = {self._picker, self.archived}
        rename = {self.renaming, self.name, self.renamed}
        shown = self.outputs() | {self._message} | rename | self._question.outputs()

        def act(data: Data, event: gr.EventData) -> Updates:
            return self._act(data, str(getattr(event, "action", "")), str(getattr(event, "value", "")), compare, tabs)

        def act_on_result(data: Data, event: gr.EventData) -> Updates:
            return self._act_on_result(data, str(getattr(event, "action", "")), str(getattr(event, "value", "")))

        item.select(self.listed, seen, self.outputs(), **QUIET)
        self._picker.input(self.list_results, {self._picker}, {self.results, self.sampling.sources}, **QUIET)
        self.rescan.click(self.listed, seen, self.outputs(), **QUIET)
        self.archived.input(self.listed, seen, self.outputs(), **QUIET)
        self.table.click(act, seen | {compare}, shown | {self._picker, compare, tabs}, **QUIET)
        acted = {self._message, self.sampling.sources} | self._question.outputs()
        self.results.click(act_on_result, {self._picker}, acted, **QUIET)
        self.sampling.wire(item)
        for event in (self.rename.click, self.name.submit):
            event(self._rename, seen | {self.name, self.renamed}, shown | {self._picker}, **QUIET)
        self.leave.click(lambda: {self.renaming: gr.update(visible=False)}, None, {self.renaming}, **QUIET)

    # --- showing ----------------------------------------------------------------------------------------------------

    def listed(self, data: Data) -> Updates:
        result = [item for item in runs.summaries(self._places) if data[self.archived] is True or not item.archived]
        if not result:
            return {self.table: look.note("No runs yet.")} | self.list_results(data)
        rows = [_row(item, str(item.run.path) == data[self._picker]) for item in result]
        return {self.table: look.table(HEADINGS, rows, name="Runs")} | self.list_results(data)

    def list_results(self, data: Data) -> Updates:
        run = runs.chosen(self._places, data[self._picker])
        shown = results.table(self._watch.look(run) if run is not None else None)
        return {self.results: shown} | self.sampling.list_sources(run)

    # --- acting -----------------------------------------------------------------------------------------------------

    def _act(self, data: Data, action: str, value: str, compare: gr.Dropdown, tabs: gr.Tabs) -> Updates:
        """A button of the table was pressed."""
        run = runs.chosen(self._places, value)
        if run is None:
            return self.listed(data) | {self._message: look.note("That run is no longer there.", kind="warn")}
        if action == "open":
            return self._picked(value) | {tabs: gr.update(selected="tab-monitor"), self._message: ""}
        if action == "compare":
            beside = [*(path for path in data[compare] or [] if path != value), value]
            listed = [entry for entry in runs.choices(self._places) if entry[1] != data[self._picker]]
            chosen = [path for path in beside if path in [entry[1] for entry in listed]][-runs.MOST_COMPARED :]
            return {compare: gr.update(choices=listed, value=chosen), tabs: gr.update(selected="tab-monitor")}
        if action == "rename":
            shown = gr.update(value=run.path.name, label=f"New name of {run.path.name}")
            return {self.renaming: gr.update(visible=True), self.name: shown, self.renamed: value}
        if action in ("archive", "restore"):
            return self._archive(data, value, archived=action == "archive")
        if action == "delete":
            return self._ask_delete(value)
        return {}

    def _picked(self, path: str) -> Updates:
        return {self._picker: gr.update(choices=runs.choices(self._places, archived=True), value=path)}

    def _archive(self, data: Data, path: str, *, archived: bool) -> Updates:
        run = runs.chosen(self._places, path)
        try:
            if run is not None:
                shelf.archive(run, archived=archived)
        except Refused as error:
            return {self._message: look.note(f"Not archived: {error}", kind="bad")}
        return self.listed(data) | {self._message: ""}

    def _rename(self, data: Data) -> Updates:
        run = runs.chosen(self._places, data[self.renamed])
        if run is None or runner.is_active(run):
            text = "That run is no longer there." if run is None else f"{run.path.name} is running; stop it first."
            return {self._message: look.note(text, kind="warn")}
        name = str(data[self.name] or "").strip()
        try:
            now = shelf.rename(run, name)
        except Refused as error:
            return {self._message: look.note(f"Not renamed: {error}", kind="bad")}
        watched = data[self._picker] == str(run.path)
        picked = self._picked(str(now.path)) if watched else {}
        seen = {**data, self._picker: str(now.path)} if watched else data
        return (
            self.listed(seen)
            | picked
            | {
                self.renaming: gr.update(visible=False),
                self._message: look.note(
                    f"{run.path.name} is {now.path.name} now, and so are its model files.", kind="good"
                ),
            }
        )

    def _ask_delete(self, path: str) -> Updates:
        run = runs.chosen(self._places, path)
        if run is None or runner.is_active(run):
            return {self._message: look.note("A run that is going on is not deleted; stop it first.", kind="warn")}
        count, files = len(manifest.listing(run.checkpoints)), len(shelf.model_files(run))
        text = (
            f"Delete the run {run.path.name}: {count} checkpoint{'s' * (count != 1)}, its samples, curves and log? "
            f"It cannot be continued after that, and cannot be brought back. Its {files} model files stay."
        )
        return {self._message: ""} | self._question.ask(text, "delete-run", path, yes="Delete it", no="Keep it")

    def delete(self, data: Data, path: str) -> Updates:
        """The question was answered with yes."""
        run = runs.chosen(self._places, path)
        try:
            if run is None or runner.is_active(run):
                raise Refused("that run is gone already, or it is going on")
            shelf.delete(run)
        except Refused as error:
            return self.listed(data) | {self._message: look.note(f"Not deleted: {error}", kind="bad")}
        return self.listed(data) | {self._message: look.note(f"The run {run.path.name} was deleted.")}

    def _act_on_result(self, data: Data, action: str, name: str) -> Updates:
        run = runs.chosen(self._places, data[self._picker])
        path = results.model_file(run, name) if run is not None else None
        if run is None or path is None:
            return {}
        if action == "sample":
            sentence = f"{name} is chosen below the list; press Make samples there."
            return {self._message: look.note(sentence)} | self.sampling.list_sources(run, [path])
        if action != "delete":
            return {}
        text = f"Delete the model file {name}? It cannot be brought back."
        return {self._message: ""} | self._question.ask(text, "delete-result", str(path), yes="Delete it", no="Keep it")

    def delete_result(self, data: Data, path: str) -> Updates:
        """The question was answered with yes."""
        run = runs.chosen(self._places, data[self._picker])
        found = [result.path for result in results.listing(run)] if run is not None else []
        doomed = next((file for file in found if str(file) == path), None)
        message = look.note("That file is gone already, or another run is shown now; nothing was deleted.", kind="warn")
        try:
            if doomed is not None:
                doomed.unlink()
                message = look.note(f"{doomed.name} was deleted.")
        except OSError as error:
            message = look.note(f"Not deleted: {error}", kind="bad")
        return self.list_results(data) | {self._message: message}


def _row(item: Summary, watched: bool) -> Sequence[str]:
    path, name = str(item.run.path), item.name
    buttons = [
        look.button("Shown" if watched else "Open", "open", path, title=f"Watch {name}", pressed=watched),
        look.button("Compare", "compare", path, title=f"Draw {name} beside the run shown above"),
        look.button("Rename", "rename", path, title=f"Rename {name}"),
        look.button("Restore", "restore", path, title=f"Bring {name} back into the lists")
        if item.archived
        else look.button("Archive", "archive", path, title=f"Leave {name} out of the lists"),
        look.button("Delete ...", "delete", path, title=f"Delete {name}"),
    ]
    status = look.badge(runs.WORDS[item.condition], item.condition)
    return [
        look.Html(f"<b>{look.escaped(name)}</b>" + (" " + look.mark("archived", "warn") if item.archived else "")),
        status,
        item.progress or "–",
        "–" if item.loss is None else f"{item.loss:.4f}",
        runs.moment(item.active) if item.active else "–",
        str(item.run.path.parent),
        look.Html("".join(buttons)),
    ]
