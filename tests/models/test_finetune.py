"""A fine-tune of every family: all weights train, a resume is bit-equal, and others read the model that it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import single_file, tiny, tiny_families
from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, events_of, run, steps_of, tensors_of
from tests.support.tiny_families import Tiny
from trainer.checkpoints import export, preflight
from trainer.models import families, full_model, tensor_files
from trainer.models.families.facts import FLOW, Facts
from trainer.models.parts import Parts
from trainer.options.config import Config
from trainer.runs import branches, manifest
from trainer.runs.run_folder import RunFolder

STEPS = 3
CACHED = {name: value for name, value in tiny.CACHED.items() if name != "network_train_unet_only"}
ROUNDED: dict[str, Any] = {
    **CACHED, "training_kind": "finetune", "mixed_precision": "bf16", "full_bf16": True, "gradient_checkpointing": True,
    "save_model_as": "diffusers", "save_precision": "bf16", "resolution": "64", "max_train_steps": STEPS,
    "save_every_n_steps": 0,
}  # fmt: skip


@pytest.fixture(scope="module", params=list(tiny_families.FAMILIES))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def of(variant: str) -> Tiny:
    return tiny_families.FAMILIES[variant]


@pytest.fixture(scope="module")
def facts(variant: str) -> Facts:
    return families.TABLE[variant.split()[0]]


@pytest.fixture(scope="module")
def folder(of: Tiny, variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of.make(tmp_path_factory.mktemp(variant.replace(" ", "-")))


def last_checkpoint(config: Config) -> manifest.Found:
    return manifest.listing(RunFolder(config.run_dir).checkpoints)[0]


def denoiser_of(folder: Path, of: Tiny, component: str) -> dict[str, torch.Tensor]:
    """The denoiser's weights in the official pipeline."""
    pipeline = of.official(folder)
    tensors: dict[str, torch.Tensor] = getattr(pipeline, component).state_dict()
    return tensors


def test_a_fine_tune_resumes_bit_equal_and_the_official_pipeline_has_its_weights(
    folder: Path, facts: Facts, of: Tiny, tiny_images: Path, tmp_path: Path
) -> None:
    short = {"max_sequence_length": 16} if FLOW in facts.traits else {}
    straight = config_for(folder, tiny_images, tmp_path / "straight", **ROUNDED, **short)
    expected = preflight.examine(straight).bytes_of_save
    assert run(straight) == "finished"
    halved = config_for(folder, tiny_images, tmp_path / "halved", **ROUNDED, **short)
    run(halved.replace(max_train_steps=1))
    run(halved.replace(resume_from_checkpoint="latest"))
    assert steps_of(halved) == steps_of(straight)
    assert_bit_equal(tensors_of(halved, STEPS), tensors_of(straight, STEPS))
    saved = last_checkpoint(straight).manifest
    assert saved is not None and expected == pytest.approx(saved.bytes, rel=0.1)

    component = facts.denoiser.component
    trained = {
        name.removeprefix(f"weights/{component}."): tensor
        for name, tensor in tensors_of(straight, STEPS).items()
        if name.startswith("weights/")
    }
    before, after = (denoiser_of(path, of, component) for path in (folder, branches.last_file(straight)))
    assert before.keys() == after.keys() and trained.keys() <= after.keys()
    for name, tensor in after.items():
        # what was not trained, since nothing reaches it, is as it was in the precision of the file
        assert torch.equal(tensor.float(), trained.get(name, before[name].to(torch.bfloat16)).float()), name
    assert any(not torch.equal(before[name], after[name].to(before[name].dtype)) for name in trained)

    # from the checkpoint alone, as one file, which diffusers reads where it reads single files of the family
    config = straight.replace(save_model_as="safetensors", save_precision="float", single_file_config=str(folder))
    held = tensor_files.entries(last_checkpoint(straight).path / "weights.safetensors")
    config = config.replace(family=next(name for name in families.TABLE if families.TABLE[name] is facts))
    file = tmp_path / "model.safetensors"
    full_model.write(file, config, folder, held, {})
    parts = Parts(config.replace(training_kind="network"), file, torch.float32)
    loaded = parts[component].state_dict()
    assert loaded.keys() == after.keys()
    for name, values in trained.items():
        assert torch.equal(loaded[name], values.float()), name


ENCODERS: dict[str, Any] = {
    "training_kind": "finetune", "train_text_encoder": True, "text_encoder_lr": 1e-4, "use_ema": True,
    "ema_decay": 0.5, "save_precision": "float", "resolution": "64", "max_train_steps": STEPS, "save_every_n_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "original"), [("sd", False), ("sdxl", True)], ids=["sd, a folder", "sdxl, a single file"]
)
def test_text_encoders_train_too_and_the_whole_model_is_one_file(
    family: str, original: bool, tiny_images: Path, tmp_path: Path
) -> None:
    of = tiny_families.FAMILIES[family]
    model = folder = of.make(tmp_path / "model")
    options = dict(ENCODERS)
    if original:
        model = single_file.write(of.official(folder), tmp_path / "base.safetensors")
        options["single_file_config"] = str(folder)
    straight = config_for(model, tiny_images, tmp_path / "straight", **options)
    assert run(straight) == "finished"
    halved = config_for(model, tiny_images, tmp_path / "halved", **options)
    run(halved.replace(max_train_steps=2))
    run(halved.replace(resume_from_checkpoint="latest"))
    assert_bit_equal(tensors_of(halved, STEPS), tensors_of(straight, STEPS))

    averaged = {
        name.removeprefix("ema/"): tensor
        for name, tensor in tensors_of(straight, STEPS).items()
        if name.startswith("ema/")
    }
    facts = families.TABLE[family]
    assert {name.split(".")[0] for name in averaged} == {part.component for part in facts.parts}
    result = branches.last_file(straight)
    read_as = Config(family=family, single_file_config=str(folder))
    parts = Parts(read_as, result, torch.float32)
    for component in {part.component for part in facts.parts}:
        loaded = {f"{component}.{name}": tensor for name, tensor in parts[component].state_dict().items()}
        mine = {name: tensor for name, tensor in averaged.items() if name.startswith(f"{component}.")}
        assert mine and mine.keys() <= loaded.keys()
        assert all(torch.equal(loaded[name], mine[name]) for name in mine)
    vaes = [
        Parts(read_as, path, torch.float32)["vae"].state_dict() for path in (result, folder if not original else model)
    ]
    assert all(torch.equal(vaes[0][name], tensor) for name, tensor in vaes[1].items())
    exported = export.model_file(last_checkpoint(straight).path, tmp_path / "exported.safetensors")
    assert_bit_equal(load_file(exported), load_file(result))


def test_text_encoders_that_stop_stay_as_they_were(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    options = {**ENCODERS, "use_ema": False, "stop_text_encoder_training": 2.0}
    config = config_for(tiny_model, tiny_images, tmp_path, **options)
    assert run(config) == "finished"
    second, third = (tensors_of(config, step) for step in (2, 3))
    for component, stays in (("unet", False), ("text_encoder", True)):
        names = [name for name in second if name.startswith(f"weights/{component}.")]
        assert all(torch.equal(second[name], third[name]) for name in names) == stays


@pytest.mark.parametrize("optimizer", ["Adafactor", "AdamW8bit"])
def test_rounded_steps_resume_bit_equal_whatever_the_optimizer_keeps(
    optimizer: str, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    options = {**ROUNDED, "optimizer_type": optimizer, "save_model_as": "safetensors", "use_ema": True}
    straight = config_for(tiny_model, tiny_images, tmp_path / "straight", **options)
    assert run(straight) == "finished"
    halved = config_for(tiny_model, tiny_images, tmp_path / "halved", **options)
    run(halved.replace(max_train_steps=2))
    run(halved.replace(resume_from_checkpoint="latest"))
    assert steps_of(halved) == steps_of(straight)
    assert_bit_equal(tensors_of(halved, STEPS), tensors_of(straight, STEPS))


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_networks_in_bf16_resume_bit_equal(kind: str, tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    options = {"network_kind": kind, "full_bf16": True, "mixed_precision": "bf16", "max_train_steps": STEPS}
    straight = config_for(tiny_model, tiny_images, tmp_path / "straight", **options)
    assert run(straight) == "finished"
    halved = config_for(tiny_model, tiny_images, tmp_path / "halved", **options)
    run(halved.replace(max_train_steps=2))
    run(halved.replace(resume_from_checkpoint="latest"))
    weights = tensors_of(straight, STEPS)
    assert_bit_equal(tensors_of(halved, STEPS), weights)
    assert {tensor.dtype for name, tensor in weights.items() if name.startswith("weights/")} == {torch.bfloat16}
    target = tmp_path / "exported.safetensors"
    exported = export.model_file(last_checkpoint(straight).path, target)
    assert_bit_equal(load_file(exported), load_file(branches.last_file(straight)))


def test_the_model_file_says_that_it_is_a_whole_model(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    config = config_for(
        tiny_model, tiny_images, tmp_path, **CACHED, training_kind="finetune", max_train_steps=1, full_bf16=False
    )
    assert run(config) == "finished"
    path = branches.last_file(config)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    described = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    assert described["modelspec.architecture"] == "stable-diffusion-v1" and described["ss_steps"] == "1"
    assert not any("network" in name for name in described)
    assert not [event for event in events_of(config, "warning") if "checkpoint" in event["kind"]]
    assert not list(path.parent.glob(".tmp*"))


def test_an_open_clip_text_encoder_of_sd_2_has_its_own_names(tmp_path: Path) -> None:
    widths = {"token_embedding.weight": (5, 1024), "position_embedding.weight": (77, 1024)}
    shapes: dict[str, tuple[int, ...]] = {f"embeddings.{name}": shape for name, shape in widths.items()}
    shapes |= {f"final_layer_norm.{kind}": (1024,) for kind in ("weight", "bias")}
    for layer in range(2):
        at = f"encoder.layers.{layer}."
        shapes |= {f"{at}self_attn.{one}_proj.weight": (8, 1024) for one in "qkv"}
        shapes |= {f"{at}self_attn.{one}_proj.bias": (8,) for one in "qkv"}
        shapes |= {f"{at}mlp.fc1.weight": (8, 1024)}
    entries = {name: tensor_files.Entry(shape, "F32", lambda: None) for name, shape in shapes.items()}  # type: ignore[arg-type,return-value]
    facts = families.TABLE["sd"]
    named = full_model._original(Config(family="sd"), facts.encoders[0], entries)
    prefix = "cond_stage_model.model."
    assert all(name.startswith(prefix) for name in named)
    blocks = {match[1] for name in named if (match := re.search(r"resblocks\.(\d+)\.", name))}
    assert blocks == {"0", "1", "2"}  # the last again, which readers leave out
    assert named[f"{prefix}transformer.resblocks.1.attn.in_proj_weight"].shape == (24, 1024)
