"""Optimizers by name, and their state as named tensors and numbers. What there is stands in options/optimizer_table."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.options.config import Config
from trainer.options.optimizer_table import OPTIMIZERS
from trainer.options.problems import ConfigError, Problem

# What the present session decides for a parameter group, not the checkpoint.
_OF_THE_SESSION = frozenset({"params", "lr", "initial_lr", "fused", "foreach", "capturable", "differentiable", "name"})
# Arguments that the learning rate's curve stands for, see schedule.py.
_OF_THE_CURVE = ("relative_step", "warmup_init")


def _class(config: Config) -> Any:
    """The optimizer's class. Raises ConfigError when it is not installed, or is none."""
    name, entry = config.optimizer_type, config.optimizer
    module, _, attribute = entry.path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name not in OPTIMIZERS:
            message = f"{name} cannot be imported: {error}; check the path, or install its package"
        else:
            way_out = f"pip install 'rekindle[{entry.extra}]'" if entry.extra else f"{module} is missing"
            message = f"{name} needs a package that is not installed: {way_out}"
        raise ConfigError([Problem("optimizer_type", message)]) from error
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ConfigError([Problem("optimizer_type", f"{name} is not a class of torch.optim.Optimizer's kind")])
    return kind


def check(config: Config) -> None:
    """Raise ConfigError when the optimizer is not installed or does not take the given arguments."""
    parameters = inspect.signature(_class(config)).parameters
    takes_any = config.optimizer_type not in OPTIMIZERS and any(
        parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    accepted = [name for name, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD]
    problems = [
        Problem("optimizer_args", f"{config.optimizer_type} has no argument {name!r}; it has {', '.join(accepted)}")
        for name in config.optimizer_arguments
        if (name not in accepted and not takes_any) or name in ("params", "lr")
    ]
    if problems:
        raise ConfigError(problems)


def build(config: Config, groups: Sequence[tuple[str, list[nn.Parameter], float]]) -> torch.optim.Optimizer:
    """The optimizer over (name, parameters, peak learning rate) groups.

    Raises ConfigError when the optimizer refuses its arguments.
    """
    arguments = {**config.optimizer.defaults, **config.optimizer_arguments}
    if config.optimizer.relative_step:
        arguments |= dict.fromkeys(_OF_THE_CURVE, False)
    parameters = [{"params": params, "lr": peak, "name": name} for name, params, peak in groups]
    try:
        optimizer: torch.optim.Optimizer = _class(config)(parameters, lr=groups[0][2] or 1e-8, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        message = f"{config.optimizer_type} refuses its arguments: {error}"
        raise ConfigError([Problem("optimizer_args", message)]) from error
    if averages(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def describe(optimizer: torch.optim.Optimizer, config: Config) -> str:
    """kohya's text for the model file: module.Class(k=v,...)."""
    kind = type(optimizer)
    arguments = ",".join(f"{name}={value}" for name, value in config.optimizer_arguments.items())
    return f"{kind.__module__}.{kind.__name__}({arguments})"


def skips_nonfinite_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer can leave out a step on the device, without the host waiting to learn of it."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


# --- weights that are not those trained ----------------------------------------------------------------------------


def averages(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is schedule-free: the weights trained lie beside the average that is its result."""
    return callable(getattr(optimizer, "eval", None)) and callable(getattr(optimizer, "train", None))


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within, the parameters of a schedule-free optimizer hold the average; afterwards they have every bit back.

    Its own way back is not used: it computes the trained weights from the average, which rounds, so that a run that
    saves or validates would no longer equal one that does not.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, kept in zip(parameters, trained, strict=True):
                parameter.copy_(kept)


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
    on_host = {
        id(parameter): _counts_on_host(optimizer, group)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, values in entries.items():
        parameter = by_name[name]
        optimizer.state[parameter] = {
            entry: _placed(optimizer, entry, value, parameter, on_host=on_host[id(parameter)])
            if isinstance(value, Tensor)
            else value
            for entry, value in values.items()
        }
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(values)


def _counts_on_host(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """torch's own optimizers keep single numbers on the host, unless a kernel on the device reads them."""
    is_torchs = type(optimizer).__module__.startswith("torch.optim")
    return is_torchs and not (group.get("fused") or group.get("capturable"))


def _placed(optimizer: torch.optim.Optimizer, entry: str, value: Tensor, parameter: Tensor, *, on_host: bool) -> Tensor:
    """A copy where the optimizer keeps it: with its parameter as a rule, or in memory that it pages itself."""
    if on_host and value.ndim == 0:
        return value.clone()
    if entry in ("state1", "state2") and hasattr(optimizer, "get_state_buffer"):  # bitsandbytes
        buffer: Tensor = optimizer.get_state_buffer(parameter, dtype=value.dtype)
        return buffer.copy_(value)
    if value.shape == parameter.shape:  # laid out in memory as the parameter is: fused kernels rely on it
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device, copy=True)
