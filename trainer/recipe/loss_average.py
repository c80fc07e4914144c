"""The moving average of the losses that the log, the checkpoints and the page show. No torch here."""

from __future__ import annotations

LOSS_AVERAGE = 0.98  # share of the past


def share_of(step: int) -> float:
    """What the loss of a step weighs in the average. While the run is young the average is that of all losses, so that
    the first one does not weigh too much."""
    return max(1 - LOSS_AVERAGE, 1 / max(step, 1))


def averaged(average: float | None, loss: float, step: int) -> float:
    """The average once a step's loss is in it; `average`: None before the first."""
    share = share_of(step)
    return (1 - share) * (loss if average is None else average) + share * loss
