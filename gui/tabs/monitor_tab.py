"""The Monitor tab: numbers, charts and log of the run that is watched."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from gui import look
from gui.places import Places
from gui.server import runner
from gui.tabs import run_bar
from gui.tabs.judged_panel import JudgedPanel
from gui.views import comparison, monitor, runs
from gui.views.charts import MOST_SMOOTHING, PLOTLY_ADDRESS
from gui.views.history import SMOOTHING
from gui.views.monitor import View
from gui.wiring import QUIET, Updates
from trainer import quantities
from trainer.runs import on_finish

# The log stays at its end while it is there; whoever scrolls up stays where they are.
FOLLOW_THE_LOG = """
const log = element.closest("#run-log");
log.tabIndex = 0;
log.setAttribute("role", "log");
log.setAttribute("aria-label", "Log of the trainer");
let follow = true;
log.addEventListener("scroll", () => { follow = log.scrollHeight - log.scrollTop - log.clientHeight < 40; });
new MutationObserver(() => { if (follow) log.scrollTop = log.scrollHeight; })
  .observe(log, { childList: true, subtree: true, characterData: true });
"""
TO_THE_END_OF_THE_LOG = """() => setTimeout(() => {
  const log = document.getElementById("run-log");
  if (log) log.scrollTop = log.scrollHeight;
}, 400)"""
AXES = [("Steps", "steps"), ("Epochs", "epochs"), ("Time", "time")]
TELL = "Tell me when the run ends"
FOR_THE_PAGE = {"api_visibility": "private", "queue": False}  # what page and charts have to do with one another


def chart(name: str, elem_id: str, *, hidden: bool = False) -> gr.HTML:
    """A place that charts.js draws in, and which the server never changes. `hidden`: until there is something."""
    text = f'role="group" aria-label="{escape(name)}" data-plotly="{PLOTLY_ADDRESS}"'
    return gr.HTML(f'<div class="chart" {text}{" hidden" * hidden}></div>', elem_id=elem_id)


class MonitorTab:
    def __init__(self) -> None:
        gr.HTML(look.live(), elem_id="run-facts")
        gr.HTML(look.live(), elem_id="run-hint")
        with gr.Row(equal_height=False, elem_classes="chart-controls"):
            self.compare = gr.Dropdown(
                choices=[], value=[], multiselect=True, label="Compare with", elem_id="compare-runs", scale=3,
                min_width=220, max_choices=runs.MOST_COMPARED, interactive=True,
            )  # fmt: skip
            self.axis = gr.Radio(AXES, value="steps", label="Drawn by", elem_id="chart-axis", min_width=350)
            self.smoothing = gr.Slider(
                0, MOST_SMOOTHING, value=SMOOTHING, step=0.001, label="Smoothing", min_width=230,
                elem_id="loss-smoothing",
            )  # fmt: skip
            with gr.Column(min_width=150, scale=0):
                self.log_scale = gr.Checkbox(label="Log scale", elem_id="chart-log", min_width=130)
                self.clip = gr.Checkbox(label="Clip outliers", elem_id="chart-clip", min_width=130)
            self.whole = gr.Button("Whole run", elem_id="chart-whole", scale=0, min_width=150)
        self.chart = chart("Loss of the run", "loss-chart")
        self.differences = gr.HTML(elem_id="run-differences")
        with gr.Accordion("Learning rate, gradient norm, memory, machine", open=True):
            self.details = chart("Learning rate, gradient norm, memory and machine", "detail-chart")
        self.judged = JudgedPanel()
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.tell = gr.Checkbox(
                label=TELL, elem_id="tell-end", info="A notification of this browser, while the page is open.",
            )  # fmt: skip
            gr.HTML(hook_line(), elem_id="on-finish")
        gr.HTML("<h3>Log</h3>")
        gr.HTML(look.live(look.log("")), elem_id="run-log", container=True, min_height=120, js_on_load=FOLLOW_THE_LOG)
        with gr.Accordion("Runs in another folder", open=False), gr.Row(equal_height=False, elem_classes="beside"):
            self.folder = gr.Textbox(
                label="Output folder", elem_id="other-output-dir", max_lines=1, scale=4, elem_classes=look.FOLDER_FIELD,
                info="A folder that runs were trained into, from the command line for one. It is remembered.",
            )  # fmt: skip
            self.add_folder = gr.Button("Show its runs", elem_id="other-output-add", scale=0, min_width=160)

    def wire(self, places: Places, picker: gr.Dropdown, item: gr.Tab) -> None:
        """Everything about the charts that is not drawn by itself."""

        def list_runs(data: Mapping[Any, Any]) -> Updates:
            listed = [entry for entry in runs.choices(places) if entry[1] != data[picker]]
            return {self.compare: gr.update(choices=listed)}

        def compare(data: Mapping[Any, Any]) -> Updates:
            run, wanted = runs.chosen(places, data[picker]), data[self.compare] or []
            others = [other for other in (runs.chosen(places, path) for path in wanted) if other is not None]
            return {self.differences: comparison.table([run, *others]) if run is not None and others else ""}

        self.judged.wire(places, picker)
        both = {picker, self.compare}
        item.select(list_runs, {picker}, {self.compare}, **QUIET)
        item.select(None, js=TO_THE_END_OF_THE_LOG, api_visibility="private")
        self.compare.focus(list_runs, {picker}, {self.compare}, queue=False, **QUIET)
        self.compare.change(compare, both, {self.differences}, queue=False, **QUIET)
        picker.input(compare, both, {self.differences}, queue=False, **QUIET)
        self.compare.change(None, self.compare, None, js="runs => rekindleCharts.compare(runs || [])", **FOR_THE_PAGE)
        set_axis, set_smoothing = (
            f"value => rekindleCharts.set({{ {name}: value }})" for name in ("axis", "smoothing")
        )
        self.axis.input(None, self.axis, None, js=set_axis, **FOR_THE_PAGE)
        for event in (self.smoothing.input, self.smoothing.release):  # a number that is written is told by the latter
            event(None, self.smoothing, None, js=set_smoothing, **FOR_THE_PAGE)
        for widget, name in ((self.log_scale, "log"), (self.clip, "clip")):
            widget.input(None, widget, None, js=f"value => rekindleCharts.redraw({{ {name}: value }})", **FOR_THE_PAGE)
        self.whole.click(None, None, None, js="() => rekindleCharts.whole()", **FOR_THE_PAGE)
        self.tell.input(
            None, self.tell, self.tell, js="async wanted => await rekindleCharts.permission(wanted)", **FOR_THE_PAGE
        )

    def remember(self, blocks: gr.Blocks) -> None:
        """What this browser had chosen when the page was open before."""
        kept = [self.axis, self.smoothing, self.log_scale, self.clip, self.tell]
        text = "() => { const { axis, smoothing, log, clip, tell } = rekindleCharts.view; "
        blocks.load(None, None, kept, js=text + "return [axis, smoothing, log, clip, tell]; }", **FOR_THE_PAGE)


def hook_line() -> str:
    """What is told besides, by the trainer itself, in HTML."""
    hooks = on_finish.described()
    if hooks:
        return look.paragraph(f"When a session ends, the trainer also {hooks}.")
    return look.paragraph(
        "The trainer can also run a command or call a web address when a session ends: set "
        f"{on_finish.COMMAND} or {on_finish.WEBHOOK} in the environment of this program."
    )


def facts(view: View | None) -> str:
    """The run's numbers, side by side."""
    if view is None:
        return look.note("No run to watch yet. Once one is started, its numbers, charts and log are here.")
    history = view.history
    pace = history.seconds_per_step()
    total = history.total_steps
    here, whole = view.elapsed()
    pairs = [
        ("Step", f"{history.step:,} of {total:,}" if total else f"{history.step:,}"),
        ("Epoch", _epoch(view)),
        ("Speed", monitor.speed(pace) if pace is not None else "–"),
        ("Elapsed", _elapsed(here, whole)),
        ("Time left", run_bar.time_left(view) or "–"),
        ("Learning rate", monitor.rates(history.learning_rate)),
        ("Loss (average)", f"{history.loss:.4f}" if history.loss is not None else "–"),
        ("Gradient norm", f"{history.grad_norm:.3g}" if history.grad_norm is not None else "–"),
        ("Memory", _memory(view)),
        ("Last checkpoint", f"step {history.checkpoints[-1]:,}" if history.checkpoints else "none yet"),
        ("Session", _session(view)),
    ]
    return look.facts(pairs)


def hint(view: View | None) -> str:
    """What there is to know besides the numbers: work of known length, reading still going on, overfitting."""
    if view is None:
        return ""
    notes = []
    if view.read < 1:
        notes.append(look.note(f"Reading the run's history: {view.read:.0%} so far."))
    phase = monitor.phase_line(view)
    if phase:
        share = view.history.phase.done / view.history.phase.total if view.history.phase else 0.0
        notes.append(look.note(phase) + look.progress("phase", share))
    if view.history.overfitting:
        notes.append(look.note(view.history.overfitting, _best_checkpoint(view), kind="warn"))
    return "".join(notes)


def _best_checkpoint(view: View) -> list[str]:
    """Which checkpoint is nearest to the step at which validation was best."""
    best, _ = min(view.history.validation, key=lambda mark: mark[1], default=(None, 0.0))
    nearest = min(view.history.checkpoints, key=lambda mark: abs(mark - (best or 0)), default=None)
    return [] if best is None or nearest is None else [f"The checkpoint nearest to step {best:,} is of {nearest:,}."]


def _elapsed(here: float, whole: float) -> str:
    if whole - here < 1:
        return quantities.brief_duration(here)
    return f"{quantities.brief_duration(here)}; {quantities.brief_duration(whole)} in all sessions"


def _epoch(view: View) -> str:
    history = view.history
    if history.epoch is None:
        return "–"
    if history.total_steps and history.steps_per_epoch:
        return f"{history.epoch + 1} of {-(-history.total_steps // history.steps_per_epoch)}"
    return str(history.epoch + 1)


def _memory(view: View) -> str:
    """What the events tell of the device at its peak, and what the process holds of the machine's own."""
    measured, process = view.history.memory, view.process_memory()
    if view.history.device.startswith(("cuda", "xpu", "mps")) and measured:
        peak = f"{quantities.size(measured)} of the GPU at its peak"
        return f"{peak}; {quantities.size(process)} of the machine" if process else peak
    held = process or measured
    return quantities.size(held) if held else "–"


def _session(view: View) -> str:
    history = view.history
    if history.session is None:
        return "–"
    return f"{history.session}, resumed {history.grade}".rstrip() if history.grade else str(history.session)


def add_output_folder(places: Places, value: Any) -> str:
    """Look for runs in another folder from now on; a message in HTML."""
    text = value.strip() if isinstance(value, str) else ""
    if not text or "\0" in text:
        return look.note("Write a folder first.", kind="bad")
    folder = places.home / Path(text)
    try:
        has_runs = runner.has_runs(folder)
    except OSError as error:
        return look.note(f"{folder} cannot be read: {error}", kind="bad")
    if not has_runs:
        return look.note(f"There are no runs directly inside {folder}.", kind="bad")
    places.remember_output_folder(folder)
    return look.note(f"The runs of {folder} are in the picker at the top of the page.", kind="good")
