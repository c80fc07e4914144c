"""Whether the loss after a resume is what it was before. No torch here."""

from __future__ import annotations

import math

from trainer.options.sections.watching import Watching
from trainer.recipe.alarms import SPREADS as STANDARD_ERRORS
from trainer.recipe.alarms import Alarm, Window

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


class DriftAfterResume:
    """Watches whether the loss of the first windows after a resume is that of the last ones before.

    `before`: the level of the logarithms of the losses then, and its variance; None where there was too little.
    """

    def __init__(self, options: Watching, before: tuple[float, float] | None) -> None:
        self._options = options
        self._before = before
        self._after = Window()

    def add(self, loss: float) -> Alarm | None:
        """Take the next loss; returns an alarm, once, if the level is above what it was and chance is not why."""
        if self._before is None or not math.isfinite(loss):
            return None
        self._after.add(loss, 1.0, 0.0)
        if self._after.steps < 2 * self._options.alarm_window:
            return None
        (level, error), after, self._before = self._before, self._after, None
        chance = STANDARD_ERRORS * math.sqrt(error + after.error)
        if after.level - level <= max(math.log1p(self._options.alarm_resume_drift), chance):
            return None
        return Alarm(
            "loss_drift",
            f"the typical loss of the {after.steps} steps after the resume is {math.exp(after.level):.3g}, and before "
            f"it was {math.exp(level):.3g} ({100 * math.expm1(after.level - level):.0f} % more)",
        )
