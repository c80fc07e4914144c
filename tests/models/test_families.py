"""Stable Diffusion is loaded from a folder, a single file or the hub, and trains what its scheduler says."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.support import single_file, tiny
from trainer.models import base_model, families
from trainer.models import model as models
from trainer.models.base_model import BaseModelMissing
from trainer.models.model import Model
from trainer.models.parts import Parts
from trainer.options.config import Config
from trainer.options.sections.samples import SAMPLERS
from trainer.recipe.objectives import Diffusion
from trainer.recipe.prompts import Prompt

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("model"))


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    config = Config(pretrained_model_name_or_path=str(path), resolution="64", network_dim=4, **options)
    return models.load(config, path, dtype, CPU)


def states_of(model: Model, captions: list[str]) -> torch.Tensor:
    """(captions, tokens, width)."""
    return torch.stack([torch.from_numpy(row["states"]) for row in model.encode_captions(captions)])


def batch_for(model: Model, timestep: int = 500) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, 4, 8, 8)
    assert model.text.tokenize
    return {
        "latent_mean": torch.randn(shape, generator=generator),
        "latent_std": torch.ones(shape),
        "latent_noise": torch.zeros(shape),
        "noise": torch.randn(shape, generator=generator),
        "timesteps": torch.full((2,), timestep),
        **model.text.tokenize(["a thing", ""]),
    }


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_local_folder_is_loaded_without_trying_the_network(folder: Path) -> None:
    losses = load(folder).module()(batch_for(load(folder)))
    assert losses.shape == (2,) and torch.isfinite(losses).all()


@pytest.mark.usefixtures("no_network")
def test_a_single_file_with_a_local_config_gives_the_same_model_as_the_folder(folder: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    path = single_file.write(pipeline, tmp_path / "model.safetensors")
    model, expected = load(path, single_file_config=str(folder)), load(folder)
    batch = batch_for(expected)
    assert torch.equal(model.module()(batch), expected.module()(batch))
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    for left, right in zip(model.encode_images(pixels), expected.encode_images(pixels), strict=True):
        torch.testing.assert_close(left, right)


def test_a_folder_in_half_precision_files_is_loaded(folder: Path, tmp_path: Path) -> None:
    StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert load(tmp_path).module().unet.dtype == torch.float32


def test_a_scheduler_that_says_v_prediction_is_trained_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "v")
    settings = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "prediction_type": "v_prediction"}))
    by_scheduler, by_option = load(tmp_path / "v"), load(folder, v_parameterization=True)
    noise = load(folder)
    batch = batch_for(noise)
    assert by_scheduler.prediction_type == by_option.prediction_type == "v_prediction"
    assert torch.equal(by_scheduler.module()(batch), by_option.module()(batch))
    assert not torch.equal(by_option.module()(batch), noise.module()(batch))


def test_zero_terminal_snr_leaves_no_signal_at_the_end(folder: Path) -> None:
    model = load(folder, v_parameterization=True, zero_terminal_snr=True)
    assert isinstance(model.objective, Diffusion)
    assert model.objective.noise_scheduler.alphas_cumprod[-1] < 1e-6
    assert torch.isfinite(model.module()(batch_for(model, timestep=999))).all()


def test_gradients_reach_every_lora_matrix_of_what_is_trained(folder: Path) -> None:
    model = load(folder)
    with torch.no_grad():
        for name, parameter in model.module().named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.module()(batch_for(model)).sum().backward()
    trained = {name: parameter for name, parameter in model.module().named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()] == []


def test_clip_skip_uses_an_earlier_layer(folder: Path) -> None:
    last, skipped = load(folder), load(folder, clip_skip=2)
    assert not torch.equal(states_of(last, ["a thing"]), states_of(skipped, ["a thing"]))


def test_a_sample_depends_on_its_prompt_alone(folder: Path) -> None:
    model = load(folder)
    prompt = Prompt("a thing", "", 64, 64, seed=3, guidance_scale=2.0, steps=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    (first,) = model.sample([prompt], "euler_a", CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    _, second = model.sample([prompt, prompt], "euler_a", CPU)
    assert first.tobytes() == second.tobytes()


def some_pixels() -> torch.Tensor:
    return torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("no_half_vae", [False, True])
def test_a_step_encodes_pixels_as_the_cache_does(folder: Path, no_half_vae: bool) -> None:
    model = load(folder, torch.bfloat16, no_half_vae=no_half_vae)
    mean, std = model.encode_images(some_pixels())
    batch = batch_for(model)
    cached = batch | {"latent_mean": mean, "latent_std": std}
    uncached = {name: value for name, value in batch.items() if not name.startswith("latent_")}
    uncached |= {"latent_noise": batch["latent_noise"], "pixels": some_pixels()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.module()(cached), model.module()(uncached))


def test_no_half_vae_decodes_samples_in_fp32(folder: Path) -> None:
    model = load(folder, torch.bfloat16, no_half_vae=True)
    seen: list[torch.dtype] = []
    vae = model.components["vae"]
    vae.decoder.conv_out.register_forward_hook(lambda *called: seen.append(called[2].dtype))
    model.sample([Prompt("a thing", "", 64, 64, seed=3, guidance_scale=2.0, steps=2)], "ddim", CPU)
    assert seen == [torch.float32]


def test_every_sampler_makes_a_picture(folder: Path) -> None:
    model = load(folder)
    prompt = Prompt("a thing", "", 64, 64, seed=3, guidance_scale=2.0, steps=4)
    usable = [name for name, sampler in SAMPLERS.items() if sampler.fits(families.TABLE["sd"].traits)]
    pictures = {name: model.sample([prompt], name, CPU)[0].tobytes() for name in usable}
    assert len(set(pictures.values())) >= len(usable) - 1


def test_a_model_that_is_not_there_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BaseModelMissing, match="there is no folder or file"):
        base_model.locate(str(tmp_path / "nothing"))
    with pytest.raises(BaseModelMissing, match=r"model_index\.json"):
        base_model.locate(str(tmp_path))
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(BaseModelMissing, match="can run code"):
        base_model.locate(str(tmp_path / "model.ckpt"))


def test_a_hub_id_without_a_connection_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelMissing, match="could not be had from Hugging Face"):
        base_model.locate("nobody/no-such-model")


def test_the_digest_follows_content_not_names_or_times(folder: Path, tmp_path: Path) -> None:
    components = families.TABLE["sd"].components
    original = base_model.digest(folder, components, tmp_path / "memory")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert base_model.digest(copy, components, tmp_path / "memory") == original
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert base_model.digest(copy, components, tmp_path / "memory") != original


# --- captions ------------------------------------------------------------------------------------------------------


def words(count: int) -> str:
    return " ".join(chr(ord("a") + number % 26) for number in range(count))  # a token each


@pytest.mark.parametrize(("limit", "length"), [(75, 77), (150, 152), (225, 227)])
def test_long_captions_are_encoded_in_parts(folder: Path, limit: int, length: int) -> None:
    model = load(folder, max_token_length=limit)
    states = states_of(model, [words(300), "short"])
    assert states.shape == (2, length, 32)
    assert torch.equal(states[:, :76], states_of(load(folder), [words(300), "short"])[:, :76])
    if limit > 75:
        second = states_of(load(folder), [words(300)[150:]])  # from the 76th word on
        assert torch.equal(states[:1, 76:151], second[:, 1:76])


def test_what_is_beyond_max_token_length_does_not_count(folder: Path) -> None:
    model = load(folder, max_token_length=150)
    assert torch.equal(states_of(model, [words(150)]), states_of(model, [words(200)]))
    assert not torch.equal(states_of(model, [words(150)]), states_of(model, [words(149)]))


def test_emphasis_scales_the_states_of_its_tokens(folder: Path) -> None:
    model, plain = load(folder, weighted_captions=True), load(folder)
    weighted, expected = states_of(model, ["a (b:2.0) c"])[0], states_of(plain, ["a b c"])[0]
    torch.testing.assert_close(weighted / expected, torch.tensor([1.0, 1, 2, 1, *[1] * 73])[:, None].expand(77, 32))
    assert torch.equal(states_of(model, ["a b c"]), states_of(plain, ["a b c"]))
    long = load(folder, weighted_captions=True, max_token_length=150)
    factors = states_of(long, [f"{words(80)} (z:0.5)"]) / states_of(
        load(folder, max_token_length=150), [f"{words(80)} z"]
    )
    assert [place for place in range(152) if abs(float(factors[0, place].mean()) - 1) > 0.01] == [81]


def test_clip_skip_takes_an_earlier_layer(folder: Path) -> None:
    last, earlier = load(folder), load(folder, clip_skip=2)
    assert not torch.equal(states_of(last, ["a"]), states_of(earlier, ["a"]))
    assert last.text_identity() != earlier.text_identity()


def test_a_training_step_takes_long_and_weighted_captions(folder: Path) -> None:
    model = load(folder, max_token_length=150, weighted_captions=True)
    losses = model.module()(batch_for(model))
    assert torch.isfinite(losses).all()


def test_a_mask_weighs_the_loss_by_place(folder: Path) -> None:
    model = load(folder)
    batch = batch_for(model)
    halves = [torch.zeros(2, 1, 8, 8) for _ in range(2)]
    halves[0][..., :4] = 1
    halves[1][..., 4:] = 1
    parts = [model.module()({**batch, "mask": mask}) for mask in halves]
    torch.testing.assert_close(parts[0] + parts[1], model.module()(batch))


# --- components ----------------------------------------------------------------------------------------------------


def test_another_text_encoder_leaves_the_latents_cache_in_use(folder: Path, tmp_path: Path) -> None:
    config = base_model.settle(Config(cache_dir=str(tmp_path / "memory")), folder)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "text_encoder" / "config.json").write_text("{}")
    latents = [base_model.identity_of(config, path, ["vae"]) for path in (folder, other)]
    texts = [base_model.identity_of(config, path, config.facts.text_components) for path in (folder, other)]
    assert latents[0] == latents[1] and texts[0] != texts[1]
    replaced = config.replace(vae=str(other / "vae"))
    assert base_model.identity_of(replaced, folder, ["vae"]) == latents[0]


def test_what_was_read_ahead_is_not_read_again(folder: Path, tmp_path: Path) -> None:
    config = Config(pretrained_model_name_or_path=str(folder), cache_dir=str(tmp_path))
    with base_model.read_ahead(config):
        for thread in threading.enumerate():
            if thread.name == "read ahead":
                thread.join()
    reads: list[int] = []
    settled = base_model.settle(config, folder)
    digests = base_model.digests(settled, folder, lambda done, total: reads.append(total))
    assert max(reads, default=0) < 10_000  # model_index.json, which is of no component
    assert digests == base_model.digests(settled.replace(cache_dir=str(tmp_path / "other")), folder)


def test_what_is_cached_leaves_memory_and_comes_back_when_it_is_needed(folder: Path) -> None:
    model = load(folder, network_train_unet_only=True)
    expected, latents = states_of(model, ["a thing"]), model.encode_images(some_pixels())[0]
    model.prepare(CPU, latents_cached=True, text_cached=True)
    assert model.components.parts._loaded.keys() & {"vae", "text_encoder"} == set()
    assert torch.equal(states_of(model, ["a thing"]), expected)
    assert torch.equal(model.encode_images(some_pixels())[0], latents)


def test_a_vae_of_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    tiny.make_vae(latent_channels=8).save_pretrained(tmp_path)
    with pytest.raises(BaseModelMissing, match="its latents have 8 channels of 8 pixels a side"):
        load(folder, vae=str(tmp_path)).encode_images(some_pixels())


def test_a_component_that_is_loaded_beside_the_training_leaves_torchs_default_precision_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(base_model.settle(Config(), folder), folder, torch.bfloat16)
    changes: list[torch.dtype] = []
    change = torch.set_default_dtype

    def recorded(dtype: torch.dtype) -> None:
        changes.append(dtype)
        change(dtype)

    monkeypatch.setattr(torch, "set_default_dtype", recorded)
    with ThreadPoolExecutor(1) as pool:
        loaded = [pool.submit(lambda: parts["text_encoder"]).result()]
    parts.alone = False  # from here on other threads prepare batches while this one loads
    loaded.append(parts["vae"])
    assert set(changes) <= {torch.float32}
    assert {module.dtype for module in loaded} == {torch.bfloat16}
