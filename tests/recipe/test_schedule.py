"""The learning rate curves are those of transformers, and what a resume makes of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler
from transformers.optimization import Adafactor

from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError
from trainer.recipe import schedule
from trainer.recipe.plateau import Plateau
from trainer.recipe.schedule import LrCurve, dead_steps, lr_factor, new_curve, resumed_curve

NAMES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
FALLING = ("linear", "cosine", "cosine_with_restarts", "polynomial")

names = st.sampled_from(NAMES)
curves = st.builds(
    LrCurve,
    scheduler=names,
    warmup_steps=st.integers(0, 30),
    total_steps=st.integers(1, 200),
    num_cycles=st.integers(1, 5),
    power=st.floats(0.1, 4),
)


# --- the shapes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 100), (1, 2), (10, 100), (100, 100)])
@pytest.mark.parametrize(("num_cycles", "power"), [(1, 1.0), (3, 2.0), (7, 0.5)])
def test_every_curve_is_that_of_transformers(name: str, warmup: int, total: int, num_cycles: int, power: float) -> None:
    if name == "polynomial" and warmup == total:
        pytest.skip("transformers divides by zero there")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    own: dict[str, dict[str, Any]] = {
        "cosine_with_restarts": {"num_cycles": num_cycles},
        "polynomial": {"power": power, "lr_end": 0.0},
    }
    theirs = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=own.get(name))
    for step in range(total):
        expected = theirs.lr_lambdas[0](step)
        assert lr_factor(name, step, warmup, total, num_cycles, power) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", FALLING)
def test_a_falling_curve_stays_at_0_after_its_end(name: str) -> None:
    assert [lr_factor(name, step, 10, 100, 3) for step in (100, 101, 150, 1000)] == [0.0] * 4


def test_the_numbers_of_a_small_curve() -> None:
    assert [lr_factor("linear", step, 2, 6) for step in range(7)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert lr_factor("cosine", 3, 0, 6) == pytest.approx(0.5)
    assert [lr_factor("cosine_with_restarts", step, 0, 8, num_cycles=2) for step in (0, 4)] == [1.0, 1.0]
    assert lr_factor("polynomial", 3, 0, 6, power=2.0) == 0.25


@given(curve=curves, step=st.integers(0, 400))
def test_a_factor_is_between_0_and_1(curve: LrCurve, step: int) -> None:
    assert 0.0 <= curve.factor(step) <= 1.0


def curve_of(total: int = 100, **options: Any) -> LrCurve:
    return new_curve(Config(**options), total)


FURTHER: tuple[tuple[dict[str, Any], str, dict[str, Any]], ...] = (
    ({"lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 10.0}, "inverse_sqrt", {}),
    (
        {"lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 10.0, "lr_scheduler_timescale": 40},
        "inverse_sqrt",
        {"timescale": 40},
    ),
    (
        {"lr_scheduler": "cosine_with_min_lr", "lr_warmup_steps": 0.1, "lr_scheduler_min_lr_ratio": 0.2},
        "cosine_with_min_lr",
        {"min_lr_rate": 0.2, "num_cycles": 0.5},
    ),
    (
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.0, "lr_scheduler_num_cycles": 3},
        "cosine_with_min_lr",
        {"min_lr_rate": 0.0, "num_cycles": 1.5},
    ),
    (
        {"lr_scheduler": "warmup_stable_decay", "lr_warmup_steps": 10.0, "lr_decay_steps": 0.3},
        "warmup_stable_decay",
        {"num_decay_steps": 30, "num_cycles": 0.5},
    ),
    (
        {
            "lr_scheduler": "warmup_stable_decay",
            "lr_warmup_steps": 10.0,
            "lr_decay_steps": 20.0,
            "lr_scheduler_min_lr_ratio": 0.1,
        },
        "warmup_stable_decay",
        {"num_decay_steps": 20, "num_cycles": 0.5, "min_lr_ratio": 0.1},
    ),
)


@pytest.mark.parametrize(("options", "name", "own"), FURTHER, ids=str)
def test_further_curves_are_those_that_sd_scripts_asks_transformers_for(
    options: dict[str, Any], name: str, own: dict[str, Any]
) -> None:
    curve = curve_of(**options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, curve.warmup_steps, 100, scheduler_specific_kwargs=own)
    for step in range(100):
        assert curve.factor(step) == pytest.approx(theirs.lr_lambdas[0](step), rel=1e-9, abs=1e-12)


def test_a_curve_in_steps_holds_each_factor_up_to_its_step() -> None:
    curve = curve_of(lr_scheduler="piecewise_constant", lr_scheduler_args=("step_rules=1:3,0.1:5,0.01",))
    assert [curve.factor(step) for step in range(7)] == [1, 1, 1, 0.1, 0.1, 0.01, 0.01]


OF_TORCH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("CosineAnnealingLR", {"T_max": 30}),
    ("CosineAnnealingLR", {"T_max": 30, "eta_min": 1e-5}),
    ("CosineAnnealingWarmRestarts", {"T_0": 10}),
    ("CosineAnnealingWarmRestarts", {"T_0": 10, "T_mult": 2, "eta_min": 1e-5}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("StepLR", {"step_size": 7, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [10, 20, 20]}),
    ("ConstantLR", {"factor": 0.25, "total_iters": 12}),
    ("LinearLR", {"start_factor": 0.1, "total_iters": 20}),
    ("PolynomialLR", {"total_iters": 40, "power": 2.0}),
)


@pytest.mark.parametrize(("name", "own"), OF_TORCH, ids=str)
def test_the_schedulers_of_torch_are_functions_of_the_step_here(name: str, own: dict[str, Any]) -> None:
    arguments = tuple(f"{argument}={value}" for argument, value in own.items())
    curve = curve_of(lr_scheduler_type=name, lr_scheduler_args=arguments, lr_warmup_steps=5.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    theirs = getattr(torch.optim.lr_scheduler, name)(optimizer, **own)
    for step in range(80):
        assert 1e-4 * curve.factor(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("warmup_init", [False, True])
def test_adafactors_own_rate_is_that_of_transformers(warmup_init: bool) -> None:
    arguments = ("relative_step=True", f"warmup_init={warmup_init}")
    curve = curve_of(lr_scheduler="adafactor", optimizer_type="Adafactor", optimizer_args=arguments)
    group = {"lr": None, "relative_step": True, "warmup_init": warmup_init, "scale_parameter": False}
    for step in range(0, 40_000, 37):
        assert curve.factor(step) == Adafactor._get_lr(group, {"step": step + 1})


def test_the_plateau_is_torchs() -> None:
    losses = [1.0, 0.9, 0.95, 0.91, 0.92, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.49995, 0.7, 0.7]
    for own in ({"patience": 1}, {"patience": 1, "cooldown": 2, "min_lr": 0.02}, {"threshold_mode": "abs"}):
        arguments = tuple(f"{name}={value}" for name, value in {"factor": 0.5, **own}.items())
        curve = curve_of(lr_scheduler="reduce_lr_on_plateau", lr_scheduler_args=arguments, learning_rate=1.0)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        settings: dict[str, Any] = {"factor": 0.5, **own}
        theirs, ours = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **settings), Plateau()
        for loss in losses:
            theirs.step(loss)
            ours = ours.after(loss, curve.own)
            assert ours.factor == pytest.approx(theirs.get_last_lr()[0])


def test_every_curve_that_can_be_chosen_is_there() -> None:
    assert OPTIONS["lr_scheduler"].choices == tuple(schedule.SHAPES)
    assert OPTIONS["lr_scheduler_type"].choices == ("", *schedule.SHAPES_OF_TORCH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "CosineAnnealingLR"}, "CosineAnnealingLR needs T_max="),
        ({"lr_scheduler_args": ("T_max=3",)}, "constant has no argument 'T_max'"),
        ({"lr_scheduler": "cosine_with_min_lr"}, "needs lr_scheduler_min_lr_ratio"),
        ({"lr_scheduler_type": "StepLR", "lr_scheduler_args": ("step_size=a",)}, "StepLR cannot be drawn"),
        ({"lr_scheduler_type": "StepLR", "lr_scheduler_args": ("step_size=0",)}, "StepLR cannot be drawn"),
        ({"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ("step_rules=1,2",)}, "cannot be drawn"),
        (
            {
                "lr_scheduler_type": "CosineAnnealingLR",
                "lr_scheduler_args": ("T_max=3", "eta_min=1e-6"),
                "unet_lr": 1.0,
            },
            "different ones",
        ),
    ],
)
def test_arguments_that_make_no_curve_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule.check(Config(**options))


@pytest.mark.parametrize("options", [options for options, _, _ in FURTHER] + [{}], ids=str)
def test_a_curve_is_the_same_after_it_was_kept_as_json(options: dict[str, Any]) -> None:
    curve = curve_of(**options)
    assert LrCurve(**json.loads(json.dumps(curve.as_dict()))) == curve
    assert ("own" in curve.as_dict()) == bool(options)  # as files of earlier versions have it


def test_an_unknown_curve_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'sine'"):
        lr_factor("sine", 1, 0, 10)


@pytest.mark.parametrize(("given_warmup", "steps"), [(0.0, 0), (0.1, 20), (0.999, 199), (1.0, 1), (30.0, 30)])
def test_a_warm_up_below_1_is_a_share_of_all_steps(given_warmup: float, steps: int) -> None:
    assert new_curve(Config(lr_scheduler="cosine", lr_warmup_steps=given_warmup), 200).warmup_steps == steps


def test_each_trained_part_has_its_own_peak_and_0_is_one() -> None:
    assert Config(learning_rate=1e-3).peak_learning_rates == {"unet": 1e-3, "text_encoder": 1e-3}
    own = Config(learning_rate=1e-3, unet_lr=0.0, text_encoder_lr=5e-5)
    assert own.peak_learning_rates == {"unet": 0.0, "text_encoder": 5e-5}
    assert Config(network_train_unet_only=True).peak_learning_rates == {"unet": 1e-4}


# --- after a resume ------------------------------------------------------------------------------------------------


def config_of(curve: LrCurve, **options: Any) -> Config:
    return Config(
        lr_scheduler=curve.scheduler,  # type: ignore[arg-type]
        lr_warmup_steps=float(curve.warmup_steps) if curve.warmup_steps != 0 else 0.0,
        lr_scheduler_num_cycles=curve.num_cycles,
        lr_scheduler_power=curve.power,
        **options,
    )


@given(curve=curves, step=st.integers(0, 200), total=st.integers(1, 400))
def test_kept_the_curve_is_the_checkpoints_whatever_the_new_length(curve: LrCurve, step: int, total: int) -> None:
    assert resumed_curve(config_of(curve), curve, step, total) == curve


def test_kept_a_warm_up_given_as_a_share_keeps_its_steps_when_the_run_is_extended() -> None:
    config = Config(lr_scheduler="cosine", lr_warmup_steps=0.1)
    curve = new_curve(config, 100)
    assert resumed_curve(config, curve, 100, 300) == curve


@given(curve=curves, step=st.integers(0, 200), total=st.integers(1, 400))
def test_stretched_the_curve_ends_where_the_run_now_ends(curve: LrCurve, step: int, total: int) -> None:
    stretched = resumed_curve(config_of(curve, resume_lr_policy="stretch"), curve, step, total)
    assert stretched.end_step == total
    assert stretched.start_step == curve.start_step


@given(curve=curves, step=st.integers(0, 200), more=st.integers(1, 200))
def test_restarted_a_new_curve_begins_at_the_resumed_step(curve: LrCurve, step: int, more: int) -> None:
    config = config_of(curve, resume_lr_policy="restart")
    restarted = resumed_curve(config, curve, step, step + more)
    fresh = new_curve(config, more)
    assert [restarted.factor(step + place) for place in range(more)] == [fresh.factor(place) for place in range(more)]


def test_scales_of_several_resumes_multiply() -> None:
    curve = new_curve(Config(), 100)
    once = resumed_curve(Config(resume_lr_scale=0.5), curve, 10, 100)
    twice = resumed_curve(Config(resume_lr_scale=0.5), once, 20, 100)
    assert (once.factor(10), twice.factor(20)) == (0.5, 0.25)


def test_a_second_warm_up_rises_over_its_steps_to_the_curve() -> None:
    curve = resumed_curve(Config(resume_warmup_steps=4), new_curve(Config(), 100), 50, 100)
    assert [curve.factor(step) for step in (50, 51, 52, 53, 54)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@given(curve=curves, step=st.integers(0, 200))
def test_a_curve_survives_its_way_through_a_checkpoint(curve: LrCurve, step: int) -> None:
    assert LrCurve(**curve.as_dict()).factor(step) == curve.factor(step)


# --- steps that would train nothing --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FALLING)
def test_steps_after_the_end_of_a_falling_curve_are_named_before_they_are_trained(name: str) -> None:
    curve = new_curve(Config(lr_scheduler=name), 100)  # type: ignore[arg-type]
    assert dead_steps(curve, 100, 150) == (101, 150)
    assert dead_steps(curve, 60, 150) == (101, 150)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_ends_with_its_curve_has_none(name: str) -> None:
    curve = new_curve(Config(lr_scheduler=name, lr_warmup_steps=10), 100)  # type: ignore[arg-type]
    assert dead_steps(curve, 0, 100) is None
    assert dead_steps(curve, 99, 100) is None


def test_a_constant_curve_never_has_any() -> None:
    assert dead_steps(new_curve(Config(), 100), 100, 10_000) is None


def test_a_scale_of_0_leaves_nothing_alive() -> None:
    curve = resumed_curve(Config(resume_lr_scale=0.0), new_curve(Config(), 100), 40, 100)
    assert dead_steps(curve, 40, 100) == (41, 100)


@given(curve=curves, step=st.integers(0, 200), total=st.integers(1, 400))
def test_steps_are_called_dead_only_if_each_of_them_is(curve: LrCurve, step: int, total: int) -> None:
    dead = dead_steps(curve, step, total)
    if dead:
        assert all(math.isclose(curve.factor(place - 1), 0, abs_tol=1e-6) for place in range(dead[0], dead[1] + 1))
