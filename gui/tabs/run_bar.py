"""The bar above the tabs: which run is watched, how it stands, and the buttons that act on it."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from html import escape
from typing import Any, Literal

import gradio as gr

from gui import look
from gui.places import Places
from gui.tabs import launching
from gui.tabs.question import Question
from gui.views import advice, monitor, runs
from gui.views.monitor import View
from gui.wiring import fresh_list
from trainer import quantities
from trainer.options import checks, problems
from trainer.runs.run_folder import RunFolder

MORE = (  # on a narrow screen, where there is no room for all buttons; page.js does it
    '<button type="button" class="small" id="run-more" aria-expanded="false" aria-controls="run-bar">More</button>'
)
STOPPED = (4, -signal.SIGTERM)  # exit codes of a trainer that was asked to leave


class RunBar:
    """Always in sight, so that what happens is seen from every tab."""

    def __init__(self) -> None:
        with gr.Column(elem_id="run-bar"):
            with gr.Row(equal_height=False, elem_classes="run-buttons"):
                self.picker = gr.Dropdown(
                    choices=[], value=None, label="Run", elem_id="run-picker", scale=4, min_width=220, interactive=True
                )
                self.resume = gr.Button(
                    "Resume", variant="primary", elem_id="resume-training", scale=1, min_width=210, visible=False
                )
                self.start = gr.Button(
                    "Start training", variant="primary", elem_id="start-training", scale=1, min_width=150
                )
                self.stop = gr.Button(
                    "Stop training", variant="stop", elem_id="stop-training", scale=1, min_width=150, interactive=False
                )
                self.save = gr.Button("Save now", elem_id="save-now", scale=1, min_width=110, interactive=False)
                self.sample = gr.Button("Sample now", elem_id="sample-now", scale=1, min_width=125, interactive=False)
                self.kill = gr.Button("Kill", elem_id="kill-training", scale=1, min_width=80, interactive=False)
                self.enqueue = gr.Button("Add to queue", elem_id="add-to-queue", scale=1, min_width=125)
                self.command = gr.Button("Print training command", elem_id="print-command", scale=1, min_width=215)
                gr.HTML(MORE, elem_id="run-more-place")
            self.form_run = gr.HTML(elem_id="form-run")
            self.listed = gr.Number(0, visible="hidden")  # stands for the runs that the picker lists now,
            self.opened_with = gr.State(0)  # and this for those that it lists until that one changes
            gr.HTML(look.live(), elem_id="run-status")
            gr.HTML(look.live(), elem_id="run-progress")
            self.watched = gr.HTML(elem_id="run-watched", visible="hidden")  # from which the page's script has the run
            gr.HTML('<div class="machine" aria-label="This machine" role="group"></div>', elem_id="run-machine")
            self.question = Question()
            self.message = gr.HTML(elem_id="form-message")
            self.notice = gr.HTML(elem_id="run-notice")
            self.awaited = gr.State(None)  # what a message speaks of that is yet to happen

    def outputs(self) -> set[Any]:
        return {
            self.watched, self.notice, self.start, self.resume, self.stop, self.save, self.sample, self.kill,
        }  # fmt: skip

    def show(self, view: View | None, news: int) -> dict[Any, Any]:
        """`news`: stands for what is shown now; see live.news."""
        path = "" if view is None else str(view.run.path)
        can_ask = view is not None and view.condition == "running"
        can_stop = view is not None and view.condition in ("running", "starting")
        to_resume = _way_on_in_short(view) if view is not None else ""
        return {
            self.watched: f'<i data-run="{escape(path)}" data-news="{news}"></i>',
            self.notice: notice(view),
            self.start: gr.update(variant="secondary" if to_resume or can_stop else "primary"),
            self.resume: gr.update(visible=bool(to_resume), value=to_resume or "Resume"),
            self.stop: gr.update(interactive=can_stop, visible=True if can_stop else "hidden"),
            self.save: gr.update(interactive=can_ask),
            self.sample: gr.update(interactive=can_ask),
            self.kill: gr.update(interactive=view is not None and view.active),
        }

    def await_it(self, view: View, what: Literal["saves", "samplings"], message: str) -> dict[Any, Any]:
        """Show a message until what it announces has happened to the run, or the run is over."""
        count = getattr(view.history, what)
        return {
            self.message: message,
            self.awaited: {"run": str(view.run.path), "what": what, "count": count, "message": message},
        }

    def forget(self, view: View | None, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Take back a message whose time is over; another that has come meanwhile stays."""
        awaited = data[self.awaited]
        if not awaited:
            return {}
        own = view is not None and str(view.run.path) == awaited["run"]
        if own and view is not None and view.active and getattr(view.history, awaited["what"]) == awaited["count"]:
            return {}
        shown = {self.message: ""} if data[self.message] == awaited["message"] else {}
        return shown | {self.awaited: None}


def _way_on_in_short(view: View) -> str:
    """What the button says that continues a run which ended before its time; empty for any other."""
    if view.condition not in ("stopped", "interrupted", "failed") or not view.run.config_file.is_file():
        return ""
    saved = launching.has_checkpoints(view.run)
    return "Begin again" if saved is None else f"Resume from step {saved:,}"


# --- which run -----------------------------------------------------------------------------------------------------


def has_prompts(run: RunFolder) -> bool:
    """Whether the run was given prompts to sample."""
    try:
        return bool(checks.read_config(run.config_file).sample_prompts.strip())
    except problems.ConfigError:
        return False


def picker_update(places: Places, value: Any) -> Any:
    """The picker with its present choices: the run it shows, or where there is none the latest."""
    choices = runs.choices(places)
    return fresh_list(choices, value, choices[0][1] if choices else None)


# --- words ---------------------------------------------------------------------------------------------------------


def in_short(view: View) -> dict[str, Any]:
    """The run for the page's title and for a notification."""
    history = view.history
    share = history.step / history.total_steps if history.total_steps else None
    return {
        "run": str(view.run.path),
        "name": view.name,
        "condition": view.condition,
        "words": runs.WORDS[view.condition],
        "percent": "" if share is None else math.floor(100 * min(1.0, share)),
        "line": " · ".join(_numbers(view)),
    }


def status_line(view: View | None) -> str:
    """Badge and numbers, in one line of HTML."""
    if view is None:
        return (
            '<div class="run-line"><span class="badge">no run yet</span>'
            "<span>Choose a preset, look over the options and press Start training.</span></div>"
        )
    parts: list[str] = [look.badge(runs.WORDS[view.condition], view.condition)]
    parts += [f"<span>{escape(text)}</span>" for text in _numbers(view)]
    return f'<div class="run-line">{"".join(parts)}</div>'


def _numbers(view: View) -> list[str]:
    history = view.history
    if view.condition == "starting":
        return ["The trainer is loading; its log is on the Monitor tab."]
    if view.condition in ("new", "refused") or (view.condition == "stopping" and not history.stepped):
        return ["leaves before its first step"] if view.condition == "stopping" else []
    if view.condition == "running" and not history.stepped:
        return [monitor.phase_line(view) or "Loading the model; the first step is yet to come."]
    texts = [f"step {history.step} of {history.total_steps}" if history.total_steps else f"step {history.step}"]
    if history.epoch is not None:
        texts.append(f"epoch {history.epoch + 1}")
    doing = monitor.phase_line(view)
    if doing:
        texts.append(doing)
    if view.active:
        pace = history.seconds_per_step()
        if pace is not None:
            texts.append(monitor.speed(pace))
        left = time_left(view)
        if left:
            texts.append(f"{left} left")
    if history.loss is not None:
        texts.append(f"loss {history.loss:.4f}")
    if view.condition == "stopping":
        texts.append("finishes its step, saves and leaves")
    return texts


def time_left(view: View) -> str:
    """How long the run will still take; empty when it cannot be told."""
    pace = view.history.seconds_per_step()
    if pace is None or view.history.total_steps is None or not view.active:
        return ""
    return "about " + quantities.brief_duration(pace * max(0, view.history.total_steps - view.history.step))


def progress_bar(view: View | None) -> str:
    total = view.history.total_steps if view else None
    if view is None or not total:
        return look.progress("progress", 0)
    return look.progress("progress", view.history.step / total)


def notice(view: View | None) -> str:
    """What a person should know of how the run ended, with the way on; empty while all is well."""
    if view is None:
        return ""
    history = view.history
    if view.condition == "refused":
        left = view.started is not None and view.started.exit_code in (0, *STOPPED)
        causes = [] if left else advice.of_failure(view.message)
        return look.note(_why_not_started(view), causes, kind="warn" if left else "bad", log=view.message)
    if view.condition == "failed":
        error = history.error or "The trainer failed; the end of its log is on the Monitor tab."
        return look.note(
            f"Failed after step {history.step}: {error}",
            advice.of_failure(error, history.advice, history.failure),
            kind="bad",
        )
    if view.condition == "interrupted":
        saved = launching.has_checkpoints(view.run)
        where = "" if saved is None else f"; its last checkpoint is at step {saved}"
        return look.note(
            f"The process ended without a message after step {history.step}{where}. " + way_on(saved),
            [advice.of_disappearance(view.started.exit_code if view.started else None)],
            kind="warn",
        )
    if view.condition == "stopped" and not history.stepped:
        return look.note("Stopped before the first step, so there was nothing to save.")
    if view.condition == "stopped":
        return look.note(f"Stopped after step {history.step} and saved. " + way_on(launching.has_checkpoints(view.run)))
    if view.condition == "finished":
        return look.note(
            f"Finished: {history.step} steps. The result is {view.run.path}.safetensors. "
            "To train it longer: Resume tab, Continue this run, then raise max_train_steps.",
            kind="good",
        )
    if view.active and history.warnings:
        return look.note("Warnings from the trainer:", list(history.warnings)[-3:], kind="warn")
    return ""


def way_on(saved: int | None) -> str:
    """What to press after an end before the time. `saved`: the step of the newest checkpoint."""
    if saved is None:
        return "It had saved nothing yet; press Begin again to start over with the same options."
    return f"Press Resume to go on from step {saved:,}; to change something first, Resume tab, Continue this run."


def _why_not_started(view: View) -> str:
    code = view.started.exit_code if view.started else None
    if code == 3:
        return "The trainer refused to start. It said:"
    if code == 0:
        return "There was nothing to train. The trainer said:"
    if code in STOPPED:
        return "The trainer was stopped before it began. It said:"
    if code is not None and code < 0:
        return f"The trainer was ended by signal {-code} before it began. Its last output:"
    ended = f" (exit {code})" if code is not None else ""
    return f"The trainer could not start{ended}. Its last output:"
