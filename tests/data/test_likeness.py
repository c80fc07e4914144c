"""How alike two pictures are, against values computed another way."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from trainer.data.likeness import difference, structural_similarity


def noise(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    return Image.fromarray(values)


def by_loops(left: Image.Image, right: Image.Image) -> float:
    """SSIM window by window, as its paper writes it down."""
    one, other = (np.asarray(picture, dtype=np.float64) for picture in (left, right))
    weights = np.array([[np.exp(-(x * x + y * y) / 4.5) for x in range(-5, 6)] for y in range(-5, 6)])
    weights /= weights.sum()
    values = []
    for row in range(one.shape[0] - 10):
        for column in range(one.shape[1] - 10):
            a, b = (of[row : row + 11, column : column + 11] for of in (one, other))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            variances = (weights * (a - mean_a) ** 2).sum() + (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            first, second = 2.55**2, 7.65**2
            values.append(
                (2 * mean_a * mean_b + first)
                * (2 * covariance + second)
                / ((mean_a**2 + mean_b**2 + first) * (variances + second))
            )
    return float(np.mean(values))


def test_the_similarity_is_that_of_its_paper() -> None:
    one, other = noise(0), noise(1)
    blended = Image.blend(one, other, 0.3)
    assert structural_similarity(one, other) == pytest.approx(by_loops(one, other), abs=1e-9)
    assert structural_similarity(one, blended) == pytest.approx(by_loops(one, blended), abs=1e-9)
    assert structural_similarity(one, one) == pytest.approx(1.0)


def test_pictures_that_cannot_be_compared_have_none() -> None:
    assert structural_similarity(noise(0), noise(0, (16, 24))) is None
    assert structural_similarity(noise(0, (10, 30)), noise(1, (10, 30))) is None


def test_a_difference_is_shown_with_its_largest_as_white() -> None:
    black, dot = Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2))
    dot.putpixel((1, 0), (0, 10, 5))
    shown, mean, most = difference(black, dot)
    assert (most, mean) == (10, 15 / 24)
    assert shown.getpixel((1, 0)) == (0, 255, 128) and shown.getpixel((0, 0)) == (0, 0, 0)
    assert difference(dot, dot)[1:] == (0.0, 0)
