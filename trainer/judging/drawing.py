"""Line charts as SVG, with nothing beside them: no script, no font, no file from elsewhere. No torch here."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
WIDTH, HEIGHT = 900, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 10, 10, 26  # around the plot
MOST_POINTS = 1200
TICKS = 5


@dataclass(frozen=True)
class Line:
    """A curve. `faint`: drawn behind the others."""

    name: str
    points: Sequence[Point]
    colour: str
    faint: bool = False
    dots: bool = False


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points that look the same: the lowest and the highest of each group, in their order."""
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) <= most:
        return finite
    size = -(-len(finite) // (most // 2))
    kept = []
    for start in range(0, len(finite), size):
        group = finite[start : start + size]
        ends = {min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])}
        kept += [point for point in group if point in ends]
    return kept


def smoothed(points: Sequence[Point], share: float = 0.98) -> list[Point]:
    """The moving average to which the past adds `share`, without the pull towards zero at its beginning."""
    average, weight, result = 0.0, 0.0, []
    for step, value in points:
        if math.isfinite(value):
            average, weight = share * average + (1 - share) * value, share * weight + (1 - share)
            result.append((step, average / weight))
    return result


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about TICKS of them."""
    if not high > low:
        return [low]
    raw = (high - low) / TICKS
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw * 0.999)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(title: str, lines: Sequence[Line], marks: Sequence[tuple[float, str]] = ()) -> str:
    """An SVG figure of the lines over the step; "" where none has a point. `marks`: steps with what happened there."""
    drawn = [(line, thinned(line.points)) for line in lines]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return ""
    every = [point for _, points in drawn for point in points]
    # A few outliers do not flatten all the rest: faint lines may leave the picture.
    firm = [value for line, points in drawn if not line.faint for _, value in points] or [value for _, value in every]
    ordered = sorted(value for _, value in every)
    low = min(min(firm), ordered[len(ordered) // 100])
    high = max(max(firm), ordered[-1 - len(ordered) // 100])
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    first, last = min(step for step, _ in every), max(step for step, _ in every)
    last = last if last > first else first + 1

    def across(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return TOP + (high - min(max(value, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in ticks(low, high):
        y = down(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for step in ticks(first, last):
        parts.append(f'<text x="{across(step):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{step:.6g}</text>')
    for step, what in marks:
        if first <= step <= last:
            x = across(step)
            inside = f"<title>{html.escape(what)}</title>"
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="mark">{inside}</line>'
            )
    for line, points in sorted(drawn, key=lambda item: not item[0].faint):
        opacity = 0.35 if line.faint else 1
        style = f'fill="none" stroke="{line.colour}" stroke-width="1.5" opacity="{opacity}"'
        places = " ".join(f"{across(step):.1f},{down(value):.1f}" for step, value in points)
        if len(points) > 1:
            parts.append(f'<polyline points="{places}" {style}/>')
        if line.dots or len(points) == 1:
            parts += [
                f'<circle cx="{across(step):.1f}" cy="{down(value):.1f}" r="3" fill="{line.colour}">'
                f"<title>step {step:g}: {value:.4g}</title></circle>"
                for step, value in points
            ]
    legend = " ".join(f'<span style="color:{line.colour}">&#9644; {html.escape(line.name)}</span>' for line, _ in drawn)
    name = html.escape(title, quote=True)
    body = "".join(parts)
    return (
        f"<figure><figcaption>{name} <small>{legend}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{name}">{body}</svg></figure>'
    )
