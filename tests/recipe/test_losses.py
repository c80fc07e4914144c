"""Losses, their weights and noise, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from trainer import randomness
from trainer.recipe import losses

ALPHAS = torch.tensor([0.9, 0.5, 0.1])  # signal-to-noise 9, 1, 1/9
STEPS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("l2", 4.0), ("l1", 2.0), ("smooth_l1", 2 * (math.sqrt(5) - 1)), ("huber", 2 * (math.sqrt(5) - 1))],
)
def test_the_loss_of_a_sample_is_the_mean_over_its_elements(kind: str, expected: float) -> None:
    prediction, target = torch.full((2, 3, 4, 4), 2.0), torch.zeros(2, 3, 4, 4)
    loss = losses.sample_losses(prediction, target, kind, torch.ones(2))
    torch.testing.assert_close(loss, torch.full((2,), expected))


def test_huber_is_scaled_by_its_threshold() -> None:
    loss = losses.sample_losses(torch.ones(1, 1), torch.zeros(1, 1), "huber", torch.tensor([0.5]))
    assert loss.item() == pytest.approx(2 * 0.5 * (math.sqrt(1.25) - 0.5))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.2, 0.2, 0.2]),
        ("exponential", [2.0, 2 * 0.1 ** (1 / 3), 2 * 0.1 ** (2 / 3)]),
        ("snr", [2 * (0.9 / (1 + 1 / 3) ** 2 + 0.1), 2 * (0.9 / 4 + 0.1), 2 * (0.9 / 16 + 0.1)]),
    ],
)
def test_the_threshold_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    threshold = losses.huber_threshold(STEPS, ALPHAS, schedule, 0.1, 2.0)
    torch.testing.assert_close(threshold, torch.tensor(expected))


def test_signal_to_noise_is_signal_over_noise() -> None:
    torch.testing.assert_close(losses.signal_to_noise(ALPHAS, STEPS), torch.tensor([9.0, 1.0, 1 / 9]))


def test_min_snr_bounds_the_weight_of_low_noise() -> None:
    snr = torch.tensor([9.0, 1.0, 1 / 9])
    noise = losses.loss_weights(snr, v_prediction=False, min_snr_gamma=5.0)
    torch.testing.assert_close(noise, torch.tensor([5 / 9, 1.0, 1.0]))
    velocity = losses.loss_weights(snr, v_prediction=True, min_snr_gamma=5.0)
    torch.testing.assert_close(velocity, torch.tensor([5 / 10, 1 / 2, (1 / 9) / (10 / 9)]))


def test_min_snr_is_finite_where_no_signal_is_left() -> None:
    weights = losses.loss_weights(torch.tensor([0.0, 5.0, 10.0]), v_prediction=False, min_snr_gamma=5.0)
    assert weights.tolist() == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("v_prediction", [False, True])
@pytest.mark.parametrize(
    "options", [{"debiased": True}, {"v_like_loss": 0.5}, {"debiased": True, "min_snr_gamma": 5.0}]
)
def test_every_weight_is_finite_where_no_signal_is_left(v_prediction: bool, options: dict[str, Any]) -> None:
    """zero_terminal_snr leaves none at its last timestep."""
    nothing, little = losses.loss_weights(torch.tensor([0.0, 1e-4]), v_prediction=v_prediction, **options).tolist()
    assert math.isfinite(nothing) and nothing == pytest.approx(little, abs=0.01)


def test_the_least_signal_is_that_of_the_last_timestep_of_stable_diffusion() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    last = losses.signal_to_noise(scheduler.alphas_cumprod, torch.tensor([999]))
    assert 0.999 * last.item() < losses.LEAST_SNR < last.item()  # so that it changes nothing where that is the schedule


def test_min_snr_and_debiased_estimation_go_together() -> None:
    snr = torch.tensor([9.0])
    both = losses.loss_weights(snr, v_prediction=False, min_snr_gamma=5.0, debiased=True)
    assert both.item() == pytest.approx(5 / 9 / 3)


def test_the_other_weights_are_those_of_sd_scripts() -> None:
    snr = torch.tensor([9.0])
    assert losses.loss_weights(snr, v_prediction=True, scale_v_like_noise=True).item() == pytest.approx(0.9)
    assert losses.loss_weights(snr, v_prediction=False, v_like_loss=0.5).item() == pytest.approx(1 + 0.5 / 0.9)
    assert losses.loss_weights(snr, v_prediction=False, debiased=True).item() == pytest.approx(1 / 3)
    assert losses.loss_weights(snr, v_prediction=True, debiased=True).item() == pytest.approx(1 / 10)


def test_pyramid_noise_is_of_unit_deviation_and_smoother_than_white_noise() -> None:
    draw = randomness.generator(0, "test")
    white = draw.standard_normal((4, 64, 64), dtype=np.float32)
    noise = losses.pyramid_noise(white, draw, iterations=6, discount=0.8)
    assert noise.std() == pytest.approx(1, abs=1e-3)
    neighbours = np.corrcoef(noise[0, :, :-1].ravel(), noise[0, :, 1:].ravel())[0, 1]
    assert neighbours > 0.1 > abs(np.corrcoef(white[0, :, :-1].ravel(), white[0, :, 1:].ravel())[0, 1])
