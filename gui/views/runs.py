"""Which runs there are, how each stands, and the folders that they belong to. No widget here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gui.places import Places
from gui.views.charts import Curves
from gui.views.monitor import Condition, Watch, condition
from trainer.file_memory import stamp_of
from trainer.recipe import loss_average
from trainer.runs import events, launch, run_folder
from trainer.runs.launch import Started
from trainer.runs.run_folder import RunFolder, RunUnreadable

WORDS: dict[Condition, str] = {
    "none": "no run",
    "new": "not started",
    "starting": "starting",
    "refused": "did not start",
    "running": "running",
    "stopping": "stopping",
    "interrupted": "interrupted",
    "stopped": "stopped",
    "finished": "finished",
    "failed": "failed",
}
END_BYTES = 512 << 10  # of the events that a summary is made of: some thousand steps
MOST_COMPARED = 8
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Summary:
    """A run in a line of a list."""

    run: RunFolder
    condition: Condition
    active: float  # seconds since 1970, when it last did something
    step: int | None
    total: int | None
    loss: float | None
    archived: bool
    parent: str  # the folder that it branched off from; empty for none

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def progress(self) -> str:
        """Steps done, and of how many where that is known."""
        if self.step is None:
            return ""
        return f"{self.step:,} of {self.total:,}" if self.total else f"{self.step:,}"


def paths(places: Places) -> list[Path]:
    """The folder of every run, the one that was active last first; those that are only begun among them."""
    begun = sorted(launch.begun_runs(places.output_folders()), key=lambda entry: entry[0], reverse=True)
    result = [run.path for run in places.known_runs()]
    for when, run in begun:
        older = (place for place, path in enumerate(result) if run_folder.last_active(RunFolder(path)) < when)
        result.insert(next(older, len(result)), run.path)
    return result


def chosen(places: Places, value: Any) -> RunFolder | None:
    """The run that a picker's value names, when it is one of the known ones; nothing else can be opened so."""
    if not isinstance(value, str) or not value:
        return None
    path = Path(value)
    if path.parent not in places.output_folders():
        return None
    run = RunFolder(path)
    return run if path.name not in ("", ".", "..") and launch.is_there(run) else None


def choices(places: Places, *, archived: bool = False) -> list[tuple[str, str]]:
    """(label, path) of every run to watch, the one that was active last first: its name, status, date and progress."""
    listed = summaries(places)
    names = [item.name for item in listed]
    return [
        (label(item, several=names.count(item.name) > 1), str(item.run.path))
        for item in listed
        if archived or not item.archived
    ]


def label(item: Summary, *, several: bool = False) -> str:
    """What the picker says of a run. `several`: another one has the same name. What is going on changes every second,
    so its steps are left to the bar."""
    parts = [item.name, WORDS[item.condition]]
    if item.progress and item.condition not in ("starting", "running", "stopping"):
        parts[-1] += f" at {item.progress}" if item.condition != "finished" else f", {item.step:,} steps"
    parts.append(when(item.active))
    return " · ".join([*parts, *([str(item.run.path.parent)] if several else [])])


def when(seconds: float) -> str:
    """A date as people say it: the time of a day, the day of a year."""
    then, today = time.localtime(seconds), time.localtime()
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%d %b" if then.tm_year == today.tm_year else "%d %b %Y", then)


def moment(seconds: float) -> str:
    """Day and time."""
    then = time.localtime(seconds)
    return time.strftime("%d %b %H:%M" if then.tm_year == time.localtime().tm_year else "%d %b %Y %H:%M", then)


# --- how a run stands, without reading all of it ------------------------------------------------------------------


def summaries(places: Places) -> list[Summary]:
    return [summary(RunFolder(path)) for path in paths(places)]


_ends: dict[Path, tuple[str | None, tuple[int | None, int | None, float | None]]] = {}


def summary(run: RunFolder) -> Summary:
    """From the run's record and the end of its events; the latter is read again only when it changed."""
    record: Mapping[str, Any] = NOTHING
    with contextlib.suppress(RunUnreadable):
        record = run_folder.read_run(run) or NOTHING
    begun = launch.read_started(run)
    step, total, loss = _end(run)
    sessions = record.get("sessions") or [NOTHING]
    parent = record.get("parent") or NOTHING
    return Summary(
        run,
        condition(run, begun),
        max(run_folder.last_active(run), begun.time if begun is not None and _newer(run, begun) else 0.0),
        step,
        total or sessions[-1].get("total_steps"),
        loss,
        is_archived(run),
        str(Path(parent["path"]).parent.parent) if "path" in parent else "",
    )


def _newer(run: RunFolder, begun: Started) -> bool:
    return launch.is_unrecorded(run, begun)


def _end(run: RunFolder) -> tuple[int | None, int | None, float | None]:
    """Last step, all steps and the average loss that the end of the events tells; None where it tells nothing."""
    stamp = stamp_of(run.events_file)
    ending = _ends.get(run.path)
    if ending is not None and ending[0] == stamp:
        return ending[1]
    step: int | None = None
    total: int | None = None
    losses: list[tuple[int, float]] = []
    with contextlib.suppress(OSError):
        size = run.events_file.stat().st_size
        for event in events.read_events(run.events_file, max(0, size - END_BYTES))[0]:
            number, told = event.get("global_step"), event.get("loss")
            if not isinstance(number, int) or event["event"] not in ("step", "resumed", "run_started", "run_finished"):
                continue
            step = number
            if event["event"] == "run_started":
                total = event.get("total_steps", total)
            elif event["event"] == "resumed":
                losses = [entry for entry in losses if entry[0] <= number]  # what came after it was left behind
            elif event["event"] == "step" and isinstance(told, float | int):
                losses.append((number, float(told)))
    loss = None
    for number, told in losses:
        loss = loss_average.averaged(loss, told, number)
    _ends[run.path] = stamp, (step, total, loss)
    return step, total, loss


def is_archived(run: RunFolder) -> bool:
    return run.archived_file.exists()


# --- several runs --------------------------------------------------------------------------------------------------


def parent_of(places: Places, run: RunFolder) -> tuple[RunFolder, int] | None:
    """The run that this one branched off from, and at which step; None where there is none or it is gone."""
    try:
        parent = (run_folder.read_run(run) or NOTHING).get("parent") or NOTHING
        step, run_id, path = int(parent["step"]), str(parent["run_id"]), Path(str(parent["path"]))
    except (RunUnreadable, KeyError, ValueError, TypeError):
        return None
    there = chosen(places, str(path.parent.parent))
    for candidate in [*([there] if there is not None else []), *places.known_runs()]:  # it may have been renamed since
        with contextlib.suppress(RunUnreadable):
            if candidate.path != run.path and (run_folder.read_run(candidate) or NOTHING).get("run_id") == run_id:
                return candidate, step
    return None


def curves(places: Places, watch: Watch, run: RunFolder, others: list[RunFolder]) -> list[Curves]:
    """The curves to draw together: the run's, its parent's up to where it branched off, and those of other runs."""
    parent = parent_of(places, run)
    drawn = [_curves(watch, run)]
    if parent is not None and parent[0] not in others:
        drawn.append(_curves(watch, parent[0], until=parent[1]))
    return drawn + [_curves(watch, other) for other in others[:MOST_COMPARED] if other != run]


def _curves(watch: Watch, run: RunFolder, until: int | None = None) -> Curves:
    view = watch.look(run)
    name = view.name if until is None else f"{view.name} (parent, up to step {until:,})"
    return Curves(str(run.path), name, view.history, int(view.stamp[1]), until)
