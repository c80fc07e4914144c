"""Whether the loss after a resume is what it was before. No torch here."""

from __future__ import annotations

import math

FEWEST_BEFORE = 50  # steps that make an average worth comparing with
WATCHED = 10  # steps after the resume
SPREADS = 4.0  # about ten standard deviations of the mean of 10 losses: no alarm by chance


class AfterResume:
    """Watches the first losses after a resume. `average` and `spread`: of the losses before, and of their distance
    from the average."""

    def __init__(self, step: int, average: float | None, spread: float | None) -> None:
        self._step = step
        self._average = average
        self._spread = spread
        self._losses: list[float] = []

    def add(self, loss: float) -> str | None:
        """Take the next loss; returns a warning, once, if the mean of the first ones is far above what it was."""
        if self._average is None or self._spread is None or self._step < FEWEST_BEFORE or len(self._losses) == WATCHED:
            return None
        self._losses.append(loss if math.isfinite(loss) else math.inf)
        mean = sum(self._losses) / len(self._losses)
        if len(self._losses) < WATCHED or mean <= self._average + SPREADS * self._spread:
            return None
        return (
            f"the mean loss of the {WATCHED} steps after the resume is {mean:.4g}; before it was {self._average:.4g} "
            f"(usually within {self._spread:.2g}). The lines at the start of this session name what was changed. If "
            "that was not intended, stop and resume the checkpoint again without the change, or with "
            "resume_warmup_steps or a resume_lr_scale below 1"
        )
