"""Rounding by chance: right on average, and the same for the same address."""

from __future__ import annotations

import torch
from torch import nn

from trainer.recipe.rounding import RoundedSteps, rounded


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_numbers_that_bf16_has_stay_and_others_go_to_a_neighbour_as_often_as_they_are_near_it() -> None:
    there = torch.tensor([0.0, 1.0, -2.5, 3e38, -1e-30, float("inf")]).to(torch.bfloat16)
    assert torch.equal(rounded(there.float(), generator()), there)
    between = torch.full((40_000,), 1 + 0.25 / 128)  # a quarter of the way from 1 to the next number
    drawn = rounded(between, generator()).float()
    assert set(drawn.tolist()) == {1.0, 1 + 1 / 128}
    assert abs(float((drawn > 1).float().mean()) - 0.25) < 0.01
    assert torch.equal(rounded(-between, generator()).float(), -drawn)


def test_steps_too_small_for_bf16_add_up_and_another_step_draws_otherwise() -> None:
    def trained(seed: int) -> torch.Tensor:
        weight = nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
        steps = RoundedSteps({"w": weight}, seed)
        optimizer = torch.optim.SGD(list(steps.shadows.values()), lr=1e-4)
        for step in range(20):
            weight.grad = torch.ones_like(weight)
            steps.step(optimizer, step)
        assert steps.shadows["w"].data.untyped_storage().nbytes() == 4  # nothing is kept between steps
        return weight.detach().float()

    first = trained(1)
    assert abs(float(first.mean()) - (1 - 20 * 1e-4)) < 5e-4  # to the nearest, it would still be 1
    assert torch.equal(trained(1), first) and not torch.equal(trained(2), first)
    assert len(first.unique()) > 1
