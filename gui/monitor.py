"""What a run's folder tells of it: status, progress, losses, log. Read from files each time; no widget here."""

from __future__ import annotations

import collections
import copy
import itertools
import math
import re
import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from gui import runner
from gui.runner import Started
from trainer import events, runs
from trainer.runs import RunFolder

MOST_POINTS = 2000
SMOOTHING = 0.95  # share of the moving average that a step leaves as it was
RATE_STEPS = 50  # time left is told from the median of this many spans of steps
TOGETHER_SECONDS = 0.2  # events closer than this were written in one go
LOG_BYTES = 128 << 10
LOG_LINES = 400
MOST_MARKS = 60

Condition = Literal[
    "none", "new", "starting", "refused", "running", "stopping", "interrupted", "stopped", "finished", "failed"
]

# --- the log -------------------------------------------------------------------------------------------------------

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]")


def terminal_lines(text: str) -> list[str]:
    """The lines as a terminal would show them: a carriage return begins its line anew, colours are left out."""
    lines = []
    for line in _ESCAPES.sub("", text).split("\n"):
        shown = ""
        for part in line.rstrip("\r").split("\r"):
            shown = part + shown[len(part) :]  # a shorter text leaves the end of the longer one before it
        lines.append(shown.rstrip())
    return lines


def log_tail(path: Path, start: int = 0, lines: int = LOG_LINES) -> str:
    """The end of a console log, from byte `start` on at the earliest; empty when there is none."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            begin = max(min(start, end), end - LOG_BYTES)
            file.seek(begin)
            text = file.read(LOG_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""
    shown = terminal_lines(text.rstrip())
    if begin > start:
        shown = shown[1:]  # begins in the middle of a line
    return "\n".join(shown[-lines:]).strip("\n")


def log_stamp(path: Path) -> tuple[int, int, int]:
    """What changes whenever the log does."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


# --- what the events tell ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A preview that a run made. `path` is relative to the run folder and not to be trusted."""

    step: int
    path: str
    prompt: str
    index: int


@dataclass
class Branch:
    """A stretch of the loss curve: steps ascend."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class History:
    """The events of a run so far. After a resume at step S, what was done beyond S before is an abandoned branch."""

    def __init__(self) -> None:
        self.current = Branch()
        self.abandoned: list[Branch] = []
        self._averages: list[float] = []  # the moving average at each step of the current branch, not yet unbiased
        self._ticks: collections.deque[tuple[int, float]] = collections.deque(maxlen=RATE_STEPS + 1)
        self._step_seconds: list[float] = []  # of this session's first steps, until there are enough ticks
        self.resumes: list[int] = []
        self.checkpoints: list[int] = []
        self.samples: dict[str, Sample] = {}
        self.validation = Branch()
        self.step = 0
        self.epoch: int | None = None  # the one the last step belongs to; the first is 0
        self.total_steps: int | None = None
        self.steps_per_epoch: int | None = None
        self.session: int | None = None
        self.grade = ""
        self.learning_rate: Any = None
        self.memory: Any = None
        self.warnings: collections.deque[str] = collections.deque(maxlen=20)
        self.reason = ""
        self.error = ""
        self.advice = ""
        self.stepped = False  # whether this session has completed a step

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event; one that is not as it should be is passed over."""
        step, kind = _whole(event.get("global_step")), event["event"]
        handler = _HANDLERS.get(kind)
        if step is not None and handler is not None:
            handler(self, step, event)

    def snapshot(self) -> History:
        """A copy that later events leave as it is."""
        result = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict | collections.deque):
                setattr(result, name, value.copy())
            elif isinstance(value, Branch):
                setattr(result, name, Branch(value.steps.copy(), value.losses.copy()))
        return result

    def smoothed(self) -> list[float]:
        """The moving average of the current branch's losses, without the pull towards zero at its beginning."""
        return [value / (1 - SMOOTHING ** (index + 1)) for index, value in enumerate(self._averages)]

    def seconds_per_step(self) -> float | None:
        """The median over this session's last steps; None until there is one.

        Told from when their events were written, since a GPU works on after the host has gone to the next step.
        """
        ticks = list(self._ticks)
        spans = [
            (after[1] - before[1]) / (after[0] - before[0])
            for before, after in itertools.pairwise(ticks)
            if after[0] > before[0]
        ]
        told = spans if len(spans) >= 3 else self._step_seconds[1:]  # a session's first step takes longer
        return statistics.median(told) if told else None

    def _go_back(self, step: int) -> None:
        """The run continues after `step`: what was drawn beyond it is a branch of its own now."""
        steps = self.current.steps
        keep = next((index for index in range(len(steps), 0, -1) if steps[index - 1] <= step), 0)
        if keep < len(steps):
            self.abandoned.append(Branch(steps[keep:], self.current.losses[keep:]))
            del steps[keep:], self.current.losses[keep:], self._averages[keep:]
        self.checkpoints = [mark for mark in self.checkpoints if mark <= step]
        self.resumes = [mark for mark in self.resumes if mark <= step]
        kept = [index for index, mark in enumerate(self.validation.steps) if mark <= step]
        self.validation = Branch(
            [self.validation.steps[index] for index in kept], [self.validation.losses[index] for index in kept]
        )

    def _run_started(self, step: int, event: Mapping[str, Any]) -> None:
        self._ticks.clear()
        self._step_seconds.clear()
        self.warnings.clear()
        self.reason = self.error = self.advice = self.grade = ""
        self.total_steps = _whole(event.get("total_steps"))
        self.steps_per_epoch = _whole(event.get("steps_per_epoch"))
        self.session = _whole(event.get("session"))
        self.stepped = False
        self.step = step

    def _resumed(self, step: int, event: Mapping[str, Any]) -> None:
        at = _whole(event.get("step"))
        at = step if at is None else at
        self._go_back(at)
        self.resumes.append(at)
        self.grade = str(event.get("grade", ""))
        self.step = at

    def _step(self, step: int, event: Mapping[str, Any]) -> None:
        if self.current.steps and step <= self.current.steps[-1]:
            self._go_back(step - 1)
        loss, now = _number(event.get("loss")), _number(event.get("time"))
        if loss is not None:
            before = self._averages[-1] if self._averages else 0.0
            self._averages.append(SMOOTHING * before + (1 - SMOOTHING) * loss)
            self.current.steps.append(step)
            self.current.losses.append(loss)
        if now is not None:
            if self._ticks and now - self._ticks[-1][1] < TOGETHER_SECONDS:
                self._ticks.pop()
            self._ticks.append((step, now))
        seconds = _number(event.get("step_seconds"))
        if seconds is not None and len(self._step_seconds) < RATE_STEPS:
            self._step_seconds.append(seconds)
        self.stepped = True
        self.step = step
        self.epoch = _whole(event.get("epoch"))
        self.learning_rate = event.get("lr")
        self.memory = event.get("memory")

    def _validation(self, step: int, event: Mapping[str, Any]) -> None:
        loss = _number(event.get("loss"))
        if loss is not None:
            self.validation.steps.append(step)
            self.validation.losses.append(loss)

    def _checkpoint_saved(self, step: int, event: Mapping[str, Any]) -> None:
        if step not in self.checkpoints[-3:]:
            self.checkpoints.append(step)

    def _sample_saved(self, step: int, event: Mapping[str, Any]) -> None:
        path = event.get("path")
        if isinstance(path, str):
            self.samples.pop(path, None)
            self.samples[path] = Sample(step, path, str(event.get("prompt", "")), _whole(event.get("index")) or 0)

    def _warning(self, step: int, event: Mapping[str, Any]) -> None:
        words = event.get("message") or event.get("reason") or event.get("error") or event.get("kind")
        self.warnings.append(f"step {step}: {words or event['event'].replace('_', ' ')}")

    def _run_finished(self, step: int, event: Mapping[str, Any]) -> None:
        self.step = max(self.step, step)
        self.reason = str(event.get("reason", ""))

    def _run_failed(self, step: int, event: Mapping[str, Any]) -> None:
        self.error, self.advice = str(event.get("error", "")), str(event.get("advice") or "")


_HANDLERS = {
    "run_started": History._run_started,
    "resumed": History._resumed,
    "step": History._step,
    "validation": History._validation,
    "checkpoint_saved": History._checkpoint_saved,
    "checkpoint_failed": History._warning,
    "checkpoint_rejected": History._warning,
    "sample_saved": History._sample_saved,
    "warning": History._warning,
    "run_finished": History._run_finished,
    "run_failed": History._run_failed,
}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


# --- reading a run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """How a run stands at one moment. `stamp` changes whenever the history does."""

    run: RunFolder
    condition: Condition
    history: History
    stamp: tuple[Any, ...]
    started: Started | None
    message: str  # what a trainer that did not start has said

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def active(self) -> bool:
        return self.condition in ("starting", "running", "stopping")


def condition(run: RunFolder, started: Started | None) -> Condition:
    """How the run stands: from its own record, unless a start from the browser is newer than that."""
    if started is not None and runner.is_unrecorded(run, started):
        if not started.alive:
            return "refused"
        return "stopping" if runner.stop_asked(run) else "starting"
    status = runs.status(run)
    if status == "running" and runner.stop_asked(run):
        return "stopping"
    return status


class _Reader:
    """Reads one run's events on from where it was; everything it holds can be read again from the file."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._file_id = 0
        self._offset = 0
        self._history = History()
        self._shown = History()  # what views hold: other threads may still draw it

    def look(self) -> View:
        with self._lock:
            try:
                stat = self._run.events_file.stat()
                file_id, size = stat.st_ino, stat.st_size
            except OSError:
                file_id, size = 0, 0
            if file_id != self._file_id or size < self._offset:
                self._file_id, self._offset, self._history = file_id, 0, History()
            found, self._offset = events.read_events(self._run.events_file, self._offset)
            for event in found:
                self._history.add(event)
            if found or not self._offset:
                self._shown = self._history.snapshot()
            started = runner.read_started(self._run)
            state = condition(self._run, started)
            message = ""
            if state == "refused" and started is not None:
                message = log_tail(self._run.console_file, started.console_offset, lines=40)
            stamp = (str(self._run.path), self._file_id, self._offset)
            return View(self._run, state, self._shown, stamp, started, message)


class Watch:
    """Views of runs, for any number of pages. It remembers how far each file was read, for speed only."""

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._readers: collections.OrderedDict[Path, _Reader] = collections.OrderedDict()

    def look(self, run: RunFolder) -> View:
        with self._lock:
            reader = self._readers.pop(run.path, None) or _Reader(run)
            self._readers[run.path] = reader
            while len(self._readers) > self._most:
                self._readers.popitem(last=False)
        return reader.look()


# --- words ---------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """A length of time in two units at most: 45 s, 3 min, 2 h 5 min, 3 d 4 h."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes = round(total / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h" if hours % 24 else f"{hours // 24} d"


def speed(seconds_per_step: float) -> str:
    """2.4 it/s, or 3.1 s/it where a step takes longer than a second."""
    if seconds_per_step <= 0:
        return "–"
    return f"{1 / seconds_per_step:.3g} it/s" if seconds_per_step < 1 else f"{seconds_per_step:.3g} s/it"


def rates(value: Any) -> str:
    """A learning rate, or one for each trained part."""
    if isinstance(value, Mapping):
        return ", ".join(f"{part.replace('_', ' ')} {rates(rate)}" for part, rate in value.items())
    number = _number(value)
    return "–" if number is None else f"{number:.3g}"


def size(count: float) -> str:
    """Bytes for people: 12.3 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# --- the chart -----------------------------------------------------------------------------------------------------


def thin(steps: Sequence[int], values: Sequence[float], most: int = MOST_POINTS) -> tuple[list[int], list[float]]:
    """At most `most` points of a curve that look the same: the lowest and highest of each bucket, in their order."""
    count = len(steps)
    if count <= most:
        return list(steps), list(values)
    heights = np.asarray(values, dtype=np.float64)
    edges = np.linspace(0, count, most // 2 + 1).astype(int)
    kept: list[int] = []
    for begin, end in itertools.pairwise(edges.tolist()):
        part = heights[begin:end]
        kept += sorted({int(begin + part.argmin()), int(begin + part.argmax())})
    return [steps[index] for index in kept], [float(heights[index]) for index in kept]


BLUE, GREY, AMBER, GREEN, VIOLET = "#3b82f6", "#9ca3af", "#d97706", "#16a34a", "#a855f7"


def loss_figure(history: History, key: str) -> go.Figure:
    """The loss raw and smoothed, with resumes and checkpoints marked. `key`: keeps the zoom while it stays the same."""
    figure = go.Figure()
    share = MOST_POINTS // 4 // max(1, len(history.abandoned))
    for number, branch in enumerate(history.abandoned):
        steps, losses = thin(branch.steps, branch.losses, max(2, share))
        figure.add_scatter(
            x=steps, y=losses, mode="lines", line={"color": GREY, "width": 1}, opacity=0.6, name="abandoned branch",
            legendgroup="abandoned", showlegend=number == 0,
            hovertemplate="step %{x}: %{y:.4g} (abandoned)<extra></extra>",
        )  # fmt: skip
    average = history.smoothed()
    steps, losses = thin(history.current.steps, history.current.losses)
    lonely = len(steps) < 2
    figure.add_scatter(
        x=steps, y=losses, mode="markers" if lonely else "lines", line={"color": BLUE, "width": 1}, opacity=0.5,
        name="loss", hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    steps, smooth = thin(history.current.steps, average)
    figure.add_scatter(
        x=steps, y=smooth, mode="lines", line={"color": BLUE, "width": 2.5}, name="smoothed",
        hovertemplate="step %{x}: %{y:.4g} (smoothed)<extra></extra>",
    )  # fmt: skip
    if history.validation.steps:
        steps, losses = thin(history.validation.steps, history.validation.losses)
        figure.add_scatter(
            x=steps, y=losses, mode="lines+markers", line={"color": VIOLET}, name="validation",
            hovertemplate="step %{x}: %{y:.4g} (validation)<extra></extra>",
        )  # fmt: skip
    marked = _heights_at(history, average, history.checkpoints[-MOST_MARKS:])
    if marked:
        figure.add_scatter(
            x=list(marked), y=list(marked.values()), mode="markers", name="checkpoint",
            marker={"symbol": "diamond", "size": 9, "color": GREEN},
            hovertemplate="checkpoint at step %{x}<extra></extra>",
        )  # fmt: skip
    for number, step in enumerate(history.resumes[-MOST_MARKS:]):
        figure.add_vline(
            x=step, line={"color": AMBER, "width": 1.5, "dash": "dash"},
            annotation_text="resumed" if number == 0 else None, annotation_font_color=AMBER,
        )  # fmt: skip
    if not history.current.steps and not history.abandoned:
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        figure.add_annotation(
            text="The loss is drawn here from the first step on.", showarrow=False, x=0.5, y=0.5, xref="paper",
            yref="paper", font={"size": 15},
        )  # fmt: skip
    figure.update_layout(
        uirevision=key,
        height=380,
        margin={"l": 60, "r": 16, "t": 28, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#6b7280", "family": "system-ui, sans-serif"},
        legend={"orientation": "h", "y": 1.12, "x": 0},
        hovermode="closest",
    )
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
    figure.update_xaxes(title="step", rangemode="tozero", **axis)
    figure.update_yaxes(title="loss", **axis)
    return figure


def _heights_at(history: History, average: Sequence[float], steps: Sequence[int]) -> dict[int, float]:
    """Where on the smoothed curve a step's mark sits: at the last point up to it."""
    found = {}
    for step in steps:
        index = int(np.searchsorted(history.current.steps, step, side="right")) - 1
        if index >= 0:
            found[step] = average[index]
    return found
