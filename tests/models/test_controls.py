"""Models that make a picture of another one: what they are given, what is cached, and that a resume is exact."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.test_every_family import CAPTION, CPU, SIDE, Calls, assert_alike, load
from tests.support import tiny, tiny_families
from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, events_of, run, steps_of, tensors_of
from trainer import files
from trainer.checkpoints import preflight
from trainer.data import dataset, pictures
from trainer.data.captions import Shown
from trainer.data.subsets import DatasetError
from trainer.models import previews
from trainer.models.families import qwen_image
from trainer.models.model import Model
from trainer.options.config import Config
from trainer.options.problems import ConfigError
from trainer.recipe import prompts
from trainer.refusal import Refused

SMALLER = 256  # times, what Qwen's pipelines scale their control pictures to


def edit_folder(kind: str, folder: Path) -> Path:
    return tiny_families.make_qwen_edit(folder, kind)


@dataclass(frozen=True)
class Editing:
    """How a model that edits is tried. `call`: what its official pipeline is called with besides."""

    make: Callable[[Path], Path]
    pipeline: str
    call: dict[str, Any] = field(default_factory=dict)


MODELS = {
    "kontext": Editing(
        tiny_families.make_flux, "FluxKontextPipeline", {"max_area": SIDE * SIDE, "_auto_resize": False}
    ),
    "flux2": Editing(tiny_families.make_flux2_klein, "Flux2KleinPipeline", {"guidance_scale": 1.0}),
    "edit-plus": Editing(tiny_families.make_qwen_edit, "QwenImageEditPlusPipeline"),
    "edit": Editing(functools.partial(edit_folder, "QwenImageEditPipeline"), "QwenImageEditPipeline"),
}


@pytest.fixture(scope="module", params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return functools.cache(lambda name: MODELS[name].make(tmp_path_factory.mktemp(name)))


@pytest.fixture
def control(tmp_path: Path) -> Shown:
    values = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = tmp_path / "control.png"
    Image.fromarray(values).resize((SIDE, SIDE)).save(path)
    return Shown(str(path), files.sha256_file(path))


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen's pipelines scale every control picture to a megapixel, which takes a tiny model long."""
    for kind in (diffusers.QwenImageEditPlusPipeline, diffusers.QwenImageEditPipeline):
        module: Any = inspect.getmodule(kind)
        scaled = module.calculate_dimensions

        def smaller(area: int, ratio: float, scaled: Any = scaled) -> Any:
            return scaled(area // SMALLER, ratio)

        monkeypatch.setattr(module, "calculate_dimensions", smaller)
    for area in ("SHOWN_AREA", "EDITED_AREA"):
        monkeypatch.setattr(qwen_image, area, getattr(qwen_image, area) // SMALLER)


def official(model: Model, folder: Path, name: str) -> Any:
    kind = getattr(diffusers, MODELS[name].pipeline)
    given = {"processor": model.components["processor"]} if model.shows_controls else {}
    pipeline = kind.from_pretrained(folder, local_files_only=True, **given)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = previews.scheduler(model, "euler")
    return pipeline


def latents_of(model: Model, control: Shown) -> torch.Tensor:
    pixels = torch.from_numpy(pictures.to_pixels(pictures.open_shown(control)))[None]
    return model.encode_images(pixels)[0]


def test_the_denoiser_is_given_a_control_picture_as_by_the_official_pipeline(
    name: str, folders: Callable[[str], Path], control: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folders(name))
    pipeline, facts = official(model, folders(name), name), model.config.facts
    noise: list[torch.Tensor] = []

    def known_noise(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
        noise.append(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        return noise[0]

    monkeypatch.setattr(inspect.getmodule(type(pipeline)), "randn_tensor", known_noise)
    with Calls(pipeline.transformer) as theirs, torch.no_grad():
        pipeline(
            prompt=CAPTION, image=pictures.open_shown(control), height=SIDE, width=SIDE, num_inference_steps=2,
            output_type="latent", **MODELS[name].call,
        )  # fmt: skip
    side = SIDE // facts.factor
    given = model.conditioning_of(CAPTION, None, control) | model.guidance(1) | {"control": latents_of(model, control)}
    if "guidance" in given:
        given["guidance"] = given["guidance"] * 3.5  # as the pipeline has it by default
    timestep = (pipeline.scheduler.timesteps[0] / 1000).view(1)
    with Calls(model.denoiser) as ours, torch.no_grad():
        model.family.predict(model.denoiser, noise[0].reshape(1, facts.channels, side, side), timestep, given)
    assert_alike(ours[0], theirs[0])


def test_a_sample_is_the_official_pipelines_picture_of_the_control(
    name: str, folders: Callable[[str], Path], control: Shown
) -> None:
    model = load(folders(name))
    guided = {"guidance_scale": 2.0} if name == "flux2" else {"true_cfg_scale": 2.0}
    bad = "" if name == "flux2" else "a bad thing"
    prompt = prompts.Prompt(CAPTION, bad, SIDE, SIDE, 3, guidance_scale=2.0, steps=2, control=control)
    if model.shows_controls:
        with pytest.raises(Refused, match="name it in each prompt"):
            model.sample([dataclasses.replace(prompt, control=None)], "euler", CPU)
    cached = {(text, shown): row for text, shown, row in encoded(model, prompt)}
    [ours] = model.sample([prompt], "euler", CPU, lambda text, shown=None: cached[text, shown])
    pipeline = official(model, folders(name), name)
    with torch.no_grad():
        theirs = pipeline(
            prompt=CAPTION, image=pictures.open_shown(control), height=SIDE, width=SIDE,
            num_inference_steps=2, generator=torch.Generator().manual_seed(3), **MODELS[name].call | guided,
            **({"negative_prompt": bad} if bad else {}),
        ).images[0]  # fmt: skip
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def encoded(model: Model, prompt: prompts.Prompt) -> list[tuple[str, Shown | None, Any]]:
    shown = prompt.control if model.shows_controls else None
    looked_at = [pictures.open_shown(shown)] if shown else []
    return [(text, shown, model.encode_captions([text], looked_at)[0]) for text in (prompt.text, prompt.negative)]


# --- training ------------------------------------------------------------------------------------------------------


def make_controls(images: Path, folder: Path, sizes: tuple[tuple[int, int], ...] = ((64, 64),)) -> Path:
    folder.mkdir()
    for number, image in enumerate(sorted(images.rglob("*.png"))):
        values = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).resize(sizes[number % len(sizes)]).save(folder / f"{image.stem}.jpg")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tiny.make_images(tmp_path / "images", count=4)


def config_of(folder: Path, images: Path, output: Path, **options: Any) -> Config:
    common = {
        "resolution": str(SIDE),
        "max_sequence_length": 16,
        "max_train_steps": 3,
        "save_every_n_steps": 0,
        "cache_text_encoder_outputs": True,
        "train_batch_size": 1,
    }
    return config_for(folder, images, output, **common | options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("kontext", {"flip_aug": True, "random_crop": True, "control_resolution": ""}),
        ("flux2", {"cache_latents": True, "cache_latents_to_disk": True, "control_resolution": "96"}),
        ("edit-plus", {"cache_latents": True, "cache_text_encoder_outputs_to_disk": True, "validation_split": 0.3}),
    ],
)
def test_a_run_with_control_pictures_resumes_bit_equal(
    kind: str, options: dict[str, Any], folders: Callable[[str], Path], images: Path, tmp_path: Path
) -> None:
    sizes = ((64, 64), (64, 32), (32, 64))
    controls = make_controls(images, tmp_path / "controls", sizes if "control_resolution" in options else sizes[:1])
    common = options | {"conditioning_data_dir": str(controls)}
    common = {option: value for option, value in common.items() if value != ""}
    straight = config_of(folders(kind), images, tmp_path / "straight", **common)
    assert run(straight) == "finished"
    halved = config_of(folders(kind), images, tmp_path / "halved", **common)
    run(halved.replace(max_train_steps=1))
    run(halved.replace(resume_from_checkpoint="latest"))
    assert steps_of(halved) == steps_of(straight)
    assert_bit_equal(tensors_of(halved, 3), tensors_of(straight, 3))

    name = sorted(controls.iterdir())[0].name
    Image.new("RGB", (SIDE, SIDE), "red").save(controls / name)
    looked = preflight.examine(halved.replace(resume_from_checkpoint="latest", max_train_steps=4))
    assert any("control picture" in refusal and Path(name).stem in refusal for refusal in looked.refusals)


def test_samples_of_a_training_edit_their_control_picture(
    folders: Callable[[str], Path], images: Path, control: Shown, tmp_path: Path
) -> None:
    controls = make_controls(images, tmp_path / "controls")
    config = config_of(
        folders("edit-plus"), images, tmp_path / "out", cache_latents=True, conditioning_data_dir=str(controls),
        max_train_steps=1, sample_at_first=True, sample_every_n_steps=1,
        sample_prompts=f"red --cn {control.file} --s 2 --d 1\nred --ci {controls / 'picture1.jpg'} --s 2 --d 1",
    )  # fmt: skip
    assert run(config) == "finished"
    saved = [config.run_dir / event["path"] for event in events_of(config, "sample_saved")]
    assert len(saved) == 4 and len({path.read_bytes() for path in saved[:2]}) == 2


def test_what_a_control_picture_shows_changes_the_loss(
    folders: Callable[[str], Path], images: Path, tmp_path: Path
) -> None:
    losses = []
    for shade in ("white", "black"):
        controls = tmp_path / shade
        controls.mkdir()
        for image in images.rglob("*.png"):
            Image.new("RGB", (SIDE, SIDE), shade).save(controls / image.name)
        config = config_of(
            folders("kontext"), images, tmp_path / "out", conditioning_data_dir=str(controls), output_name=shade
        )
        run(config.replace(max_train_steps=1))
        losses.append(events_of(config, "step")[0]["loss"])
    assert losses[0] != losses[1]


# --- what is refused -----------------------------------------------------------------------------------------------


def refusal(config: Config) -> str:
    with pytest.raises(Refused) as refused:
        preflight.examine_inputs(config)
    return str(refused.value)


def test_images_without_a_control_picture_are_named(
    folders: Callable[[str], Path], images: Path, tmp_path: Path
) -> None:
    controls = make_controls(images, tmp_path / "controls")
    missing = sorted(controls.iterdir())[1]
    missing.unlink()
    narrow = sorted(controls.iterdir())[0]
    Image.new("RGB", (2000, 20)).save(narrow)
    said = refusal(config_of(folders("kontext"), images, tmp_path / "out", conditioning_data_dir=str(controls)))
    assert "2 images have no control picture that can be read" in said
    assert str(controls / missing.stem) in said and "2000 x 20 pixels do not go with 64 x 64" in said


def test_a_model_that_edits_needs_what_its_text_encoder_looks_at(
    folders: Callable[[str], Path], images: Path, tmp_path: Path
) -> None:
    wrong = {"cache_text_encoder_outputs": False, "flip_aug": True, "sample_prompts": "a thing"}
    said = refusal(config_of(folders("edit-plus"), images, tmp_path / "out", **wrong))
    for words in (
        "conditioning_data_dir: is missing",
        "sample_prompts: ",
        "cache_text_encoder_outputs: must be on",
        "flip_aug: must be off",
    ):
        assert words in said


def test_control_pictures_of_a_model_that_takes_none_are_refused(
    folders: Callable[[str], Path], tiny_model: Path, images: Path, tmp_path: Path
) -> None:
    controls = make_controls(images, tmp_path / "controls")
    plain = tiny_families.make_qwen_image(tmp_path / "plain")
    said = refusal(config_of(plain, images, tmp_path / "out", conditioning_data_dir=str(controls)))
    assert f"{plain} does not edit pictures" in said
    said = refusal(config_for(tiny_model, images, tmp_path / "out", conditioning_data_dir=str(controls)))
    assert "Stable Diffusion 1.x or 2.x takes no control pictures" in said
    for family, words in (("sd", "takes no control picture"), ("flux", "cannot be read")):
        with pytest.raises(ConfigError, match=words):
            prompts.read(Config(family=family, sample_prompts="a thing --cn nowhere.png"))


def test_a_dataset_file_names_control_pictures_of_each_folder(
    folders: Callable[[str], Path], images: Path, tmp_path: Path
) -> None:
    controls = make_controls(images, tmp_path / "controls")
    datasets = tmp_path / "datasets.toml"
    datasets.write_text(
        f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = {json.dumps(str(images / '1_thing'))}\n"
        f"conditioning_data_dir = {json.dumps(str(controls))}\n"
    )
    config = config_of(folders("kontext"), images, tmp_path / "out", train_data_dir="", dataset_config=str(datasets))
    entries = preflight.examine_inputs(config).scan.entries
    assert all(entry.control and entry.control.bucket == entry.bucket and not entry.mask for entry in entries)
    assert dataclasses.replace(entries[0], control=None).sizes != entries[0].sizes


def test_damaged_control_pictures_are_missing_ones(tmp_path: Path, images: Path) -> None:
    controls = make_controls(images, tmp_path / "controls")
    sorted(controls.iterdir())[0].write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="1 images have no control picture"):
        dataset.scan(Config(train_data_dir=str(images), conditioning_data_dir=str(controls), output_dir=str(tmp_path)))
