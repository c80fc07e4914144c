"""TensorBoard and Weights & Biases, fed from the run's events through accelerate's trackers.

A tracker sees what events.jsonl gets, on a thread of its own: the training neither waits for it nor fails with it. The
step is always the run's, so that a resumed run continues its curves; steps that it repeats replace those it had.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem
from trainer.training.session import Session

logger = logging.getLogger(__name__)
PROJECT = "rekindle"
CLOSING_SECONDS = 60.0  # that the end of a run waits for what is still to be sent
MOST_WAITING = 100_000  # events
Record = Mapping[str, Any]


def require(config: Config) -> None:
    """Raises ConfigError when a tracker's package is not there."""
    packages = {"tensorboard": "tensorboard", "wandb": "wandb"}
    problems = []
    for name in config.trackers:
        try:
            __import__(packages[name])
        except ImportError:
            problems.append(Problem("log_with", f"{name} is not installed: pip install {packages[name]}"))
    if problems:
        raise ConfigError(problems)


def scalars(record: Record) -> dict[str, float]:
    """The numbers of an event under the names that curves have; sd-scripts' where it has the curve."""
    values: dict[str, Any] = {}
    kind = record["event"]
    if kind == "step":
        values = {"loss/current": record.get("loss"), "grad_norm": record.get("grad_norm")}
        values |= {f"lr/{part}": rate for part, rate in record.get("lrs", {"all": record.get("lr")}).items()}
        values |= {f"time/{name}": record.get(name) for name in ("step_seconds", "data_seconds")}
        values["memory"] = record.get("memory")
    elif kind == "validation":
        values = {"loss/validation": record.get("loss"), "loss/average": record.get("train_loss")}
    elif kind == "evaluation":
        values = {f"evaluation/{name}": value for name, value in record.get("figures", {}).items()}
    elif kind == "resources":
        values = {"machine/cpu": record.get("cpu"), "machine/energy_kwh": record.get("energy_kwh")}
        for number, gpu in enumerate(record.get("gpus", ())):
            names = ("load", "temperature", "watts", "memory")
            values |= {f"machine/gpu{number}_{name}": gpu.get(name) for name in names}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


class Follower:
    """Passes events on to trackers, on a thread of its own."""

    def __init__(self, starts: Mapping[str, Callable[[], Any]], run_folder: Path) -> None:
        """`starts`: a function for each tracker that begins it and returns it, called on the thread."""
        self._starts = starts
        self._folder = run_folder
        self._events: queue.Queue[Record | None] = queue.Queue(MOST_WAITING)
        self._trackers: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)
        self._thread.start()

    def __call__(self, record: Record) -> None:
        """Take an event; never waits, and leaves it out where so many are waiting."""
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(record)

    def close(self) -> None:
        """Return when everything is sent, or after CLOSING_SECONDS."""
        self._events.put(None)
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            logger.warning("The tracker still sends; what is not sent by the end of the process is lost there.")

    def _follow(self) -> None:
        for name in self._starts:
            self._guarded(name, self._start)
        while (record := self._events.get()) is not None:
            for name in list(self._trackers):
                self._guarded(name, self._log, record)
        for name in list(self._trackers):
            self._guarded(name, self._finish)

    def _guarded(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        """A tracker that fails is told once and left alone from then on; the run goes on."""
        try:
            work(name, *arguments)
        except Exception as error:  # noqa: BLE001 - networks, services and their clients fail in any way there is
            logger.warning("%s failed; nothing more is sent to it in this session: %s", name, error)
            self._trackers.pop(name, None)

    def _start(self, name: str) -> None:
        self._trackers[name] = self._starts[name]()

    def _finish(self, name: str) -> None:
        self._trackers[name].finish()

    def _log(self, name: str, record: Record) -> None:
        tracker = self._trackers[name]
        step, values = record["global_step"], scalars(record)
        if values and name == "wandb":
            tracker.log({**values, "global_step": step})  # its own step cannot go back, as a run's can
        elif values:
            tracker.log(values, step=step)
        if record["event"] == "sample_saved":
            picture = np.asarray(Image.open(self._folder / record["path"]).convert("RGB"))  # (height, width, 3)
            title = f"sample/{record.get('index', 0)}: {str(record.get('prompt', ''))[:60]}"
            if name == "wandb":
                tracker.log_images({title: [picture]}, step=None)
            else:
                tracker.log_images({title: picture[None]}, step=step, dataformats="NHWC")


def _tensorboard(config: Config, session: Session) -> Any:
    from accelerate.tracking import TensorBoardTracker

    folder = config.logging_dir or str(config.run_dir / "tensorboard")
    # What an earlier session wrote of steps that come again is passed over by TensorBoard.
    tracker = TensorBoardTracker(
        f"{config.log_prefix}{config.output_name}", folder, purge_step=session.global_step + 1, flush_secs=10
    )
    tracker.start()
    return tracker


def _wandb(config: Config, session: Session) -> Any:
    from accelerate.tracking import WandBTracker

    tracker = WandBTracker(
        config.log_tracker_name or PROJECT,
        id=session.run_id,
        resume="allow",
        name=config.wandb_run_name or config.output_name,
        dir=str(config.run_dir),
        config=dataclasses.asdict(config),
        allow_val_change=True,
    )
    tracker.start()
    tracker.tracker.define_metric("global_step")
    tracker.tracker.define_metric("*", step_metric="global_step")
    return tracker


STARTS: dict[str, Callable[[Config, Session], Any]] = {"tensorboard": _tensorboard, "wandb": _wandb}


@contextlib.contextmanager
def following(config: Config, session: Session) -> Iterator[None]:
    """Within, the trackers that the options name are told of the session's events, by the process that writes."""
    if not (session.writes and config.trackers):
        yield
        return
    starts = {name: functools.partial(STARTS[name], config, session) for name in config.trackers}
    follower = Follower(starts, config.run_dir)
    session.events.listen(follower)
    try:
        yield
    finally:
        session.events.listen(None)
        follower.close()
