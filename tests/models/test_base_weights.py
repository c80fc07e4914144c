"""Networks that become part of the base model while another one is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.models.test_network import folder
from tests.models.test_network_kinds import CPU, WAYS, of, parameters, randomise, weight_in_use, write
from tests.support import tiny_families
from tests.support.exactness import check_every_resume
from tests.support.runs_at_tiny_size import config_for, run
from trainer.checkpoints.resume import ResumeRefused
from trainer.models.adapters import lora
from trainer.models.adapters.base import NetworkFileError
from trainer.models.families import TABLE
from trainer.models.model import Model
from trainer.options.checks import check
from trainer.options.problems import Given

__all__ = ["folder"]  # the fixture

KINDS = [name for name, way in WAYS.items() if way["network_kind"] in ("lora", "rslora", "dora", "loha", "lokr")]


def network(folder: Path, path: Path, **options: Any) -> Model:
    """A network with random weights, which are in a file."""
    model = of(folder, **{"network_dim": 4, "network_alpha": 2.0, **options})
    model.eval()
    randomise(model)
    write(model, path)
    return model


def bases(model: Model) -> dict[str, Tensor]:
    """The weights of the layers that networks are put beside, by path."""
    found = {}
    for path, layer in model.denoiser.named_modules():
        weight = getattr(getattr(layer, "base_layer", layer), "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1 and ".lora_" not in path and not path.endswith("base_layer"):
            found[path] = weight.detach().clone()
    return found


@pytest.mark.parametrize("name", KINDS)
def test_what_becomes_part_of_the_base_is_what_the_network_adds(name: str, folder: Path, tmp_path: Path) -> None:
    options = {"network_preset": "full", "network_dim": 4, "conv_dim": 3, **WAYS[name]}
    added = network(folder, tmp_path / "a.safetensors", **options)
    file = str(tmp_path / "a.safetensors")
    plain = of(folder, network_dim=2)
    half = bases(of(folder, network_dim=2, base_weights=(file,), base_weights_multiplier=("0.5",)))
    whole = bases(of(folder, network_dim=2, base_weights=(file,)))
    own = bases(plain)
    assert own.keys() == whole.keys()
    changed = 0
    for path, weight in own.items():
        layer, base = added.denoiser.get_submodule(path), plain.denoiser.get_submodule(path)
        if layer.__class__ is base.__class__ and not hasattr(layer, "base_layer"):
            assert torch.equal(whole[path], weight)
            continue
        with torch.no_grad():
            used = weight_in_use(layer, getattr(base, "base_layer", base))
        changed += 1
        for got, strength in ((whole[path], 1.0), (half[path], 0.5)):
            expected = weight + strength * (torch.where(used.isnan(), weight, used) - weight)
            got = torch.where(used.isnan(), weight, got)
            torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5, msg=path)
    assert changed > 40


def test_text_encoders_are_changed_as_well_and_when_they_are_loaded_again(folder: Path, tmp_path: Path) -> None:
    network(folder, tmp_path / "a.safetensors")
    plain = of(folder, network_dim=2, network_train_unet_only=True)
    model = of(folder, network_dim=2, network_train_unet_only=True, base_weights=(str(tmp_path / "a.safetensors"),))
    [before], [first] = (each.encode_captions(["a thing"]) for each in (plain, model))
    assert any(np.abs(first[name] - array).max() > 1e-3 for name, array in before.items())
    model.prepare(CPU, latents_cached=False, text_cached=True)
    [again] = model.encode_captions(["a thing"])
    assert all(np.array_equal(again[name], array) for name, array in first.items())


def test_samples_leave_it_out_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    network(folder, tmp_path / "a.safetensors", network_train_unet_only=True)
    file = (str(tmp_path / "a.safetensors"),)
    own = bases(of(folder, network_dim=2))
    for in_samples in (True, False):
        model = of(folder, network_dim=2, base_weights=file, base_weights_in_samples=in_samples)
        merged = bases(model)
        with model.as_it_will_be_used():
            now = bases(model)
        assert all(torch.equal(now[path], (merged if in_samples else own)[path]) for path in own)
        after = bases(model)
        assert all(torch.equal(after[path], merged[path]) for path in own)
    assert any(not torch.equal(merged[path], own[path]) for path in own)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_unet_nowhere.lora_down.weight": (2, 4), "lora_unet_nowhere.lora_up.weight": (4, 2)}, "has no place"),
        ({"lora_te9_x.lora_down.weight": (2, 4), "lora_te9_x.lora_up.weight": (4, 2)}, "belongs to no component"),
        ({"lora_unet_conv_in.lora_down.weight": (2, 4), "lora_unet_conv_in.lora_up.weight": (4, 2)}, "does not fit"),
        ({"lora_unet_conv_in.lora_down.weight": (2, 4)}, "does not fit: it has only lora_down"),
        ({"lora_unet_conv_in.oft_blocks": (2, 4, 4)}, "LoRA, DoRA, LoHa, LoKr and whole differences"),
    ],
)
def test_what_cannot_be_added_is_refused(
    tensors: dict[str, tuple[int, ...]], words: str, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(NetworkFileError, match=words):
        of(folder, base_weights=(str(path),))


def test_strengths_are_numbers_and_not_too_many(tmp_path: Path) -> None:
    path = str(tmp_path / "with a blank.safetensors")

    def checked(**values: Any) -> Any:
        return check({name: Given(value, "") for name, value in values.items()})

    assert checked(base_weights=path, base_weights_multiplier=[0.5]).values == {
        "base_weights": (path,),
        "base_weights_multiplier": ("0.5",),
    }
    (problem,) = checked(base_weights=[path], base_weights_multiplier=["1", "2"]).problems
    assert "more than the 1 numbers" in problem.message
    (problem,) = checked(base_weights=[path], base_weights_multiplier=["much"]).problems
    assert "is not a number" in problem.message


def test_a_resumed_run_is_bit_equal_and_holds_on_to_the_content(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    network(tiny_model, file)
    options = {"base_weights": (str(file),), "base_weights_in_samples": False, "sample_prompts": "a thing",
               "sample_every_n_steps": 1, "mixed_precision": "bf16"}  # fmt: skip
    assert check_every_resume(tiny_model, tiny_images, tmp_path, options, steps=2) == 1
    config = config_for(tiny_model, tiny_images, tmp_path / "third", max_train_steps=1, base_weights=(str(file),))
    run(config)
    other = tmp_path / "other.safetensors"
    network(tiny_model, other, seed=9, network_alpha=3.0)
    resumed = config.replace(max_train_steps=2, resume_from_checkpoint="latest", base_weights=(str(other),))
    with pytest.raises(ResumeRefused, match="base_weights"):
        run(resumed)
    assert parameters(of(tiny_model, network_dim=2, base_weights=(str(file),)))  # the same file still loads
    moved = tmp_path / "moved.safetensors"
    file.rename(moved)
    assert run(resumed.replace(base_weights=(str(moved),))) == "finished"


@pytest.mark.parametrize("family", TABLE)
def test_a_lora_of_every_family_becomes_part_of_its_base(family: str, tmp_path: Path) -> None:
    made = tiny_families.FAMILIES[family].make(tmp_path / "model")
    file = tmp_path / "a.safetensors"
    trained = of(made, network_dim=4, network_alpha=2.0)
    trained.eval()
    randomise(trained)
    write(trained, file)
    merged = of(made, network_dim=4, base_weights=(str(file),))
    for ours, theirs in zip(trained.targets, merged.targets, strict=True):
        others = lora.layers(theirs)
        for path, layer in lora.layers(ours).items():
            own = layer.get_base_layer().weight
            change = others[path].get_base_layer().weight - own
            torch.testing.assert_close(change, layer.get_delta_weight("default"), rtol=1e-3, atol=1e-5, msg=path)
            assert float(change.detach().abs().max()) > 1e-3
