"""Queues of short trainings whose processes are killed at random, compared with trainings that were left alone.

What is killed: the page (`python app.py`), which starts the queue's runner anew whenever there is none; the runner;
trainers; or all of them at once, as a power cut would. Where time is short there is no page, and runner and trainers
are forks of a process that has imported everything.
"""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.support.browser import Served
from tests.support.forked_trainer import Server
from tests.support.runs_at_tiny_size import (
    assert_bit_equal,
    config_for,
    events_of,
    exported_tensors_of,
    run,
    steps_of,
    tensors_of,
)
from trainer.commands import queue_runner
from trainer.options.config import Config
from trainer.runs import manifest, queue, run_folder
from trainer.runs.events import read_events
from trainer.runs.run_folder import RunFolder

STEPS = 16
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"use_ema": True, "keep_last_n_checkpoints": 2},
    "rare": {"save_every_n_steps": 5, "seed": 7},
    "dropped": {"network_dropout": 0.2, "lr_scheduler": "cosine"},
    "replaced": {"overwrite_run": True, "seed": 3},
}
TARGETS = ("page", "runner", "trainer", "all")
LONGEST = 1200.0  # seconds for a queue to become empty, on a machine that has much else to do


@dataclass(frozen=True)
class Straight:
    """A training that nobody disturbed."""

    config: Config
    steps: dict[int, tuple[Any, ...]]
    tensors: dict[str, torch.Tensor]
    exported: dict[str, torch.Tensor]


def train_straight(model: Path, images: Path, output: Path, kinds: list[str]) -> list[Straight]:
    done = []
    for kind in kinds:
        options = {"max_train_steps": STEPS, "keep_last_n_checkpoints": 3, **KINDS[kind]}
        config = config_for(model, images, output, output_name=kind, **options)
        assert run(config) == "finished"
        done.append(Straight(config, steps_of(config), tensors_of(config, STEPS), exported_tensors_of(config)))
    return done


@dataclass
class Tally:
    """What was killed, and how far the trainings were."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TARGETS, 0))
    queues: int = 0
    starts: int = 0
    resumes: int = 0

    @property
    def count(self) -> int:
        return sum(self.kills.values())

    def __str__(self) -> str:
        kills = ", ".join(f"{target} {count}" for target, count in self.kills.items())
        return (
            f"{self.count} kills ({kills}) in {self.queues} queues; {self.starts} starts, "
            f"{self.resumes} resumes from a checkpoint"
        )


class PageHost:
    """A queue that a page looks after; the page has something that starts it again, as a service does."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.folder, self.home = served.places.queue, served.home

    def kill_page(self) -> bool:
        self.served.kill()
        self.served.start()
        return True

    def keep_going(self) -> None:
        """The page does."""

    def said(self) -> str:
        return (self.folder / "runner.log").read_text()


class ForkedHost:
    """A queue without a page, whose runner and trainers are forks: they begin without the seconds of imports."""

    def __init__(self, forks: Server, home: Path) -> None:
        self._forks = forks
        self.folder, self.home = home / "queue", home
        self._printed = home / "runner.log"

    def kill_page(self) -> bool:
        return False

    def keep_going(self) -> None:
        if queue_runner.needs_runner(self.folder):
            arguments = ["queue", "run", "--queue", str(self.folder), "--most_deaths", "1000"]
            self._forks.start_queue(arguments, self._printed)
            time.sleep(0.3)

    def said(self) -> str:
        return self._printed.read_text()


def _kill(pid: int | None) -> bool:
    if pid is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).kill()
        return True
    return False


def _runner_of(folder: Path) -> int | None:
    found = run_folder.holder(RunFolder(folder))
    return found["pid"] if found else None


def _trainers_of(folder: Path) -> list[int]:
    processes = [entry.process for entry in queue.read(folder).among("running")]
    return [process["pid"] for process in processes if process and run_folder.is_alive(dict(process))]


def kill(target: str, host: PageHost | ForkedHost) -> bool:
    """Whether there was something of this kind to kill."""
    folder = host.folder
    alive = _trainers_of(folder)
    done = False
    if target in ("runner", "all"):
        done = _kill(_runner_of(folder)) or done
    if target in ("trainer", "all"):
        for pid in alive:
            done = _kill(pid) or done
    if target in ("page", "all"):
        done = host.kill_page() or done
    return done


def work_through_kills(
    host: PageHost | ForkedHost,
    straight: list[Straight],
    output: Path,
    draw: random.Random,
    most: int,
    tally: Tally,
    pause: float,
) -> None:
    """A queue of these trainings with up to `most` kills, `pause` seconds apart at most; then compared."""
    folder = host.folder
    configs = [one.config.replace(output_dir=str(output)) for one in straight]
    for config in configs:
        if config.overwrite_run:
            _leave_an_old_run(config)
        queue.add(folder, config, host.home)
    wanted = tally.count + most
    deadline = time.monotonic() + LONGEST
    while queue.read(folder).is_at_work:
        assert time.monotonic() < deadline, f"{queue.read(folder)}\n{host.said()[-3000:]}"
        host.keep_going()
        time.sleep(draw.uniform(0, pause))
        if tally.count < wanted:
            target = draw.choice(TARGETS)
            if target == "trainer" and any(entry.deaths > 1 for entry in queue.read(folder).among("running")):
                continue  # the third death in a row without progress would rightly end the training
            tally.kills[target] += kill(target, host)
    check(folder, straight, configs, tally)
    tally.queues += 1
    queue.remove_ended(folder)


def _leave_an_old_run(config: Config) -> None:
    """Something that overwrite_run moves aside, and only once."""
    old = RunFolder(config.run_dir)
    old.path.mkdir(parents=True)
    run_folder.write_run(old, run_folder.new_run(config.output_name))


def check(folder: Path, straight: list[Straight], configs: list[Config], tally: Tally) -> None:
    """Every training has finished, once, and as if nothing had happened."""
    entries = queue.read(folder).entries
    assert [(entry.name, entry.state, entry.said) for entry in entries] == [
        (config.output_name, "finished", "") for config in configs
    ]
    for entry, one, config in zip(entries, straight, configs, strict=True):
        tally.starts += entry.starts
        tally.resumes += len(events_of(config, "resumed"))
        finished = [event["reason"] for event in events_of(config, "run_finished")]
        assert finished == ["finished"]
        last = [event["event"] for event in _events(config) if event["event"] in ("run_started", "run_finished")]
        assert last[-1] == "run_finished"  # it was not begun again afterwards
        assert run_folder.status(RunFolder(config.run_dir)) == "finished"
        assert steps_of(config) == one.steps
        assert_bit_equal(tensors_of(config, STEPS), one.tensors)
        assert_bit_equal(exported_tensors_of(config), one.exported)
        assert [found.problem for found in manifest.listing(RunFolder(config.run_dir).checkpoints, thorough=True)] == [
            "" for _ in manifest.listing(RunFolder(config.run_dir).checkpoints)
        ]
        aside = list(Path(config.output_dir).glob(f"{config.output_name}-replaced-*"))
        assert len(aside) == config.overwrite_run


def _events(config: Config) -> list[dict[str, Any]]:
    return read_events(RunFolder(config.run_dir).events_file)[0]
