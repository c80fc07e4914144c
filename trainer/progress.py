"""What the loop tells of its steps, without making the device wait; and what processes agree on."""

from __future__ import annotations

import enum
import logging
import time
from dataclasses import dataclass

import psutil
import torch
import torch.distributed
from torch import Tensor

from trainer.events import EventWriter
from trainer.state import State

logger = logging.getLogger(__name__)
FLUSH_SECONDS = 1.0
LOG_SECONDS = 10.0


class Wish(enum.IntFlag):
    """What is to be done after a step."""

    STOP = 1
    SAVE = 2
    SAMPLE = 4
    GIVE_UP = 8  # too many steps without a finite loss


class Agreement:
    """Lets all processes do the same after the same step. Costs nothing for one process."""

    def __init__(self, processes: int) -> None:
        self._group = torch.distributed.new_group(backend="gloo") if processes > 1 else None

    def on(self, wish: Wish) -> Wish:
        """What any process wishes."""
        if self._group is None:
            return wish
        flags = torch.tensor([int(wish)])
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.BOR, group=self._group)
        return Wish(int(flags))


@dataclass(frozen=True)
class _Pending:
    global_step: int
    epoch: int
    lr: float
    step_seconds: float
    data_seconds: float
    batch: str
    numbers: Tensor  # loss, grad_norm, finite; on the device


class Meter:
    """Keeps the numbers of recent steps on the device and writes their events about once a second, in one transfer."""

    def __init__(self, state: State, events: EventWriter | None, total_steps: int) -> None:
        self._state = state
        self._events = events
        self._total_steps = total_steps
        self._process = psutil.Process()
        self._pending: list[_Pending] = []
        self._flushed = self._logged = time.monotonic()
        self._recent: list[float] = []  # seconds of recent steps

    def add(
        self,
        loss: Tensor,
        grad_norm: Tensor,
        finite: Tensor,
        *,
        epoch: int,
        lr: float,
        step_seconds: float,
        data_seconds: float,
        batch: str,
    ) -> None:
        numbers = torch.stack([loss.float(), grad_norm.float(), finite.float()])
        step = self._state.global_step
        self._pending.append(_Pending(step, epoch, lr, step_seconds, data_seconds, batch, numbers))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending; the host waits for the device here, and only here."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        rows = torch.stack([pending.numbers for pending in self._pending]).tolist()
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self._process.memory_info().rss
        for pending, (loss, grad_norm, finite) in zip(self._pending, rows, strict=True):
            self._state.note_loss(loss, bool(finite))
            self._recent = [*self._recent[-99:], pending.step_seconds]
            if self._events:
                self._events.write(
                    "step",
                    pending.global_step,
                    epoch=pending.epoch,
                    loss=loss,
                    lr=pending.lr,
                    grad_norm=grad_norm,
                    step_seconds=pending.step_seconds,
                    data_seconds=pending.data_seconds,
                    batch=pending.batch,
                    memory=memory,
                )
                if not finite:
                    message = "loss or gradient is not finite; the step was left out"
                    self._events.write("warning", pending.global_step, kind="nonfinite", message=message)
        if time.monotonic() - self._logged > LOG_SECONDS or self._pending[-1].global_step == self._total_steps:
            self._log(self._pending[-1])
        self._pending.clear()

    def _log(self, last: _Pending) -> None:
        self._logged = time.monotonic()
        seconds = sorted(self._recent)[len(self._recent) // 2]
        left = int(seconds * (self._total_steps - last.global_step))
        average = self._state.loss_average
        logger.info(
            "step %d/%d  epoch %d  loss %.4f  lr %.3g  %.2f it/s  %d:%02d:%02d left",
            last.global_step,
            self._total_steps,
            last.epoch + 1,  # people count from 1
            float("nan") if average is None else average,
            last.lr,
            1 / max(seconds, 1e-9),
            left // 3600,
            left // 60 % 60,
            left % 60,
        )
