"""Threads beside the one that trains, which must not slow it down."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def pool(workers: int, name: str, enter: Callable[[], None] = lambda: None) -> ThreadPoolExecutor:
    """Threads for work beside the training, each with one torch thread. `enter`: called in each as it begins.

    Any other thread that runs torch's operations gets OpenMP threads of its own for them, as many as there are cores,
    and keeps them. With more threads than cores, every operation of the training ends by waiting for one that sleeps:
    measured on two cores, all steps after the first save took 2.3 times as long.
    """
    torch.get_num_threads()  # settles the calling thread's number, before others are told theirs

    def begin() -> None:
        _use(1)
        enter()

    return ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=begin)


def apart(work: Callable[[], Result], threads: int) -> Result:
    """What `work` returns, with so many torch threads: on a thread of its own, with which they end.

    For what has to be computed as the training's thread would, to the bit, and is rare.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="apart", initializer=_use, initargs=(threads,)) as one:
        return one.submit(work).result()


def _use(threads: int) -> None:
    """Give the calling thread so many torch threads; those of the threads that have begun already stay theirs."""
    torch.get_num_threads()  # what a thread begins with; later it would undo what is set here
    torch.set_num_threads(threads)
