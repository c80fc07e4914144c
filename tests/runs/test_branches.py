"""What came after the step that a run goes back to is kept, also where only model files tell of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.test_manifest import make_checkpoint
from trainer.options.config import Config
from trainer.runs import branches, manifest
from trainer.runs.run_folder import RunFolder

FILES = ("fox-step00000002", "fox-step00000004", "fox-000001", "fox-000002", "fox", "fox-new", "foxes")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run with a checkpoint of step 2, the end of epoch 1, and model files beyond it."""
    found = Config(output_dir=str(tmp_path), output_name="fox")
    make_checkpoint(RunFolder(found.run_dir).checkpoints, 2)
    for name in FILES:
        (tmp_path / f"{name}.safetensors").write_text(name)
    return found


def moved(config: Config, *, differs: bool, passed_over: bool = False) -> list[str]:
    """The model files that going on at step 2 moves aside; none may be lost."""
    run = RunFolder(config.run_dir)
    path = run.checkpoints / "step-00000002"
    branches.go_on_from(config, run, manifest.verify(path), path, 1, 3, differs=differs, passed_over=passed_over)
    aside = sorted(path.stem for path in (run.abandoned / "before-session-003").glob("*.safetensors"))
    left = [path.stem for path in Path(config.output_dir).glob("*.safetensors")]
    assert sorted([*aside, *left]) == sorted(FILES)
    return aside


def test_a_run_that_goes_on_exactly_makes_the_same_files_again(config: Config) -> None:
    assert moved(config, differs=False) == []


def test_a_run_that_goes_on_otherwise_keeps_the_model_files_of_later_steps(config: Config) -> None:
    assert moved(config, differs=True) == ["fox-000002", "fox-step00000004"]


def test_the_result_of_a_later_step_whose_checkpoint_is_damaged_is_kept(config: Config) -> None:
    assert moved(config, differs=True, passed_over=True) == ["fox", "fox-000002", "fox-step00000004"]


def test_going_back_behind_a_checkpoint_keeps_all_that_came_after(config: Config) -> None:
    make_checkpoint(RunFolder(config.run_dir).checkpoints, 4)
    assert moved(config, differs=False) == ["fox", "fox-000002", "fox-step00000004"]
