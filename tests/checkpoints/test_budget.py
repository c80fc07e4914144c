"""What checkpoints write in all and in an hour, and when it is too much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoints import budget
from trainer.checkpoints.budget import Budget
from trainer.options.config import Config
from trainer.runs.run_folder import RunFolder


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
        ({"save_every_n_epochs": 1, "save_every_n_steps": 10}, 40, 7),  # 50, 60, 70, 75, 80, 90, 100
        ({"save_every_n_steps": 10, "save_state": False}, 0, 1),
        ({"save_every_n_minutes": 1.0}, 0, 4),  # 200 s
        ({}, 100, 0),
    ],
)
def test_the_saves_of_100_steps_of_2_seconds_in_epochs_of_25(options: dict[str, Any], step: int, saves: int) -> None:
    found = budget.planned(Config(**options), step, 100, 25, 10_000_000, 2.0)
    assert found.saves == saves
    assert found.total == saves * 10_000_000


def test_the_rate_follows_from_the_time_between_two_saves() -> None:
    found = budget.planned(Config(save_every_n_steps=10), 0, 100, 25, 10_000_000_000, 2.0)
    assert found.per_hour == 1.8e12
    assert found.line() == "10 checkpoints of 10 GB to be written: 100 GB in all, 1.8 TB an hour"
    assert "SSD" in (found.warning() or "")


def test_a_computed_size_is_told_as_such() -> None:
    config = Config(save_every_n_steps=50, save_every_n_minutes=0.0)
    found = budget.planned(config, 0, 100, 25, 12_345_678, None, about=True)
    assert found.line() == "2 checkpoints of about 12.3 MB to be written: about 24.7 MB in all"


def test_saves_by_the_clock_are_counted_where_the_time_is_known_and_told_where_it_is_not() -> None:
    config = Config(save_every_n_steps=50, save_every_n_minutes=2.5)
    assert (
        budget.planned(config, 0, 100, 25, 10**6, 60.0).line().startswith("41 checkpoints of 1 MB to be written: 41 MB")
    )
    assert budget.planned(config, 0, 100, 25, 10**6, 0.1).saves == 2  # over before the clock calls for any
    unknown = budget.planned(config, 0, 100, 25, 10**6, None)
    assert unknown.line() == (
        "2 checkpoints of 1 MB to be written: 2 MB in all, and one whenever 2.5 minutes pass without"
    )
    assert budget.kept(config, unknown.saves, 100, 25) == 3


NOTHING = "Nothing is saved before the end: a crash would cost the whole training"


@pytest.mark.parametrize(
    ("options", "step_seconds", "told"),
    [
        ({}, None, None),  # every ten minutes
        ({}, 60.0, None),
        ({"save_every_n_minutes": 0.0}, None, NOTHING),
        ({"save_every_n_minutes": 0.0}, 17.0, None),  # 28 minutes in all
        ({"save_every_n_minutes": 0.0}, 60.0, f"{NOTHING}, 100 minutes of it"),
        ({"save_every_n_minutes": 0.0, "save_every_n_steps": 10}, None, None),
        ({"save_every_n_minutes": 0.0, "save_every_n_steps": 10}, 60.0, None),
        ({"save_every_n_minutes": 0.0, "save_every_n_steps": 40}, 60.0, "A crash could cost up to 40 minutes"),
        ({"save_every_n_minutes": 0.0, "save_every_n_epochs": 2}, 200.0, "A crash could cost up to 2.78 hours"),
        ({"save_every_n_minutes": 35.0, "save_every_n_steps": 40}, 60.0, "A crash could cost up to 35 minutes"),
        ({"save_every_n_minutes": 45.0}, None, "A crash could cost up to 45 minutes"),
        ({"save_every_n_minutes": 0.0, "save_every_n_steps": 10, "save_state": False}, None, NOTHING),
        ({"save_every_n_minutes": 0.0, "cache_only": True}, None, None),
    ],
)
def test_what_a_crash_could_cost_of_100_steps_in_epochs_of_25_is_told_from_half_an_hour_on(
    options: dict[str, Any], step_seconds: float | None, told: str | None
) -> None:
    found = budget.at_stake(Config(**options), 0, 100, 25, step_seconds)
    assert (found or "").startswith(told or "") and (found is None) == (told is None)
    assert budget.at_stake(Config(**options), 100, 100, 25, step_seconds) is None


@pytest.mark.parametrize(
    ("found", "warns"),
    [
        (Budget(100, 40_000_000, 60.0), False),  # a LoRA
        (Budget(1, 10**10, None), False),  # one save of a full model
        (Budget(1000, 10**10, None), True),  # 10 TB
        (Budget(100, 10**10, 60.0), True),  # 600 GB an hour
        (Budget(100, 10**10, 3600.0), False),
        (Budget(20, 2 * 10**5, 0.001), False),  # 4 MB, however fast
    ],
)
def test_only_much_is_worth_a_word(found: Budget, warns: bool) -> None:
    assert (found.warning() is not None) == warns


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 3),
        ({"keep_last_n_checkpoints": 0}, 10),
        ({"keep_every_n_steps": 50}, 5),  # 50, 80, 90, 100, and one to spare
        ({"save_last_n_steps_state": 60}, 6),
        ({"save_last_n_epochs_state": 2}, 5),
        ({"keep_last_n_checkpoints": 20}, 10),
    ],
)
def test_the_checkpoints_left_of_100_steps_in_epochs_of_25_saved_every_10(options: dict[str, Any], kept: int) -> None:
    config = Config(save_every_n_steps=10, save_every_n_minutes=0.0, **options)
    assert budget.kept(config, 10, 100, 25) == kept


def test_the_speed_is_that_of_the_last_session(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert budget.seconds_per_step(run) is None
    events = [("run_started", 0, 0.0), ("step", 1, 9.0), ("step", 2, 19.0), ("step", 3, 29.0)]
    write(run, events)
    assert budget.seconds_per_step(run) == 10.0
    write(run, [*events, ("run_started", 3, 50.0), ("step", 4, 51.0)])
    assert budget.seconds_per_step(run) is None
    write(run, [*events, ("run_started", 3, 50.0), ("step", 4, 51.0), ("step", 6, 55.0), ("step", 8, 59.0)])
    assert budget.seconds_per_step(run) == 2.0


def test_steps_written_at_once_took_their_time(tmp_path: Path) -> None:
    lines = [
        {"event": "step", "global_step": step, "time": 10 + step / 1e4, "step_seconds": 0.5} for step in range(1, 6)
    ]
    run = RunFolder(tmp_path)
    run.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert budget.seconds_per_step(run) == 0.5


def write(run: RunFolder, events: list[tuple[str, int, float]]) -> None:
    lines = [json.dumps({"event": name, "global_step": step, "time": time}) for name, step, time in events]
    run.events_file.write_text("".join(f"{line}\n" for line in lines))
