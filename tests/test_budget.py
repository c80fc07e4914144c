"""What checkpoints write in all and in an hour, and when it is too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer import budget
from trainer.budget import Budget
from trainer.config import Config
from trainer.events import EventWriter
from trainer.runs import RunFolder


@pytest.mark.parametrize(
    ("options", "step", "saves"),
    [
        ({}, 0, 1),  # the end
        ({"save_every_n_steps": 10}, 0, 10),
        ({"save_every_n_steps": 10}, 20, 8),
        ({"save_every_n_steps": 10}, 95, 1),
        ({"save_every_n_steps": 30}, 0, 4),
        ({"save_every_n_epochs": 1}, 0, 4),
        ({"save_every_n_epochs": 1, "save_every_n_steps": 50}, 0, 4),  # 25, 50, 75, 100
        ({"save_every_n_steps": 10, "save_state": False}, 0, 1),
        ({"save_every_n_minutes": 1.0}, 0, 4),  # 200 s
        ({}, 100, 0),
    ],
)
def test_the_saves_of_100_steps_of_2_seconds_in_epochs_of_25(options: dict[str, Any], step: int, saves: int) -> None:
    found = budget.of(Config(**options), step, 100, 25, 10_000_000, 2.0)
    assert found.saves == saves
    assert found.total == saves * 10_000_000


def test_the_rate_follows_from_the_time_between_two_saves() -> None:
    found = budget.of(Config(save_every_n_steps=10), 0, 100, 25, 10_000_000_000, 2.0)
    assert found.per_hour == 1.8e12
    assert found.line() == "10 checkpoints of 10,000.0 MB to be written: 100.0 GB in all, 1800.0 GB an hour"
    assert "SSD" in (found.warning() or "")


@pytest.mark.parametrize(
    ("found", "warns"),
    [
        (Budget(100, 40_000_000, 60.0), False),  # a LoRA
        (Budget(1, 10**10, None), False),  # one save of a full model
        (Budget(1000, 10**10, None), True),  # 10 TB
        (Budget(100, 10**10, 60.0), True),  # 600 GB an hour
        (Budget(100, 10**10, 3600.0), False),
    ],
)
def test_only_much_is_worth_a_word(found: Budget, warns: bool) -> None:
    assert (found.warning() is not None) == warns


def test_the_speed_is_that_of_the_last_steps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert budget.step_seconds(run) is None
    events = EventWriter(run.events_file)
    for seconds in (9.0, 1.0, 2.0, 3.0, "nan"):
        events.write("step", 1, step_seconds=seconds)
    assert budget.step_seconds(run) == 2.5
