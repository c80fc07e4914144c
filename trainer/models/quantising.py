"""Frozen weights in fewer bits: what is needed for it, and how diffusers is asked for it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection
from typing import Any

import diffusers
import torch
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from torch import nn

from trainer.models import blocks
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem

PACKAGES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "int8wo": "torchao"}
GGUF = "gguf"
FP8 = torch.float8_e4m3fn


def package_of(config: Config) -> str:
    """The package whose kernels compute with the quantised weights; empty where none are."""
    return GGUF if config.base_gguf else PACKAGES.get(config.quantize, "")


def check(config: Config) -> None:
    """Raise ConfigError where a package or the device that quantised weights need is missing."""
    option = "base_gguf" if config.base_gguf else "quantize"
    package = package_of(config)
    problems = []
    if package and importlib.util.find_spec(package) is None:
        problems.append(Problem(option, f"needs a package that is not installed: pip install 'rekindle[{package}]'"))
    if package == "bitsandbytes" and not torch.cuda.is_available():
        message = f"{config.quantize} needs an NVIDIA or AMD GPU, and there is none; int8wo computes on any device"
        problems.append(Problem(option, message))
    if problems:
        raise ConfigError(problems)


def for_loading(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """What diffusers is given when it loads the denoiser; `dtype`: in which it computes."""
    if config.quantize == "nf4":
        return {
            "quantization_config": diffusers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        }
    if config.quantize == "int8":
        return {"quantization_config": diffusers.BitsAndBytesConfig(load_in_8bit=True)}
    if config.quantize == "int8wo":
        from torchao.quantization import Int8WeightOnlyConfig

        return {"quantization_config": diffusers.TorchAoConfig(Int8WeightOnlyConfig())}
    return {}


def cast_blocks(denoiser: Any, dtype: torch.dtype, trained: Collection[nn.Parameter]) -> None:
    """Hold the linear and convolution layers of the repeated blocks in 8-bit floats, and compute in `dtype`.

    diffusers' layerwise casting gives parameters other data in place. Gradient checkpointing keeps frozen parameters by
    themselves, so that the backward pass would find what is cast back; here a layer computes with a copy that is its
    own. What is trained stays as it is, and so do norms and what the model's class says needs its precision.
    """
    stays = {id(parameter) for parameter in trained}
    precise = (*DEFAULT_SKIP_MODULES_PATTERN, *(denoiser._skip_layerwise_casting_patterns or ()))
    for name, module in denoiser.named_modules():
        is_layer = isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
        is_trained = any(id(weight) in stays for weight in module.parameters())
        is_precise = any(re.search(pattern, name) for pattern in precise)
        if is_layer and blocks.block_of(f"{name}.") and not is_trained and not is_precise:
            _cast(module, dtype)


def _cast(layer: nn.Module, dtype: torch.dtype) -> None:
    most = torch.finfo(FP8).max
    for name, parameter in list(layer.named_parameters(recurse=False)):
        stored = parameter.detach().clamp(-most, most).to(FP8)  # what is larger would become no number
        layer._parameters[name] = nn.Parameter(stored, requires_grad=False)
    held: dict[str, nn.Parameter | None] = {}

    def before(module: nn.Module, *_: object) -> None:
        held.update(module._parameters)
        for name, stored in held.items():
            module._parameters[name] = stored if stored is None else stored.to(dtype)  # type: ignore[assignment]

    def after(module: nn.Module, *_: object) -> None:
        module._parameters.update(held)
        held.clear()

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after, always_call=True)
