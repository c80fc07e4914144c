"""Curves of numbers over steps: kept compactly, thinned, smoothed. It knows nothing of runs and of drawing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MOST_POINTS = 2000
RATES = ("lr", "lr_2", "lr_3", "lr_4")  # of the trained parts, in the order in which they are told
ROW = np.dtype([("step", "i8"), *((name, "f4") for name in ("loss", *RATES, "grad_norm", "memory"))])
_STRETCH = 128  # values smoothed at once: 0.01 ** 128 is still a number


class Curve:
    """The rows of a run's steps, ascending, NaN where a number was not told.

    A row that is there never changes, so a frozen copy shares them and costs nothing, however long the run is.
    """

    def __init__(self) -> None:
        self._rows = np.empty(0, ROW)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Array:  # (steps,) of ROW
        return self._rows[: self._count]

    def append(self, row: tuple[float, ...]) -> None:
        if self._count == len(self._rows):
            grown = np.empty(max(1024, self._count * 3 // 2), ROW)
            grown[: self._count] = self._rows
            self._rows = grown
        self._rows[self._count] = row
        self._count += 1

    def cut_after(self, step: int) -> Array:
        """Take out the rows of later steps, and return them."""
        keep = int(np.searchsorted(self.rows["step"], step, side="right"))
        later = self.rows[keep:].copy()
        if len(later):
            self._rows, self._count = self.rows[:keep].copy(), keep
        return later

    def frozen(self) -> Curve:
        """What is there now; later appends and cuts leave it as it is."""
        result = Curve()
        result._rows, result._count = self._rows, self._count
        return result


def thin(steps: Array, values: Array, most: int = MOST_POINTS) -> tuple[Array, Array]:
    """At most `most` points of a curve that look the same: lowest and highest of each bucket, in their order.

    Values that are not finite are left out.
    """
    finite = np.isfinite(values)
    if not finite.all():
        steps, values = steps[finite], values[finite]
    count = len(steps)
    if count <= most:
        return steps, values
    size = -(-count // (most // 2))
    whole = count - count % size
    buckets = values[:whole].reshape(-1, size)
    firsts = np.arange(0, whole, size)
    kept = [firsts + buckets.argmin(axis=1), firsts + buckets.argmax(axis=1)]
    if whole < count:
        rest = values[whole:]
        kept.append(whole + np.array([rest.argmin(), rest.argmax()]))
    places = np.unique(np.concatenate(kept))
    return steps[places], values[places]


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
