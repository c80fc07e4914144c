"""How much a run's checkpoints write to the disk, and when that is worth a word. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer import quantities
from trainer.options.config import Config
from trainer.runs.events import read_events
from trainer.runs.run_folder import RunFolder

MUCH_AN_HOUR = 50e9  # bytes: a quarter of what usual SSDs sustain for long without slowing everything down
MUCH_IN_ALL = 2e12  # bytes: some thousandths of what a usual 1 TB SSD can take in its life (600 TB)
TAIL = 1 << 16  # bytes of events that tell the speed of late


@dataclass(frozen=True)
class Budget:
    """What is still to be written: so many checkpoints of so many bytes; seconds between two, where they are known.

    `about`: the size was computed, not measured.
    """

    saves: int
    bytes_of_save: int
    seconds_between: float | None
    about: bool = False

    @property
    def total(self) -> int:
        return self.saves * self.bytes_of_save

    @property
    def per_hour(self) -> float | None:
        """Bytes; None where nothing is known of the time, or only the end saves."""
        return self.bytes_of_save / self.seconds_between * 3600 if self.seconds_between and self.saves > 1 else None

    def line(self) -> str:
        rate = f", {quantities.size(self.per_hour)} an hour" if self.per_hour else ""
        count, about = quantities.counted(self.saves, "checkpoint"), "about " if self.about else ""
        each, whole = quantities.size(self.bytes_of_save), quantities.size(self.total)
        return f"{count} of {about}{each} to be written: {about}{whole} in all{rate}"

    def warning(self) -> str | None:
        """What to say when it is so much that it slows the machine down or wears an SSD out."""
        lasts = self.total > MUCH_AN_HOUR  # a fast rate means little for a short while
        if self.total <= MUCH_IN_ALL and not (lasts and (self.per_hour or 0) > MUCH_AN_HOUR):
            return None
        return (
            f"{self.line()}. That is a lot for an SSD (a usual 1 TB drive is rated for about 600 TB): save less "
            "often (save_every_n_steps, save_every_n_epochs, save_every_n_minutes), or write output_dir to another disk"
        )


def of(
    config: Config,
    step: int,
    total_steps: int,
    steps_per_epoch: int,
    bytes_of_save: int,
    step_seconds: float | None,
    *,
    about: bool = False,
) -> Budget:
    """What a run writes from a step on to its end."""
    left = max(0, total_steps - step)
    by_steps = 0
    if config.save_state and left:
        every = [config.save_every_n_steps, config.save_every_n_epochs * steps_per_epoch]
        by_steps = _due(total_steps - 1, every) - _due(step, every)
    seconds = left * step_seconds if step_seconds else None
    minutes = config.save_every_n_minutes * 60
    by_time = int(seconds / minutes) if seconds and minutes else 0
    saves = by_steps + by_time + (left > 0)
    return Budget(saves, bytes_of_save, seconds / saves if seconds and saves else None, about)


def _due(step: int, every: Sequence[int]) -> int:
    """How many of the steps up to this one are multiples of one of two intervals; 0: no interval."""
    first, second = every
    both = math.lcm(first, second)
    return sum(step // interval for interval in (first, second) if interval) - (step // both if both else 0)


def kept(config: Config, saves: int, total_steps: int, steps_per_epoch: int) -> int:
    """About how many of a whole run's checkpoints are on the disk at its end, pinned ones aside."""
    span = max(config.save_last_n_steps_state, config.save_last_n_epochs_state * steps_per_epoch)
    if not config.keep_last_n_checkpoints:
        return saves  # 0 keeps all of them
    recent = max(config.keep_last_n_checkpoints, math.ceil(span * saves / total_steps))
    apart = total_steps // config.keep_every_n_steps if config.keep_every_n_steps else 0
    return min(saves, recent + apart)


def seconds_per_step(run: RunFolder) -> float | None:
    """The mean over the end of a run's last session, validating, sampling and saving included; None: not known."""
    try:
        size = run.events_file.stat().st_size
    except OSError:
        return None
    events, _ = read_events(run.events_file, max(0, size - TAIL))
    session: list[tuple[int, float]] = []
    training = 0.0
    for event in events:
        if event["event"] == "run_started":
            session.clear()
            training = 0.0
        elif event["event"] == "step":
            session.append((event["global_step"], event["time"]))
            training += event.get("step_seconds", 0.0)
    if len(session) < 3:
        return None
    (first, begun), (last, ended) = session[0], session[-1]
    if last <= first or ended <= begun:
        return None
    # Steps are written several at a time, so that few of them have times that lie close together.
    return max((ended - begun) / (last - first), training / len(session))
