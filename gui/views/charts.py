"""The charts of runs as Plotly has them, in plain lists and numbers: the page draws them and adds to them in place.

A trace is known by its uid. Those that a run still adds to are sent once and from then on only what is new of them.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from gui.views.curves import MOST_POINTS, Array, columns, kept, smooth
from gui.views.history import RATE, SMOOTHING, History

MOST_MARKS = 60
MOST_BRANCHES = 20  # drawn; the latest ones
BLUE, GREY, AMBER, GREEN, VIOLET = "#3b82f6", "#9ca3af", "#d97706", "#16a34a", "#a855f7"
OF_RUNS = ("#ea580c", "#0d9488", "#db2777", "#65a30d", "#7c3aed", "#0891b2", "#b45309", "#e11d48")  # compared ones
OF_PARTS = (BLUE, AMBER, GREEN, VIOLET, "#db2777", "#0d9488", "#65a30d", "#0891b2")
Axis = Literal["steps", "epochs", "time"]
MOST_SMOOTHING = 0.999
AXES: dict[Any, str] = {"steps": "step", "epochs": "epoch", "time": "hours of training"}
PLOTLY_ADDRESS = f"live/plotly.min.js?v={importlib.metadata.version('plotly')}"
Trace = dict[str, Any]


class Line(NamedTuple):
    """A line of a detail chart: its column, its name and colour, and what a unit of it is."""

    column: str
    name: str
    colour: str
    unit: float = 1.0


class Panel(NamedTuple):
    title: str
    lines: tuple[Line, ...]
    of_machine: bool = False


GB = 1e9
PANELS = (
    Panel("gradient norm", (Line("grad_norm", "gradient norm", GREEN),)),
    Panel("memory, GB", (Line("memory", "of the training", VIOLET, GB),)),
)
OF_THE_MACHINE = (  # title, column of the machine with its name and unit, column of each GPU with its unit
    ("load, %", ("cpu", "processor", 0.01), ("load", 0.01)),
    ("in use, GB", ("memory", "this process", GB), ("memory", GB)),
    ("GPU, °C", None, ("temperature", 1.0)),
    ("GPU, W", None, ("watts", 1.0)),
    ("disk free, GB", ("disk_free", "disk free", GB), None),
)


@dataclass(frozen=True)
class Asked:
    """How curves are drawn. `smoothing`: share of the moving average that a step leaves as it was, 0 to below 1."""

    axis: Axis = "steps"
    smoothing: float = SMOOTHING


def as_asked(axis: Any, smoothing: Any) -> Asked:
    """What was asked for; the usual in place of what cannot be."""
    is_share = (
        isinstance(smoothing, int | float) and not isinstance(smoothing, bool) and 0 <= smoothing <= MOST_SMOOTHING
    )
    return Asked(axis if axis in AXES else "steps", float(smoothing) if is_share else SMOOTHING)


@dataclass(frozen=True)
class Curves:
    """A run in a chart. `until`: the last step that is drawn of it, for the parent of a branch."""

    key: str
    name: str
    history: History
    file_id: int = 0
    until: int | None = None

    def structure(self) -> list[Any]:
        """What a chart is made anew for when it changes; all other news can be added to it."""
        history = self.history
        count = min(2, len(history.current))
        lines = [(panel.title, [line.column for line in lines]) for panel, lines in _told(history)]
        return [self.key, self.file_id, len(history.abandoned), history.resumes, count, lines, self.until]


# --- what a page is sent -------------------------------------------------------------------------------------------


def news(curves: Sequence[Curves], asked: Asked, have: str) -> dict[str, Any]:
    """What a page needs to draw the charts of runs, the watched one first: all of it, or what is new since `have`.

    `have` is what an earlier answer calls so; the page hands it back. An answer without "charts" means nothing is new.
    """
    structure = [asked.axis, asked.smoothing, [item.structure() for item in curves]]
    last = [[item.history.step, len(item.history.current), len(item.history.machine)] for item in curves]
    marks = [[len(item.history.checkpoints), len(item.history.samples)] for item in curves]
    structure = json.loads(json.dumps(structure))  # tuples are lists there
    now = json.dumps([structure, last, marks])
    if not curves or now == have:
        return {"have": now}
    before = _places(have, structure)
    if before is None:
        whole = {"loss-chart": loss_figure(curves, asked), "detail-chart": detail_figure(curves[0], asked)}
        return {"have": now, "charts": whole, "whole": True}
    grown = {
        "loss-chart": {"data": list(_loss_traces(curves, asked, [rows for rows, _ in before]))},
        "detail-chart": {"data": [trace for trace, _ in _detail_traces(curves[0], asked, *before[0])]},
    }
    return {"have": now, "charts": grown}


def _places(have: str, structure: list[Any]) -> list[tuple[int, int]] | None:
    """How many rows of steps and of the machine the page has of each run; None when it has to begin anew."""
    try:
        then, last, _ = json.loads(have)
        return [(int(rows), int(machine)) for _, rows, machine in last] if then == structure else None
    except (ValueError, TypeError):
        return None


# --- loss ----------------------------------------------------------------------------------------------------------


def loss_figure(curves: Sequence[Curves], asked: Asked) -> dict[str, Any]:
    """The loss of runs, the first with everything there is to it: raw and smoothed, validation, marks, branches."""
    history = curves[0].history
    traces = [*_abandoned(history, asked), *_loss_traces(curves, asked, [0] * len(curves))]
    layout = _layout(curves[0].key, asked, 380) | {
        "xaxis": _axis(title={"text": AXES[asked.axis]}, rangemode="tozero"),
        "yaxis": _axis(title={"text": "loss"}),
        "shapes": [], "annotations": [],
    }  # fmt: skip
    for number, place in enumerate(_x_of_steps(history, asked, history.resumes[-MOST_MARKS:])):
        line = {"color": AMBER, "width": 1.5, "dash": "dash"}
        layout["shapes"].append(
            {"type": "line", "xref": "x", "yref": "paper", "x0": place, "x1": place, "y0": 0, "y1": 1, "line": line}
        )
        if number == 0:
            layout["annotations"].append(
                {"text": "resumed", "x": place, "xref": "x", "xanchor": "auto", "xshift": 2, "y": 1, "yref": "paper",
                 "yanchor": "bottom", "showarrow": False, "font": {"color": AMBER}}
            )  # fmt: skip
    if not any(len(item.history.current) for item in curves) and not history.abandoned:
        _say(layout, "The loss is drawn here from the first step on.")
    return {"data": traces, "layout": layout}


def _abandoned(history: History, asked: Asked) -> Iterator[Trace]:
    branches = history.abandoned[-MOST_BRANCHES:]
    for number, branch in enumerate(branches):
        places = kept(branch["loss"], max(2, MOST_POINTS // 4 // len(branches)))
        yield {
            "uid": _uid("abandoned", number), "name": "abandoned branch", "legendgroup": "abandoned",
            "x": _x(branch, asked, places), "y": _numbers(branch["loss"][places]),
            "mode": "lines", "line": {"color": GREY, "width": 1}, "opacity": 0.6, "showlegend": number == 0,
            "hovertemplate": _hover(asked, "abandoned"),
        }  # fmt: skip


def _loss_traces(curves: Sequence[Curves], asked: Asked, since: Sequence[int]) -> Iterator[Trace]:
    """The traces that a run adds to, from the rows `since` on, and those that are sent whole each time."""
    several = len(curves) > 1
    for number, (item, begin) in enumerate(zip(curves, since, strict=True)):
        rows = item.history.current.rows
        if item.until is not None:
            rows = rows[: int(np.searchsorted(rows["step"], item.until, side="right"))]
        finite = np.flatnonzero(np.isfinite(rows["loss"]))
        losses = rows["loss"][finite]
        average = smooth(losses, asked.smoothing)
        fresh = int(np.searchsorted(finite, begin))
        watched = number == 0
        colour = BLUE if watched else OF_RUNS[(number - 1) % len(OF_RUNS)]
        if watched or not asked.smoothing:
            yield _growing(
                {"uid": _uid("loss", item.key), "name": "loss" if not several else f"{item.name}: loss",
                 "line": {"color": colour, "width": 1}, "opacity": 0.5, "hovertemplate": _hover(asked, item.name)},
                rows, finite[fresh:], losses[fresh:], asked, begin,
            )  # fmt: skip
        if asked.smoothing:
            name = item.name if several else "smoothed"
            look = {"color": colour, "width": 2.5 if watched else 2} | ({"dash": "dot"} if item.until else {})
            yield _growing(
                {"uid": _uid("smoothed", item.key), "name": name, "line": look,
                 "hovertemplate": _hover(asked, f"{item.name}, smoothed")},
                rows, finite[fresh:], average[fresh:], asked, begin, MOST_POINTS // 2,
            )  # fmt: skip
        if watched:
            yield from _marks(item.history, asked, rows["step"][finite], average)


def _growing(
    trace: Trace, rows: Array, places: Array, values: Array, asked: Asked, begin: int, most: int = MOST_POINTS
) -> Trace:
    """A trace with the places' values; `begin`: how many of the rows the page has already."""
    shown = kept(values, most)
    points = {"x": _x(rows, asked, places[shown]), "y": _numbers(values[shown])}
    if begin:
        return {"uid": trace["uid"], "more": True, **points}
    return trace | {"mode": "lines+markers" if len(shown) == 1 else "lines"} | points


def _marks(history: History, asked: Asked, steps: Array, average: Array) -> Iterator[Trace]:
    """Validation losses, and marks on the smoothed curve, each at the last point up to its step."""
    if history.validation:
        marks, told_then = zip(*history.validation, strict=True)
        losses = np.array(told_then)
        places = kept(losses)
        yield {
            "uid": _uid("validation"), "name": "validation", "mode": "lines+markers", "line": {"color": VIOLET},
            "x": _x_of_steps(history, asked, np.array(marks)[places]), "y": _numbers(losses[places]),
            "hovertemplate": _hover(asked, "validation"),
        }  # fmt: skip
    samples = sorted({sample.step for sample in history.samples.values() if not sample.abandoned})
    for name, all_marks, look in (
        ("sample", samples, {"symbol": "circle-open", "size": 13, "color": AMBER}),
        ("checkpoint", history.checkpoints, {"symbol": "diamond", "size": 8, "color": GREEN}),
    ):
        places = np.searchsorted(steps, all_marks[-MOST_MARKS:], side="right") - 1
        drawn = [(mark, place) for mark, place in zip(all_marks[-MOST_MARKS:], places, strict=True) if place >= 0]
        if drawn:
            yield {
                "uid": _uid(name), "name": name, "mode": "markers", "marker": look,
                "customdata": [mark for mark, _ in drawn],
                "x": _x_of_steps(history, asked, [mark for mark, _ in drawn]),
                "y": _numbers(average[[place for _, place in drawn]]),
                "hovertemplate": f"{name} at step %{{customdata}}<extra></extra>",
            }  # fmt: skip


# --- everything else -----------------------------------------------------------------------------------------------


def detail_figure(curves: Curves, asked: Asked) -> dict[str, Any]:
    """Learning rates, gradient norm, memory and the machine, one above the other; what was never told is left out."""
    placed = list(_detail_traces(curves, asked, 0, 0))
    titles = list(dict.fromkeys(panel.title for _, panel in placed))
    height = 150 * max(2, len(titles))
    layout = _layout(curves.key, asked, height) | {"hovermode": "closest"}
    share, gap = 1 / max(1, len(titles)), 0.25 / max(1, len(titles))
    for number, title in enumerate(titles):
        top = 1 - number * share
        layout[_numbered("yaxis", number)] = _axis(
            title={"text": title}, rangemode="tozero", domain=[max(0.0, top - share + gap), top],
            exponentformat="e" if title == "learning rate" else "none",
        )  # fmt: skip
    layout["xaxis"] = _axis(
        title={"text": AXES[asked.axis]}, rangemode="tozero", anchor=_numbered("y", max(0, len(titles) - 1))
    )
    if not placed:
        _say(layout, "Learning rate, gradient norm and memory are drawn here from the first step on.")
    return {"data": [trace for trace, _ in placed], "layout": layout}


def _detail_traces(curves: Curves, asked: Asked, since: int, machine_since: int) -> Iterator[tuple[Trace, Panel]]:
    """Every line there is something of, with its panel."""
    named: set[str] = set()  # in the legend
    for number, (panel, lines) in enumerate(_told(curves.history)):
        rows = _rows(curves.history, panel)
        begin = machine_since if panel.of_machine else since
        for line in lines:
            values = rows[line.column][begin:] / line.unit
            trace = {
                "uid": _uid(panel.title, line.column), "name": line.name, "line": {"color": line.colour, "width": 1.5},
                "yaxis": _numbered("y", number), "legendgroup": line.name,
                "showlegend": len(lines) > 1 and line.name not in named,
                "hovertemplate": _hover(asked, line.name),
            }  # fmt: skip
            named |= {line.name} if len(lines) > 1 else set()
            yield _growing(trace, rows, np.arange(begin, len(rows)), values, asked, begin), panel


def _told(history: History) -> list[tuple[Panel, list[Line]]]:
    """The panels there is something for, with their lines."""
    result = []
    for panel in (_rates(history.current.rows), *PANELS, *_machine_panels(history.machine.rows)):
        rows = _rows(history, panel)
        lines = [line for line in panel.lines if line.column in columns(rows)]
        lines = [line for line in lines if np.isfinite(rows[line.column]).any()]
        result += [(panel, lines)] if lines else []
    return result


def _machine_panels(rows: Array) -> list[Panel]:
    """What the machine did: its own lines, and one for each GPU of the run."""
    places = [int(name.removeprefix("memory ")) for name in columns(rows) if name.startswith("memory ")]
    count = 1 + max(places, default=-1)
    panels = []
    for title, own, of_gpu in OF_THE_MACHINE:
        lines = [Line(own[0], own[1], GREY, own[2])] if own else []
        for place in range(count if of_gpu else 0):
            name = "GPU" if count == 1 else f"GPU {place}"
            lines += [Line(f"{of_gpu[0]} {place}", name, OF_PARTS[place % len(OF_PARTS)], of_gpu[1])] if of_gpu else []
        panels.append(Panel(title, tuple(lines), of_machine=True))
    return panels


def _rows(history: History, panel: Panel) -> Array:
    return history.machine.rows if panel.of_machine else history.current.rows


def _rates(rows: Array) -> Panel:
    """The learning rates: one line, or one for each trained part where these are told."""
    parts = [name for name in columns(rows) if name.startswith(RATE)]
    lines = [
        Line(name, name.removeprefix(RATE).replace("_", " "), colour)
        for name, colour in zip(sorted(parts), itertools.cycle(OF_PARTS), strict=False)
    ]
    return Panel("learning rate", tuple(lines) if len(lines) > 1 else (Line("lr", "learning rate", BLUE),))


# --- a resume ------------------------------------------------------------------------------------------------------


class RateCurve(NamedTuple):
    """A learning rate over steps: its name, and the rate in the step that follows `step` completed ones."""

    name: str
    rates: Mapping[int, float]


def rate_figure(then: RateCurve, now: RateCurve, step: int, total_steps: int) -> dict[str, Any]:
    """The checkpoint's learning rates, those that a resume would follow, and where it begins.

    `step`: completed steps at the resume; `total_steps`: completed ones at the end.
    """
    lines = [(then, {"color": GREY, "width": 2, "dash": "dot"}, " then")]
    lines += [(now, {"color": BLUE, "width": 2.5}, "")] if step < total_steps else []
    traces: list[Trace] = [
        {
            "uid": _uid("rate", curve.name), "name": curve.name, "mode": "lines", "line": line,
            "x": list(curve.rates), "y": list(curve.rates.values()),
            "hovertemplate": f"step %{{x}}: %{{y:.3g}}{words}<extra></extra>",
        }
        for curve, line, words in lines
    ]  # fmt: skip
    traces.append(
        {
            "uid": _uid("rate", "resume"), "name": "resume", "mode": "markers", "x": [step], "y": [now.rates[step]],
            "marker": {"symbol": "circle", "size": 11, "color": AMBER},
            "hovertemplate": "continues after step %{x} at %{y:.3g}<extra></extra>",
        }
    )  # fmt: skip
    end = {"type": "line", "xref": "x", "yref": "paper", "x0": total_steps, "x1": total_steps, "y0": 0, "y1": 1}
    layout = _layout("rate", Asked(), 260) | {
        "xaxis": _axis(title={"text": "step"}, rangemode="tozero"),
        "yaxis": _axis(title={"text": "learning rate"}, rangemode="tozero", exponentformat="e"),
        "shapes": [end | {"line": {"color": GREY, "width": 1}}],
        "annotations": [
            {"text": "end", "x": total_steps, "xref": "x", "xanchor": "auto", "y": 1, "yref": "paper",
             "yanchor": "bottom", "showarrow": False}
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}


# --- pieces --------------------------------------------------------------------------------------------------------


def _x(rows: Array, asked: Asked, places: Array) -> list[float] | list[int]:
    """Where rows are on the chosen axis."""
    if asked.axis == "steps":
        steps: list[int] = rows["step"][places].tolist()
        return steps
    if asked.axis == "epochs":
        return _numbers(rows["epochs"][places])
    return _numbers(rows["seconds"][places] / 3600)


def _x_of_steps(history: History, asked: Asked, steps: Sequence[int] | Array) -> list[float] | list[int]:
    """Where steps are on the chosen axis: at the last row up to each."""
    rows = history.current.rows
    if asked.axis == "steps" or not len(rows):
        return [int(step) for step in steps]
    places = np.searchsorted(rows["step"], steps, side="right") - 1
    return _x(rows, asked, np.maximum(0, places))


def _numbers(values: Array) -> list[float]:
    """Six digits of each: more are not seen, and would be sent."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _uid(*words: Any) -> str:
    """What a trace is known by; Plotly makes a class of the document of it, in which few signs may be."""
    return f"t{zlib.crc32(repr(words).encode()):08x}"


def _hover(asked: Asked, words: str) -> str:
    words = words.replace("%", "").replace("<", "‹").replace(">", "›")
    return f"{AXES[asked.axis]} %{{x}}: %{{y:.4g}} ({words})<extra></extra>"


def _numbered(axis: str, number: int) -> str:
    """Plotly's name of the n-th axis."""
    return axis if number == 0 else f"{axis}{number + 1}"


def _say(layout: dict[str, Any], text: str) -> None:
    """Words in the middle of an empty chart."""
    layout["xaxis"] = layout.get("xaxis", {}) | {"visible": False}
    layout["yaxis"] = layout.get("yaxis", {}) | {"visible": False}
    layout["annotations"] = [
        {"text": text, "showarrow": False, "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "font": {"size": 15}}
    ]


def _axis(**more: Any) -> dict[str, Any]:
    return {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, **more}


def _layout(key: str, asked: Asked, height: int) -> dict[str, Any]:
    """Colours that suit light and dark; zoom, hidden traces and selection stay while run and axis do."""
    return {
        "uirevision": f"{key} {asked.axis}",
        "height": height,
        "margin": {"l": 60, "r": 24, "t": 28, "b": 62},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#6b7280", "family": "system-ui, sans-serif"},
        "legend": {"orientation": "h", "y": -60 / (height - 90), "yanchor": "top", "x": 0},
        "hovermode": "closest",
    }
