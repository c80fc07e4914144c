"""Timesteps are functions of one number, drawn as often as the options say."""

from __future__ import annotations

import itertools
import math
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.options.config import OPTIONS, Config
from trainer.options.sections.loss import Loss
from trainer.recipe import timesteps
from trainer.recipe.timesteps import SAMPLING, Density, FlowTimesteps, WholeTimesteps

SQUARE = (1024, 1024)  # 4096 tokens


def density(sampling: str, **options: typing.Any) -> Density:
    values = {
        "sigmoid_scale": 1.0,
        "discrete_flow_shift": 3.0,
        "weighting_scheme": "none",
        "logit_mean": 0.0,
        "logit_std": 1.0,
        "mode_scale": 1.29,
    }
    return Density(timestep_sampling=sampling, **{**values, **options})


def test_every_sampling_that_can_be_chosen_is_in_the_table() -> None:
    assert set(OPTIONS["timestep_sampling"].choices) == {"auto", *SAMPLING}
    assert "timestep_sampling" in typing.get_type_hints(Loss)


@pytest.mark.parametrize(
    ("sampling", "u", "t"),
    [
        ("uniform", 0.25, 0.25),
        ("sigmoid", 0.5, 0.5),
        ("sigmoid", 0.8413447460685429, 1 / (1 + math.exp(-1))),  # a normal number of 1
        ("shift", 0.5, 0.75),  # 3 * 0.5 / (1 + 2 * 0.5)
        ("flux_shift", 0.5, math.exp(1.15) / (1 + math.exp(1.15))),
        ("flux2_shift", 0.5, math.exp(1.15) / (1 + math.exp(1.15))),
        ("qwen_shift", 0.5, 1 / (1 + math.exp(-(0.5 + 0.4 * 3840 / 7936)))),
        ("krea2_shift", 0.5, 1 / (1 + math.exp(-(0.5 + 0.65 * 3840 / 6144)))),
        ("sigma", 0.5, 0.75),  # the 500th of 1000 sigmas
    ],
)
def test_the_densities_are_those_of_other_trainers(sampling: str, u: float, t: float) -> None:
    assert FlowTimesteps(density(sampling)).quantile(u, SQUARE) == pytest.approx(t, abs=1e-9)


def test_sigma_follows_the_weighting_scheme() -> None:
    normal = density("sigma", weighting_scheme="logit_normal", logit_mean=1.0, discrete_flow_shift=1.0)
    middle = 1 / (1 + math.exp(-1.0))
    assert FlowTimesteps(normal).quantile(0.5, SQUARE) == pytest.approx(1 - int(middle * 1000) / 1000)
    mode = density("sigma", weighting_scheme="mode", discrete_flow_shift=1.0)
    assert FlowTimesteps(mode).quantile(1e-12, SQUARE) == pytest.approx(1 / 1000)


@given(st.sampled_from(sorted(SAMPLING)), st.floats(0, 1), st.integers(1, 128), st.integers(1, 128))
def test_a_timestep_is_always_between_picture_and_noise(sampling: str, u: float, across: int, down: int) -> None:
    t = FlowTimesteps(density(sampling)).quantile(u, (across * 16, down * 16))
    assert 0 <= t <= 1


@pytest.mark.parametrize("sampling", sorted(SAMPLING))
def test_parts_are_drawn_equally_often_and_do_not_overlap(sampling: str) -> None:
    draw = np.random.default_rng(1)
    whole = FlowTimesteps(density(sampling))
    drawn = [sorted(part.draw(draw, SQUARE) for _ in range(200)) for part in whole.parts(4)]
    if sampling == "sigma":
        drawn.reverse()
    assert all(left[-1] <= right[0] for left, right in itertools.pairwise(drawn))


def test_whole_timesteps_are_cut_into_parts_of_whole_numbers() -> None:
    parts = WholeTimesteps(0, 10).parts(4)
    assert [part.described() for part in parts] == [[0, 2], [2, 5], [5, 7], [7, 10]]
    assert len(WholeTimesteps(5, 7).parts(4)) == 2


def test_a_flow_is_trained_between_the_lowest_and_the_highest_timestep() -> None:
    bounded = FlowTimesteps(density("uniform"), lowest=0.2, highest=0.6)
    assert bounded.quantile(0.5, SQUARE) == pytest.approx(0.4)


def test_ddpm_draws_as_it_always_did() -> None:
    config = Config(family="sd", min_timestep=100, max_timestep=900)
    drawn = timesteps.from_config(config).draw(np.random.default_rng(3), SQUARE)
    assert drawn == int(np.random.default_rng(3).integers(100, 900))
