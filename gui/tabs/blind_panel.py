"""In the Samples tab: two samples of the same prompt and seed whose origin is hidden, and a choice between them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import gradio as gr

from gui import look
from gui.places import Places
from gui.views import runs, thumbnails
from gui.views.history import Sample
from gui.views.monitor import View, Watch
from gui.wiring import QUIET, Updates
from trainer.judging import parts
from trainer.runs import blind

Side = Literal["left", "right", "equal"]
ABOUT = (
    "Two samples of the same prompt and seed, in random order and without a name. Choose the better one; the tally is "
    "kept with the run (and in its report) and tells how sure it is."
)
THIS_RUN = ("The run shown above", "")
CHANCE = random.SystemRandom()  # sides must not be guessed; nothing of a training hangs on it


class BlindPanel:
    def __init__(self, places: Places) -> None:
        self._places = places
        gr.HTML(look.paragraph(ABOUT))
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.first = gr.Dropdown([], label="Step", elem_id="blind-first", interactive=True)
            self.second = gr.Dropdown([], label="Against step", elem_id="blind-second", interactive=True)
            self.other = gr.Dropdown([THIS_RUN], value="", label="of run", elem_id="blind-run", interactive=True)
            self.next = gr.Button("Show a pair", elem_id="blind-next", scale=0, min_width=130)
        self.pair = gr.HTML(elem_id="blind-pair")
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.buttons: dict[Side, gr.Button] = {
                "left": gr.Button("The left one", elem_id="blind-left"),
                "equal": gr.Button("No difference", elem_id="blind-equal"),
                "right": gr.Button("The right one", elem_id="blind-right"),
            }
        self.tally = gr.HTML(elem_id="blind-tally")
        self.asked = gr.State(None)  # what is shown: kept here, so that the page does not have it

    def wire(self, picker: gr.Dropdown, watch: Watch) -> None:
        def views(data: Mapping[Any, Any]) -> tuple[View | None, View | None]:
            run, other = runs.chosen(self._places, data[picker]), runs.chosen(self._places, data[self.other])
            view = watch.look(run) if run is not None else None
            return view, watch.look(other) if other is not None else view

        def offer(data: Mapping[Any, Any]) -> Updates:
            listed = [entry for entry in runs.choices(self._places) if entry[1] != data[picker]]
            first, second = views(data)
            return {
                self.first: gr.update(choices=steps(first)),
                self.second: gr.update(choices=steps(second)),
                self.other: gr.update(choices=[THIS_RUN, *listed]),
            }

        def show(data: Mapping[Any, Any]) -> Updates:
            first, second = views(data)
            if first is None or second is None:
                return {self.pair: look.note("There is no run to compare samples of."), self.asked: None}
            return self._show(first, second, data[self.first], data[self.second])

        def choose(side: Side, data: Mapping[Any, Any]) -> Updates:
            run, asked = runs.chosen(self._places, data[picker]), data[self.asked]
            if run is None or not asked or asked["run"] != str(run.path):
                return {self.pair: look.note("Show a pair first.")}
            choice: blind.Choice = "equal" if side == "equal" else "first" if side == asked["first_is"] else "second"
            try:
                blind.keep(run, asked["first"], asked["second"], asked["prompt"], asked["seed"], choice)
            except OSError as error:
                return {self.tally: look.note(f"The choice cannot be kept: {error}", kind="bad")}
            lines = [tally.sentence() for tally in reversed(blind.tallies(run))]
            return {self.tally: look.note(lines[0], lines[1:], kind="good")} | show(data)

        chosen = {picker, self.first, self.second, self.other}
        for widget in (self.first, self.second, self.other):
            widget.focus(offer, chosen, {self.first, self.second, self.other}, queue=False, **QUIET)
        self.next.click(show, chosen, {self.pair, self.asked}, **QUIET)

        def taking(side: Side) -> Any:
            return lambda data: choose(side, data)

        for side, button in self.buttons.items():
            button.click(taking(side), chosen | {self.asked}, {self.pair, self.asked, self.tally}, **QUIET)

    def _show(self, first: View, second: View, one: Any, other: Any) -> Updates:
        """A pair at random, on sides at random."""
        pairings = pairs(first, second, one, other)
        if not pairings or (first.run == second.run and one == other):
            text = "Choose two steps, or a step of two runs, that have samples of the same prompt and seed."
            return {self.pair: look.note(text), self.asked: None}
        left, right = CHANCE.choice(pairings)
        first_is: Side = CHANCE.choice(("left", "right"))
        names = (f"{first.name} step {left.step}", f"{second.name} step {right.step}")
        asked = {
            "run": str(first.run.path), "first": names[0], "second": names[1], "first_is": first_is,
            "prompt": left.prompt, "seed": left.seed,
        }  # fmt: skip
        sides = [(first, left), (second, right)] if first_is == "left" else [(second, right), (first, left)]
        shown = "".join(
            parts.picture(view.run.path / sample.path, caption, within=view.run.samples)
            for (view, sample), caption in zip(sides, ("left", "right"), strict=True)
        )
        pictures = f'<div style="display: flex; gap: 1rem; flex-wrap: wrap">{shown}</div>'
        return {self.pair: f"<p>{escape(left.prompt)}</p>{pictures}", self.asked: asked}


def steps(view: View | None) -> list[tuple[str, int]]:
    """The steps of the run's own branch that have samples, newest first."""
    sampled = {sample.step for sample in view.history.samples.values() if not sample.abandoned} if view else set()
    return [(f"step {step:,}", step) for step in sorted(sampled, reverse=True)]


def pairs(first: View, second: View, one: Any, other: Any) -> list[tuple[Sample, Sample]]:
    """Samples of both steps with the same prompt and seed whose pictures are there."""
    beside = {(sample.prompt, sample.seed): sample for sample in _of(second, other)}
    return [
        (sample, beside[sample.prompt, sample.seed])
        for sample in _of(first, one)
        if (sample.prompt, sample.seed) in beside
    ]


def _of(view: View, step: Any) -> Sequence[Sample]:
    samples = [sample for sample in view.history.samples.values() if sample.step == step and not sample.abandoned]
    return [sample for sample in samples if thumbnails.confined(view.run, sample.path) is not None]
