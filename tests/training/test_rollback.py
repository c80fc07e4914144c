"""A run that diverges goes back to a sound checkpoint, at most so many times, and a killed one does so all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from tests.support.runs_at_tiny_size import (
    STEPS,
    assert_bit_equal,
    config_for,
    events_of,
    run,
    steps_of,
    tensors_of,
)
from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Given
from trainer.recipe.alarms import Alarm, StepAlarms
from trainer.runs import manifest, rollbacks, run_folder
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopSignals
from trainer.training import loop

RATE = 1e-3
TOLD, SOUND = 6, 2  # the step at which the divergence is seen, and the last one of before it


@pytest.fixture(autouse=True)
def diverges_above(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training diverges as long as its rate is above 0.6 of what it began with. How that is seen in losses is
    measured elsewhere, over many curves."""

    def after(self: StepAlarms, step: int, loss: float, gradient: float, rate: float) -> list[Alarm]:
        return [Alarm("divergence", "it is high")] if step == TOLD and rate > 0.6 * RATE else []

    monkeypatch.setattr(StepAlarms, "after", after)
    monkeypatch.setattr(rollbacks, "horizon", lambda step, window: step - (TOLD - SOUND))


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    return config_for(
        tiny_model, tiny_images, tmp_path, learning_rate=RATE, max_rollbacks=2,
        rollback_lr_scale=0.75, network_train_unet_only=True, cache_latents=True, cache_text_encoder_outputs=True,
    )  # fmt: skip


def record(config: Config) -> dict[str, Any]:
    found = run_folder.read_run(RunFolder(config.run_dir))
    assert found is not None
    return found


def rates(config: Config) -> list[float]:
    return [event["lr"] for event in events_of(config, "step")]


def test_it_goes_back_as_often_as_it_has_to_each_time_at_a_lower_rate(config: Config) -> None:
    assert run(config) == "finished"
    told = [(event["global_step"], event["to_step"], event["scale"]) for event in events_of(config, "rolled_back")]
    # The second time the checkpoint is of before the first lower rate, so both factors are applied.
    assert told == [(TOLD, SOUND, 0.75), (TOLD, SOUND, 0.75**2)]
    lower, lowest = RATE * 0.75, RATE * 0.75**2
    assert rates(config) == pytest.approx([RATE] * TOLD + [lower] * (TOLD - SOUND) + [lowest] * (STEPS - SOUND))
    sessions = record(config)["sessions"]
    assert [(entry["from_step"], entry["to_step"], entry["reason"]) for entry in sessions] == [
        (0, TOLD, "rolled_back"), (SOUND, TOLD, "rolled_back"), (SOUND, STEPS, "finished"),
    ]  # fmt: skip
    branches = sorted(RunFolder(config.run_dir).abandoned.glob("*/checkpoints/step-*"))
    assert {path.parent.parent.name for path in branches} == {"before-session-002", "before-session-003"}
    kept = json.loads((RunFolder(config.run_dir).checkpoints / manifest.folder_name(STEPS) / "state.json").read_text())
    assert [rate["name"] for rate in kept["decisions"]["rates"]] == ["rollback 2"]
    assert kept["lr_curve"]["scale"] == 0.75**2


def test_after_the_last_time_it_goes_on_and_says_why(config: Config) -> None:
    once = config.replace(max_rollbacks=1)
    assert run(once) == "finished"
    assert len(events_of(once, "rolled_back")) == 1
    (refused,) = [event for event in events_of(once, "warning") if event["kind"] == "rollback_impossible"]
    assert "has gone back 1 times already" in refused["message"]
    assert rates(once)[-1] == pytest.approx(RATE * 0.75)


def test_without_an_older_checkpoint_it_goes_on_and_says_why(config: Config) -> None:
    few = config.replace(save_every_n_steps=5)
    assert run(few) == "finished"
    assert events_of(few, "rolled_back") == []
    (refused,) = [event for event in events_of(few, "warning") if event["kind"] == "rollback_impossible"]
    assert "no checkpoint of before that" in refused["message"]


@pytest.fixture(params=["recorded", "resumed"])
def killed(request: pytest.FixtureRequest, config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run whose process was killed as its first rollback was recorded, or before it saved anything after that."""
    config = config.replace(output_name="killed", rollback_lr_scale=0.5)
    AcceleratorState._reset_state(reset_partial_state=True)
    with StopSignals() as signals:
        assert loop.train_session(config, signals, None) == "rolled back"
        if request.param == "resumed":

            def dies(*anything: object) -> None:
                raise KeyboardInterrupt

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(loop, "forward_and_backward", dies)
                loop.train_session(config.replace(resume_from_checkpoint="latest"), signals, None)
    return config


def test_a_run_killed_in_the_middle_of_it_goes_on_as_if_it_had_not_been(config: Config, killed: Config) -> None:
    straight = config.replace(output_name="straight", rollback_lr_scale=0.5)
    assert run(straight) == run(killed.replace(resume_from_checkpoint="latest")) == "finished"
    assert steps_of(killed) == steps_of(straight)
    assert_bit_equal(tensors_of(killed), tensors_of(straight))
    assert record(killed)["rollback"]["number"] == record(straight)["rollback"]["number"] == 1


def test_a_finished_run_goes_on_exactly_after_a_rollback(config: Config) -> None:
    """What it decided is decided once, by whatever command."""
    config = config.replace(rollback_lr_scale=0.5)
    straight = config.replace(output_name="straight")
    longer = config.replace(output_name="in parts", resume_lr_scale=1.5)
    assert run(straight.replace(max_train_steps=STEPS + 2)) == "finished"
    assert run(longer) == "finished"
    assert run(longer.replace(max_train_steps=STEPS + 2, resume_lr_scale=1.0, resume_from_checkpoint="latest"))
    assert steps_of(longer) == steps_of(straight)
    assert_bit_equal(tensors_of(longer, STEPS + 2), tensors_of(straight, STEPS + 2))


def test_what_it_goes_back_to_is_kept_and_nothing_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest checkpoint that is old enough, and the next one, whatever keep_last_n_checkpoints says."""
    monkeypatch.undo()
    kept: set[int] = set()
    for step in range(10, 1000, 10):
        counted = sorted(kept | {step})
        kept = set(counted[-2:]) | rollbacks.kept_for(counted, window=50)
        edge = step - 100
        assert len(kept) <= 4
        assert edge < 10 or edge - 100 <= max(old for old in kept if old <= edge) <= edge


@pytest.mark.parametrize(
    ("options", "words"),
    [({"alarms": False}, "needs alarms"), ({"save_state": False, "save_every_n_minutes": 0.0}, "needs checkpoints")],
)
def test_it_is_refused_without_what_it_needs(options: dict[str, Any], words: str) -> None:
    given = {name: Given(value, "") for name, value in {"max_rollbacks": 1, **options}.items()}
    with pytest.raises(ConfigError, match=words):
        resolve(given)
