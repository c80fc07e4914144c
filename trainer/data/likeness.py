"""How alike two pictures are. No torch here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
WINDOW, SIGMA = 11, 1.5
STABILISERS = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # C1 and C2
NAME = "SSIM"
SOURCE = "Wang, Bovik, Sheikh, Simoncelli 2004, https://doi.org/10.1109/TIP.2003.819861"


def structural_similarity(left: Image.Image, right: Image.Image) -> float | None:
    """The mean structural similarity (SSIM) of the pictures' luminance: 1 where they are equal, near 0 where they have
    nothing in common. None where they are not of one size, or smaller than its window.

    As its authors compute it: windows of 11 pixels weighted by a Gaussian of 1.5 pixels, only those that lie inside.
    """
    if left.size != right.size or min(left.size) < WINDOW:
        return None
    one, other = (np.asarray(picture.convert("L"), dtype=np.float64) for picture in (left, right))
    mean, mean_other = _blurred(one), _blurred(other)
    variance = _blurred(one * one) - mean * mean
    variance_other = _blurred(other * other) - mean_other * mean_other
    covariance = _blurred(one * other) - mean * mean_other
    first, second = STABILISERS
    numerator = (2 * mean * mean_other + first) * (2 * covariance + second)
    denominator = (mean**2 + mean_other**2 + first) * (variance + variance_other + second)
    return float((numerator / denominator).mean())


def _blurred(values: Array) -> Array:
    """(height, width) -> (height - 10, width - 10): weighted means of the windows inside."""
    places = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(places**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        values = np.lib.stride_tricks.sliding_window_view(values, WINDOW, axis=axis) @ weights
    return values


def difference(left: Image.Image, right: Image.Image) -> tuple[Image.Image, float, int]:
    """A picture of where two of one size differ, its largest difference shown as white; the mean and the largest
    difference of a channel, of 0 to 255."""
    one, other = (np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in (left, right))
    apart = np.abs(one - other)
    most = int(apart.max(initial=0))
    shown = (apart * (255 / max(1, most))).round().astype(np.uint8)
    return Image.fromarray(shown), float(apart.mean()), most
