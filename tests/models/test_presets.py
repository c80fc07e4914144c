"""Every preset of a transformer is right by itself and begins a training, tried on the tiny model of its family."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import tiny_families
from trainer.checkpoints import preflight
from trainer.models import base_model, families
from trainer.models.families.facts import FLOW

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
    config, notices = preflight.read_options(preset, ["--train_data_dir", str(tiny_images)])
    assert notices == []
    variant = "flux2 dev" if "flux2-dev" in preset.stem else config.family
    if variant not in folders:
        folders[variant] = tiny_families.FAMILIES[variant].make(tmp_path_factory.mktemp(config.family))
    looked = preflight.look(
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
