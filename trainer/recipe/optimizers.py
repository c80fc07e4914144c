"""Optimizers by name, and their state as named tensors and numbers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem


@dataclass(frozen=True)
class Kind:
    """An optimizer's class, where it comes from and what it is given besides the user's arguments."""

    module: str
    attribute: str
    defaults: Mapping[str, Any]
    extra: str = ""  # the optional dependency that brings it


KINDS: dict[str, Kind] = {
    "AdamW": Kind("torch.optim", "AdamW", {"fused": True}),
    "AdamW8bit": Kind("bitsandbytes.optim", "AdamW8bit", {}, extra="bitsandbytes"),
    "Adafactor": Kind(
        "transformers.optimization",
        "Adafactor",
        {"relative_step": False, "scale_parameter": False, "warmup_init": False},
    ),
    "Lion": Kind("lion_pytorch", "Lion", {}, extra="optimizers"),
    "Prodigy": Kind("prodigyopt", "Prodigy", {}, extra="optimizers"),
    "SGDNesterov": Kind("torch.optim", "SGD", {"momentum": 0.9, "nesterov": True}),
}

# What the present session decides for a parameter group, not the checkpoint.
_OF_THE_SESSION = frozenset({"params", "lr", "initial_lr", "fused", "foreach", "capturable", "differentiable", "name"})


def _class(name: str) -> Any:
    kind = KINDS[name]
    try:
        return getattr(importlib.import_module(kind.module), kind.attribute)
    except ImportError as error:
        way_out = f"pip install 'rekindle[{kind.extra}]'" if kind.extra else f"{kind.module} is missing"
        message = f"{name} needs a package that is not installed: {way_out}"
        raise ConfigError([Problem("optimizer_type", message)]) from error


def check(config: Config) -> None:
    """Raise ConfigError when the optimizer is not installed or does not take the given arguments."""
    accepted = inspect.signature(_class(config.optimizer_type)).parameters
    arguments = config.optimizer_arguments
    problems = [
        Problem("optimizer_args", f"{config.optimizer_type} has no argument {name!r}; it has {', '.join(accepted)}")
        for name in arguments
        if name not in accepted or name in ("params", "lr")
    ]
    if arguments.get("relative_step") or arguments.get("warmup_init"):
        problems.append(
            Problem("optimizer_args", "relative_step and warmup_init would replace lr_scheduler; leave them out")
        )
    if problems:
        raise ConfigError(problems)


def build(config: Config, groups: Sequence[tuple[str, list[nn.Parameter], float]]) -> torch.optim.Optimizer:
    """The optimizer over (name, parameters, peak learning rate) groups.

    Raises ConfigError when the optimizer refuses its arguments.
    """
    kind = KINDS[config.optimizer_type]
    arguments = {**kind.defaults, **config.optimizer_arguments}
    parameters = [{"params": params, "lr": peak, "name": name} for name, params, peak in groups]
    try:
        return _class(config.optimizer_type)(parameters, lr=groups[0][2] or 1e-8, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        message = f"{config.optimizer_type} refuses its arguments: {error}"
        raise ConfigError([Problem("optimizer_args", message)]) from error


def describe(optimizer: torch.optim.Optimizer, config: Config) -> str:
    """kohya's text for the model file: module.Class(k=v,...)."""
    kind = type(optimizer)
    arguments = ",".join(f"{name}={value}" for name, value in config.optimizer_arguments.items())
    return f"{kind.__module__}.{kind.__name__}({arguments})"


def skips_nonfinite_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer can leave out a step on the device, without the host waiting to learn of it."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


# --- state ---------------------------------------------------------------------------------------------------------


def state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> tuple[dict[str, Tensor], dict]:
    """The optimizer's state: tensors by "parameter/entry", and whatever else there is as JSON values.

    Group entries are kept where they have moved away from the constructor's value: those are state (Prodigy's d),
    the others are options, and the present session's options apply.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            key = f"{names[parameter]}/{entry}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                values[key] = value
    groups = [
        {
            entry: value.item() if isinstance(value, Tensor) else value
            for entry, value in group.items()
            if entry not in _OF_THE_SESSION and value != optimizer.defaults.get(entry)
        }
        for group in optimizer.param_groups
    ]
    return tensors, {"values": values, "groups": groups}


def restore(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
    saved: Mapping[str, Any],
) -> None:
    """Give a newly built optimizer the state that `state` returned.

    Raises ValueError when it belongs to other parameters; the optimizer is then unchanged.
    """
    by_name = {name: parameter for parameter, name in names.items()}
    entries: dict[str, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *saved["values"].items()):
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    foreign = sorted(entries.keys() - by_name.keys())
    if foreign or len(saved["groups"]) != len(optimizer.param_groups):
        raise ValueError(f"the optimizer's state belongs to other parameters: {', '.join(foreign[:3]) or 'groups'}")
    on_device = {
        id(parameter): bool(group.get("fused") or group.get("capturable"))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, values in entries.items():
        parameter = by_name[name]
        optimizer.state[parameter] = {
            entry: _placed(value, parameter, on_host=entry == "step" and not on_device[id(parameter)])
            if isinstance(value, Tensor)
            else value
            for entry, value in values.items()
        }
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(values)


def _placed(value: Tensor, parameter: Tensor, on_host: bool) -> Tensor:
    """A copy where the optimizer keeps it: with its parameter; torch's step counts on the host, unless it is fused."""
    return value.clone() if on_host else value.to(parameter.device, copy=True)
