"""What a run's events tell: curve, branches, marks, samples, pace, how it ended. Nothing is read or drawn here."""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gui.views.curves import Array, Curve
from trainer.recipe import loss_average

SMOOTHING = 0.95  # share of the moving average that a step leaves as it was, in the chart
RATE = "rate "  # begins the name of a column with the learning rate of one trained part
MACHINE_ROW = np.dtype([("step", "i8"), ("epochs", "f4"), ("seconds", "f4")])
OF_A_GPU = ("load", "memory", "temperature", "watts")  # columns "load 0", "load 1" ... of the machine's rows
AVERAGED = 2000  # losses that the average is made of; those before weigh 0.98 ** 2000
RATE_STEPS = 50  # time left is told from the median of this many spans of steps
TOGETHER_SECONDS = 0.2  # events closer than this were written in one go
NOT_TOLD = math.nan


@dataclass(frozen=True)
class Sample:
    """A preview that a run made. `path` is relative to the run folder and not to be trusted."""

    step: int
    path: str
    prompt: str
    index: int
    seed: int | None = None
    abandoned: bool = False  # made on a branch that the run went back behind
    session: int = 0  # by its place in the events


@dataclass(frozen=True)
class Phase:
    """Work of known length before or between steps: computing a cache, for one."""

    name: str
    done: int
    total: int
    time: float
    first_done: int
    first_time: float
    told: float | None = None  # seconds left, as the trainer has it

    @property
    def seconds_left(self) -> float | None:
        """As told, or at the pace so far; None until there is one."""
        if self.told is not None:
            return self.told
        advanced, passed = self.done - self.first_done, self.time - self.first_time
        return passed / advanced * (self.total - self.done) if advanced > 0 and passed > 0 else None


class History:
    """The events of a run so far. After a resume at step S, what was done beyond S before is an abandoned branch.

    `_chain` tells which sessions lead to the present state: (a session's place in the events, the step it began at).
    """

    def __init__(self) -> None:
        self.current = Curve()
        self.abandoned: list[Array] = []  # rows of curves.ROW
        self.machine = Curve(MACHINE_ROW)  # what the trainer's machine did meanwhile
        self.saves = 0  # that were tried, whether they went well or not
        self.samplings = 0  # likewise
        self.samples: dict[str, Sample] = {}
        self.warnings: collections.deque[str] = collections.deque(maxlen=20)
        self.overfitting = ""  # the trainer's warning, until validation finds a better step
        self.phase: Phase | None = None
        self.step = 0
        self.epoch: int | None = None  # the one the last step belongs to; the first is 0
        self.total_steps: int | None = None
        self.steps_per_epoch: int | None = None
        self.session: int | None = None
        self.device = ""
        self.grade = ""
        self.learning_rate: Any = None
        self.grad_norm: float | None = None
        self.memory: float | None = None  # bytes
        self.reason = ""
        self.error = ""
        self.advice = ""
        self.failure = ""  # its kind, one of trainer.runs.failures.KINDS
        self.session_time = 0.0
        self.last_time = 0.0
        self.earlier_seconds = 0.0  # that earlier sessions took
        self.stepped = False  # whether this session has completed a step
        self.loss: float | None = None  # the trainer's moving average, as its log and its checkpoints have it
        self._sessions: list[str] = []  # their ids, empty where it was not told
        self._chain: list[tuple[int, int]] = []
        self._resumes: list[tuple[int, int]] = []  # (session, step), and so on
        self._saved: list[tuple[int, int]] = []
        self._validated: list[tuple[int, int, float]] = []
        self._epochs = 0.0  # done so far; fractions count
        self._last = -1  # the last step of the current branch
        self._ticks: collections.deque[tuple[int, float]] = collections.deque(maxlen=RATE_STEPS + 1)
        self._step_seconds: list[float] = []  # of this session's first steps, until there are enough ticks

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event; one that is not as it should be is passed over."""
        step = _whole(event.get("global_step"))
        if step is None:
            return
        _HANDLERS.get(event["event"], History._phase)(self, step, event)
        if event["event"] != "evaluation":  # made whenever someone likes, not while the session lasts
            self.last_time = _number(event.get("time")) or self.last_time

    def snapshot(self) -> History:
        """A copy that later events leave as it is."""
        result = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict | collections.deque):
                setattr(result, name, value.copy())
        result.current, result.machine = self.current.frozen(), self.machine.frozen()
        return result

    @property
    def resumes(self) -> list[int]:
        """The steps at which the present branch was resumed."""
        return [step for session, step in self._resumes if (session, step) in self._chain]

    @property
    def checkpoints(self) -> list[int]:
        """The steps that were saved on the present branch."""
        return [step for session, step in self._saved if self._is_current(session, step)]

    @property
    def validation(self) -> list[tuple[int, float]]:
        """(step, loss) on the present branch."""
        return [(step, loss) for session, step, loss in self._validated if self._is_current(session, step)]

    @property
    def _session(self) -> int:
        return max(0, len(self._sessions) - 1)

    def _is_current(self, session: int, step: int) -> bool:
        """Whether what a session made at a step leads to the present state."""
        ends = [begin for _, begin in self._chain[1:]] + [math.inf]
        return any(session == of and begin <= step <= end for (of, begin), end in zip(self._chain, ends, strict=True))

    def loss_at(self, step: int) -> float | None:
        """The average loss as it was after a step; None where that is not on the present branch."""
        rows = self.current.rows
        end = int(np.searchsorted(rows["step"], step, side="right"))
        is_there = end > 0 and rows["step"][end - 1] == step
        return _average(rows[max(0, end - AVERAGED) : end]) if is_there else None

    def seconds_per_step(self) -> float | None:
        """The median over this session's last steps; None until there is one.

        Told from when their events were written, since a GPU works on after the host has gone to the next step. The
        spans in which samples were made or a save was waited for are few, and so do not move the median.
        """
        spans = [
            (after[1] - before[1]) / (after[0] - before[0])
            for before, after in itertools.pairwise(self._ticks)
            if after[0] > before[0]
        ]
        seconds = spans if len(spans) >= 3 else self._step_seconds[1:]  # a session's first step takes longer
        return statistics.median(seconds) if seconds else None

    def _go_back(self, step: int) -> None:
        """The run continues after `step`: what was drawn beyond it is a branch of its own now."""
        self._chain = [link for link in self._chain if link[1] < step or link == self._chain[0]]
        self._chain.append((self._session, step))
        if len(later := self.current.cut_after(step)):
            self.abandoned.append(later)
        self._settle(step)

    def _take_up(self, chain: list[tuple[int, int]], step: int) -> None:
        """The run continues after `step` of a branch that was left behind."""
        self._chain = chain
        parts = [self.current.rows.copy(), *self.abandoned]
        ends = [begin for _, begin in chain[1:]] + [step]
        taken, self.abandoned = [], []
        for rows in parts:
            leads = np.zeros(len(rows), bool)
            for (session, begin), end in zip(chain, ends, strict=True):
                leads |= (rows["session"] == session) & (rows["step"] > begin) & (rows["step"] <= end)
            taken.append(rows[leads])
            if not leads.all():
                self.abandoned.append(rows[~leads])
        self.current.replace(taken)
        self._settle(step)

    def _settle(self, step: int) -> None:
        """Whatever hangs on which branch is the present one, which goes on after `step`."""
        self.machine.cut_after(step)
        rows = self.current.rows
        self.loss = _average(rows[-AVERAGED:])
        self._epochs = float(rows["epochs"][-1]) if len(rows) else step / (self.steps_per_epoch or 1)
        self._last = step
        self.overfitting = ""
        for path, sample in self.samples.items():
            abandoned = not self._is_current(sample.session, sample.step)
            if abandoned != sample.abandoned:
                self.samples[path] = dataclasses.replace(sample, abandoned=abandoned)

    def _told_chain(self, pairs_told: Any) -> list[tuple[int, int]]:
        """The sessions that the trainer says lead here; empty where it says nothing, or not all sessions have an id."""
        if not isinstance(pairs_told, list) or not all(self._sessions):
            return []
        pairs = [(str(pair[0]), _whole(pair[1])) for pair in pairs_told if isinstance(pair, list) and len(pair) == 2]
        places = {name: place for place, name in enumerate(self._sessions)}
        return [(places[name], step) for name, step in pairs if name in places and step is not None]

    def _run_started(self, step: int, event: Mapping[str, Any]) -> None:
        self._sessions.append(str(event.get("id", "")))
        self._ticks.clear()
        self._step_seconds.clear()
        self.warnings.clear()
        self.phase = None
        self.reason = self.error = self.advice = self.failure = self.grade = ""
        self.total_steps = _whole(event.get("total_steps"))
        self.steps_per_epoch = _whole(event.get("steps_per_epoch"))
        self.session = _whole(event.get("session"))
        self.device = str(event.get("device", ""))
        if self.session_time:
            self.earlier_seconds += max(0.0, self.last_time - self.session_time)
        self.session_time = _number(event.get("time")) or 0.0
        self.stepped = False
        self.step = step

    def _resumed(self, step: int, event: Mapping[str, Any]) -> None:
        at = _whole(event.get("step"))
        at = step if at is None else at
        if any(session == self._session for session, _ in self._chain):
            self._sessions = [*(self._sessions or [""]), ""]  # whose start is not in the events
        chain = self._told_chain(event.get("lineage"))
        if chain and chain[:-1] != [link for link in self._chain if link[1] < at or link == self._chain[0]]:
            self._take_up(chain, at)
        else:
            self._go_back(at)
        self._resumes.append((self._session, at))
        self.grade = str(event.get("grade", ""))
        self.step = at

    def _step(self, step: int, event: Mapping[str, Any]) -> None:
        if not self._chain:
            self._chain = [(self._session, 0)]
        if step <= self._last or self._chain[-1][0] != self._session:
            self._go_back(step - 1)
        loss, now = _number(event.get("loss")), _number(event.get("time"))
        self.learning_rate = event.get("lrs") or event.get("lr")
        self.grad_norm, self.memory = _number(event.get("grad_norm")), _number(event.get("memory"))
        if loss is not None:
            self.loss = loss_average.averaged(self.loss, loss, step)
        if self.steps_per_epoch:
            self._epochs += (step - max(self._last, 0)) / self.steps_per_epoch
        numbers = {"lr": first_rate(self.learning_rate), "grad_norm": self.grad_norm, "memory": self.memory}
        if isinstance(self.learning_rate, Mapping):
            numbers |= {f"{RATE}{part}": _number(rate) for part, rate in self.learning_rate.items()}
        self.current.append({"step": step, "session": self._session, "loss": loss, **self._when(now), **numbers})
        self._last = step
        if now is not None:
            if self._ticks and now - self._ticks[-1][1] < TOGETHER_SECONDS:
                self._ticks.pop()
            self._ticks.append((step, now))
        seconds = _number(event.get("step_seconds"))
        if seconds is not None and len(self._step_seconds) < RATE_STEPS:
            self._step_seconds.append(seconds)
        self.stepped = True
        self.phase = None
        self.step = step
        self.epoch = _whole(event.get("epoch"))

    def _when(self, now: float | None) -> dict[str, float]:
        """Where a row is in epochs and in seconds of training."""
        here = now - self.session_time if now is not None and self.session_time else 0.0
        return {"epochs": self._epochs, "seconds": self.earlier_seconds + max(0.0, here)}

    def _resources(self, step: int, event: Mapping[str, Any]) -> None:
        numbers: dict[str, float | None] = {name: _number(event.get(name)) for name in ("cpu", "memory", "disk_free")}
        gpus = event.get("gpus")
        samples = [gpu for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list) else []
        for place, gpu in enumerate(samples):
            for name in OF_A_GPU:
                numbers[f"{name} {place}"] = _number(gpu.get(name))
        measured = {name: number for name, number in numbers.items() if number is not None}
        self.machine.append({"step": step, **self._when(_number(event.get("time"))), **measured})

    def _validation(self, step: int, event: Mapping[str, Any]) -> None:
        loss = _number(event.get("loss"))
        if loss is not None:
            before = [mark for mark in self._validated if mark[:2] != (self._session, step)]
            self._validated = [*before, (self._session, step, loss)]
            if event.get("best_step") == step:
                self.overfitting = ""

    def _checkpoint_saved(self, step: int, event: Mapping[str, Any]) -> None:
        self.saves += 1
        if (self._session, step) not in self._saved[-3:]:
            self._saved.append((self._session, step))

    def _sample_saved(self, step: int, event: Mapping[str, Any]) -> None:
        path = event.get("path")
        if isinstance(path, str):
            self.samples.pop(path, None)
            raw = " (raw weights)" if event.get("weights") == "raw" else ""
            prompt, index = str(event.get("prompt", "")) + raw, _whole(event.get("index")) or 0
            self.samples[path] = Sample(step, path, prompt, index, _whole(event.get("seed")), session=self._session)

    def _warning(self, step: int, event: Mapping[str, Any]) -> None:
        if event.get("kind") == "overfitting":
            self.overfitting = str(event.get("message", ""))
            return
        words = event.get("message") or event.get("reason") or event.get("error") or event.get("kind")
        self.warnings.append(f"step {step}: {words or event['event'].replace('_', ' ')}")

    def _run_finished(self, step: int, event: Mapping[str, Any]) -> None:
        self.step = max(self.step, step)
        self.phase = None
        self.reason = str(event.get("reason", ""))

    def _run_failed(self, step: int, event: Mapping[str, Any]) -> None:
        self.phase = None
        self.error, self.advice = str(event.get("error", "")), str(event.get("advice") or "")
        self.failure = str(event.get("kind", ""))

    def _checkpoint_failed(self, step: int, event: Mapping[str, Any]) -> None:
        """A warning event follows and says why."""
        self.saves += 1

    def _phase(self, step: int, event: Mapping[str, Any]) -> None:
        """Any other event that says how much of how much is done."""
        done, total, now = _whole(event.get("done")), _whole(event.get("total")), _number(event.get("time"))
        if done is None or not total or now is None:
            return
        name = " ".join(str(word) for word in (event["event"], event.get("what")) if word).replace("_", " ")
        self.samplings += event["event"] == "sampling" and done >= total
        before = self.phase
        if before is None or before.name != name or done < before.done:
            before = Phase(name, done, total, now, done, now)
        left = dataclasses.replace(before, done=done, total=total, time=now, told=_number(event.get("seconds_left")))
        self.phase = None if done >= total else left


_HANDLERS: dict[str, Callable[[History, int, Mapping[str, Any]], None]] = {
    "run_started": History._run_started,
    "resumed": History._resumed,
    "step": History._step,
    "validation": History._validation,
    "checkpoint_saved": History._checkpoint_saved,
    "checkpoint_failed": History._checkpoint_failed,
    "checkpoint_rejected": History._warning,
    "sample_saved": History._sample_saved,
    "warning": History._warning,
    "resources": History._resources,
    "run_finished": History._run_finished,
    "run_failed": History._run_failed,
}


def _average(rows: Array) -> float | None:
    average = None
    for step, loss in zip(rows["step"].tolist(), rows["loss"].tolist(), strict=True):
        if math.isfinite(loss):
            average = loss_average.averaged(average, loss, step)
    return average


def first_rate(value: Any) -> float | None:
    """A learning rate as one number: the first part's where each trained part has its own."""
    if isinstance(value, Mapping):
        value = next(iter(value.values()), None)
    return _number(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
