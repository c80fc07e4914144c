"""Alarms over the steps of a run: what its losses, gradients and learning rate show. No torch here.

Steps are taken together in windows. Within one, the logarithms of the losses are averaged: a loss at a random timestep
is a level times a chance factor, so that windows can be compared by the spread of the logarithms whatever the loss and
the batch size are. All that is kept is a function of the steps and bounded, and a checkpoint holds it: a resumed run
raises the alarms that the straight run raises, at the same steps.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.options.sections.watching import Watching

SPREADS = 5.0  # standard errors that make a level another one: many windows are compared in a run
SURE = 2.5  # standard errors on either side of a trend
KEPT = 12  # windows
REFERENCE = 4  # windows that make a level
STRETCHES = 64  # at most; then each two become one
FEWEST_STRETCHES = 6  # that show a trend
LOW_SHARE = 0.1  # of the run
SMALLEST = 1e-30  # stands in for 0 in a logarithm
NORMAL_MEDIAN = 0.6745  # of the distances from the mean, in standard deviations
NO_GRADIENT = math.log(1e-20)


@dataclass(frozen=True)
class Alarm:
    """What was seen; `kind` is the name of one of `trainer.runs.alarm_kinds.KINDS`, which says why and what to do."""

    kind: str
    seen: str


@dataclass
class Window:
    """Sums over some steps that follow one another. Logarithms are natural; `rate` is that of the last step."""

    steps: int = 0
    losses: float = 0.0  # the sum of the logarithms
    squares: float = 0.0
    gradients: float = 0.0
    highest_rate: float = 0.0
    rate: float = 0.0

    def add(self, loss: float, gradient: float, rate: float) -> None:
        log = math.log(max(loss, SMALLEST))
        self.steps += 1
        self.losses += log
        self.squares += log * log
        self.gradients += math.log(max(gradient, SMALLEST))
        self.highest_rate = max(self.highest_rate, rate)
        self.rate = rate

    def joined(self, other: Window) -> Window:
        """This window and the one after it."""
        return Window(
            self.steps + other.steps,
            self.losses + other.losses,
            self.squares + other.squares,
            self.gradients + other.gradients,
            max(self.highest_rate, other.highest_rate),
            other.rate,
        )

    @property
    def level(self) -> float:
        return self.losses / self.steps

    @property
    def gradient(self) -> float:
        return self.gradients / self.steps

    @property
    def error(self) -> float:
        """The variance of `level`."""
        if self.steps < 2:
            return 0.0
        around = max(0.0, self.squares - self.losses * self.losses / self.steps)
        return around / (self.steps - 1) / self.steps


def joined(windows: Sequence[Window]) -> Window:
    """All of them as one."""
    whole = Window()
    for window in windows:
        whole = whole.joined(window)
    return whole


def between(windows: Sequence[Window]) -> float:
    """The variance of a window's level around its neighbours': what the spread within windows does not show.

    From the median of the distances, which a jump between two of them does not move.
    """
    distances = [abs(later.level - earlier.level) for earlier, later in itertools.pairwise(windows)]
    return (statistics.median(distances) / NORMAL_MEDIAN) ** 2 / 2 if len(distances) >= 3 else 0.0


@dataclass
class StepAlarms:
    """Watches the steps of a run. `total_steps`: its length as it is now."""

    options: Watching
    total_steps: int = 0
    current: Window = field(default_factory=Window)
    windows: list[Window] = field(default_factory=list)  # the last ones
    stretches: list[Window] = field(default_factory=list)  # all of the run, in parts of `width` windows
    width: int = 1
    partial: int = 0  # windows in the last stretch
    lowest: float | None = None  # level of the loss so far
    lowest_error: float = 0.0  # its variance
    peak: float = 0.0  # learning rate
    low_steps: int = 0  # in a row with a rate near zero
    told: list[str] = field(default_factory=list)  # kinds that hold now, and have been told

    # --- the checkpoint --------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = dataclasses.asdict(self)
        return {name: kept[name] for name in kept if name not in ("options", "total_steps")}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what `as_dict` returned; from nothing where it is empty. Raises TypeError when it does not fit."""
        values = dict(kept)
        for name in {"windows", "stretches"} & kept.keys():
            values[name] = [Window(**item) for item in kept[name]]
        if "current" in kept:
            values["current"] = Window(**kept["current"])
        restored = StepAlarms(self.options, self.total_steps, **values)
        self.__dict__.update(restored.__dict__)

    def forget(self) -> None:
        """Begin anew, because what is trained from here on is not what was trained."""
        self.restore({})

    # --- a step ----------------------------------------------------------------------------------------------------

    def after(self, step: int, loss: float, gradient: float, rate: float) -> list[Alarm]:
        """Take the loss, gradient norm and learning rate of a step; returns what is seen now and was not before.

        A step that is not finite is no part of a level, and has its own alarm.
        """
        self.peak = max(self.peak, rate)
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            return []
        self.current.add(loss, gradient, rate)
        if self.current.steps < self.options.alarm_window:
            return []
        self.windows = [*self.windows[1 - KEPT :], self.current]
        self.current = Window()
        return [*self._divergence(), *self._gradients(), *self._low_rate(step), *self._settled()]

    def _new(self, kind: str, *, holds: bool, over: bool) -> bool:
        """Whether this is the moment to tell it: it holds, and was over since it was told."""
        if over and kind in self.told:
            self.told.remove(kind)
        if not holds or kind in self.told:
            return False
        self.told.append(kind)
        return True

    def _divergence(self) -> Iterator[Alarm]:
        *earlier, before, last = self.windows if len(self.windows) > 2 else (Window(), Window())
        if not earlier:
            return
        reference = joined(earlier[-REFERENCE:])
        if self.lowest is None or reference.level < self.lowest:
            self.lowest, self.lowest_error = reference.level, reference.error
        chance = max(last.error + self.lowest_error, between(earlier) * 1.25)
        margin = max(math.log(self.options.alarm_divergence), SPREADS * math.sqrt(chance))
        holds = min(before.level, last.level) > self.lowest + margin
        if self._new("divergence", holds=holds, over=last.level < self.lowest + margin / 2):
            yield Alarm(
                "divergence",
                f"the typical loss of the last {last.steps} steps is {math.exp(last.level):.3g}, and it was "
                f"{math.exp(self.lowest):.3g} ({math.exp(last.level - self.lowest):.1f} times as much)",
            )

    def _gradients(self) -> Iterator[Alarm]:
        *earlier, before, last = self.windows if len(self.windows) > 2 else (Window(), Window())
        none = bool(last.steps) and last.gradient < NO_GRADIENT
        if self._new("no_gradient", holds=none, over=not none):
            yield Alarm("no_gradient", f"in the last {last.steps} steps the gradients were zero")
        if len(earlier) < 3 or none:
            return
        usual, factor = statistics.median(window.gradient for window in earlier), math.log(self.options.alarm_gradient)
        seen = (
            f"the gradient norm is about {math.exp(last.gradient):.3g} in the last {last.steps} steps, and was about "
            f"{math.exp(usual):.3g} before"
        )
        for kind, sign in (("exploding_gradients", 1), ("vanishing_gradients", -1)):
            changes = [sign * (window.gradient - usual) for window in (before, last)]
            if self._new(kind, holds=min(changes) > factor, over=changes[1] < factor / 2):
                yield Alarm(kind, seen)

    def _low_rate(self, step: int) -> Iterator[Alarm]:
        last = self.windows[-1]
        near_zero = last.highest_rate < self.options.alarm_low_rate * self.peak or self.peak == 0
        self.low_steps = self.low_steps + last.steps if near_zero else 0
        long = self.low_steps >= max(2 * self.options.alarm_window, LOW_SHARE * self.total_steps)
        remaining = self.total_steps - step
        holds = long and remaining >= 2 * self.options.alarm_window
        if self._new("low_rate", holds=holds, over=not near_zero):
            yield Alarm(
                "low_rate",
                f"the learning rate is {last.rate:.2g}, at its peak it was {self.peak:.2g}; it has been near zero for "
                f"{self.low_steps:,} steps, and {remaining:,} are still to come",
            )

    def _settled(self) -> Iterator[Alarm]:
        if self.partial:
            self.stretches[-1] = self.stretches[-1].joined(self.windows[-1])
        else:
            self.stretches.append(self.windows[-1])
        self.partial = (self.partial + 1) % self.width
        if self.partial or not self.options.alarm_plateau:
            return
        if len(self.stretches) == STRETCHES:
            pairs = zip(self.stretches[::2], self.stretches[1::2], strict=True)
            self.stretches = [first.joined(second) for first, second in pairs]
            self.width *= 2
        half = self.stretches[len(self.stretches) // 2 :]
        steps = sum(stretch.steps for stretch in half)
        if len(half) < FEWEST_STRETCHES or steps < self.options.alarm_plateau_steps:
            return
        fall, error = trend(half)
        worth = -math.log1p(-self.options.alarm_plateau)
        full_rate = min(stretch.rate for stretch in half) >= 0.1 * self.peak
        flat = full_rate and fall + SURE * error < worth and fall > -SURE * error
        falls = fall - SURE * error > 0
        level, first = joined(half), self.stretches[0]
        ever = first.level - level.level
        learned = ever > max(worth, SURE * math.sqrt(first.error + level.error))
        for kind, holds in (("converged", flat and learned), ("plateau", flat and not learned)):
            if self._new(kind, holds=holds, over=falls):
                since = (
                    f"it had fallen by {100 * -math.expm1(-ever):.0f} % before"
                    if learned
                    else "nor is it clearly lower than at the beginning"
                )
                yield Alarm(
                    kind,
                    f"over the last {steps:,} steps the typical loss is {math.exp(level.level):.3g} and fell by less "
                    f"than {100 * -math.expm1(-fall - SURE * error):.1f} %; {since}",
                )

    def text_encoder(self, distance: float) -> list[Alarm]:
        """Take how far a trained text encoder's outputs are from those before the training (1 - cosine similarity)."""
        limit = self.options.alarm_text_encoder_drift
        if not self._new("text_encoder_drift", holds=distance > limit > 0, over=distance < 0.9 * limit):
            return []
        seen = f"its outputs for fixed captions are {distance:.3f} from what they were (1 - cosine similarity)"
        return [Alarm("text_encoder_drift", seen)]

    # --- a resume --------------------------------------------------------------------------------------------------

    def level_now(self) -> tuple[float, float] | None:
        """The level of the last windows, of equal lengths, and its variance; None where there are too few."""
        if len(self.windows) < 2:
            return None
        recent = self.windows[-2 * REFERENCE :]
        whole = joined(recent)
        return whole.level, max(whole.error, between(recent) / len(recent))


def trend(parts: Sequence[Window]) -> tuple[float, float]:
    """How far the level falls over parts of equal length, by least squares, and the standard error of that."""
    count = len(parts)
    centre = (count - 1) / 2
    mean = sum(part.level for part in parts) / count
    squares = sum((place - centre) ** 2 for place in range(count))
    slope = sum((place - centre) * (part.level - mean) for place, part in enumerate(parts)) / squares
    left = sum((part.level - mean - slope * (place - centre)) ** 2 for place, part in enumerate(parts)) / (count - 2)
    within = sum(part.error for part in parts) / count
    return -slope * count, count * math.sqrt(max(left, within) / squares)
