"""Curves of numbers over steps: kept compactly, thinned, smoothed. It knows nothing of runs and of drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MOST_POINTS = 2000
# `session`: by its place in the events; `epochs` and `seconds`: of training since the run began, without its pauses.
ROW = np.dtype(
    [
        ("step", "i8"),
        ("session", "i4"),
        *((name, "f4") for name in ("epochs", "seconds", "loss", "lr", "grad_norm", "memory")),
    ]
)
_STRETCH = 128  # values smoothed at once: 0.01 ** 128 is still a number


class Curve:
    """The rows of a run's steps, ascending, NaN where a number was not told.

    A row that is there never changes, so a frozen copy shares them and costs nothing, however long the run is.
    """

    def __init__(self, row: np.dtype[Any] = ROW) -> None:
        self._rows = np.empty(0, row)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Array:  # (steps,) of ROW, and what was told besides
        return self._rows[: self._count]

    def append(self, numbers: Mapping[str, float | None]) -> None:
        """A row: its step and whatever was told of it. A number that was never told before is a new column."""
        for name in numbers.keys() - set(columns(self._rows)):
            self._widen(name)
        if self._count == len(self._rows):
            grown = np.empty(max(1024, self._count * 3 // 2), self._rows.dtype)
            grown[: self._count] = self._rows
            self._rows = grown
        row = []
        for name in columns(self._rows):
            number = numbers.get(name)
            row.append(math.nan if number is None else number)
        self._rows[self._count] = tuple(row)
        self._count += 1

    def _widen(self, name: str) -> None:
        wider = np.empty(len(self._rows), np.dtype([*self._rows.dtype.descr, (name, "f4")]))
        for before in columns(self._rows):
            wider[before] = self._rows[before]
        wider[name] = np.nan
        self._rows = wider

    def cut_after(self, step: int) -> Array:
        """Take out the rows of later steps, and return them."""
        keep = int(np.searchsorted(self.rows["step"], step, side="right"))
        later = self.rows[keep:].copy()
        if len(later):
            self._rows, self._count = self.rows[:keep].copy(), keep
        return later

    def replace(self, parts: Sequence[Array]) -> None:
        """Have the rows of these parts instead, ordered by their steps."""
        names = {name: kind for rows in (self._rows, *parts) for name, kind in rows.dtype.descr}
        rows = np.empty(sum(map(len, parts)), np.dtype(list(names.items())))
        begin = 0
        for part in parts:
            into = rows[begin : begin + len(part)]
            for name in names:
                into[name] = part[name] if name in columns(part) else np.nan
            begin += len(part)
        self._rows, self._count = rows[np.argsort(rows["step"], kind="stable")], len(rows)

    def frozen(self) -> Curve:
        """What is there now; later appends and cuts leave it as it is."""
        result = Curve(self._rows.dtype)
        result._rows, result._count = self._rows, self._count
        return result


def columns(rows: Array) -> tuple[str, ...]:
    """The names of what rows tell."""
    return rows.dtype.names or ()


def thin(steps: Array, values: Array, most: int = MOST_POINTS) -> tuple[Array, Array]:
    """At most `most` points of a curve that look the same; see `kept`."""
    places = kept(values, most)
    return steps[places], values[places]


def kept(values: Array, most: int = MOST_POINTS) -> Array:
    """The places of at most `most` values that look the same: lowest and highest of each bucket, in their order.

    Values that are not finite are left out.
    """
    finite = np.flatnonzero(np.isfinite(values))
    count = len(finite)
    if count <= most:
        return finite
    values = values[finite]
    size = -(-count // (most // 2))
    whole = count - count % size
    buckets = values[:whole].reshape(-1, size)
    firsts = np.arange(0, whole, size)
    extremes = [firsts + buckets.argmin(axis=1), firsts + buckets.argmax(axis=1)]
    if whole < count:
        rest = values[whole:]
        extremes.append(whole + np.array([rest.argmin(), rest.argmax()]))
    return finite[np.unique(np.concatenate(extremes))]


def smooth(values: Array, share: float) -> Array:
    """The moving average that a value leaves as it was by `share`, without the pull towards zero at its beginning.

    share 0 is the values themselves; they have to be finite. The bias is taken out as in Adam (arXiv:1412.6980).
    """
    values = np.asarray(values, dtype=np.float64)
    if share <= 0 or not len(values):
        return values
    padded = np.zeros(-(-len(values) // _STRETCH) * _STRETCH)
    padded[: len(values)] = values
    powers = share ** np.arange(1, _STRETCH + 1)  # what is left of the stretch before, after 1, 2, ... values
    averages = np.cumsum(padded.reshape(-1, _STRETCH) / powers * (1 - share), axis=1) * powers
    before = 0.0
    for stretch in averages:
        stretch += before * powers
        before = float(stretch[-1])
    return averages.ravel()[: len(values)] / -np.expm1(np.arange(1, len(values) + 1) * np.log(share))
