"""The model file of a checkpoint, without the base model and without torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import files
from trainer.models import adapters, base_model, full_model, keys, tensor_files
from trainer.models.keys import Naming
from trainer.options.checks import read_config
from trainer.options.config import Config
from trainer.options.problems import ConfigError
from trainer.refusal import Refused
from trainer.runs import branches, manifest
from trainer.runs.manifest import CheckpointDamaged, Manifest


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
    held = tensor_files.entries(averaged if averaged.exists() else checkpoint / "weights.safetensors")
    if config.fine_tunes:
        return _whole_model(target, config, state, verified, held)
    weights = {name: entry.values() for name, entry in held.items()}
    tensors = adapters.tensors_of_file(weights, Naming.from_record(state["export"]), config)
    described = _described(state, verified)
    described |= keys.hashes(tensors, described)
    if target.exists():
        if _holds(target, keys.file_bytes(tensors, {})):  # a scheduled save of that step has written it
            return target
        raise ExportRefused(f"{target} is there already and holds other weights; move it away first")
    files.write_bytes(target, keys.file_bytes(tensors, described))
    return target


def _described(state: Mapping[str, Any], checkpoint: Manifest) -> dict[str, str]:
    """What the file says of itself."""
    now = {"ss_training_finished_at": str(time.time())}
    now |= {"ss_steps": str(checkpoint.step), "ss_epoch": str(checkpoint.epoch)}
    return dict(state["export"]["metadata"]) | now


def _whole_model(
    target: Path, config: Config, state: Mapping[str, Any], checkpoint: Manifest, held: tensor_files.Entries
) -> Path:
    """Write the whole model of a fine-tune, for which the base model has to be there, and the same."""
    if target.exists():
        raise ExportRefused(f"{target} is there already; move it away first")
    model = base_model.locate(config.pretrained_model_name_or_path, config.family, download=False)
    if base_model.digests(config, model) != state["base_model"]:
        raise ExportRefused(f"{model} is not the base model of {target.name} any more, and a part of the model is its")
    if model.is_file() and config.facts.denoiser_alone:
        raise ExportRefused(
            "the base model is a single file in other names than the checkpoint's: resume for one step, and the "
            "trainer writes the model file"
        )
    full_model.write(target, config, model, held, _described(state, checkpoint))
    return target


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file holds the same tensors as this content of one, whatever is written about them. Raises OSError."""
    there, ours = _header_and_rest(path.read_bytes()), _header_and_rest(content)
    return there is not None and there == ours


def _header_and_rest(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """What a safetensors file says of its tensors, and their bytes; None where it is no such file."""
    end = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:end])
    except ValueError:
        return None
    header.pop("__metadata__", None)
    return header, data[end:]


def _usual_place(checkpoint: Path, config: Config, step: int) -> Path:
    run = checkpoint.resolve().parent.parent
    beside = run.parent if run.name == config.output_name else run  # what was abandoned stays among its own
    return branches.step_file(config.replace(output_dir=str(beside)), step)
