"""The moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class MovingAverage(EMAModel):
    """diffusers' moving average, which stays where it is on a step that was left out.

    Its decay is a function of the step and goes on also then, so that it need not be kept.
    """

    @torch.no_grad()
    def move(self, parameters: Sequence[nn.Parameter], finite: Tensor) -> None:
        """Move towards the parameters where `finite` (a bool on the device) is true; the host does not wait for it."""
        self.optimization_step += 1
        way_left = 1 - self.get_decay(self.optimization_step)
        difference = torch._foreach_sub(self.shadow_params, list(parameters))
        torch._foreach_mul_(difference, finite.float())  # by 1, which changes no bit, or by 0
        torch._foreach_sub_(self.shadow_params, difference, alpha=way_left)
