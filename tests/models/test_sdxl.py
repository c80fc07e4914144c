"""Stable Diffusion XL beyond what every family does: single files, two rates, what the denoiser is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from tests.support import single_file, tiny, tiny_families
from tests.support.runs_at_tiny_size import config_for, events_of, exported_tensors_of, run
from trainer.checkpoints import checkpoint_size, preflight
from trainer.models import base_model
from trainer.models import model as models
from trainer.models.model import Model
from trainer.models.parts import Parts
from trainer.options.config import Config
from trainer.recipe.objectives import Diffusion

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.make_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    return models.load(Config(resolution="64", network_dim=4, **options), path, dtype, CPU)


def loss(model: Model, geometry: tuple[float, ...] = (64, 64, 0, 0, 64, 64)) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    assert model.tokenize
    batch = {
        "latent_mean": torch.randn((1, 4, 8, 8), generator=draw),
        "latent_std": torch.ones(1, 4, 8, 8),
        "latent_noise": torch.zeros(1, 4, 8, 8),
        "noise": torch.randn((1, 4, 8, 8), generator=draw),
        "timesteps": torch.tensor([400]),
        "geometry": torch.tensor([geometry], dtype=torch.float32),
        **model.tokenize(["a thing"]),
    }
    with torch.no_grad():
        result: torch.Tensor = model.module()(batch)
    return result


def test_a_single_file_is_the_same_model_as_its_folder(
    folder: Path, pipeline: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    file = single_file.write(pipeline, tmp_path / "model.safetensors")
    assert base_model.detect(file) == "sdxl"
    ours, expected = load(file, single_file_config=str(folder)), load(folder)
    torch.testing.assert_close(loss(ours), loss(expected))
    config = Config(family="sdxl", network_dim=4, conv_dim=2)
    shapes = {path: checkpoint_size.trained(config, path) for path in (file, folder)}
    assert sorted(shapes[file].values()) == sorted(shapes[folder].values())


def test_a_file_that_is_marked_as_v_prediction_is_trained_so(
    folder: Path, pipeline: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    file = single_file.write(pipeline, tmp_path / "model.safetensors", marks=("v_pred", "ztsnr"))
    marked = load(file, single_file_config=str(folder))
    chosen = load(folder, v_parameterization=True, zero_terminal_snr=True)
    assert isinstance(marked.objective, Diffusion) and marked.prediction_type == "v_prediction"
    assert marked.objective.noise_scheduler.alphas_cumprod[-1] < 1e-6
    torch.testing.assert_close(loss(marked), loss(chosen))


@pytest.mark.parametrize("changed", range(6))
def test_the_denoiser_is_told_each_number_of_the_geometry(changed: int, folder: Path) -> None:
    model = load(folder)
    geometry = [64.0, 64.0, 0.0, 0.0, 64.0, 64.0]
    other = [value + 32 * (place == changed) for place, value in enumerate(geometry)]
    assert not torch.equal(loss(model, tuple(geometry)), loss(model, tuple(other)))


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("sdxl*.toml")), ids=lambda path: path.stem)
def test_a_preset_of_it_could_begin(preset: Path, folder: Path, tiny_images: Path, tmp_path: Path) -> None:
    here = {"pretrained_model_name_or_path": folder, "train_data_dir": tiny_images, "output_dir": tmp_path}
    arguments = [word for name, value in here.items() for word in (f"--{name}", str(value))]
    config, _ = preflight.read_options(preset, arguments)
    looked = preflight.examine(config)
    assert looked.refusals == () and looked.bytes_of_save
    assert config.facts.title == "Stable Diffusion XL"


def test_long_captions_are_pooled_from_their_first_part(folder: Path) -> None:
    words = " ".join("abcdefghijklmnopqrstuvwxyz"[number % 26] for number in range(100))
    plain, long = load(folder), load(folder, max_token_length=150)
    [short_row], [long_row] = plain.encode_captions([words]), long.encode_captions([words])
    assert (short_row["states"].shape, long_row["states"].shape) == ((77, 80), (152, 80))
    torch.testing.assert_close(torch.from_numpy(short_row["pooled"]), torch.from_numpy(long_row["pooled"]))


def test_each_text_encoder_has_its_own_rate(folder: Path, tiny_images: Path, tmp_path: Path) -> None:
    config = config_for(
        folder, tiny_images, tmp_path, max_train_steps=1, unet_lr=0.0, text_encoder_lr=0.0, text_encoder_lr2=1e-2
    )
    assert config.replace(family="sdxl").peak_learning_rates == {
        "unet": 0.0, "text_encoder": 0.0, "text_encoder_2": 1e-2,
    }  # fmt: skip
    assert run(config) == "finished" and events_of(config, "step")
    moved = {
        name.split("_text")[0] if "_te" in name else "lora_unet"
        for name, tensor in exported_tensors_of(config).items()
        if name.endswith("lora_up.weight") and tensor.any()
    }
    assert moved == {"lora_te2"}
    metadata = json.loads((config.run_dir / "checkpoints/step-00000001/state.json").read_text())["export"]["metadata"]
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


def test_the_file_holds_every_layer_of_both_text_encoders(folder: Path, tiny_images: Path, tmp_path: Path) -> None:
    config = config_for(folder, tiny_images, tmp_path, max_train_steps=1)
    run(config)
    names = [name for name in load_file(tmp_path / "run.safetensors") if name.endswith(".alpha")]
    counts = {prefix: sum(name.startswith(prefix) for name in names) for prefix in ("lora_te1_", "lora_te2_")}
    assert counts == {"lora_te1_": 12, "lora_te2_": 12}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha" in names


@pytest.mark.parametrize(
    ("upcast", "dtype", "options", "held"),
    [
        (True, torch.float16, {}, torch.float32),
        (False, torch.float16, {}, torch.float16),  # a VAE that was made for half precision
        (True, torch.bfloat16, {}, torch.bfloat16),
        (False, torch.float16, {"no_half_vae": True}, torch.float32),
    ],
)
def test_a_vae_that_overflows_in_half_precision_is_held_in_fp32(
    upcast: bool, dtype: torch.dtype, options: dict[str, Any], held: torch.dtype, folder: Path, tmp_path: Path
) -> None:
    vae = tmp_path / "vae"
    tiny.make_vae(force_upcast=upcast).save_pretrained(vae)
    parts = Parts(Config(family="sdxl", vae=str(vae)).replace(**options), folder, dtype)
    assert parts.dtype_of("vae") == parts["vae"].dtype == held
    assert parts.dtype_of("unet") == dtype
