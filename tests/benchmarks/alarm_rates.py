"""How often the alarms cry over healthy runs, and how many ill ones they find: simulated curves, counted.

    python -m tests.benchmarks.alarm_rates [--curves 200]

A loss is a level times a chance factor, as at random timesteps; levels fall by a power of the step or exponentially,
chance is log-normal (as wide as at batch sizes from 1 to 16) with an outlier now and then, gradients wander, learning
rates follow the trainer's own curves. An ill run is a healthy one with one fault put in.
"""

from __future__ import annotations

import argparse
import collections
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from trainer.options.sections.watching import Watching
from trainer.recipe.alarms import StepAlarms
from trainer.recipe.conditions import DiskRoom, GpuHeat, Throughput
from trainer.recipe.resume_watch import AfterResume, DriftAfterResume
from trainer.recipe.schedule import lr_factor

GB = 1_000_000_000
LOSS_AVERAGE = 0.98  # as the training's own


@dataclass
class Curve:
    """A simulated run."""

    losses: np.ndarray
    gradients: np.ndarray
    rates: np.ndarray
    resumed_at: int
    seconds: np.ndarray  # per step, one for each second or so
    free: np.ndarray  # bytes of the disk, one a minute
    heat: np.ndarray  # degrees Celsius, one sample each ten seconds
    distances: np.ndarray  # of the text encoder
    expected: frozenset[str] = field(default_factory=frozenset)  # any of these kinds is a hit


def healthy(draw: np.random.Generator) -> Curve:
    """A run in which nothing is wrong, and which still learns."""
    steps = int(draw.integers(600, 6000))
    place = np.arange(1, steps + 1)
    start = draw.uniform(0.03, 0.5)
    if draw.random() < 0.5:
        levels = start * (1 + place / draw.uniform(20, 200)) ** -draw.uniform(0.12, 0.4)
    else:
        levels = start * (0.3 + 0.7 * np.exp(-place / (steps * draw.uniform(0.4, 1.0))))
    width = draw.uniform(0.15, 1.0)
    images = np.exp(draw.normal(0, draw.uniform(0, 0.4), int(draw.integers(10, 400))))  # some are harder than others
    order = np.concatenate([draw.permutation(len(images)) for _ in range(steps // len(images) + 1)])[:steps]
    chance = np.exp(draw.normal(0, width, steps)) * images[order]
    chance[draw.random(steps) < 0.002] *= draw.uniform(3, 8)
    grown = 1 + draw.uniform(0, 2) * (1 - np.exp(-place / 80))  # a LoRA's second matrix leaves zero
    wander = np.exp(np.cumsum(draw.normal(0, 0.3 / math.sqrt(steps), steps)))
    gradients = draw.uniform(0.01, 2) * grown * wander * np.exp(draw.normal(0, 0.4, steps))
    scheduler = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
    chosen = scheduler[int(draw.integers(len(scheduler)))]
    warmup = 0 if chosen == "constant" else int(draw.uniform(0, 0.1) * steps)
    rates = 1e-4 * np.array([lr_factor(chosen, step, warmup, steps, num_cycles=3) for step in range(steps)])
    intervals = 600
    seconds = draw.uniform(0.05, 3) * np.exp(draw.normal(0, 0.08, intervals))
    seconds[draw.random(intervals) < 0.05] *= draw.uniform(2, 20)  # a save, samples, a validation
    saves = np.arange(240) // int(draw.integers(15, 60))
    free = 200 * GB - np.minimum(saves, 3) * 2 * GB - draw.uniform(0, 1, 240) * GB  # the older ones are deleted
    heat = draw.uniform(60, 80) + draw.normal(0, 2, 300)
    distances = draw.uniform(0.01, 0.1) * (1 - np.exp(-np.arange(40) / 20))
    return Curve(levels * chance, gradients, rates, steps // 2, seconds, free, heat, distances)


# --- faults --------------------------------------------------------------------------------------------------------


def diverges(curve: Curve, draw: np.random.Generator) -> None:
    """The loss climbs to between 2 and 20 times, at once or over some hundred steps."""
    at, over = int(len(curve.losses) * draw.uniform(0.3, 0.6)), int(draw.integers(1, 300))
    rise = np.clip((np.arange(len(curve.losses)) - at) / over, 0, 1)
    curve.losses *= np.exp(rise * math.log(draw.uniform(2, 20)))
    curve.expected = frozenset({"divergence"})


def jumps_at_the_resume(curve: Curve, draw: np.random.Generator) -> None:
    """The first steps after the resume are far off, and come back."""
    after = np.arange(len(curve.losses)) - curve.resumed_at
    factor = draw.uniform(3, 15)
    curve.losses *= np.where(after >= 0, 1 + factor * np.exp(-np.maximum(after, 0) / 40), 1)
    curve.expected = frozenset({"loss_jump", "loss_drift"})


def drifts_after_the_resume(curve: Curve, draw: np.random.Generator) -> None:
    """The loss is higher from the resume on, by 50 to 200 %."""
    curve.losses[curve.resumed_at :] *= draw.uniform(1.5, 3)
    curve.expected = frozenset({"loss_drift", "loss_jump"})


def never_learns(curve: Curve, draw: np.random.Generator) -> None:
    steps = 12_000
    curve.losses = draw.uniform(0.05, 0.3) * np.exp(draw.normal(0, draw.uniform(0.15, 0.35), steps))
    curve.gradients = np.exp(draw.normal(-2, 0.4, steps))
    curve.rates = np.full(steps, 1e-4)
    curve.resumed_at = steps // 2
    curve.expected = frozenset({"plateau"})


def has_converged(curve: Curve, draw: np.random.Generator) -> None:
    never_learns(curve, draw)
    curve.losses *= 1 + draw.uniform(0.5, 3) * np.exp(-np.arange(len(curve.losses)) / draw.uniform(100, 600))
    curve.expected = frozenset({"converged"})


def explodes(curve: Curve, draw: np.random.Generator) -> None:
    curve.gradients[int(len(curve.gradients) * draw.uniform(0.4, 0.7)) :] *= draw.uniform(15, 1e4)
    curve.expected = frozenset({"exploding_gradients"})


def vanishes(curve: Curve, draw: np.random.Generator) -> None:
    at = int(len(curve.gradients) * draw.uniform(0.4, 0.7))
    curve.gradients[at:] *= 0 if draw.random() < 0.3 else draw.uniform(1e-6, 0.06)
    curve.expected = frozenset({"vanishing_gradients", "no_gradient"})


def stops_moving(curve: Curve, draw: np.random.Generator) -> None:
    """The curve was made for a shorter run."""
    steps = len(curve.losses)
    end = int(steps * draw.uniform(0.3, 0.7))
    curve.rates = 1e-4 * np.array([lr_factor("cosine", step, 0, end) for step in range(steps)])
    curve.expected = frozenset({"low_rate"})


def slows(curve: Curve, draw: np.random.Generator) -> None:
    curve.seconds[int(draw.integers(150, 400)) :] *= draw.uniform(1.6, 5)
    curve.expected = frozenset({"slow"})


def fills(curve: Curve, draw: np.random.Generator) -> None:
    """The disk would be full within the hour after the last sample."""
    curve.free = np.linspace(curve.free[0], draw.uniform(0.0, 0.15) * curve.free[0], len(curve.free))
    curve.expected = frozenset({"disk_filling", "disk_small"})


def heats(curve: Curve, draw: np.random.Generator) -> None:
    curve.heat += np.linspace(0, draw.uniform(30, 40), len(curve.heat))
    curve.expected = frozenset({"gpu_hot"})


def forgets_words(curve: Curve, draw: np.random.Generator) -> None:
    curve.distances *= draw.uniform(0.25, 0.6) / curve.distances[-1]
    curve.expected = frozenset({"text_encoder_drift"})


FAULTS: tuple[Callable[[Curve, np.random.Generator], None], ...] = (
    *(diverges, jumps_at_the_resume, drifts_after_the_resume, never_learns, has_converged, explodes, vanishes),
    *(stops_moving, slows, fills, heats, forgets_words),
)


# --- measured ------------------------------------------------------------------------------------------------------


def alarms_of(curve: Curve, options: Watching) -> set[str]:
    """The kinds of alarm that the run raises."""
    told: set[str] = set()
    steps = StepAlarms(options, total_steps=len(curve.losses))
    average = spread = 0.0
    jump = drift = None
    numbers = zip(curve.losses.tolist(), curve.gradients.tolist(), curve.rates.tolist(), strict=True)
    for step, (loss, gradient, rate) in enumerate(numbers, 1):
        if step == curve.resumed_at + 1:
            jump, drift = AfterResume(step, average, spread), DriftAfterResume(options, steps.level_now())
        told |= {alarm.kind for alarm in steps.after(step, loss, gradient, rate)}
        share = max(1 - LOSS_AVERAGE, 1 / step)
        spread = (1 - share) * spread + share * abs(loss - (average or loss))
        average = (1 - share) * average + share * loss
        if jump and jump.add(loss):
            told.add("loss_jump")
        if drift and (alarm := drift.add(loss)):
            told.add(alarm.kind)
    for distance in curve.distances.tolist():
        told |= {alarm.kind for alarm in steps.text_encoder(distance)}
    throughput, disk, heat = Throughput(options), DiskRoom(options), GpuHeat(options)
    told |= {alarm.kind for seconds in curve.seconds.tolist() if (alarm := throughput.add(seconds, 0.0))}
    for minute, free in enumerate(curve.free.tolist()):
        told |= {alarm.kind for alarm in disk.add(60.0 * minute, free, 2 * GB)}
    for degrees in curve.heat.tolist():
        told |= {alarm.kind for alarm in heat.add(degrees, throttled=False)}
    return told


def count(curves: int, seed: int = 0) -> tuple[list[set[str]], list[tuple[str, frozenset[str], set[str]]]]:
    """The alarms of so many healthy runs, and of as many ill ones: fault, what was expected, what was told."""
    options = Watching()
    well = [alarms_of(healthy(np.random.default_rng((seed, 0, number))), options) for number in range(curves)]
    ill = []
    for number in range(curves):
        draw = np.random.default_rng((seed, 1, number))
        curve, fault = healthy(draw), FAULTS[number % len(FAULTS)]
        fault(curve, draw)
        ill.append((fault.__name__, curve.expected, alarms_of(curve, options)))
    return well, ill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    well, ill = count(arguments.curves, arguments.seed)
    false = [told for told in well if told]
    print(f"healthy: {len(false)} of {len(well)} raise an alarm", *(sorted(told) for told in false))
    hits = collections.Counter(fault for fault, expected, told in ill if expected & told)
    both = collections.Counter(fault for fault, expected, told in ill if told - expected)
    for fault, number in collections.Counter(fault for fault, _, _ in ill).items():
        print(f"{fault:>24}: {hits[fault]} of {number} found; another kind as well in {both[fault]}")
    print(f"ill: {hits.total()} of {len(ill)} found")


if __name__ == "__main__":
    main()
