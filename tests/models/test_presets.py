"""Every preset of a transformer is right by itself and begins a training, tried on the tiny model of its family."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_families
from tests.support.runs_at_tiny_size import config_for
from trainer.checkpoints import preflight
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
