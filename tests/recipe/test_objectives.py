"""Rectified flow: what is seen, what is to be predicted, how its error counts."""

from __future__ import annotations

import pytest
import torch

from trainer.options.config import Config
from trainer.recipe.objectives import RectifiedFlow

LATENTS, NOISE = torch.tensor([[[[2.0]]], [[[4.0]]]]), torch.tensor([[[[0.0]]], [[[1.0]]]])
T = torch.tensor([0.25, 1.0])


def test_a_flow_goes_straight_from_picture_to_noise() -> None:
    flow = RectifiedFlow(Config(), {})
    assert flow.noised(LATENTS, NOISE, T).flatten().tolist() == [1.5, 1.0]
    assert flow.target(LATENTS, NOISE, T).flatten().tolist() == [-2.0, -3.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4.0, 9.0]),
        ({"loss_type": "l1"}, [2.0, 3.0]),
        ({"weighting_scheme": "sigma_sqrt"}, [4.0 * 16, 9.0]),  # 1 / t^2
        ({"weighting_scheme": "logit_normal"}, [4.0, 9.0]),  # which only says how often
    ],
)
def test_the_loss_of_a_flow_is_weighted_by_its_timestep(options: dict[str, str], expected: list[float]) -> None:
    flow = RectifiedFlow(Config(**options), {})  # type: ignore[arg-type]
    target = flow.target(LATENTS, NOISE, T)
    assert flow.losses(torch.zeros_like(target), target, T, None).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("schedule", "thresholds"), [("constant", (0.1, 0.1)), ("exponential", (0.1**0.25, 0.1))])
def test_the_huber_loss_of_a_flow_needs_no_noise_schedule(schedule: str, thresholds: tuple[float, float]) -> None:
    config = Config(loss_type="huber", huber_c=0.1).replace(huber_schedule=schedule)
    flow = RectifiedFlow(config, {})
    target = flow.target(LATENTS, NOISE, T)
    expected = [2 * c * ((error**2 + c**2) ** 0.5 - c) for error, c in zip((2.0, 3.0), thresholds, strict=True)]
    assert flow.losses(torch.zeros_like(target), target, T, None).tolist() == pytest.approx(expected, rel=1e-5)
