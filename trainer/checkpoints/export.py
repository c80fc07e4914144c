"""The model file of a checkpoint, in kohya's format, without the base model and without torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import TensorSpec

from trainer import files
from trainer.options.checks import read_config
from trainer.options.config import Config
from trainer.options.problems import ConfigError
from trainer.refusal import Refused
from trainer.runs import branches, manifest
from trainer.runs.manifest import CheckpointDamaged

DTYPES = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}  # as safetensors names them


class Stored(NamedTuple):
    """A tensor as it is written: safetensors' name of its type, and its bits."""

    dtype: str
    array: NDArray[Any]


class ExportRefused(Refused):
    """The checkpoint has no model file to give, or there is one already; the message says which."""


def model_file(checkpoint: Path, target: Path | None = None) -> Path:
    """Write the checkpoint's weights (their moving average, where it has one) as the trainer would have; returns where.
    A file that holds them already is left as it is.

    `target`: None for kohya's name of that step beside the run. Raises ExportRefused, CheckpointDamaged or OSError.
    """
    verified = manifest.verify(checkpoint)
    state = manifest.read_json(checkpoint, "state.json")
    try:
        config = read_config(checkpoint / "config.toml")
    except ConfigError as error:
        raise CheckpointDamaged(f"config.toml cannot be read: {error}") from error
    if not isinstance(state.get("export"), dict):
        raise ExportRefused(
            f"{checkpoint} was saved before checkpoints recorded what an export needs; resume it for one step, and "
            "the trainer writes the model file"
        )
    target = target or _usual_place(checkpoint, config, verified.step)
    averaged = checkpoint / "ema.safetensors"
    weights = safetensors.numpy.load_file(averaged if averaged.exists() else checkpoint / "weights.safetensors")
    tensors = to_kohya(weights, state["export"]["targets"], config)
    described = dict(state["export"]["metadata"]) | {
        "ss_training_finished_at": str(time.time()),
        "ss_steps": str(verified.step),
        "ss_epoch": str(verified.epoch),
    }
    described |= _hashes(tensors, {name: value for name, value in described.items() if name.startswith("ss_")})
    if target.exists():
        if _holds(target, tensors):  # a scheduled save of that step has written it
            return target
        raise ExportRefused(f"{target} is there already and holds other weights; move it away first")
    files.write_bytes(target, _bytes(tensors, described))
    return target


def _holds(path: Path, tensors: Mapping[str, Stored]) -> bool:
    """Whether a file holds exactly these tensors, whatever is written about them. Raises OSError."""
    try:
        with safetensors.safe_open(path, framework="numpy") as there:
            if set(there.keys()) != set(tensors):
                return False
    except safetensors.SafetensorError:
        return False
    return _tensor_bytes(path.read_bytes()) == _tensor_bytes(_bytes(tensors, {}))


def _tensor_bytes(data: bytes) -> bytes:
    """What follows the header of a safetensors file."""
    return data[8 + int.from_bytes(data[:8], "little") :]


def _usual_place(checkpoint: Path, config: Config, step: int) -> Path:
    run = checkpoint.resolve().parent.parent
    beside = run.parent if run.name == config.output_name else run  # what was abandoned stays among its own
    return branches.step_file(config.replace(output_dir=str(beside)), step)


def to_kohya(
    weights: Mapping[str, NDArray[Any]], targets: Mapping[str, tuple[str, str]], config: Config
) -> dict[str, Stored]:
    """kohya's tensors from weights named as in a checkpoint, "unet.<path>.lora_A.weight".

    `targets`: by the name's first part, the prefix of kohya's keys and what is put before a path that lacks it.
    """
    dtype = DTYPES[config.save_precision]
    tensors: dict[str, Stored] = {}
    for name, down in weights.items():
        if not name.endswith(".lora_A.weight"):
            continue
        ours = name.removesuffix(".lora_A.weight")
        part, _, path = ours.partition(".")
        prefix, before = targets[part]
        full = f"{prefix}_{path if path.startswith(before) else before + path}".replace(".", "_")
        tensors[f"{full}.lora_down.weight"] = _stored(down, dtype)
        tensors[f"{full}.lora_up.weight"] = _stored(weights[f"{ours}.lora_B.weight"], dtype)
        tensors[f"{full}.alpha"] = _stored(np.float32(_alpha(down.shape, config)), dtype)
    return tensors


def _alpha(shape: tuple[int, ...], config: Config) -> float:
    """A layer's alpha: conv_alpha where its kernel is larger than one pixel. `shape`: of lora_down."""
    if len(shape) == 4 and shape[2:] != (1, 1):
        return config.conv_alpha or config.conv_dim or 1
    return config.network_alpha or config.network_dim


def _stored(values: NDArray[Any] | np.float32, dtype: str) -> Stored:
    array = np.array(values, dtype=np.float32, order="C")
    if dtype == "float16":
        array = array.astype(np.float16)
    elif dtype == "bfloat16":  # numpy has none: the upper half of a float32, rounded to the nearest, ties to even
        bits = array.view(np.uint32)
        array = np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, dtype=np.uint16)
    return Stored(dtype, array)


def _bytes(tensors: Mapping[str, Stored], described: Mapping[str, str]) -> bytes:
    """The content of a safetensors file."""
    specs = {
        name: TensorSpec(
            dtype=stored.dtype,
            shape=stored.array.shape,
            data_ptr=stored.array.ctypes.data,
            data_len=stored.array.nbytes,
        )
        for name, stored in tensors.items()
    }
    return bytes(safetensors.serialize(specs, dict(described)))


def _hashes(tensors: Mapping[str, Stored], described: Mapping[str, str]) -> dict[str, str]:
    """kohya's sshs_model_hash and sshs_legacy_hash, over the file with its ss_* metadata alone."""
    data = _bytes(tensors, described)
    header = int.from_bytes(data[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(data[8 + header :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
    }
