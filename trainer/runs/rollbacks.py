"""A run that went back by itself to where it was sound: what its record keeps of that. No torch here.

run.json has `rollback`, the last one. It is written before anything is moved, so that a process which is killed at any
moment after it leaves a run that goes back all the same: while it is `waiting`, the newest checkpoint to go on from is
the one it names, and the lower rate is decided by the resume that takes it over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from trainer.runs import manifest
from trainer.runs.manifest import Found, Manifest
from trainer.runs.run_folder import RunFolder, RunUnreadable, read_run

POLICY = "rollback"  # of the learning rate decision that one takes
WINDOWS = 2  # of losses that are high when a divergence is told


@dataclass(frozen=True)
class Rollback:
    """The `number`th return of a run: at `seen_at` something was `seen`, and `step` is gone on from at `scale` times
    the rate that its checkpoint has."""

    number: int
    step: int
    checkpoint: str  # digest of its manifest
    scale: float
    seen_at: int
    seen: str
    waiting: bool = True  # until a session has gone on from there, or from elsewhere

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> Self | None:
        """The last one that a run's record keeps; None where there is none, or nothing that one could be."""
        kept = (record or {}).get("rollback")
        kinds = {"int": int, "str": str, "float": float, "bool": bool}
        try:
            fields = {field.name: kinds[str(field.type)] for field in dataclasses.fields(cls)}
            return cls(**{name: manifest.of(kind, manifest.of(dict, kept)[name]) for name, kind in fields.items()})
        except (ValueError, KeyError):
            return None

    def is_at(self, listed: Manifest) -> bool:
        """Whether a checkpoint is what it goes back to; while it waits, an older one will do."""
        return listed.digest == self.checkpoint or (self.waiting and listed.step <= self.step)


def waiting(run: RunFolder) -> Rollback | None:
    """The rollback that the next resume of the run takes over; None where there is none."""
    try:
        last = Rollback.of(read_run(run))
    except RunUnreadable:
        return None
    return last if last and last.waiting else None


def horizon(step: int, window: int) -> int:
    """The last step that was surely sound when a divergence is told at `step`, after windows of so many steps."""
    return step - WINDOWS * window


def target(checkpoints: Sequence[Found], step: int, window: int) -> Found | None:
    """The newest checkpoint of before a divergence that was told at `step`; None where there is none."""
    return next((item for item in checkpoints if item.manifest and item.step <= horizon(step, window)), None)


def kept_for(steps: Sequence[int], window: int) -> set[int]:
    """The steps among `steps` whose checkpoints have to stay so that there is always one to go back to: the newest that
    is old enough today, and the next one, which will be that one day."""
    if not steps:
        return set()
    edge = horizon(max(steps), window)
    sound, later = [step for step in steps if step <= edge], [step for step in steps if step > edge]
    return {*([max(sound)] if sound else []), min(later)}
