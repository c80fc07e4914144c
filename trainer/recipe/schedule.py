"""The learning rate as a pure function of the step. No torch here."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from trainer.options.config import Config


def lr_factor(scheduler: str, step: int, warmup: int, total: int, num_cycles: int = 1, power: float = 1.0) -> float:
    """The factor on the peak learning rate in the step that follows `step` completed ones.

    The curves of transformers.optimization, which sd-scripts uses; after `total`, a falling curve stays at 0.
    """
    if scheduler == "constant":
        return 1.0
    if step < warmup:
        return step / warmup
    if scheduler == "constant_with_warmup":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if scheduler == "linear":
        return 1.0 - progress
    if scheduler == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if scheduler == "cosine_with_restarts":
        return 0.0 if progress >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * ((num_cycles * progress) % 1.0)))
    if scheduler == "polynomial":
        return (1.0 - progress) ** power if progress < 1.0 else 0.0
    raise ValueError(f"unknown lr_scheduler {scheduler!r}")


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

    @property
    def end_step(self) -> int:
        return self.start_step + self.total_steps

    def factor(self, step: int) -> float:
        """The factor on each peak learning rate in the step that follows `step` completed ones."""
        base = lr_factor(
            self.scheduler, step - self.start_step, self.warmup_steps, self.total_steps, self.num_cycles, self.power
        )
        rewarm = min(1.0, (step - self.rewarm_from + 1) / self.rewarm_steps) if self.rewarm_steps else 1.0
        return base * self.scale * rewarm

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def new_curve(config: Config, total_steps: int, start_step: int = 0) -> LrCurve:
    """The curve that the options describe, over `total_steps` steps from `start_step` on."""
    warmup = config.lr_warmup_steps
    return LrCurve(
        scheduler=config.lr_scheduler,
        warmup_steps=int(warmup * total_steps) if warmup < 1 else int(warmup),
        total_steps=total_steps,
        num_cycles=config.lr_scheduler_num_cycles,
        power=config.lr_scheduler_power,
        start_step=start_step,
    )


@dataclass(frozen=True)
class Decision:
    """What a resume decided about the learning rate. Every checkpoint after `step` keeps it."""

    policy: str
    scale: float
    warmup_steps: int
    total_steps: int  # the run's length then
    name: str  # resume_lr_decision
    step: int  # the one it was taken at

    def repeats(self, other: Decision) -> bool:
        """Whether it asks for what another one asked: the same words, and the same length where a curve is drawn."""
        mine, others = (dataclasses.replace(item, step=0, total_steps=0) for item in (self, other))
        return mine == others and (self.policy == "keep" or self.total_steps == other.total_steps)

    def __str__(self) -> str:
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
