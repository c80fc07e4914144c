"""Takes weights, moments and the step of a state that sd-scripts saved over into a run. Never exact: such a state does
not say which images and which noise come next.

The one place where a pickle is opened: optimizer.bin and scheduler.bin, by torch.load(weights_only=True), which makes
tensors, numbers and containers of them and nothing else; and not before their size has been looked at.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trainer.checkpoints import kohya_state
from trainer.checkpoints.choosing import ResumeRefused
from trainer.checkpoints.kohya_state import IMPORTED, OPTIMIZER, SCHEDULE, SLACK, WEIGHTS, KohyaState
from trainer.models import adapters
from trainer.recipe import optimizers
from trainer.recipe.schedule import LrCurve
from trainer.training.state import State

ENTRIES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
RATE_TOLERANCE = 1e-5  # relative; beyond it, learning rates count as others


def restore(state: State, imported: KohyaState, curve: LrCurve) -> list[str]:
    """Give a fresh state the weights, moments and step; returns what to say of differences that do not forbid it.

    Raises ResumeRefused with everything that does not fit; the state is then as it was.
    """
    names = _kohya_names(state)
    problems = _misfits(state, imported, names)
    if problems:
        raise ResumeRefused(problems)
    weights = _weights(imported.path / WEIGHTS)
    if problems := _other_alphas(state, weights, names):
        raise ResumeRefused(problems)
    given = _load(imported.path / OPTIMIZER, 3 * sum(tensor.nbytes for tensor in weights.values()) + SLACK)
    ordered = _ordered(state, names)
    tensors, values = _moments(state, given, ordered, imported.path / OPTIMIZER)
    groups: list[dict[str, Any]] = [{} for _ in state.optimizer.param_groups]
    optimizers.restore(state.optimizer, state.names, tensors, {"values": values, "groups": groups})
    with torch.no_grad():
        for ours, parameter in state.weights.items():
            parameter.copy_(weights[names[ours]].reshape(parameter.shape))
    state.global_step = imported.step
    return _other_rates(state, imported, curve)


def _kohya_names(state: State) -> dict[str, str]:
    """What sd-scripts calls each trained parameter."""
    naming = adapters.naming_of(state.config)
    names = {}
    for ours in state.weights:
        entry = next(entry for entry in ENTRIES if ours.endswith(f".{entry}"))
        component, _, path = ours.removesuffix(f".{entry}").partition(".")
        names[ours] = f"{naming.kohya(component, path)}.{ENTRIES[entry]}"
    return names


def _ordered(state: State, names: Mapping[str, str]) -> list[str]:
    """The trained parameters in the order of sd-scripts' optimizer: text encoders first, each layer's down before its
    up."""
    facts = state.config.facts
    ordered = []
    for part in (*facts.encoders, facts.denoiser):
        begins, ends = f"{part.component}.", ".lora_A.weight"
        paths = [
            name.removeprefix(begins).removesuffix(ends)
            for name in state.weights
            if name.startswith(begins) and name.endswith(ends)
        ]
        for path in kohya_state.in_order(paths, original=part is facts.denoiser and facts.keys == "sai"):
            ordered += [f"{begins}{path}.{entry}" for entry in ENTRIES]
    return ordered


def _misfits(state: State, imported: KohyaState, names: Mapping[str, str]) -> list[str]:
    """What the weights lack or have too much, or of another shape."""
    matrices = {name: shape for name, shape in imported.shapes.items() if not name.endswith(".alpha")}
    path = imported.path / WEIGHTS
    problems = []
    if missing := sorted(set(names.values()) - matrices.keys()):
        problems.append(
            f"resume_from_checkpoint: {path} has no {missing[0]} (and others of {len(missing)}), which is trained here"
        )
    if strange := sorted(matrices.keys() - set(names.values())):
        problems.append(
            f"resume_from_checkpoint: {path} has {strange[0]} (and others of {len(strange)}), which is not trained here"
        )
    for ours, theirs in names.items():
        shape = tuple(state.weights[ours].shape)
        if theirs in matrices and matrices[theirs] != shape:
            problems.append(
                f"network_dim: {theirs} of {path} is {matrices[theirs]}, here {shape}; set it to the state's"
            )
            break
    return problems


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return {name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise ResumeRefused([f"resume_from_checkpoint: {path} cannot be read: {error}"]) from error


def _other_alphas(state: State, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> list[str]:
    """The first layer whose alpha is another one than these options give it."""
    for ours, theirs in names.items():
        down = ".lora_A.weight"
        alpha = weights.get(theirs.replace(".lora_down.weight", ".alpha"))
        if not ours.endswith(down) or alpha is None:
            continue
        own = adapters.alpha_of(state.config, ours.removesuffix(down))
        if abs(float(alpha) - own) > 1e-3 * own:
            return [f"network_alpha: {theirs} has alpha {float(alpha):g}, here {own:g}; set it to the state's"]
    return []


def _load(path: Path, most: int) -> dict[str, Any]:
    """What a file of torch holds, tensors and numbers only. `most`: bytes. Raises ResumeRefused."""
    try:
        size = path.stat().st_size
        if size > most:
            raise ResumeRefused([f"resume_from_checkpoint: {path} has {size:,} bytes, more than such a state can have"])
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ResumeRefused([f"resume_from_checkpoint: {path} cannot be read: {first}"]) from error
    if not isinstance(loaded, dict):
        raise ResumeRefused([f"resume_from_checkpoint: {path} holds a {type(loaded).__name__} instead of a state"])
    return loaded


def _moments(
    state: State, given: Mapping[str, Any], ordered: Sequence[str], path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's tensors and numbers as `optimizers.restore` takes them. Raises ResumeRefused."""
    groups_then, groups = given.get("state"), given.get("param_groups")
    if not isinstance(groups_then, dict) or not isinstance(groups, list):
        raise ResumeRefused([f"resume_from_checkpoint: {path} is no optimizer's state"])
    numbers = [number for group in groups for number in group.get("params", ())]
    encoders = {part.component for part in state.config.facts.encoders}
    of_denoiser = [name for name in ordered if name.partition(".")[0] not in encoders]
    if len(numbers) == len(of_denoiser) < len(ordered):
        raise ResumeRefused(["network_train_unet_only: the state's optimizer has the U-Net alone; turn it on"])
    if len(numbers) != len(ordered) or len(groups) > len(encoders) + 1:
        theirs = f"{len(numbers)} parameters in {len(groups)} groups"
        raise ResumeRefused([f"resume_from_checkpoint: {path} is of {theirs}; {len(ordered)} are trained here"])
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, number in zip(ordered, numbers, strict=True):
        entries = groups_then.get(number, {})  # it never had a gradient
        if others := {str(entry) for entry in entries} - IMPORTED[state.config.optimizer_type]:
            kept = ", ".join(sorted(others))
            kind = state.config.optimizer_type
            raise ResumeRefused([f"optimizer_type: the state is of another optimizer than {kind}: it keeps {kept}"])
        for entry, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{entry}"] = _checked(value, entry, name, state.weights[name], path)
            else:
                values[f"{name}/{entry}"] = value
    return tensors, values


def _checked(value: Tensor, entry: str, name: str, parameter: Tensor, path: Path) -> Tensor:
    """A tensor of the state in the parameter's shape, where it has a value for each of its. Raises ResumeRefused."""
    if entry.startswith(("exp_avg", "state")):
        if value.numel() != parameter.numel() or value.shape[:2] != parameter.shape[:2]:
            shapes = f"{tuple(value.shape)} for {name}, which has {tuple(parameter.shape)}"
            raise ResumeRefused([f"resume_from_checkpoint: {path} has {entry} of the shape {shapes}"])
        value = value.reshape(parameter.shape)
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ResumeRefused([f"resume_from_checkpoint: {path} has values that are not finite, of {name}"])
    return value


def _other_rates(state: State, imported: KohyaState, curve: LrCurve) -> list[str]:
    """What to say where sd-scripts would go on at another learning rate than these options do."""
    path = imported.path / SCHEDULE
    if not path.is_file():
        return []
    theirs = _load(path, SLACK).get("_last_lr")
    if not isinstance(theirs, list):
        return []
    factor = curve.factor(imported.step)
    ours = sorted({peak * factor for peak in state.config.peak_learning_rates.values()})
    if all(any(math.isclose(rate, own, rel_tol=RATE_TOLERANCE) for own in ours) for rate in theirs):
        return []
    would, do = (", ".join(f"{rate:.3g}" for rate in rates) for rates in (theirs, ours))
    return [f"sd-scripts would go on at a learning rate of {would}, here it is {do} at step {imported.step + 1}"]
