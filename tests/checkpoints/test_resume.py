"""What a resume compares and says: each option by its class, batches as the global batch, curves by policy."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.checkpoints import resume
from trainer.options.config import OPTIONS, Config
from trainer.options.declaration import Option
from trainer.recipe import schedule

COSINE = Config(lr_scheduler="cosine", max_train_steps=100)


def another_value(known: Option) -> Any:
    """A valid value that is not the default."""
    if known.kind == "bool":
        return not known.default
    if known.kind == "choice":
        return next((choice for choice in known.choices if choice != known.default), None)
    if known.kind == "list":
        return ("something=1",)
    if known.kind == "str":
        return "64" if known.name == "resolution" else "another"
    number = (known.default or 0) + (1 if known.kind == "int" else 0.5)
    return number if known.high is None or number <= known.high else known.low


@pytest.mark.parametrize("known", OPTIONS.values(), ids=lambda known: known.name)
def test_a_changed_option_is_reported_with_its_class(known: Option) -> None:
    value = another_value(known)
    if value is None:
        pytest.skip("it has one value only")
    then = Config()
    differences = resume.compare_options(then, then.replace(**{known.name: value}), 1, 1)
    if known.by_content:
        assert differences == []  # compared by what the files hold
        return
    assert [(item.name, item.on_resume, item.checkpoint, item.now, item.allowed) for item in differences] == [
        (known.name, known.on_resume, known.default, value, False)
    ]


@pytest.mark.parametrize("known", OPTIONS.values(), ids=lambda known: known.name)
def test_only_options_of_the_trajectory_can_be_allowed(known: Option) -> None:
    value = another_value(known)
    if value is None or known.by_content or known.name == "resume_allow":
        pytest.skip("not compared by value")
    for allow in (known.name, "all"):
        now = Config(**{"resume_allow": (allow,), known.name: value})
        (difference,) = [item for item in resume.compare_options(Config(), now, 1, 1) if item.name == known.name]
        assert difference.allowed == (known.on_resume == "trajectory")


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "same"),
    [(4, 1, 1, True), (1, 4, 1, True), (2, 1, 2, True), (2, 1, 1, False)],
)
def test_batches_are_compared_as_the_global_batch(batch: int, accumulation: int, processes: int, same: bool) -> None:
    then = Config(train_batch_size=4)
    now = Config(train_batch_size=batch, gradient_accumulation_steps=accumulation)
    classes = {item.on_resume for item in resume.compare_options(then, now, 1, processes)}
    assert classes <= {"free"} if same else "trajectory" in classes


def test_another_number_of_processes_with_the_same_options_is_another_batch() -> None:
    (difference,) = resume.compare_options(Config(train_batch_size=2), Config(train_batch_size=2), 1, 2)
    assert (difference.name, difference.checkpoint, difference.now) == ("train_batch_size", 2, 4)


# --- the learning rate ---------------------------------------------------------------------------------------------


def resumed(step: int, total: int, **options: Any) -> schedule.LrCurve:
    return schedule.resumed_curve(COSINE.replace(**options), schedule.new_curve(COSINE, 100), step, total)


def test_keep_is_the_curve_of_the_checkpoint_whatever_the_new_length() -> None:
    curve, original = resumed(50, 200), schedule.new_curve(COSINE, 100)
    assert curve == original
    assert curve.factor(75) == original.factor(75)


def test_stretch_draws_the_same_curve_over_the_new_length() -> None:
    curve = resumed(100, 200, resume_lr_policy="stretch")
    assert curve.factor(100) == pytest.approx(0.5)
    assert curve.factor(200) == pytest.approx(0)


def test_restart_begins_a_new_curve_with_its_warmup_here() -> None:
    curve = resumed(100, 200, resume_lr_policy="restart", lr_warmup_steps=10.0)
    assert curve.factor(100) == 0
    assert curve.factor(110) == 1
    assert curve.factor(200) == pytest.approx(0)


def test_a_scale_and_a_second_warmup_apply_from_the_resumed_step_on() -> None:
    curve = resumed(50, 100, resume_lr_scale=0.5, resume_warmup_steps=4)
    original = schedule.new_curve(COSINE, 100)
    assert [curve.factor(step) / original.factor(step) for step in (50, 51, 53, 60)] == pytest.approx(
        [0.125, 0.25, 0.5, 0.5]
    )


def test_an_allowed_new_shape_takes_effect() -> None:
    curve = resumed(50, 100, lr_scheduler="linear")
    assert (curve.scheduler, curve.factor(75)) == ("linear", 0.25)


def test_a_second_resume_keeps_what_the_first_decided() -> None:
    first = resumed(100, 200, resume_lr_policy="restart")
    assert schedule.resumed_curve(COSINE, first, 150, 200) == first


@pytest.mark.parametrize(
    ("step", "total", "options", "dead"),
    [
        (50, 100, {}, None),  # falls to 0 where the run ends, as it should
        (99, 100, {}, None),
        (100, 200, {}, (101, 200)),
        (50, 200, {}, (101, 200)),
        (100, 200, {"resume_lr_policy": "stretch"}, None),
        (100, 200, {"resume_lr_policy": "restart"}, None),
        (50, 100, {"resume_lr_scale": 0.0}, (51, 100)),
    ],
)
def test_steps_that_would_train_at_zero_are_found(
    step: int, total: int, options: dict[str, Any], dead: tuple[int, int] | None
) -> None:
    assert schedule.dead_steps(resumed(step, total, **options), step, total) == dead
