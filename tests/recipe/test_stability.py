"""A resume after which the loss is not what it was is worth a warning; chance is not."""

from __future__ import annotations

import math
import random

import pytest

from trainer.recipe.resume_watch import WATCHED, AfterResume


def warnings(losses: list[float], step: int = 100, average: float | None = 0.1, spread: float | None = 0.02) -> int:
    watch = AfterResume(step, average, spread)
    return sum(watch.add(loss) is not None for loss in losses)


def test_losses_as_before_are_no_alarm_whatever_the_draw() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        assert warnings([abs(draw.gauss(0.1, 0.025)) for _ in range(50)]) == 0


def test_a_jump_is_told_once() -> None:
    assert warnings([0.3] * 50) == 1


def test_one_outlier_is_no_jump() -> None:
    assert warnings([0.5] + [0.1] * 20) == 0


def test_losses_that_are_not_finite_are_a_jump() -> None:
    assert warnings([math.nan] + [0.1] * 20) == 1


def test_a_jump_later_on_is_not_the_resumes() -> None:
    assert warnings([0.1] * WATCHED + [9.0] * 20) == 0


@pytest.mark.parametrize(("step", "average", "spread"), [(0, None, None), (10, 0.1, 0.02), (100, 0.1, None)])
def test_without_enough_before_nothing_is_compared(step: int, average: float | None, spread: float | None) -> None:
    assert warnings([9.0] * 20, step, average, spread) == 0
