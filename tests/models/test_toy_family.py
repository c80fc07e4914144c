"""A new family is one file and one entry of the table: it trains, resumes, exports and samples through every path."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import tiny, toy_family
from tests.support.runs_at_tiny_size import (
    assert_bit_equal,
    config_for,
    events_of,
    exported_tensors_of,
    run,
    steps_of,
    tensors_of,
)
from trainer.checkpoints import export, preflight
from trainer.models import families
from trainer.options.checks import check
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import Given
from trainer.runs.run_folder import RunFolder


@pytest.fixture(autouse=True)
def in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.TABLE, "toy", toy_family.FACTS)
    monkeypatch.setitem(OPTIONS, "family", dataclasses.replace(OPTIONS["family"], choices=families.choices()))


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_family.make_model(tmp_path_factory.mktemp("toy"))


def config_of(model: Path, images: Path, output: Path, **options: Any) -> Config:
    small = {"max_train_steps": 4, "enable_bucket": True, "min_bucket_reso": 32, "bucket_reso_steps": 16}
    return config_for(model, images, output, **{**small, **options})


CACHED = {name: value for name, value in tiny.CACHED.items() if name != "network_train_unet_only"}
WATCHED = {
    "validation_split": 0.3,
    "validate_every_n_steps": 2,
    "sample_prompts": "a thing --s 2",
    "sample_every_n_steps": 4,
}


@pytest.mark.parametrize("cached", [{**CACHED, **WATCHED}, {"mixed_precision": "bf16"}], ids=["cached", "in the step"])
def test_it_trains_resumes_exports_and_samples(
    cached: dict[str, Any], toy_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    straight = config_of(toy_model, tiny_images, tmp_path / "straight", **cached)
    assert run(straight) == "finished"
    halved = config_of(toy_model, tiny_images, tmp_path / "halved", **cached, max_train_epochs=None)
    assert run(halved.replace(max_train_steps=2)) == "finished"
    assert run(halved.replace(resume_from_checkpoint="latest")) == "finished"
    assert steps_of(halved) == steps_of(straight)
    assert_bit_equal(tensors_of(halved, 4), tensors_of(straight, 4))

    written = exported_tensors_of(straight)
    assert {name.split(".")[0] for name in written} == {"transformer"}
    assert not any(name.endswith("alpha") for name in written)
    checkpoint = RunFolder(straight.run_dir).checkpoints / "step-00000004"
    exported = export.model_file(checkpoint, tmp_path / "exported.safetensors")
    assert_bit_equal(load_file(exported), written)
    if "sample_prompts" in cached:
        assert len(list(RunFolder(straight.run_dir).samples.glob("*.png"))) == 1
        assert events_of(straight, "validation")


def test_its_files_tell_what_it_is_and_its_own_defaults_apply(
    toy_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    looked = preflight.examine(config_of(toy_model, tiny_images, tmp_path))
    assert looked.refusals == () and looked.inputs
    settled = looked.inputs.config
    assert (settled.family, settled.timestep_sampling, settled.discrete_flow_shift) == ("toy", "shift", 3.0)
    assert looked.bytes_of_save and settled.peak_learning_rates == {"transformer": settled.learning_rate}


def test_a_file_of_it_begins_another_run(toy_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    first = config_of(toy_model, tiny_images, tmp_path, max_train_steps=1, save_precision="float")
    run(first)
    file = tmp_path / "run.safetensors"
    again = first.replace(output_name="again", network_weights=str(file), learning_rate=1e-30)
    run(again)
    for name, tensor in exported_tensors_of(again).items():
        torch.testing.assert_close(tensor, load_file(file)[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clip_skip": 2}, "clip_skip: does not apply to Toy"),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma: does not apply to Toy"),
        ({"sample_sampler": "ddim"}, "sample_sampler: 'ddim' cannot sample Toy; choose one of euler"),
        ({"clip_l": __file__}, "clip_l: does not apply to Toy"),
        ({"bucket_reso_steps": 8}, "bucket_reso_steps: 8 is not a multiple of 16"),
        ({"family": "sd"}, "family: .* is Toy, not Stable Diffusion"),
        ({"loss_type": "huber"}, "huber_schedule: 'snr' does not apply to Toy"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(
    options: dict[str, Any], named: str, toy_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    looked = preflight.examine(config_of(toy_model, tiny_images, tmp_path, **options))
    assert len(looked.refusals) == 1
    with pytest.raises(AssertionError, match=named):
        raise AssertionError(looked.refusals[0])


def test_an_option_of_another_family_is_refused_where_the_preset_names_the_family() -> None:
    given = {"family": Given("sd", "a.toml, line 1"), "timestep_sampling": Given("shift", "a.toml, line 2")}
    [problem] = check(given).problems
    assert str(problem).startswith("timestep_sampling: does not apply to Stable Diffusion")
    assert problem.where == "a.toml, line 2"
