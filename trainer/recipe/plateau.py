"""The learning rate that falls when validation no longer gets better: torch's ReduceLROnPlateau, as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def _bar(best: float, settings: Mapping[str, Any]) -> float:
    """Below which a loss counts as better than the best so far."""
    margin: float = settings["threshold"]
    return best - margin if settings["threshold_mode"] == "abs" else best * (1 - margin)


@dataclass(frozen=True)
class Plateau:
    """What the validations so far have made of the learning rate; a checkpoint keeps it."""

    factor: float = 1.0  # on the learning rate
    best: float | None = None
    not_better: int = 0  # validations in a row
    cooldown: int = 0  # validations that are still not counted

    def after(self, loss: float, settings: Mapping[str, Any]) -> Plateau:
        """After a validation of this loss. `settings`: torch's arguments, min_lr as a share of the peak."""
        best, not_better = self.best, self.not_better + 1
        margin = settings["threshold"]
        aim = (
            float("inf")
            if best is None
            else best - margin
            if settings["threshold_mode"] == "abs"
            else best * (1 - margin)
        )
        if loss < aim:
            best, not_better = loss, 0
        cooldown = max(0, self.cooldown - 1)
        if self.cooldown:
            not_better = 0
        factor = self.factor
        if not_better > settings["patience"]:
            factor = max(factor * settings["factor"], settings["min_lr"])
            cooldown, not_better = settings["cooldown"], 0
        return Plateau(factor, best, not_better, cooldown)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
