"""The charts of a run: loss with its marks and branches; learning rate, gradient norm, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from gui.views.curves import MOST_POINTS, RATES, Array, smooth, thin
from gui.views.history import SMOOTHING, History
from trainer.recipe.schedule import LrCurve

MOST_MARKS = 60
MOST_BRANCHES = 20  # drawn; the latest ones
BLUE, GREY, AMBER, GREEN, VIOLET = "#3b82f6", "#9ca3af", "#d97706", "#16a34a", "#a855f7"
RATE_COLOURS = (BLUE, AMBER, GREEN, VIOLET)  # of curves.RATES
DETAILS = (("lr", "learning rate", BLUE), ("grad_norm", "gradient norm", GREEN), ("memory", "memory, GB", VIOLET))


def loss_figure(history: History, key: str, smoothing: float = SMOOTHING) -> go.Figure:
    """The loss raw and smoothed, validation, marks. `key`: keeps the zoom while it stays the same.

    `smoothing`: share of the moving average that a step leaves as it was, 0 (none) to below 1.
    """
    figure = go.Figure()
    _add_abandoned(figure, history)
    rows = history.current.rows
    told = np.isfinite(rows["loss"])
    places, losses = (rows["step"], rows["loss"]) if told.all() else (rows["step"][told], rows["loss"][told])
    average = smooth(losses, smoothing)
    steps, raw = thin(places, losses)
    figure.add_scatter(
        x=steps, y=raw, mode="markers" if len(steps) < 2 else "lines", line={"color": BLUE, "width": 1}, opacity=0.5,
        name="loss", hovertemplate="step %{x}: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    if smoothing > 0:
        steps, smoothed = thin(places, average)
        figure.add_scatter(
            x=steps, y=smoothed, mode="lines", line={"color": BLUE, "width": 2.5}, name="smoothed",
            hovertemplate="step %{x}: %{y:.4g} (smoothed)<extra></extra>",
        )  # fmt: skip
    if history.validation:
        marks, told_then = zip(*history.validation, strict=True)
        steps, losses_then = thin(np.array(marks), np.array(told_then))
        figure.add_scatter(
            x=steps, y=losses_then, mode="lines+markers", line={"color": VIOLET}, name="validation",
            hovertemplate="step %{x}: %{y:.4g} (validation)<extra></extra>",
        )  # fmt: skip
    samples = sorted({sample.step for sample in history.samples.values() if not sample.abandoned})
    _add_marks(figure, "sample", samples, places, average, {"symbol": "circle-open", "size": 13, "color": AMBER})
    _add_marks(
        figure, "checkpoint", history.checkpoints, places, average, {"symbol": "diamond", "size": 8, "color": GREEN}
    )
    for number, step in enumerate(history.resumes[-MOST_MARKS:]):
        figure.add_vline(
            x=step, line={"color": AMBER, "width": 1.5, "dash": "dash"},
            annotation_text="resumed" if number == 0 else None, annotation_font_color=AMBER,
        )  # fmt: skip
    if not len(rows) and not history.abandoned:
        _say(figure, "The loss is drawn here from the first step on.")
    _lay_out(figure, key, 380)
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(title="loss")
    return figure


def _add_abandoned(figure: go.Figure, history: History) -> None:
    branches = history.abandoned[-MOST_BRANCHES:]
    for number, branch in enumerate(branches):
        steps, losses = thin(branch["step"], branch["loss"], max(2, MOST_POINTS // 4 // len(branches)))
        figure.add_scatter(
            x=steps, y=losses, mode="lines", line={"color": GREY, "width": 1}, opacity=0.6, name="abandoned branch",
            legendgroup="abandoned", showlegend=number == 0,
            hovertemplate="step %{x}: %{y:.4g} (abandoned)<extra></extra>",
        )  # fmt: skip


def _add_marks(
    figure: go.Figure, name: str, marks: Sequence[int], steps: Array, average: Array, look: dict[str, object]
) -> None:
    """Marks on the smoothed curve, each at the last point up to its step."""
    places = np.searchsorted(steps, marks[-MOST_MARKS:], side="right") - 1
    drawn = [(step, average[place]) for step, place in zip(marks[-MOST_MARKS:], places, strict=True) if place >= 0]
    if drawn:
        figure.add_scatter(
            x=[step for step, _ in drawn], y=[height for _, height in drawn], mode="markers", name=name, marker=look,
            hovertemplate=f"{name} at step %{{x}}<extra></extra>",
        )  # fmt: skip


def detail_figure(history: History, key: str) -> go.Figure:
    """Learning rate, gradient norm and memory, one above the other; what was never told is left out."""
    rows = history.current.rows
    shown = [entry for entry in DETAILS if np.isfinite(rows[entry[0]]).any()]
    figure = make_subplots(rows=max(1, len(shown)), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (name, title, colour) in enumerate(shown, start=1):
        steps, values = thin(rows["step"], rows[name])
        if name == "memory":
            values = values / 1e9
        figure.add_scatter(
            x=steps, y=values, mode="markers" if len(steps) < 2 else "lines", line={"color": colour, "width": 1.5},
            name=title, showlegend=False, hovertemplate=f"step %{{x}}: %{{y:.4g}} ({title})<extra></extra>",
            row=row, col=1,
        )  # fmt: skip
        if name == "lr":
            _add_other_rates(figure, history, row)
        figure.update_yaxes(title=title, rangemode="tozero", exponentformat="e", row=row, col=1)
    if not shown:
        _say(figure, "Learning rate, gradient norm and memory are drawn here from the first step on.")
    _lay_out(figure, key, 160 * max(2, len(shown)))
    figure.update_xaxes(title="step", rangemode="tozero", row=max(1, len(shown)), col=1)
    return figure


def _add_other_rates(figure: go.Figure, history: History, row: int) -> None:
    """The learning rates of the other trained parts, beside that of the first; dashed, for they often lie together."""
    parts = list(history.learning_rate) if isinstance(history.learning_rate, Mapping) else []
    rows = history.current.rows
    for part, name, colour in list(zip(parts, RATES, RATE_COLOURS, strict=False))[1:]:
        steps, values = thin(rows["step"], rows[name])
        figure.add_scatter(
            x=steps, y=values, mode="markers" if len(steps) < 2 else "lines", row=row, col=1, showlegend=False,
            line={"color": colour, "width": 1.5, "dash": "dash"}, name=f"learning rate: {part}",
            hovertemplate=f"step %{{x}}: %{{y:.4g}} (learning rate: {part})<extra></extra>",
        )  # fmt: skip


def rate_figure(then: LrCurve, now: LrCurve, peak: float, step: int, total_steps: int) -> go.Figure:
    """The checkpoint's learning rate curve, the one a resume would follow, and where it begins.

    `peak`: the learning rate that a factor of 1 stands for; `step`: completed steps at the resume.
    """
    figure = go.Figure()
    end = max(total_steps, then.end_step, step + 1)
    before = np.unique(np.linspace(0, end, 400).astype(int))
    after = np.unique(np.linspace(step, max(total_steps, step + 1), 400).astype(int))
    figure.add_scatter(
        x=before, y=[peak * then.factor(int(place)) for place in before], mode="lines", name="the checkpoint's curve",
        line={"color": GREY, "width": 2, "dash": "dot"}, hovertemplate="step %{x}: %{y:.3g} then<extra></extra>",
    )  # fmt: skip
    if step < total_steps:
        figure.add_scatter(
            x=after, y=[peak * now.factor(int(place)) for place in after], mode="lines", name="from here on",
            line={"color": BLUE, "width": 2.5}, hovertemplate="step %{x}: %{y:.3g}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[step], y=[peak * now.factor(step)], mode="markers", name="resume",
        marker={"symbol": "circle", "size": 11, "color": AMBER},
        hovertemplate="continues after step %{x} at %{y:.3g}<extra></extra>",
    )  # fmt: skip
    figure.add_vline(x=total_steps, line={"color": GREY, "width": 1}, annotation_text="end")
    _lay_out(figure, "rate", 260)
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(title="learning rate", rangemode="tozero", exponentformat="e")
    return figure


def _say(figure: go.Figure, text: str) -> None:
    """Words in the middle of an empty chart."""
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(
        text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 15},
    )  # fmt: skip


def _lay_out(figure: go.Figure, key: str, height: int) -> None:
    """Colours that suit light and dark; the zoom stays while `key` does."""
    figure.update_layout(
        uirevision=key,
        height=height,
        margin={"l": 60, "r": 16, "t": 28, "b": 62},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#6b7280", "family": "system-ui, sans-serif"},
        legend={"orientation": "h", "y": -60 / (height - 90), "yanchor": "top", "x": 0},
        hovermode="closest",
    )
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
