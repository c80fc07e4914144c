"""What the processes of one training agree on, wait for and tell one another, on the host. Costs nothing for one."""

from __future__ import annotations

import contextlib
import datetime
import enum
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed

LONGEST_WAIT = datetime.timedelta(days=7)  # for the others to finish what takes hours, like encoding a large dataset
Item = TypeVar("Item")


class Wish(enum.IntFlag):
    """What is to be done after a step."""

    STOP = 1
    SAVE = 2
    SAMPLE = 4
    GIVE_UP = 8  # too many steps without a finite loss
    ROLL_BACK = 16  # go on from an earlier checkpoint


class Agreement:
    """Lets all processes do the same after the same step."""

    def __init__(self, processes: int = 1, process: int = 0) -> None:
        self.processes = processes
        self.process = process
        self._group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT) if processes > 1 else None

    def on(self, wish: Wish) -> Wish:
        """What any process wishes."""
        if self._group is None:
            return wish
        flags = torch.tensor([int(wish)])
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.BOR, group=self._group)
        return Wish(int(flags))

    def wait(self) -> None:
        """Return when every process has come here."""
        if self._group is not None:
            torch.distributed.barrier(group=self._group)

    @contextlib.contextmanager
    def waited_for(self) -> Iterator[None]:
        """Within, one process may work as long as it takes: the others wait for it at the end, and not in an operation
        of the training, whose group loses patience after minutes and ends them all."""
        yield
        self.wait()

    def share(self, item: Item) -> list[Item]:
        """Every process's item, in their order."""
        if self._group is None:
            return [item]
        items: list[Item] = [item] * self.processes
        torch.distributed.all_gather_object(items, item, group=self._group)
        return items
