"""The Monitor tab: numbers, charts and log of the run that is watched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr

from gui import look
from gui.places import Places
from gui.server import console_log, runner
from gui.tabs import run_bar
from gui.views import charts, monitor
from gui.views.history import SMOOTHING
from gui.views.monitor import View
from trainer import quantities

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
CHART_SECONDS = 2  # between two drawings of the chart
MOST_SMOOTHING = 0.999


class MonitorTab:
    def __init__(self) -> None:
        self.facts = gr.HTML(elem_id="run-facts")
        self.hint = gr.HTML(elem_id="run-hint")
        self.chart = gr.Plot(label="Loss", elem_id="loss-chart", show_label=False)
        self.smoothing = gr.Slider(
            0, MOST_SMOOTHING, value=SMOOTHING, step=0.001, label="Smoothing of the loss", elem_id="loss-smoothing",
            info="0 draws the losses as they are; near 1 shows the trend alone.",
        )  # fmt: skip
        with gr.Accordion("Learning rate, gradient norm, memory", open=True):
            self.details = gr.Plot(label="Learning rate", elem_id="detail-chart", show_label=False)
        gr.HTML("<h3>Log</h3>")
        self.log = gr.HTML(elem_id="run-log", container=True, min_height=120, js_on_load=FOLLOW_THE_LOG)
        with gr.Accordion("Runs in another folder", open=False), gr.Row(equal_height=False, elem_classes="beside"):
            self.folder = gr.Textbox(
                label="Output folder", elem_id="other-output-dir", max_lines=1, scale=4,
                info="A folder that runs were trained into, from the command line for one. It is remembered.",
            )  # fmt: skip
            self.add_folder = gr.Button("Show its runs", elem_id="other-output-add", scale=0, min_width=160)

    def outputs(self) -> set[Any]:
        return {self.facts, self.hint, self.chart, self.details, self.log}

    def stamps(self, view: View | None, smoothing: float) -> dict[str, tuple[Any, Any]]:
        """What each shown part depends on, and its turn: a part is drawn anew once neither is as when it was drawn.

        The charts of a run that goes on have a turn every CHART_SECONDS; everything else has its turn when it changes.
        """
        if view is None:
            return dict.fromkeys(("facts", "chart", "details", "log"), (None, None))
        path, pulse = str(view.run.path), int(time.time() / CHART_SECONDS)
        facts = (view.stamp, view.condition, pulse if view.active else 0)
        log = (path, *console_log.stamp(view.run.console_file))
        chart = (path, view.stamp, view.active, smoothing)
        return {
            "facts": (facts, facts),
            "chart": (chart, (path, pulse, smoothing) if view.active else chart),
            "details": (chart[:3], (path, pulse) if view.active else chart[:3]),
            "log": (log, log),
        }

    def show(self, view: View | None, parts: set[str], smoothing: float) -> dict[Any, Any]:
        updates: dict[Any, Any] = {}
        if "facts" in parts:
            updates[self.facts] = facts(view)
            updates[self.hint] = hint(view)
        if "chart" in parts:
            key = str(view.run.path) if view else ""
            updates[self.chart] = None if view is None else charts.loss_figure(view.history, key, smoothing)
        if "details" in parts:
            key = str(view.run.path) if view else ""
            updates[self.details] = None if view is None else charts.detail_figure(view.history, key)
        if "log" in parts:
            updates[self.log] = look.log("" if view is None else console_log.tail(view.run.console_file))
        return updates


def checked_smoothing(value: Any) -> float:
    """The slider's value, if it is one."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SMOOTHING
    return float(value) if usable else SMOOTHING


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
        ("Loss (smoothed)", f"{history.loss:.4f}" if history.loss is not None else "–"),
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
        return monitor.duration(here)
    return f"{monitor.duration(here)}; {monitor.duration(whole)} in all sessions"


def _epoch(view: View) -> str:
    history = view.history
    if history.epoch is None:
        return "–"
    if history.total_steps and history.steps_per_epoch:
        return f"{history.epoch + 1} of {-(-history.total_steps // history.steps_per_epoch)}"
    return str(history.epoch + 1)


def _memory(view: View) -> str:
    """What the events tell of the device at its peak, and what the process holds of the machine's own."""
    told, process = view.history.memory, view.process_memory()
    if view.history.device.startswith(("cuda", "xpu", "mps")) and told:
        peak = f"{quantities.size(told)} of the GPU at its peak"
        return f"{peak}; {quantities.size(process)} of the machine" if process else peak
    held = process or told
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
        found = runner.has_runs(folder)
    except OSError as error:
        return look.note(f"{folder} cannot be read: {error}", kind="bad")
    if not found:
        return look.note(f"There are no runs directly inside {folder}.", kind="bad")
    places.remember_output_folder(folder)
    return look.note(f"The runs of {folder} are in the picker at the top of the page.", kind="good")
