"""Choices between hidden pictures: added up, with the interval that they leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.runs import blind
from trainer.runs.blind import Tally, wilson
from trainer.runs.run_folder import RunFolder


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Brown, Cai, DasGupta 2001 and R's prop.test(..., correct = FALSE) give these.
    [(0, 10, 0.0, 0.27754), (5, 10, 0.23659, 0.76341), (9, 10, 0.59585, 0.98212), (0, 0, 0.0, 1.0)],
)
def test_the_interval_is_wilsons(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=2e-5)


def test_choices_are_added_up_whichever_side_was_named_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert blind.tallies(run) == []
    for first, second, choice in (("a", "b", "first"), ("b", "a", "second"), ("a", "b", "equal"), ("a", "c", "second")):
        blind.keep(run, first, second, "a thing", 1, choice)  # type: ignore[arg-type]
    with blind.file_of(run).open("ab") as file:
        file.write(b'{"first": "a", "second": "b", "choice": "neither"}\n{"torn')
    assert blind.tallies(run) == [Tally("a", "b", 2, 0, 1), Tally("a", "c", 0, 1, 0)]


def test_what_cannot_be_told_yet_is_not_told() -> None:
    assert "cannot be told yet" in Tally("a", "b", 3, 1).sentence()
    assert "a is preferred" in Tally("a", "b", 9, 1).sentence() and "90 %" in Tally("a", "b", 9, 1).sentence()
    assert "b is preferred" in Tally("a", "b", 1, 9).sentence()
    assert "nothing was preferred" in Tally("a", "b", 0, 0, 4).sentence()
