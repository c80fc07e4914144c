"""The Monitor tab: numbers, loss chart and log of the run that is watched."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from gui import look, monitor, run_bar
from gui.monitor import View

# The log stays at its end while it is there; whoever scrolls up stays where they are.
FOLLOW_THE_LOG = """
const log = element.closest("#run-log");
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


class MonitorTab:
    def __init__(self) -> None:
        self.facts = gr.HTML(elem_id="run-facts")
        self.chart = gr.Plot(label="Loss", elem_id="loss-chart", show_label=False)
        gr.HTML("<b>Log</b>")
        self.log = gr.HTML(elem_id="run-log", container=True, min_height=120, js_on_load=FOLLOW_THE_LOG)

    def outputs(self) -> set[Any]:
        return {self.facts, self.chart, self.log}

    def stamps(self, view: View | None) -> dict[str, Any]:
        """What the shown parts depend on: a part is drawn anew when its stamp is not the one it was drawn with."""
        if view is None:
            return {"facts": None, "chart": None, "log": None}
        quiet = not view.active
        pulse = 0 if quiet else int(time.time() / CHART_SECONDS)
        return {
            "facts": (view.stamp, view.condition),
            "chart": (view.stamp, pulse) if not quiet else (view.stamp,),
            "log": (str(view.run.path), *monitor.log_stamp(view.run.console_file)),
        }

    def show(self, view: View | None, parts: set[str]) -> dict[Any, Any]:
        updates: dict[Any, Any] = {}
        if "facts" in parts:
            updates[self.facts] = facts(view)
        if "chart" in parts:
            updates[self.chart] = None if view is None else monitor.loss_figure(view.history, str(view.run.path))
        if "log" in parts:
            updates[self.log] = look.log("" if view is None else monitor.log_tail(view.run.console_file))
        return updates


def facts(view: View | None) -> str:
    """The run's numbers, side by side."""
    if view is None:
        return look.note("No run to watch yet. Once one is started, its numbers, loss chart and log are here.")
    history = view.history
    pace = history.seconds_per_step()
    total = history.total_steps
    pairs = [
        ("Step", f"{history.step:,} of {total:,}" if total else f"{history.step:,}"),
        ("Epoch", _epoch(view)),
        ("Speed", monitor.speed(pace) if pace is not None else "–"),
        ("Time left", run_bar.time_left(view) or "–"),
        ("Learning rate", monitor.rates(history.learning_rate)),
        ("Loss (smoothed)", f"{history.smoothed()[-1]:.4f}" if history.current.losses else "–"),
        ("Last checkpoint", f"step {history.checkpoints[-1]:,}" if history.checkpoints else "none yet"),
        ("Session", _session(view)),
    ]
    return look.facts(pairs)


def _epoch(view: View) -> str:
    history = view.history
    if history.epoch is None:
        return "–"
    if history.total_steps and history.steps_per_epoch:
        return f"{history.epoch + 1} of {-(-history.total_steps // history.steps_per_epoch)}"
    return str(history.epoch + 1)


def _session(view: View) -> str:
    history = view.history
    if history.session is None:
        return "–"
    return f"{history.session}, resumed {history.grade}".rstrip() if history.grade else str(history.session)
