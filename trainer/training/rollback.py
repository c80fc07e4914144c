"""A run that diverges goes back to a sound checkpoint and on from there at a lower rate. See trainer.runs.rollbacks."""

from __future__ import annotations

from typing import Any

from trainer.checkpoints.choosing import LATEST, wanted
from trainer.options.config import Config
from trainer.runs import manifest, rollbacks
from trainer.runs.manifest import CheckpointDamaged, Found
from trainer.runs.rollbacks import Rollback
from trainer.training.preparing import Training


def is_due(training: Training, *, look: bool) -> bool:
    """Whether the run is to go back now; where it would have to and cannot, that is told. Only for the process that
    holds the run. `look`: at all losses, because what they show must not be saved or ended with unseen."""
    most = training.state.config.max_rollbacks
    if not most:
        return False
    if look:
        training.meter.flush()
    if not (sighting := seen(training)):
        return False
    last = Rollback.of(training.begun.session.record)
    if last and last.number >= most:
        reason = f"it has gone back {most} times already (max_rollbacks)"
    elif _target(training, sighting[0]) is None:
        reason = "there is no checkpoint of before that"
    else:
        return True
    training.meter.diverged = None
    training.begun.session.warn("rollback_impossible", f"{sighting[1]} The run does not go back: {reason}.")
    return False


def seen(training: Training) -> tuple[int, str] | None:
    """The step at which something was seen that a run has to go back for, and what."""
    state = training.state
    if state.nonfinite_in_a_row >= state.config.max_nonfinite_steps:
        step = state.global_step - state.nonfinite_in_a_row
        return step, f"{state.nonfinite_in_a_row} steps in a row had no finite loss and gradient."
    if diverged := training.meter.diverged:
        return diverged[0], f"The training diverges: {diverged[1]}."
    return None


def take(training: Training) -> None:
    """Record where the run goes on from, when everything is written. Raises OSError."""
    session, config = training.begun.session, training.state.config
    if not session.writes:
        return
    sighting = seen(training)
    assert sighting is not None
    checkpoint, last = _target(training, sighting[0]), Rollback.of(session.record)
    assert checkpoint is not None and checkpoint.manifest is not None  # retention keeps it
    number = last.number + 1 if last else 1
    behind = _rollbacks_behind(checkpoint, session.run_id)
    session.roll_back(
        Rollback(
            number=number,
            step=checkpoint.step,
            checkpoint=checkpoint.manifest.digest,
            scale=config.rollback_lr_scale ** (number - behind),
            seen_at=sighting[0],
            seen=sighting[1],
        )
    )


def to_go_on(config: Config) -> Config:
    """The options with which the next session begins: those of before, at what is now the run's latest checkpoint."""
    if wanted(config.resume_from_checkpoint) == "nothing":  # then these asked for nothing
        config = config.replace(resume_allow=(), resume_lr_policy="keep", resume_lr_scale=1.0, resume_warmup_steps=0)
    return config.replace(resume_from_checkpoint=LATEST, overwrite_run=False)


def _target(training: Training, seen_at: int) -> Found | None:
    checkpoints = manifest.listing(training.begun.run.checkpoints)
    return rollbacks.target(checkpoints, seen_at, training.state.config.alarm_window)


def _rollbacks_behind(item: Found, run_id: str) -> int:
    """How many of the run's rollbacks have lowered the rate that a checkpoint has."""
    assert item.manifest is not None
    if item.manifest.run_id != run_id:
        return 0
    try:
        state: dict[str, Any] = manifest.read_json(item.path, "state.json")
        return sum(rate["policy"] == rollbacks.POLICY for rate in state["decisions"]["rates"])
    except (CheckpointDamaged, KeyError, TypeError):
        return 0
