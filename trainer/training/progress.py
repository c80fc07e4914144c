"""What is told of the steps, without making the device wait, and of the encoding before them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from trainer import devices
from trainer.recipe.resume_watch import AfterResume
from trainer.runs.events import EventWriter
from trainer.runs.resources import Cooling
from trainer.training.state import State
from trainer.training.watching import Watch

logger = logging.getLogger(__name__)
FLUSH_SECONDS = 1.0
LOG_SECONDS = 10.0


@dataclass(frozen=True)
class _Pending:
    global_step: int
    epoch: int
    rates: Mapping[str, float]  # by trained part
    step_seconds: float
    data_seconds: float
    batch: str
    numbers: Tensor  # loss, grad_norm, finite; on the device

    @property
    def lr(self) -> float:
        """The rate of the first part."""
        return next(iter(self.rates.values()))


class Meter:
    """Keeps the numbers of recent steps on the device and writes their events about once a second, in one transfer."""

    def __init__(self, state: State, events: EventWriter, total_steps: int, cooling: Cooling | None = None) -> None:
        """`cooling`: waits between two steps while the device is too hot."""
        self._state = state
        self._cooling = cooling
        self._events = events
        self._total_steps = total_steps
        self._process = psutil.Process()
        self._pending: list[_Pending] = []
        self._after_resume = AfterResume(state.global_step, state.loss_average, state.loss_spread)
        self._watch = Watch(state, events, total_steps)
        self._flushed = self._logged = time.monotonic()
        self._recent: list[float] = []  # seconds of recent steps

    @property
    def diverged(self) -> tuple[int, str] | None:
        """The step at which a divergence was told, as far as the losses were looked at, and what was seen of it."""
        return self._watch.diverged

    @diverged.setter
    def diverged(self, seen: tuple[int, str] | None) -> None:
        self._watch.diverged = seen

    def add(
        self,
        loss: Tensor,
        grad_norm: Tensor,
        finite: Tensor,
        *,
        epoch: int,
        rates: Mapping[str, float],
        step_seconds: float,
        data_seconds: float,
        batch: str,
    ) -> None:
        numbers = torch.stack([loss.float(), grad_norm.float(), finite.float()])
        step = self._state.global_step
        self._pending.append(_Pending(step, epoch, rates, step_seconds, data_seconds, batch, numbers))
        self._watch.weights(step)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()
        if self._cooling:
            self._watch.paused(self._cooling.wait())

    def flush(self) -> None:
        """Write what is pending; the host waits for the device here, and only here."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        rows = torch.stack([pending.numbers for pending in self._pending]).tolist()
        memory = devices.memory_used(self._pending[0].numbers.device) or self._process.memory_info().rss
        for pending, (loss, grad_norm, finite) in zip(self._pending, rows, strict=True):
            self._state.note_loss(pending.global_step, loss, bool(finite))
            jump = self._after_resume.add(loss)
            self._recent = [*self._recent[-99:], pending.step_seconds]
            self._events.write(
                "step",
                pending.global_step,
                epoch=pending.epoch,
                loss=loss,
                lr=pending.lr,
                lrs=pending.rates,
                grad_norm=grad_norm,
                step_seconds=pending.step_seconds,
                data_seconds=pending.data_seconds,
                batch=pending.batch,
                memory=memory,
            )
            if not finite:
                message = "the loss or the gradient is not finite; the step was skipped"
                self._events.write("warning", pending.global_step, kind="nonfinite", message=message)
            if jump:
                logger.warning("After the resume %s.", jump)
                self._events.write("warning", pending.global_step, kind="loss_jump", message=jump)
            self._watch.step(pending.global_step, loss, grad_norm, pending.lr)
        self._watch.interval(len(self._pending), sum(pending.data_seconds for pending in self._pending))
        if time.monotonic() - self._logged > LOG_SECONDS or self._pending[-1].global_step == self._total_steps:
            self._log(self._pending[-1])
        self._pending.clear()

    def _log(self, last: _Pending) -> None:
        self._logged = time.monotonic()
        seconds = sorted(self._recent)[len(self._recent) // 2]
        average = self._state.loss_average
        logger.info(
            "step %d/%d  epoch %d  loss %.4f  lr %.3g  %.2f it/s  %s left",
            last.global_step,
            self._total_steps,
            last.epoch + 1,  # people count from 1
            float("nan") if average is None else average,
            last.lr,
            1 / max(seconds, 1e-9),
            _clock(seconds * (self._total_steps - last.global_step)),
        )


class CachingMeter:
    """Tells how far the encoding of one kind of thing is: an event about every second, a line in the log now and then.

    The event `caching` has what (latents or captions), done, total, seconds_left (None while it is not known) and
    computed: how many of those done were not there before. One more tells of the end, with the seconds it took.
    """

    def __init__(
        self, what: str, events: EventWriter, global_step: int, raise_if_requested: Callable[[], None]
    ) -> None:
        self._raise_if_requested = raise_if_requested
        self._what = what
        self._events = events
        self._global_step = global_step
        self._began = time.monotonic()
        self._told = self._logged = self._began
        self._first: int | None = None  # done before anything was computed

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` are there now. Raises StopRequested."""
        self._raise_if_requested()
        now = time.monotonic()
        if self._first is None:
            self._first = done
            if done < total:
                logger.info("Caching %s: %d of %d are there already", self._what, done, total)
        if done < total and now - self._told >= FLUSH_SECONDS:
            self._told = now
            self._tell(done, total, now)

    def _tell(self, done: int, total: int, now: float) -> None:
        assert self._first is not None
        computed = done - self._first
        left = (now - self._began) / computed * (total - done) if computed > 0 else None
        self._write(done, total, computed, left)
        if now - self._logged > LOG_SECONDS and left is not None:
            self._logged = now
            rate = computed / (now - self._began)
            logger.info("Caching %s: %d of %d, %.1f/s, %s left", self._what, done, total, rate, _clock(left))

    def finished(self, total: int, computed: int) -> None:
        """Everything is there; `computed` of it is new."""
        seconds = time.monotonic() - self._began
        self._write(total, total, computed, 0.0, seconds=seconds)
        if computed:
            logger.info("Cached %s: %d, of which %d are new, in %s", self._what, total, computed, _clock(seconds))
        else:
            logger.info("All %d %s are cached already", total, self._what)

    def _write(self, done: int, total: int, computed: int, left: float | None, **more: float) -> None:
        counts = {"what": self._what, "done": done, "total": total, "computed": computed}
        self._events.write("caching", self._global_step, **counts, seconds_left=left, **more)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
