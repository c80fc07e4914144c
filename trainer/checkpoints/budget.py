"""How much a run's checkpoints write to the disk, how much lies between two, and when that is worth a word.

No torch here.
"""

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
MOST_AT_STAKE = 30 * 60.0  # seconds of training that a crash may cost without a word
TAIL = 1 << 16  # bytes of events that tell the speed of late


@dataclass(frozen=True)
class Budget:
    """What is still to be written: so many checkpoints of so many bytes; seconds between two, where they are known.

    `about`: the size was computed, not measured. `minutes`: one more is written whenever so many have passed since the
    last; 0 where there are none, or the time is known and they are among the others.
    """

    saves: int
    bytes_of_save: int
    seconds_between: float | None
    about: bool = False
    minutes: float = 0.0

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
        others = f", and one whenever {self.minutes:g} minutes pass without" if self.minutes else ""
        return f"{count} of {about}{each} to be written: {about}{whole} in all{rate}{others}"

    def warning(self) -> str | None:
        """What to say when it is so much that it slows the machine down or wears an SSD out."""
        lasts = self.total > MUCH_AN_HOUR  # a fast rate means little for a short while
        if self.total <= MUCH_IN_ALL and not (lasts and (self.per_hour or 0) > MUCH_AN_HOUR):
            return None
        return (
            f"{self.line()}. That is a lot for an SSD (a usual 1 TB drive is rated for about 600 TB): save less "
            "often (save_every_n_steps, save_every_n_epochs, save_every_n_minutes), or write output_dir to another disk"
        )


def planned(
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
    saves = by_steps + (left > 0)
    if seconds and config.save_every_n_minutes:  # where saves by steps are as often, the clock calls for none
        saves = max(saves, int(seconds / (config.save_every_n_minutes * 60)) + (left > 0))
    unknown = config.save_every_n_minutes if left and not seconds else 0.0
    return Budget(saves, bytes_of_save, seconds / saves if seconds and saves else None, about, unknown)


def at_stake(
    config: Config, step: int, total_steps: int, steps_per_epoch: int, step_seconds: float | None
) -> str | None:
    """What to say when a crash could cost more than half an hour of training; None where it cannot.

    `step_seconds`: None where it is not known; then only what is certain counts: that nothing is saved before the end,
    or that only the clock calls for saves, and too rarely.
    """
    left = max(0, total_steps - step)
    intervals = [config.save_every_n_steps, config.save_every_n_epochs * steps_per_epoch] if config.save_state else []
    apart = min([left, *filter(None, intervals)])
    by_steps = apart * step_seconds if step_seconds else None
    by_clock = config.save_every_n_minutes * 60
    spans = [seconds for seconds in (by_steps, by_clock) if seconds]
    if config.cache_only or not left or (spans and min(spans) <= MOST_AT_STAKE) or (by_steps is None and apart < left):
        return None
    way_out = "Set save_every_n_minutes = 10, which writes checkpoints, but no model files"
    if apart == left and not by_clock:
        length = f", {quantities.duration(by_steps)} of it" if by_steps else ""
        return f"Nothing is saved before the end: a crash would cost the whole training{length}. {way_out}"
    lost = quantities.duration(min(spans))
    return f"A crash could cost up to {lost} of training: checkpoints lie that far apart. {way_out}"


def _due(step: int, every: Sequence[int]) -> int:
    """How many of the steps up to this one are multiples of one of two intervals; 0: no interval."""
    first, second = every
    both = math.lcm(first, second)
    return sum(step // interval for interval in (first, second) if interval) - (step // both if both else 0)


def kept(config: Config, saves: int, total_steps: int, steps_per_epoch: int) -> int:
    """About how many of a whole run's checkpoints are on the disk at its end, pinned ones aside; at most so many where
    the clock calls for saves that `saves` does not count."""
    span = max(config.save_last_n_steps_state, config.save_last_n_epochs_state * steps_per_epoch)
    if not config.keep_last_n_checkpoints:
        return saves  # 0 keeps all of them
    recent = max(config.keep_last_n_checkpoints, math.ceil(span * saves / total_steps))
    apart = total_steps // config.keep_every_n_steps if config.keep_every_n_steps else 0
    return recent + apart if config.save_every_n_minutes else min(saves, recent + apart)


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
