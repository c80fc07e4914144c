"""Which states of a run lead to which, told by the sessions that made them. No torch here."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.runs import manifest
from trainer.runs.manifest import CheckpointDamaged

Sessions = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Lineage:
    """Where a state of `step` steps comes from: (a session's id, the step it began at), the first session first."""

    sessions: Sessions
    step: int

    def common_step(self, other: Lineage) -> int:
        """The last step up to which both are one history; -1 where they have nothing in common."""
        steps = -1
        for place in range(min(len(self.sessions), len(other.sessions))):
            if self.sessions[place] != other.sessions[place]:
                break
            steps = min(self._end(place), other._end(place))
        return steps

    def _end(self, place: int) -> int:
        """The last step of a session that leads to the state."""
        return self.sessions[place + 1][1] if place + 1 < len(self.sessions) else self.step

    def leads_to(self, other: Lineage) -> bool:
        return self.common_step(other) == self.step


def new_session() -> str:
    """The id of a session; no other session of any run has it."""
    return uuid.uuid4().hex[:16]


def sessions_of(state: Mapping[str, Any]) -> Sessions | None:
    """What state.json tells; None in the first checkpoints, which did not. Raises KeyError, TypeError or ValueError."""
    if "lineage" not in state:
        return None
    pairs = [manifest.of(list, pair) for pair in manifest.of(list, state["lineage"])]
    return tuple((manifest.of(str, name), manifest.of(int, step)) for name, step in pairs)


def of_checkpoint(folder: Path, step: int) -> Lineage | None:
    """The lineage of a checkpoint; None where it does not tell, or cannot."""
    try:
        sessions = sessions_of(manifest.read_json(folder, "state.json"))
    except (CheckpointDamaged, KeyError, TypeError, ValueError):
        return None
    return None if sessions is None else Lineage(sessions, step)
