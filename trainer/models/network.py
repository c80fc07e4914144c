"""LoRA layers: put into a model with peft, written to and read from kohya's file format."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer import randomness
from trainer.options.config import Config
from trainer.refusal import Refused

ADAPTER = "default"
DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NetworkFileError(Refused):
    """A LoRA file does not fit; the message says how and what to do."""


@dataclass(frozen=True)
class Target:
    """A model that gets LoRA layers. `classes`: inside modules of these class names, every Linear and 1x1 convolution
    gets one; inside `conv_classes`, every larger convolution, if conv_dim is given."""

    name: str  # "unet", "text_encoder"
    module: nn.Module
    prefix: str  # of kohya's keys: "lora_unet", "lora_te"
    classes: frozenset[str]
    conv_classes: frozenset[str] = frozenset()
    path_prefix: str = ""  # put before a module's path in kohya's keys when it is not there


def _inside(module: nn.Module, classes: frozenset[str]) -> dict[str, nn.Module]:
    """Linear and convolution layers inside modules of these classes, by path."""
    found: dict[str, nn.Module] = {}
    for path, parent in module.named_modules():
        if type(parent).__name__ in classes:
            for child_path, child in parent.named_modules():
                if isinstance(child, nn.Linear | nn.Conv2d):
                    found[f"{path}.{child_path}" if path else child_path] = child
    return found


def add_layers(target: Target, config: Config) -> None:
    """Freeze the model and put LoRA layers in, initialised as kohya's are, from addresses: no global RNG is read."""
    linear = [
        path
        for path, layer in _inside(target.module, target.classes).items()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    ]
    convolutions = [
        path
        for path, layer in _inside(target.module, target.conv_classes).items()
        if config.conv_dim and isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    ]
    conv_dim = config.conv_dim or 1
    lora = LoraConfig(
        r=config.network_dim,
        lora_alpha=config.network_alpha or config.network_dim,
        target_modules=linear + convolutions,
        rank_pattern=dict.fromkeys(convolutions, conv_dim),
        alpha_pattern=dict.fromkeys(convolutions, config.conv_alpha or conv_dim),
        init_lora_weights=False,
    )
    target.module.requires_grad_(False)
    inject_adapter_in_model(lora, target.module, ADAPTER)
    for path, layer in layers(target).items():
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        for matrix in (down, up):
            matrix.to(torch.float32)
            matrix.requires_grad_(True)
        with torch.no_grad():
            bound = 1 / math.sqrt(down.weight[0].numel())  # kaiming uniform with a = sqrt(5)
            draw = randomness.generator(config.seed, "init", target.name, path)
            values = draw.uniform(-bound, bound, tuple(down.weight.shape)).astype("float32")
            down.weight.copy_(torch.from_numpy(values))
            up.weight.zero_()
        if config.network_dropout:
            down.register_forward_hook(_dropout(config.network_dropout))


def _dropout(rate: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """kohya's network_dropout leaves out channels between the two matrices (peft's would leave out inputs)."""

    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return F.dropout(output, rate, module.training)

    return hook


def layers(target: Target) -> dict[str, LoraLayer]:
    """The LoRA layers of a model by path, in the model's order."""
    return {path: layer for path, layer in target.module.named_modules() if isinstance(layer, LoraLayer)}


def parameters(target: Target) -> dict[str, nn.Parameter]:
    """The trained parameters by a name that is stable over sessions: "unet.<path>.lora_A.weight"."""
    return {
        f"{target.name}.{path}.{matrix}.weight": getattr(layer, matrix)[ADAPTER].weight
        for path, layer in layers(target).items()
        for matrix in ("lora_A", "lora_B")
    }


# --- kohya's file format -------------------------------------------------------------------------------------------


def _kohya_name(target: Target, path: str) -> str:
    full = path if path.startswith(target.path_prefix) else target.path_prefix + path
    return f"{target.prefix}_{full}".replace(".", "_")


def to_kohya(targets: Sequence[Target], weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """kohya's tensors from the weights by our names (see `parameters`): lora_down, lora_up and alpha per layer."""
    tensors = {}
    for target in targets:
        for path, layer in layers(target).items():
            name, rank = _kohya_name(target, path), layer.r[ADAPTER]
            alpha = layer.scaling[ADAPTER] * rank
            ours = f"{target.name}.{path}"
            tensors[f"{name}.lora_down.weight"] = weights[f"{ours}.lora_A.weight"].to("cpu", dtype).contiguous()
            tensors[f"{name}.lora_up.weight"] = weights[f"{ours}.lora_B.weight"].to("cpu", dtype).contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


def load_kohya(targets: Sequence[Target], path: Path) -> None:
    """Start from a LoRA file in kohya's format. Raises NetworkFileError, and then nothing was changed."""
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise NetworkFileError(f"network_weights: {path} cannot be read: {error}") from error
    problems: list[str] = []
    copies: list[tuple[Tensor, Tensor]] = []
    for target in targets:
        for layer_path, layer in layers(target).items():
            name = _kohya_name(target, layer_path)
            down, up = tensors.pop(f"{name}.lora_down.weight", None), tensors.pop(f"{name}.lora_up.weight", None)
            if down is None or up is None:
                problems.append(f"{name} is not in it")
                continue
            rank = layer.r[ADAPTER]
            alpha = float(tensors.pop(f"{name}.alpha", torch.tensor(float(down.shape[0]))))
            if down.shape[0] != rank:
                problems.append(f"{name} has rank {down.shape[0]}, network_dim is {rank}: set it to {down.shape[0]}")
            elif not math.isclose(alpha, layer.scaling[ADAPTER] * rank, rel_tol=1e-3):
                problems.append(
                    f"{name} has alpha {alpha:g}, network_alpha is {layer.scaling[ADAPTER] * rank:g}: "
                    f"set it to {alpha:g}"
                )
            for matrix, loaded in ((layer.lora_A, down), (layer.lora_B, up)):
                weight = matrix[ADAPTER].weight
                if weight.numel() == loaded.numel() and weight.shape[:2] == loaded.shape[:2]:
                    copies.append((weight, loaded))
                elif down.shape[0] == rank:
                    problems.append(f"{name} has the shape {tuple(loaded.shape)} instead of {tuple(weight.shape)}")
    problems += [f"{name} has no place in this network" for name in tensors]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise NetworkFileError(f"network_weights: {path} does not fit: {'; '.join(problems[:3])}{more}")
    with torch.no_grad():
        for weight, loaded in copies:
            weight.copy_(loaded.reshape(weight.shape))


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """kohya's sshs_model_hash and sshs_legacy_hash, over the file with its ss_* metadata alone."""
    only_ss = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    data = safetensors.torch.save(dict(tensors), only_ss)
    header = int.from_bytes(data[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(data[8 + header :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
    }


def as_metadata(values: Mapping[str, object]) -> dict[str, str]:
    """safetensors metadata: every value a text, kohya's way ("None", "True", JSON for lists and tables)."""
    return {
        name: value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list) else str(value)
        for name, value in values.items()
    }
