"""What one update changes, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.runs_at_tiny_size import config_for
from trainer.models import base_model, model
from trainer.recipe import schedule
from trainer.training.state import State


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
@pytest.mark.parametrize("too_large", [float("inf"), 1e30], ids=["gradient", "norm"])
def test_with_a_loss_scaler_weights_and_average_leave_the_same_steps_out(
    tiny_model: Path, tiny_images: Path, tmp_path: Path, optimizer: str, too_large: float
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, optimizer_type=optimizer, use_ema=True)
    config, cpu = base_model.settle(config, tiny_model), torch.device("cpu")
    loaded = model.load(config, tiny_model, torch.float32, cpu)
    state = State(config.replace(mixed_precision="fp16"), loaded, cpu)
    assert state.scaler and state.ema
    curve = schedule.new_curve(config, 10)

    def step(gradient: float) -> None:
        """One step whose every gradient is this."""
        assert state.scaler
        scale = state.scaler.scale(torch.ones(()))
        for parameter in state.parameters:
            parameter.grad = torch.full_like(parameter, gradient) * scale
        state.set_learning_rate(curve)
        state.update(torch.isfinite(state.clip()))

    def now() -> list[torch.Tensor]:
        assert state.ema
        return [tensor.detach().clone() for tensor in (*state.parameters, *state.ema.shadow_params)]

    before = now()
    step(1e-3)
    after = now()
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    scale = state.scaler.get_scale()
    step(too_large)
    assert all(torch.equal(*pair) for pair in zip(after, now(), strict=True))
    assert (state.global_step, state.scaler.get_scale()) == (2, scale / 2)
    step(1e-3)
    assert all(not torch.equal(*pair) for pair in zip(after, now(), strict=True))
