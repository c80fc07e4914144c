"""The learning rate as a pure function of the step. No torch here.

Sources: transformers.optimization, which sd-scripts uses, diffusers.optimization (piecewise_constant), and the closed
forms of torch.optim.lr_scheduler. What a plateau makes of the rate is the only state there is, see plateau.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem, nearest

# --- the shapes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A step of a curve, and what gives the curve its shape."""

    step: int  # completed before it
    warmup: int
    total: int
    num_cycles: int = 1
    power: float = 1.0
    own: Mapping[str, Any] = field(default_factory=dict)  # the curve's own arguments

    @property
    def progress(self) -> float:
        """From 0 at the end of the warm-up to 1 at the curve's end, where it stays."""
        return min(1.0, (self.step - self.warmup) / max(1, self.total - self.warmup))


Factor = Callable[[Place], float]


def _warmed(factor: Factor) -> Factor:
    """A curve that begins with a straight warm-up from 0."""
    return lambda at: at.step / at.warmup if at.step < at.warmup else factor(at)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _restarts(at: Place) -> float:
    return 0.0 if at.progress >= 1.0 else _half_cosine((at.num_cycles * at.progress) % 1.0)


def _polynomial(at: Place) -> float:
    return (1.0 - at.progress) ** at.power if at.progress < 1.0 else 0.0


def _inverse_sqrt(at: Place) -> float:
    timescale = at.own["timescale"] or at.warmup or 10_000
    return 1.0 / math.sqrt((at.step + timescale - at.warmup) / timescale)


def _above(floor: float, factor: float) -> float:
    """A factor from 0 to 1 as one from `floor` to 1."""
    return max(0.0, factor * (1 - floor) + floor)


def _warmup_stable_decay(at: Place) -> float:
    floor, decay = at.own["min_lr_ratio"], at.own["decay_steps"]
    stable_end = at.total - decay
    if at.step < at.warmup:
        return _above(floor, at.step / at.warmup)
    if at.step < stable_end:
        return 1.0
    if at.step >= at.total:
        return float(floor)
    return _above(floor, _half_cosine(at.num_cycles * (at.step - stable_end) / max(1, decay)))


def _piecewise_constant(at: Place) -> float:
    """step_rules, "1:10,0.1:20,0.01": 1 up to step 10, 0.1 up to step 20, then 0.01."""
    *parts, last = str(at.own["step_rules"]).split(",")
    rules = sorted((int(end), float(factor)) for factor, end in (part.split(":") for part in parts))
    return next((factor for end, factor in rules if at.step < end), float(last))


def _relative_step(at: Place) -> float:
    """Adafactor's own rate, the same whatever learning_rate is: https://arxiv.org/abs/1804.04235."""
    step = at.step + 1
    return min(1e-6 * step if at.own["warmup_init"] else 1e-2, 1.0 / math.sqrt(step))


def _warm_restarts(at: Place) -> float:
    place, length = at.step, int(at.own["T_0"])
    if at.own["T_mult"] == 1:
        place %= length
    while place >= length:
        place, length = place - length, length * int(at.own["T_mult"])
    return _above(at.own["eta_min"], _half_cosine(place / length))


def _milestones(at: Place) -> float:
    given = at.own["milestones"]
    passed = sum(at.step >= milestone for milestone in (given if isinstance(given, list | tuple) else [given]))
    return float(at.own["gamma"] ** passed)


def _straight(at: Place) -> float:
    start, end = at.own["start_factor"], at.own["end_factor"]
    return float(start + (end - start) * min(1.0, at.step / at.own["total_iters"]))


NEEDED = object()  # an argument without which there is no curve


@dataclass(frozen=True)
class Shape:
    """A curve: its factor, its own arguments with their defaults, and whether lr_warmup_steps warms it up.

    Arguments named in `rates` are learning rates in torch and shares of the peak here.
    """

    factor: Factor
    own: Mapping[str, Any] = field(default_factory=dict)
    warms_up: bool = True
    rates: tuple[str, ...] = ()


def _of_torch(factor: Factor, rates: tuple[str, ...] = (), /, **own: Any) -> Shape:
    return Shape(factor, own, warms_up=False, rates=rates)


SHAPES: dict[str, Shape] = {  # lr_scheduler
    "constant": Shape(lambda at: 1.0, warms_up=False),
    "constant_with_warmup": Shape(_warmed(lambda at: 1.0)),
    "linear": Shape(_warmed(lambda at: 1.0 - at.progress)),
    "cosine": Shape(_warmed(lambda at: _half_cosine(at.progress))),
    "cosine_with_restarts": Shape(_warmed(_restarts)),
    "polynomial": Shape(_warmed(_polynomial)),
    "inverse_sqrt": Shape(_warmed(_inverse_sqrt), {"timescale": None}),
    "cosine_with_min_lr": Shape(
        _warmed(lambda at: _above(at.own["min_lr_rate"], _half_cosine(at.num_cycles * at.progress))),
        {"min_lr_rate": NEEDED},
    ),
    "warmup_stable_decay": Shape(_warmup_stable_decay, {"min_lr_ratio": 0.0, "decay_steps": 0}),
    "piecewise_constant": Shape(_piecewise_constant, {"step_rules": NEEDED}, warms_up=False),
    "reduce_lr_on_plateau": Shape(
        _warmed(lambda at: 1.0),
        {
            "factor": 0.1,
            "patience": 10,
            "threshold": 1e-4,
            "threshold_mode": "rel",
            "cooldown": 0,
            "min_lr": 0.0,
        },
        rates=("min_lr",),
    ),
    "adafactor": Shape(_relative_step, {"warmup_init": False}, warms_up=False),
}
SHAPES_OF_TORCH: dict[str, Shape] = {  # lr_scheduler_type
    "CosineAnnealingLR": _of_torch(
        lambda at: _above(at.own["eta_min"], _half_cosine(at.step / at.own["T_max"])),
        ("eta_min",),
        T_max=NEEDED,
        eta_min=0.0,
    ),
    "CosineAnnealingWarmRestarts": _of_torch(_warm_restarts, ("eta_min",), T_0=NEEDED, T_mult=1, eta_min=0.0),
    "ExponentialLR": _of_torch(lambda at: float(at.own["gamma"] ** at.step), gamma=NEEDED),
    "StepLR": _of_torch(
        lambda at: float(at.own["gamma"] ** (at.step // at.own["step_size"])), step_size=NEEDED, gamma=0.1
    ),
    "MultiStepLR": _of_torch(_milestones, milestones=NEEDED, gamma=0.1),
    "ConstantLR": _of_torch(
        lambda at: float(at.own["factor"]) if at.step < at.own["total_iters"] else 1.0, factor=1 / 3, total_iters=5
    ),
    "LinearLR": _of_torch(_straight, start_factor=1 / 3, end_factor=1.0, total_iters=5),
    "PolynomialLR": _of_torch(
        lambda at: float(max(0.0, 1.0 - at.step / at.own["total_iters"]) ** at.own["power"]), total_iters=5, power=1.0
    ),
}
PLATEAU = "reduce_lr_on_plateau"


def lr_factor(
    scheduler: str,
    step: int,
    warmup: int,
    total: int,
    num_cycles: int = 1,
    power: float = 1.0,
    own: Mapping[str, Any] | None = None,
) -> float:
    """The factor on the peak learning rate in the step that follows `step` completed ones.

    After `total`, a falling curve of lr_scheduler stays where it ended.
    """
    shape = SHAPES.get(scheduler) or SHAPES_OF_TORCH.get(scheduler)
    if shape is None:
        raise ValueError(f"unknown lr_scheduler {scheduler!r}")
    return shape.factor(Place(step, warmup, total, num_cycles, power, own or {}))


def check(config: Config) -> None:
    """Raise ConfigError when the arguments of the learning rate's curve are not those it has."""
    own_arguments(config)


def own_arguments(config: Config) -> dict[str, Any]:
    """The arguments of the curve that the options describe, the defaults in their places. Raises ConfigError."""
    option = "lr_scheduler_type" if config.lr_scheduler_type else "lr_scheduler"
    name: str = getattr(config, option)
    shape = (SHAPES_OF_TORCH if config.lr_scheduler_type else SHAPES)[name]
    given = config.lr_scheduler_arguments
    by_options = {
        "timescale": config.lr_scheduler_timescale,
        "min_lr_rate": config.lr_scheduler_min_lr_ratio,
        "min_lr_ratio": config.lr_scheduler_min_lr_ratio,
        "warmup_init": config.optimizer_arguments.get("warmup_init"),
    }
    problems = [
        Problem("lr_scheduler_args", f"{name} has no argument {argument!r}{nearest(argument, shape.own)}")
        for argument in given
        if argument not in shape.own or argument in ("decay_steps", "warmup_init")
    ]
    own = {}
    for argument, default in shape.own.items():
        by_option = by_options.get(argument)
        value: Any = given.get(argument, default if by_option is None else by_option)
        value = list(value) if isinstance(value, tuple) else value  # as JSON gives it back
        own[argument] = value
        if value is NEEDED:
            way_out = "lr_scheduler_min_lr_ratio" if argument == "min_lr_rate" else f"{argument}= in lr_scheduler_args"
            problems.append(Problem(option, f"{name} needs {way_out}"))
        elif default is not None and default is not NEEDED and isinstance(value, str) != isinstance(default, str):
            problems.append(Problem("lr_scheduler_args", f"{argument} of {name} is not {value!r}"))
        elif argument in shape.rates and value:
            peaks = {peak for peak in config.peak_learning_rates.values() if peak}
            if len(peaks) > 1:
                message = f"{argument} is a learning rate, but the trained parts have different ones; leave it at 0"
                problems.append(Problem("lr_scheduler_args", message))
            else:
                own[argument] = value / max(peaks)
    if not problems and shape.own:
        try:
            shape.factor(Place(1, 0, 2, own=own))
        except (TypeError, ValueError, ArithmeticError) as error:
            problems.append(Problem("lr_scheduler_args", f"{name} cannot be drawn: {error}"))
    if problems:
        raise ConfigError(problems)
    return own


# --- a run's curve -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LrCurve:
    """A run's learning rate curve; it is kept in every checkpoint. Steps are global steps."""

    scheduler: str
    warmup_steps: int
    total_steps: int  # length of the curve, from start_step on
    num_cycles: int
    power: float
    start_step: int = 0
    scale: float = 1.0
    rewarm_from: int = 0  # a second warm-up, after a resume
    rewarm_steps: int = 0
    own: Mapping[str, Any] = field(default_factory=dict)  # the arguments that only this scheduler has

    @property
    def end_step(self) -> int:
        return self.start_step + self.total_steps

    def factor(self, step: int) -> float:
        """The factor on each peak learning rate in the step that follows `step` completed ones."""
        base = lr_factor(
            self.scheduler,
            step - self.start_step,
            self.warmup_steps,
            self.total_steps,
            self.num_cycles,
            self.power,
            self.own,
        )
        rewarm = min(1.0, (step - self.rewarm_from + 1) / self.rewarm_steps) if self.rewarm_steps else 1.0
        return base * self.scale * rewarm

    def as_dict(self) -> dict[str, Any]:
        """As state.json holds it: `own` only where the scheduler has arguments of its own."""
        values = dataclasses.asdict(self)
        return values if self.own else {name: value for name, value in values.items() if name != "own"}


def new_curve(config: Config, total_steps: int, start_step: int = 0) -> LrCurve:
    """The curve that the options describe, over `total_steps` steps from `start_step` on."""
    scheduler, own = config.lr_curve, own_arguments(config)
    if "decay_steps" in own:
        own["decay_steps"] = _steps(config.lr_decay_steps, total_steps)
    return LrCurve(
        scheduler=scheduler,
        warmup_steps=0 if config.lr_scheduler_type else _steps(config.lr_warmup_steps, total_steps),
        total_steps=total_steps,
        num_cycles=config.lr_scheduler_num_cycles,
        power=config.lr_scheduler_power,
        start_step=start_step,
        own=own,
    )


def _steps(given: float, total_steps: int) -> int:
    """Steps; below 1, a share of all."""
    return int(given * total_steps) if given < 1 else int(given)


@dataclass(frozen=True)
class Decision:
    """What a resume decided about the learning rate. Every checkpoint after `step` keeps it."""

    policy: str
    scale: float
    warmup_steps: int
    total_steps: int  # the run's length then; of a rollback, the step at which its reason was seen
    name: str  # resume_lr_decision
    step: int  # the one it was taken at

    def repeats(self, other: Decision) -> bool:
        """Whether it asks for what another one asked: the same words, and the same length where a curve is drawn."""
        mine, others = (dataclasses.replace(item, step=0, total_steps=0) for item in (self, other))
        return mine == others and (self.policy == "keep" or self.total_steps == other.total_steps)

    def __str__(self) -> str:
        if self.policy == "rollback":
            return f"times {self.scale:g} ({self.name}, of what was seen at step {self.total_steps})"
        words = [] if self.policy == "keep" else [f"{self.policy} up to step {self.total_steps}"]
        words += [] if self.scale == 1 else [f"times {self.scale:g}"]
        words += [f"warm-up over {self.warmup_steps} steps"] if self.warmup_steps else []
        return ", ".join(words) + (f" ({self.name})" if self.name else "")


def asked(config: Config, step: int, total_steps: int) -> Decision | None:
    """What the options ask a resume at `step` to decide; None where they leave the curve as it is."""
    policy, scale, warmup = config.resume_lr_policy, config.resume_lr_scale, config.resume_warmup_steps
    if (policy, scale, warmup) == ("keep", 1.0, 0):
        return None
    return Decision(policy, float(scale), warmup, total_steps, config.resume_lr_decision, step)


def kept_curve(config: Config, then: LrCurve, length: int | None = None) -> LrCurve:
    """The checkpoint's curve, with what earlier resumes decided; over another `length` if one is given.

    The shape follows the options: they equal the checkpoint's unless a difference was allowed.
    """
    shaped = new_curve(config, then.total_steps if length is None else length, then.start_step)
    return dataclasses.replace(shaped, scale=then.scale, rewarm_from=then.rewarm_from, rewarm_steps=then.rewarm_steps)


def resumed_curve(config: Config, then: LrCurve, step: int, total_steps: int) -> LrCurve:
    """The curve after a resume at `step` that decides what the options ask; `total_steps`: the run's length now."""
    if config.resume_lr_policy == "restart":
        curve = new_curve(config, max(1, total_steps - step), start_step=step)
    elif config.resume_lr_policy == "stretch":
        curve = kept_curve(config, then, total_steps - then.start_step)
    else:
        curve = kept_curve(config, then)
    curve = dataclasses.replace(curve, scale=curve.scale * config.resume_lr_scale)
    if config.resume_warmup_steps:
        curve = dataclasses.replace(curve, rewarm_from=step, rewarm_steps=config.resume_warmup_steps)
    return curve


def dead_steps(curve: LrCurve, step: int, total_steps: int) -> tuple[int, int] | None:
    """The first and last of the steps to come that would train at a learning rate of 0, if they go on to the end.

    A falling curve that ends where the run ends is as it should be; one that ended before would train for nothing.
    """
    first = max(step, curve.end_step)
    if curve.scale <= 1e-6:
        first = step
    if first >= total_steps or curve.factor(first) > 1e-6 or curve.factor(total_steps - 1) > 1e-6:
        return None
    return first + 1, total_steps
