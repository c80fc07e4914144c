"""The processes that train one run together: how they begin, and what is said when one of them is gone."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed
from torch.distributed import distributed_c10d

from trainer import devices
from trainer.distributed.agreement import Agreement
from trainer.refusal import Refused
from trainer.runs import run_folder
from trainer.runs.failures import TrainingFailed, advice_for
from trainer.runs.signals import StopRequested, StopSignals

POLL_SECONDS = 0.05
LAST_WORDS_SECONDS = 10.0  # a process that fails closes its connections before it is gone
CONNECTION = ("connection", "peer", "socket", "gloo", "nccl", "timed out", "broken pipe", "store")


class ProcessLost(TrainingFailed):
    """Another process of this training is gone. `told`: another one of those left, or it itself, tells the user."""

    def __init__(self, message: str, reason: str, *, told: bool) -> None:
        advice = f"{reason} Start again with --resume_from_checkpoint latest; the number of processes may be another."
        super().__init__(message, advice, told=told)


@dataclass(frozen=True)
class LastWords:
    """Why a process left, in its own words."""

    kind: Literal["stopped", "refused", "failed", "lost"]  # lost: because of another one
    message: str
    advice: str


class Processes:
    """This process among those that train the run together. Costs nothing where it is the only one."""

    def __init__(self, count: int, number: int) -> None:
        self.count = count
        self.number = number
        self._all: list[dict[str, Any]] = []
        self._store_is_gone = False

    def meet(self, signals: StopSignals) -> Agreement:
        """Wait until every process is there, and learn who they are. Raises ProcessLost, StopRequested."""
        if self.count > 1:
            store = distributed_c10d._get_default_store()
            store.set(_arrival(self.number), "")
            while not store.check([_arrival(number) for number in range(self.count)]):
                signals.raise_if_requested()
                if any(self._heard(number) for number in range(self.count)):
                    raise self._lost("it never reached the start")
                time.sleep(POLL_SECONDS)
        agreement = Agreement(self.count, self.number)
        self._all = agreement.share(run_folder.this_process())
        return agreement

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within, an error tells the other processes why this one leaves; a lost connection becomes ProcessLost.

        Raises StopRequested where the other process was asked to stop before the first step.
        """
        try:
            yield
        except Exception as error:
            if self.count == 1 or isinstance(error, ProcessLost):
                raise
            if not lost_connection(error):
                self._say(error)
                raise
            lost = self._lost(error)
            self._say(lost)
            raise lost from error

    # --- last words ------------------------------------------------------------------------------------------------

    def _say(self, error: Exception) -> None:
        kinds = {StopRequested: "stopped", Refused: "refused", ProcessLost: "lost"}
        kind = next((kind for of, kind in kinds.items() if isinstance(error, of)), "failed")
        words = {"kind": kind, "message": str(error) or type(error).__name__}
        words["advice"] = advice_for(error)
        if store := self._store():
            with contextlib.suppress(RuntimeError):
                store.set(_words_of(self.number), json.dumps(words))

    def _heard(self, number: int) -> LastWords | None:
        """Why a process left; None where it has not, or had no time for any words."""
        try:
            store = self._store()
            if store and store.check([_words_of(number)]):
                return LastWords(**json.loads(store.get(_words_of(number))))
        except RuntimeError:  # its host, process 0 or the launcher, is gone
            self._store_is_gone = True
        return None

    def _store(self) -> torch.distributed.Store | None:
        """Where the processes leave words for one another; None where it cannot be reached any more."""
        return None if self._store_is_gone else distributed_c10d._get_default_store()

    def _left(self) -> dict[int, LastWords | None]:
        """The processes that have left, as far as this one can know, but not those that left because of another."""
        me = run_folder.this_process()
        left: dict[int, LastWords | None] = {}
        for number in range(self.count):
            words = self._heard(number) if number != self.number else None
            here = number < len(self._all) and self._all[number]["host"] == me["host"]
            if words or (here and not run_folder.is_alive(self._all[number])):
                left[number] = words
        return {number: words for number, words in left.items() if words is None or words.kind != "lost"}

    def _lost(self, error: Exception | str) -> Exception:
        """What a lost connection means: which process is gone, and why if it said so."""
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while not (left := self._left()) and time.monotonic() < deadline:
            if self._store_is_gone and not self._all:
                first = f"process 0 of {self.count}, or the launcher, ended before the training began"
                return ProcessLost(first, "Its own message says why, if it left one.", told=False)
            time.sleep(POLL_SECONDS)
        if not left:
            message = f"the connection to another process of this training was lost: {error}"
            return ProcessLost(message, "Look at the network and at the other machines' messages.", told=False)
        number = next((number for number, words in left.items() if words), min(left))
        who, words = f"process {number} of {self.count} (counted from 0)", left[number]
        if number < len(self._all):
            who += f", number {self._all[number]['pid']} on {self._all[number]['host']},"
        if words is None:
            speaker = min(set(range(self.count)) - set(left))
            reason = "It was killed, often by a system out of memory; every process ends with it."
            return ProcessLost(f"{who} ended without a message", reason, told=self.number != speaker)
        if words.kind == "stopped":
            return StopRequested()
        return ProcessLost(f"{who} ended: {words.message}", words.advice, told=self.number != 0)


def several_processes() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def lost_connection(error: BaseException) -> bool:
    """Whether an error means that another process cannot be reached, rather than that something failed here."""
    if isinstance(error, torch.distributed.DistError):
        return True
    of_memory = devices.ran_out_of_memory(error)
    return isinstance(error, RuntimeError) and not of_memory and any(word in str(error).lower() for word in CONNECTION)


def _arrival(number: int) -> str:
    return f"rekindle/here/{number}"


def _words_of(number: int) -> str:
    return f"rekindle/left/{number}"
