"""What the header of a model file says: kohya's ss_* keys and the modelspec standard. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.dataset import Scan
from trainer.options import blocks, network_kinds
from trainer.options.config import OPTIONS, Config
from trainer.options.sections.training import FINETUNE, NETWORK, TEXTUAL_INVERSION

if TYPE_CHECKING:
    from trainer.models.model import Model

# Kept even under no_metadata: what a program needs to use the file.
NECESSARY = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
# Options that kohya writes as network_args, where they are set.
ARGUMENTS = (
    "rank_dropout",
    "module_dropout",
    "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio",
    *blocks.RANKS,
    *blocks.ALPHAS,
    *blocks.RATES,
    "block_lr_zero_threshold",
)
BASE_HASHES, VAE_HASHES = ("ss_sd_model_hash", "ss_new_sd_model_hash"), ("ss_vae_hash", "ss_new_vae_hash")
ARCHITECTURES = {NETWORK: "/lora", FINETUNE: "", TEXTUAL_INVERSION: "/textual-inversion"}  # what follows the model's
PREDICTIONS = {"v_prediction": "v"}  # modelspec's names; the others are as diffusers'


def constant(config: Config, scan: Scan, model: Model, *, total_steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """What stays the same over a run."""
    network_args: dict[str, Any] = network_kinds.as_arguments(config.network_kind)
    if config.conv_dim:
        network_args |= {"conv_dim": config.conv_dim, "conv_alpha": config.conv_alpha or config.conv_dim}
    arguments = (*ARGUMENTS, *config.kind.arguments)
    network_args |= {name: value for name in arguments if (value := getattr(config, name)) != OPTIONS[name].default}
    if config.network_preset:
        network_args["preset"] = config.network_preset
    folders: dict[bool, dict[str, dict[str, int]]] = {False: {}, True: {}}  # by whether they are of regularisation
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in scan.entries:
        folder, subset = entry.path.parent.name, entry.subset
        counts = {"n_repeats": subset.num_repeats, "img_count": 0}
        folders[subset.is_reg].setdefault(folder, counts)["img_count"] += 1
        tags[folder].update(tag.strip().lower() for tag in entry.caption.split(",") if tag.strip())
    values: dict[str, Any] = {
        f"ss_{name}": getattr(config, name) for name, option in OPTIONS.items() if option.in_header
    }
    if config.trains_network:
        values |= {
            "ss_network_module": "lycoris.kohya" if config.kind.algo else "networks.lora",
            "ss_network_dim": config.network_dim,
            "ss_network_alpha": config.network_alpha or config.network_dim,
            "ss_network_args": network_args,
        }
    width, height = config.resolution_size
    return {
        **{name: value for name, value in values.items() if config.trains_network or "network" not in name},
        "ss_v2": model.base_version.startswith("sd_v2"),
        "ss_base_model_version": model.base_version,
        "ss_sd_model_name": Path(config.pretrained_model_name_or_path).name,
        "ss_num_train_images": sum(entry.repeats for entry in scan.entries if not entry.subset.is_reg),
        "ss_num_validation_images": len(scan.validation),
        "ss_num_reg_images": sum(entry.repeats for entry in scan.entries if entry.subset.is_reg),
        "ss_num_batches_per_epoch": steps_per_epoch,
        "ss_num_epochs": -(-total_steps // steps_per_epoch),
        "ss_max_train_steps": total_steps,
        "ss_lr_warmup_steps": config.lr_warmup_steps,
        "ss_debiased_estimation": config.debiased_estimation_loss,
        "ss_scale_weight_norms": config.scale_weight_norms or None,
        "ss_vae_name": Path(config.vae).name if config.vae else None,
        "ss_fp8_base": False,
        "ss_fp8_base_unet": False,
        "ss_full_fp16": False,
        "ss_lowram": False,
        "ss_batch_size_per_device": config.train_batch_size,
        "ss_resolution": f"({width}, {height})",
        "ss_dataset_dirs": folders[False],
        "ss_reg_dataset_dirs": folders[True],
        "ss_tag_frequency": {folder: dict(frequency) for folder, frequency in tags.items()},
        "ss_bucket_info": {
            "buckets": {
                str(number): {"resolution": list(size), "count": count}
                for number, (size, count) in enumerate(scan.bucket_counts().items())
            }
        },
    }


def model_hashes(path: Path, digest: str, names: tuple[str, str] = BASE_HASHES) -> dict[str, str]:
    """kohya's hashes of a single-file base model or VAE, the short one and the whole one; a folder has none."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(0x100000)
        legacy = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    return dict(zip(names, (legacy, digest), strict=True))


def modelspec(config: Config, model: Model, finished: float) -> dict[str, str]:
    """The modelspec part; see https://github.com/Stability-AI/ModelSpec."""
    width, height = config.resolution_size
    optional = {
        "author": config.metadata_author,
        "description": config.metadata_description,
        "license": config.metadata_license,
        "tags": config.metadata_tags,
        "encoder_layer": str(config.clip_skip) if config.clip_skip else "",
    }
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{model.architecture}{ARCHITECTURES[config.training_kind]}",
        "implementation": "diffusers",
        "title": config.metadata_title or config.output_name,
        "resolution": f"{width}x{height}",
        "date": datetime.fromtimestamp(int(finished), UTC).isoformat(),
        "prediction_type": PREDICTIONS.get(model.prediction_type, model.prediction_type),
        **{name: value for name, value in optional.items() if value},
    }
    return {f"modelspec.{name}": value for name, value in spec.items()}


def necessary(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in NECESSARY}


def as_text(values: Mapping[str, object]) -> dict[str, str]:
    """safetensors metadata: every value a text, kohya's way ("None", "True", JSON for lists and tables)."""
    return {
        name: value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list) else str(value)
        for name, value in values.items()
    }
