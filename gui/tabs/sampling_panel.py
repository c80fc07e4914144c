"""Sample images of a run's checkpoints and model files, made when its training is over, in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from gui import look
from gui.places import Places
from gui.server import runner
from gui.server.side_process import Kind, Work
from gui.tabs import run_bar
from gui.views import results, runs
from gui.wiring import QUIET, Data, Updates
from trainer.runs import manifest
from trainer.runs.run_folder import RunFolder

SAMPLING = Kind("sampling", "Sampling")
SECONDS = 1.0  # between two looks at how far it is


class SamplingPanel:
    def __init__(self, places: Places, picker: gr.Dropdown, message: gr.HTML) -> None:
        self._places = places
        self._picker = picker
        self._message = message
        with gr.Accordion("Make samples after the training", open=False, elem_id="sampling"):
            with gr.Row(equal_height=False):
                self.sources = gr.Dropdown(
                    choices=[], value=[], multiselect=True, label="With the weights of", elem_id="sampling-sources",
                    interactive=True, info="Checkpoints and model files of the run shown above; several are compared.",
                )  # fmt: skip
                self.prompts = gr.Textbox(
                    label="Prompts", lines=2, max_lines=12, elem_id="sampling-prompts", placeholder="the run's own",
                    info="One a line, as in sample_prompts: a fox in the snow --n blurry --d 7 --s 30; or a file.",
                )  # fmt: skip
            with gr.Row(equal_height=False, elem_classes="beside"):
                self.make = gr.Button("Make samples", elem_id="sampling-make", variant="primary", min_width=160)
                self.stop = gr.Button("Stop", elem_id="sampling-stop", min_width=110)
            self.progress = gr.HTML(elem_id="sampling-progress")
            self.timer = gr.Timer(SECONDS, active=False)

    def wire(self, item: gr.Tab) -> None:
        """`item`: the tab that it is on."""
        shown = {self.progress, self.timer}
        self.make.click(
            self.start, {self._picker, self.sources, self.prompts}, shown | {self._message},
            **(QUIET | {"concurrency_limit": 1}),
        )  # fmt: skip
        self.stop.click(self.end, {self._picker}, shown | {self._message}, **QUIET)
        for event in (self.timer.tick, item.select, self._picker.input):
            event(self.watch, {self._picker}, shown, queue=False, **QUIET)

    def list_sources(self, run: RunFolder | None, chosen: Sequence[Path] = ()) -> Updates:
        """What can be chosen of a run, and what is chosen of it."""
        listed = sources(run) if run is not None else []
        return {self.sources: gr.update(choices=listed, value=[str(path) for path in chosen])}

    def start(self, data: Data) -> Updates:
        run = runs.chosen(self._places, data[self._picker])
        values = [value for _, value in sources(run)] if run is not None else []
        chosen = [value for value in data[self.sources] or [] if value in values]
        prompts = str(data[self.prompts] or "").strip()
        if run is None or not chosen:
            return {self._message: look.note("Choose a checkpoint or a model file first.", kind="warn")}
        if runner.is_active(run):
            told = f"{run.path.name} is being trained; Sample now, at the top, asks it for samples."
            return {self._message: look.note(told, kind="warn")}
        if "\0" in prompts or (not prompts and not run_bar.has_prompts(run)):
            told = "The run has no sample_prompts: write prompts here first."
            return {self._message: look.note(told, kind="warn")}
        try:
            SAMPLING.start(run, ["sample", "--json", f"--prompts={prompts}", *chosen], self._places.home)
        except runner.StartRefused as error:
            return {self._message: look.note(str(error), kind="bad")}
        return {self._message: ""} | self._show(run)

    def end(self, data: Data) -> Updates:
        run = runs.chosen(self._places, data[self._picker])
        if run is None or not SAMPLING.stop(run):
            return {self._message: look.note("No samples are being made.")}
        return {self._message: ""} | self._show(run)

    def watch(self, data: Data) -> Updates:
        return self._show(runs.chosen(self._places, data[self._picker]))

    def _show(self, run: RunFolder | None) -> Updates:
        work = SAMPLING.read(run) if run is not None else None
        return {self.progress: told(work), self.timer: gr.update(active=work is not None and work.alive)}


def sources(run: RunFolder) -> list[tuple[str, str]]:
    """(words, path) of everything of a run that has weights to sample with: checkpoints, then model files."""
    checkpoints = [
        (f"Checkpoint of step {item.step:,}", str(item.path))
        for item in manifest.listing(run.checkpoints)
        if item.manifest is not None
    ]
    return checkpoints + [(result.path.name, str(result.path)) for result in results.listing(run)]


def told(work: Work | None) -> str:
    """How far it is, or how it ended, in HTML."""
    if work is None:
        return ""
    if done := work.last("pictures"):
        count = len(done["pictures"])
        return look.note(f"{count} picture{'s' * (count != 1)} in the Samples tab.", kind="good")
    if refused := work.last("refusal"):
        return look.note("No samples were made.", str(refused["refusal"]).splitlines(), kind="bad")
    if not work.alive:
        return look.note("It ended before all were made; what is made stays.", kind="warn", log=work.text)
    stage = work.last("total")
    if stage is None:
        return look.note("Loading the model ...")
    words = look.note(f"Picture {stage['done']} of {stage['total']} is made.")
    return words + look.progress("samples", stage["done"] / max(1, stage["total"]))
