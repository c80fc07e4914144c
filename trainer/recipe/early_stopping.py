"""What the validations of a run have shown, and what follows: early stopping, a warning. No torch here."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from trainer.options.config import Config

RISING = 3  # validations in a row above the best before a warning


@dataclass(frozen=True)
class Record:
    """What the validations have shown. A checkpoint holds it, so that a resumed run goes on counting."""

    images: str = ""  # names what is measured; the losses of other images cannot be compared
    step: int | None = None  # of the last validation
    loss: float | None = None  # None where it was not finite
    best_step: int | None = None
    best_loss: float | None = None
    train_loss_at_best: float | None = None  # the training's moving average then
    not_better: int = 0  # validations since the best

    def after(self, step: int, loss: float, train_loss: float | None, min_delta: float) -> Record:
        """The record with one more validation. The first is the best until one is lower by more than `min_delta`."""
        finite = loss if math.isfinite(loss) else None
        if finite is not None and (self.best_loss is None or finite < self.best_loss - min_delta):
            return Record(self.images, step, finite, step, finite, train_loss)
        return dataclasses.replace(self, step=step, loss=finite, not_better=self.not_better + 1)


def patience_is_over(config: Config, record: Record) -> bool:
    """Whether early stopping ends the run."""
    return 0 < config.early_stopping_patience <= record.not_better


def warning(record: Record, train_loss: float | None) -> str | None:
    """What to say when validation has been worse than its best for a while and training still gets better.

    It is said once after each best.
    """
    best, best_train = record.best_loss, record.train_loss_at_best
    if None in (best, best_train, record.loss, train_loss) or record.not_better != RISING:
        return None
    assert best is not None and best_train is not None and record.loss is not None and train_loss is not None
    if record.loss <= best or train_loss >= best_train:
        return None
    return (
        f"The validation loss was {best:.4g} at step {record.best_step} and is {record.loss:.4g} now, while the "
        f"training loss fell from {best_train:.4g} to {train_loss:.4g}: the run begins to memorise its images. "
        f"The weights of step {record.best_step} are likely the best; more images, a lower learning rate or rank, or "
        "fewer steps help."
    )
