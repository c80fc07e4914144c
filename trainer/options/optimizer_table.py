"""Every optimizer there is: its class, its package, what a checkpoint keeps of it. No torch here.

The packages, and why these: where several have an optimizer, the one whose argument names kohya's presets are written
in, as long as it runs on today's torch. `dadaptation` (last released in 2023, but complete: plain torch, no other
dependency), `prodigyopt`, `lion-pytorch` and `schedulefree` are what sd-scripts itself imports; pytorch-optimizer,
which is kept best of all, has the same algorithms under other argument names, and takes unknown ones silently.
CAME comes from pytorch-optimizer, because kohya_ss names it there and `came-pytorch` is no longer kept.
bitsandbytes has no rival for states of 8 bits. Anything else can be given by its import path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]
Arguments = Mapping[str, Any]
Keeps = Callable[[Shape, Arguments, bool], dict[str, int]]

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class Optimizer:
    """All that is said of an optimizer anywhere. Its own arguments are those of its class.

    `keeps`: the bytes of each tensor that it keeps beside a parameter, by the tensor's name; from the parameter's
    shape, the optimizer's arguments, and whether the parameter begins as zeros.
    """

    path: str  # of its class
    keeps: Keeps
    defaults: Arguments = field(default_factory=dict)  # where they are not its class's own
    extra: str = ""  # the optional dependency that brings it
    package: str = ""  # whose version environment.json tells; those of the first checkpoints told none
    one_rate: bool = False  # it finds the rate itself: learning rates are factors of it, and must be alike
    averages: bool = False  # model files hold an average that it keeps, not the weights that are trained
    by_parameter: bool = False  # a parameter's step depends on nothing but that parameter
    relative_step: bool = False  # it can follow the step alone, without a learning rate


# --- what is kept --------------------------------------------------------------------------------------------------


def _whole(shape: Shape, *names: str) -> dict[str, int]:
    """Tensors of the parameter's own shape, in fp32."""
    return dict.fromkeys(names, 4 * math.prod(shape))


def _of_own_shape(*names: str) -> Keeps:
    return lambda shape, arguments, zeros: _whole(shape, *names)


def _adam(shape: Shape, arguments: Arguments, zeros: bool) -> dict[str, int]:
    return {**_whole(shape, "exp_avg", "exp_avg_sq"), "step": 4}


def _rows_and_columns(shape: Shape, name: str) -> dict[str, int]:
    return {f"{name}_row": 4 * math.prod(shape[:-1]), f"{name}_col": 4 * math.prod(shape[:-2] + shape[-1:])}


def _adafactor(shape: Shape, arguments: Arguments, zeros: bool) -> dict[str, int]:
    """Rows and columns of the second moment; the first only with beta1."""
    first = _whole(shape, "exp_avg") if arguments.get("beta1") is not None else {}
    return {**_rows_and_columns(shape, "exp_avg_sq"), **first, "RMS": 4}


def _came(shape: Shape, arguments: Arguments, zeros: bool) -> dict[str, int]:
    kept = {**_whole(shape, "exp_avg"), **_rows_and_columns(shape, "exp_avg_sq")}
    return {**kept, **_rows_and_columns(shape, "exp_avg_res"), "RMS": 4}


def _prodigy(shape: Shape, arguments: Arguments, zeros: bool) -> dict[str, int]:
    """Where a parameter began is kept as well, but of zeros as a single number: LoRA's second matrix."""
    every = int(arguments.get("slice_p", 1))
    some = 4 * math.ceil(math.prod(shape) / every)
    return {**_whole(shape, "exp_avg", "exp_avg_sq"), "s": some, "p0": 4 if zeros else some}


def _of_8_bits(*numbers: int) -> Keeps:
    """bitsandbytes: small tensors stay in fp32; of others, a byte a value, a scale for 256 of them and a table."""

    def keeps(shape: Shape, arguments: Arguments, zeros: bool) -> dict[str, int]:
        count = math.prod(shape)
        if count < int(arguments.get("min_8bit_size", 4096)):
            return _whole(shape, *(f"state{number}" for number in numbers))
        kept: dict[str, int] = {}
        for number in numbers:
            kept |= {f"state{number}": count, f"absmax{number}": 4 * math.ceil(count / 256), f"qmap{number}": 1024}
        return kept

    return keeps


def _bitsandbytes(name: str, keeps: Keeps, **defaults: Any) -> Optimizer:
    path, package = f"bitsandbytes.optim.{name}", "bitsandbytes"
    return Optimizer(path, keeps, defaults, extra=package, package=package, by_parameter=True)


def _dadaptation(path: str, *kept: str) -> Optimizer:
    return Optimizer(path, _of_own_shape(*kept), extra="optimizers", package="dadaptation", one_rate=True)


def _schedulefree(name: str, *kept: str) -> Optimizer:
    path = f"schedulefree.{name}"
    return Optimizer(path, _of_own_shape(*kept), extra="optimizers", package="schedulefree", averages=True)


# --- the table -----------------------------------------------------------------------------------------------------


_ADAN = ("s", "exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad")

OPTIMIZERS: dict[str, Optimizer] = {
    "AdamW": Optimizer("torch.optim.AdamW", _adam, {"fused": True}, by_parameter=True),
    "AdamW8bit": _bitsandbytes("AdamW8bit", _of_8_bits(1, 2)),
    "PagedAdamW": _bitsandbytes("PagedAdamW", _of_own_shape("state1", "state2")),
    "PagedAdamW8bit": _bitsandbytes("PagedAdamW8bit", _of_8_bits(1, 2)),
    "PagedAdamW32bit": _bitsandbytes("PagedAdamW32bit", _of_own_shape("state1", "state2")),
    "Adafactor": Optimizer(
        "transformers.optimization.Adafactor",
        _adafactor,
        {"relative_step": False, "scale_parameter": False, "warmup_init": False},
        relative_step=True,
        by_parameter=True,
    ),
    "Lion": Optimizer("lion_pytorch.Lion", _of_own_shape("exp_avg"), extra="optimizers", by_parameter=True),
    "Lion8bit": _bitsandbytes("Lion8bit", _of_8_bits(1)),
    "PagedLion8bit": _bitsandbytes("PagedLion8bit", _of_8_bits(1)),
    "Prodigy": Optimizer("prodigyopt.Prodigy", _prodigy, extra="optimizers", one_rate=True),
    "DAdaptAdam": _dadaptation("dadaptation.DAdaptAdam", "s", "exp_avg", "exp_avg_sq"),
    "DAdaptAdamPreprint": _dadaptation(
        "dadaptation.experimental.dadapt_adam_preprint.DAdaptAdamPreprint", "s", "exp_avg", "exp_avg_sq"
    ),
    "DAdaptAdaGrad": _dadaptation("dadaptation.DAdaptAdaGrad", "alphak", "sk", "x0"),
    "DAdaptAdan": _dadaptation("dadaptation.DAdaptAdan", *_ADAN),
    "DAdaptAdanIP": _dadaptation("dadaptation.experimental.dadapt_adan_ip.DAdaptAdanIP", *_ADAN),
    "DAdaptLion": _dadaptation("dadaptation.DAdaptLion", "exp_avg", "s"),
    "DAdaptSGD": _dadaptation("dadaptation.DAdaptSGD", "z", "s", "x0"),
    "AdamWScheduleFree": _schedulefree("AdamWScheduleFree", "z", "exp_avg_sq"),
    "RAdamScheduleFree": _schedulefree("RAdamScheduleFree", "z", "exp_avg_sq"),
    "SGDScheduleFree": _schedulefree("SGDScheduleFree", "z"),
    "CAME": Optimizer("pytorch_optimizer.CAME", _came, extra="optimizers", package="pytorch-optimizer"),
    "SGDNesterov": Optimizer(
        "torch.optim.SGD", _of_own_shape("momentum_buffer"), {"momentum": 0.9, "nesterov": True}, by_parameter=True
    ),
    "SGDNesterov8bit": _bitsandbytes("SGD8bit", _of_8_bits(1), momentum=0.9, nesterov=True),
}


def optimizer_of(optimizer_type: str) -> Optimizer:
    """The table's entry, or one for a class that is named by its import path, thought to keep what Adam keeps."""
    return OPTIMIZERS.get(optimizer_type) or Optimizer(optimizer_type, _adam)
