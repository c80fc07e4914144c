"""Which timesteps are trained, and how often: pure functions of one addressed random number. No torch here.

DDPM draws whole numbers, each equally often. Rectified flow draws t from 0 (picture) to 1 (noise) as a quantile
function of one number u between 0 and 1, so that a quarter of u is a quarter of what is trained. Sources of the
densities: sd-scripts and musubi-tuner (timestep_sampling), https://arxiv.org/abs/2403.03206 (logit-normal, mode).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np

from trainer.models.families.facts import FLOW
from trainer.options.config import Config

Size = tuple[int, int]  # (width, height) in pixels
TRAIN_STEPS = 1000  # of a scheduler: whole timesteps, and the sigmas that `sigma` chooses from
NEAR_ZERO = 1e-9  # of u, whose normal quantile has no end
TOKEN_SIDE = 16  # pixels; what a model that shifts by the size counts as one token


class Timesteps(Protocol):
    """A distribution of timesteps."""

    def draw(self, generator: np.random.Generator, size: Size) -> int | float:
        """The timestep of one use of a picture of this size."""
        ...

    def parts(self, count: int) -> list[Timesteps]:
        """The distribution in up to `count` parts that are drawn equally often, the least noise first."""
        ...

    def span(self, size: Size) -> tuple[float, float]:
        """The least and the most noise that is drawn for a picture of this size, of 0 to TRAIN_STEPS."""
        ...

    def described(self) -> list[Any]:
        """What names it: two that are described alike draw alike."""
        ...


@dataclass(frozen=True)
class WholeTimesteps:
    """Whole numbers from `low` up to `high`, that excluded, each equally often."""

    low: int
    high: int

    def draw(self, generator: np.random.Generator, size: Size) -> int:
        return int(generator.integers(self.low, self.high))

    def parts(self, count: int) -> list[Timesteps]:
        count = min(count, self.high - self.low)
        edges = [self.low + (self.high - self.low) * part // count for part in range(count + 1)]
        return [WholeTimesteps(start, end) for start, end in itertools.pairwise(edges)]

    def span(self, size: Size) -> tuple[float, float]:
        return float(self.low), float(self.high)

    def described(self) -> list[Any]:
        return [self.low, self.high]


@dataclass(frozen=True)
class Density:
    """How often a flow's timesteps are trained: the options of that name."""

    timestep_sampling: str
    sigmoid_scale: float
    discrete_flow_shift: float
    weighting_scheme: str
    logit_mean: float
    logit_std: float
    mode_scale: float


@dataclass(frozen=True)
class FlowTimesteps:
    """t between `lowest` and `highest`, distributed as `density` says; `low` to `high` is the part of u drawn from."""

    density: Density
    lowest: float = 0.0
    highest: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def draw(self, generator: np.random.Generator, size: Size) -> float:
        return self.quantile(self.low + (self.high - self.low) * float(generator.random()), size)

    def quantile(self, u: float, size: Size) -> float:
        """The t below which a share `u` of all draws is (above which, with `sigma`), for a picture of this size."""
        u = min(max(u, NEAR_ZERO), 1 - NEAR_ZERO)
        t = SAMPLING[self.density.timestep_sampling](u, self.density, size)
        return self.lowest + (self.highest - self.lowest) * t

    def parts(self, count: int) -> list[Timesteps]:
        edges = [self.low + (self.high - self.low) * part / count for part in range(count + 1)]
        return [dataclasses.replace(self, low=start, high=end) for start, end in itertools.pairwise(edges)]

    def span(self, size: Size) -> tuple[float, float]:
        ends = sorted(TRAIN_STEPS * self.quantile(u, size) for u in (self.low, self.high))
        return ends[0], ends[1]

    def described(self) -> list[Any]:
        return [*dataclasses.astuple(self.density), self.lowest, self.highest, self.low, self.high]


def from_config(config: Config) -> Timesteps:
    """The timesteps that a config whose family is settled trains."""
    if FLOW not in config.facts.traits:
        return WholeTimesteps(config.min_timestep, config.max_timestep)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(Density)}
    values["discrete_flow_shift"] = values["discrete_flow_shift"] or 1.0
    return FlowTimesteps(Density(**values), config.min_timestep / TRAIN_STEPS, config.max_timestep / TRAIN_STEPS)


# --- densities -----------------------------------------------------------------------------------------------------


def shifted(t: float, shift: float) -> float:
    """t moved towards noise by a factor: s t / (1 + (s - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def shift_of_size(size: Size, few: tuple[int, float], many: tuple[int, float]) -> float:
    """exp(mu), with mu linear in the picture's tokens between two of (tokens, mu)."""
    tokens = (size[0] // TOKEN_SIDE) * (size[1] // TOKEN_SIDE)
    slope = (many[1] - few[1]) / (many[0] - few[0])
    return math.exp(few[1] + slope * (tokens - few[0]))


def sigmoid(u: float, density: Density, size: Size) -> float:
    """The logistic function of a normal number, which sigmoid_scale spreads."""
    return 1 / (1 + math.exp(-density.sigmoid_scale * NormalDist().inv_cdf(u)))


def by_size(few: tuple[int, float], many: tuple[int, float]) -> Callable[[float, Density, Size], float]:
    """`sigmoid`, shifted by the picture's size."""
    return lambda u, density, size: shifted(sigmoid(u, density, size), shift_of_size(size, few, many))


def of_scheduler(u: float, density: Density, size: Size) -> float:
    """One of the scheduler's shifted sigmas, chosen as weighting_scheme says (diffusers' training scripts)."""
    if density.weighting_scheme == "logit_normal":
        u = 1 / (1 + math.exp(-NormalDist(density.logit_mean, density.logit_std).inv_cdf(u)))
    elif density.weighting_scheme == "mode":
        u = 1 - u - density.mode_scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
    index = min(max(int(u * TRAIN_STEPS), 0), TRAIN_STEPS - 1)
    return shifted((TRAIN_STEPS - index) / TRAIN_STEPS, density.discrete_flow_shift)


SAMPLING: dict[str, Callable[[float, Density, Size], float]] = {
    "uniform": lambda u, density, size: u,
    "sigmoid": sigmoid,
    "shift": lambda u, density, size: shifted(sigmoid(u, density, size), density.discrete_flow_shift),
    "flux_shift": by_size((256, 0.5), (4096, 1.15)),
    "flux2_shift": by_size((256, 0.5), (4096, 1.15)),
    "qwen_shift": by_size((256, 0.5), (8192, 0.9)),
    "krea2_shift": by_size((256, 0.5), (6400, 1.15)),
    "sigma": of_scheduler,
}
