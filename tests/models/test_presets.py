"""Every preset of a transformer is right by itself and begins a training, tried on the tiny model of its family."""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import real_shapes, tiny_families
from tests.support.runs_at_tiny_size import config_for
from trainer.checkpoints import preflight
from trainer.checkpoints.memory_size import Estimator
from trainer.models import base_model, distillation, families
from trainer.models.families.facts import FLOW
from trainer.options.config import Config

PRESETS = [
    path
    for path in sorted((Path(__file__).parents[2] / "presets").glob("*.toml"))
    if any(f'family = "{name}"' in path.read_text() for name, facts in families.TABLE.items() if FLOW in facts.traits)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_begins_a_training(
    preset: Path, folders: dict[str, Path], tiny_images: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    edits = "-edit-" in preset.stem
    arguments = ["--train_data_dir", str(tiny_images)]
    if edits:
        control = next(tiny_images.rglob("*.png"))
        prompts = tomllib.loads(preset.read_text())["samples"]["sample_prompts"].replace("before/1.jpg", str(control))
        arguments += ["--conditioning_data_dir", str(control.parent), "--sample_prompts", prompts]
    config, notices = preflight.read_options(preset, arguments)
    assert notices == []
    variant = "flux2 dev" if "flux2-dev" in preset.stem else config.family
    make = tiny_families.FAMILIES[variant].make
    if edits and config.facts.edits:
        variant, make = "qwen_image edit", tiny_families.make_qwen_edit
    if variant not in folders:
        folders[variant] = make(tmp_path_factory.mktemp(config.family))
    looked = preflight.examine(
        config.replace(pretrained_model_name_or_path=str(folders[variant]), output_dir=str(tmp_path))
    )
    assert looked.refusals == () and looked.inputs
    settled = looked.inputs.config
    assert settled.mixed_precision == "bf16" and settled.cache_text_encoder_outputs
    assert base_model.HUB_ID.fullmatch(config.pretrained_model_name_or_path)


ANNOUNCED = {
    path: int(match[1])
    for path in sorted((Path(__file__).parents[2] / "presets").glob("*.toml"))
    if (match := re.search(r"-(\d+)gb$", path.stem)) and not path.stem.startswith("sd21")  # almost as sd15
}


@pytest.fixture(scope="module")
def estimators(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Estimator]:
    folder = tmp_path_factory.mktemp("headers")
    return functools.cache(lambda model: Estimator(real_shapes.write(model, folder / model)))


@pytest.mark.parametrize("preset", ANNOUNCED, ids=lambda path: path.stem)
def test_a_preset_fits_the_memory_that_its_name_says(preset: Path, estimators: Callable[[str], Estimator]) -> None:
    model = real_shapes.of_preset(preset.stem)
    config, _ = preflight.read_options(preset, [], to_train=False)
    assert config.family in (real_shapes.MODELS[model][0], families.AUTO)
    estimator = estimators(model)
    needed = estimator.of(base_model.with_family(config, real_shapes.MODELS[model][0])).peak
    assert needed <= ANNOUNCED[preset] * 2**30


def test_every_model_has_presets_for_the_usual_cards_that_are_large_enough() -> None:
    """24 GB are enough for all that are tried at their real shapes but FLUX.2 dev."""
    smallest: dict[str, int] = {}
    for path, size in ANNOUNCED.items():
        model = real_shapes.of_preset(path.stem)
        smallest[model] = min(size, smallest.get(model, size))
    assert smallest.keys() == real_shapes.MODELS.keys()
    assert {model for model, size in smallest.items() if size > 24} == {"flux2-dev", "ernie"}
    assert {model for model, size in smallest.items() if size <= 8} == {"sd15", "sdxl", "anima", "lumina2"}


def test_every_family_has_a_preset() -> None:
    named = {line for path in PRESETS for line in path.read_text().splitlines() if line.startswith("family")}
    flowing = {f'family = "{name}"' for name, facts in families.TABLE.items() if FLOW in facts.traits}
    assert named == flowing


@pytest.mark.parametrize(
    ("variant", "name", "options", "words"),
    [
        ("z_image", "Z-Image-Turbo", {}, "The base model Z-Image-Turbo is distilled for few steps"),
        ("z_image", "Z-Image-De-Turbo", {}, ""),
        ("flux", "FLUX.1-dev", {}, ""),
        ("flux", "FLUX.1-dev", {"guidance_scale": 3.5}, "guidance_scale is 3.5: a guidance-distilled model"),
        ("flux", "FLUX.1-schnell", {}, "train FLUX.1 dev, and use the LoRA with this one"),
    ],
)
def test_a_distilled_model_is_named_with_what_to_do(
    variant: str, name: str, options: dict[str, Any], words: str, tiny_images: Path, tmp_path: Path
) -> None:
    folder = tiny_families.FAMILIES[variant].make(tmp_path / name)
    looked = preflight.examine(config_for(folder, tiny_images, tmp_path / "out", **options))
    lines = [line for line in looked.lines() if line.startswith(("The base model", "guidance_scale"))]
    assert looked.refusals == () and len(lines) == bool(words) and all(words in line for line in lines)


def test_a_models_own_word_that_it_is_distilled_counts(tmp_path: Path) -> None:
    for word in (True, False):
        (tmp_path / "model_index.json").write_text(json.dumps({"is_distilled": word}))
        assert distillation.is_distilled(Config(family="krea2"), tmp_path) is word
