"""What `python -m trainer evaluate` found of a run's checkpoints, and which of them is the best. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from trainer.options.sections.saving import BEST_BY, VALIDATION_LOSS
from trainer.runs import manifest
from trainer.runs.manifest import Found
from trainer.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Judged:
    """An evaluation's result. `digest`: of what was judged, for a checkpoint its manifest's; `how`: what two results
    have to have in common for their figures to be compared."""

    digest: str
    time: float
    how: str
    figures: dict[str, float]


def results(run: RunFolder) -> Iterator[Judged]:
    """Every evaluation in the run's folder that can be read."""
    for path in sorted((run.path / "evaluation").glob("*/result.json")):
        try:
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            how = json.dumps([kept["pictures"], kept["real"], kept["weights"]], sort_keys=True)
            figures = {name: float(value) for name, value in dict(kept["figures"]).items()}
            yield Judged(str(kept["digest"]), float(kept["time"]), how, figures)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue


def best(found: Iterable[Found], by: str, run: RunFolder) -> int | None:
    """The step of the best checkpoint by a figure of BEST_BY; None where none of them has it.

    Of evaluations, those count that were made as the newest was: with as many pictures and the same networks.
    """
    if by == VALIDATION_LOSS:
        return manifest.best(found)
    steps = {item.manifest.digest: item.step for item in found if item.manifest}
    judged = [result for result in results(run) if result.digest in steps and by in result.figures]
    if not judged:
        return None
    how = max(judged, key=lambda result: result.time).how
    sign = 1 if BEST_BY[by] == "lower" else -1
    return min((sign * result.figures[by], steps[result.digest]) for result in judged if result.how == how)[1]
