"""What a run's events say, as curves of the run as it stands now. No torch here."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.runs.events import read_events
from trainer.runs.run_folder import RunFolder

COLUMNS = ("epoch", "loss", "lr", "grad_norm", "step_seconds", "data_seconds", "memory")  # of a step, in this order
Event = Mapping[str, Any]


@dataclass
class Curves:
    """The steps of the current branch by number, what was abandoned, and what happened beside them."""

    steps: dict[int, Event] = field(default_factory=dict)
    abandoned: list[dict[int, Event]] = field(default_factory=list)
    validations: dict[int, Event] = field(default_factory=dict)
    sessions: list[Event] = field(default_factory=list)
    resumes: list[Event] = field(default_factory=list)
    warnings: list[Event] = field(default_factory=list)
    saves: list[Event] = field(default_factory=list)
    samples: dict[str, Event] = field(default_factory=dict)  # by path
    resources: list[Event] = field(default_factory=list)
    evaluations: dict[str, Event] = field(default_factory=dict)  # by path of the result
    endings: list[Event] = field(default_factory=list)
    resume_validations: list[Event] = field(default_factory=list)
    comparisons: list[Event] = field(default_factory=list)  # of samples with those before a resume
    rollbacks: list[Event] = field(default_factory=list)
    shifts: list[Event] = field(default_factory=list)  # of the images
    memory: list[Event] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Take the next event; one that is not known is passed over."""
        kind, step = event["event"], event.get("global_step")
        if not isinstance(step, int):
            return
        if kind == "step":
            if step in self.steps:
                self._go_back(step - 1)
            self.steps[step] = event
        elif kind == "resumed":
            self._go_back(step)
            self.resumes.append(event)
        elif kind == "validation":
            self.validations[step] = event
        elif kind in ("sample_saved", "evaluation") and isinstance(event.get("path"), str):
            (self.samples if kind == "sample_saved" else self.evaluations)[event["path"]] = event
        elif kind in PLAIN:
            getattr(self, PLAIN[kind]).append(event)

    def _go_back(self, step: int) -> None:
        """The run continues after `step`: what came beyond it is a branch of its own."""
        later = {number: event for number, event in self.steps.items() if number > step}
        if later:
            self.abandoned.append(later)
            self.steps = {number: event for number, event in self.steps.items() if number <= step}
            self.validations = {number: event for number, event in self.validations.items() if number <= step}


PLAIN = {
    "run_started": "sessions",
    "warning": "warnings",
    "checkpoint_saved": "saves",
    "resources": "resources",
    "run_finished": "endings",
    "run_failed": "endings",
    "resume_validation": "resume_validations",
    "samples_compared": "comparisons",
    "rolled_back": "rollbacks",
    "dataset_shift": "shifts",
    "memory_judged": "memory",
}  # kind of event -> the list that keeps it


def read(run: RunFolder) -> Curves:
    """All that the run's events say; damaged lines are passed over."""
    curves, offset = Curves(), 0
    while True:
        events, after = read_events(run.events_file, offset, limit=1 << 24)
        for event in events:
            curves.add(event)
        if after == offset:
            return curves
        offset = after


def as_csv(curves: Curves) -> str:
    """A line for each step of the current branch, with a column for each part's rate and for the validation loss.

    Numbers are written so that reading them gives the same ones; what is not there is empty.
    """
    parts = list(dict.fromkeys(part for event in curves.steps.values() for part in event.get("lrs", {})))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["global_step", "time", *COLUMNS, *(f"lr_{part}" for part in parts), "validation_loss"])
    for step, event in sorted(curves.steps.items()):
        rates = [event.get("lrs", {}).get(part) for part in parts]
        validation = curves.validations.get(step, {}).get("loss")
        values = [event.get("time"), *(event.get(name) for name in COLUMNS), *rates, validation]
        writer.writerow([step, *("" if value is None else value for value in values)])
    return text.getvalue()
