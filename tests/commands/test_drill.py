"""The user's own proof, and what a training would be, by the real commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs_at_tiny_size import config_for, run
from trainer.commands import drill
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs.events import EventWriter
from trainer.runs.run_folder import RunFolder


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    return config_for(tiny_model, tiny_images, tmp_path / "output", max_train_steps=100, network_dropout=0.2)


def trainer(command: str, config: Config, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    preset = folder / "preset.toml"
    preset.write_text(to_toml(config))
    arguments = [sys.executable, "-m", "trainer", command, "--config", str(preset), *more]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)


def test_a_drill_kills_resumes_compares_and_leaves_nothing(config: Config, tmp_path: Path) -> None:
    done = trainer("drill", config, tmp_path, "--steps", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED: the resumed run is bit-equal" in done.stdout
    assert "resumed at step 3 (bit-exact)" in done.stdout
    assert [path.name for path in Path(config.output_dir).iterdir() if "drill" in path.name] == []


def test_what_a_preset_says_of_resumes_and_early_ends_does_not_change_its_drill(config: Config, tmp_path: Path) -> None:
    options = {"resume_lr_policy": "restart", "resume_lr_scale": 0.5, "resume_warmup_steps": 3}
    adapted = config.replace(**options, resume_allow=("seed",), validation_split=0.5, early_stopping_patience=1)
    rehearsal = drill.rehearsal_of(adapted, tmp_path, 8)
    assert rehearsal.replace(validation_split=0.0) == drill.rehearsal_of(config, tmp_path, 8)


def test_a_drill_tells_programs_its_verdict_and_figures(config: Config, tmp_path: Path) -> None:
    done = trainer("drill", config, tmp_path, "--steps", "4", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["verdict"]) == (0, "passed")
    assert (told["outcome"]["resumed_at"], told["outcome"]["first_difference"]) == (2, None)
    stages = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(stage["stage"], stage["of"], stage["doing"].split()[0]) for stage in stages] == [
        (1, 3, "Training"), (2, 3, "Training"), (3, 3, "Resuming"),
    ]  # fmt: skip
    refused = trainer("drill", config, tmp_path, "--steps", "3", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["verdict"]) == (3, "refused")


def test_a_drill_of_a_wrong_preset_is_refused(config: Config, tmp_path: Path) -> None:
    done = trainer("drill", config.replace(pretrained_model_name_or_path="/nowhere/model"), tmp_path)
    assert done.returncode == 3
    assert "Refused: pretrained_model_name_or_path: there is no folder or file" in done.stdout


def test_a_drill_names_the_first_step_that_differs(config: Config) -> None:
    short = config.replace(max_train_steps=4, output_name="straight")
    run(short)
    other = short.replace(output_name="interrupted", save_every_n_steps=2)
    run(other)
    run(other.replace(resume_from_checkpoint="2"))
    equal = drill.judge(short, other, 4, 2, 0.0)
    assert equal.equal and equal.resumed_at == 2
    changed = dict(drill.events_of(other)[-3]) | {"global_step": 4, "loss": 0.5}
    changed.pop("time")
    EventWriter(RunFolder(other.run_dir).events_file).write(
        "step", **{k: v for k, v in changed.items() if k != "event"}
    )
    outcome = drill.judge(short, other, 4, 2, 0.0)
    assert outcome.first_difference is not None and outcome.first_difference[0] == 4
    assert outcome.lines()[0].startswith("FAILED: from step 4 on")


def test_a_dry_run_tells_everything_and_changes_nothing(config: Config, tmp_path: Path) -> None:
    done = trainer("train", config, tmp_path, "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0
    assert (told["images"], told["samples"], told["steps_per_epoch"], told["total_steps"]) == (7, 14, 7, 100)
    assert told["refusals"] == [] and told["resume"] is None
    assert not config.run_dir.exists()


def test_a_dry_run_of_a_resume_tells_its_grade_and_every_reason_against_it(config: Config, tmp_path: Path) -> None:
    run(config.replace(max_train_steps=4))
    resumed = config.replace(resume_from_checkpoint="latest", max_train_steps=8)
    told = json.loads(trainer("train", resumed, tmp_path, "--dry-run", "--json").stdout)
    assert told["resume"]["grade"] == "bit-exact" and told["resume"]["step"] == 4
    done = trainer("train", resumed.replace(network_dim=4, seed=1), tmp_path, "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 3 and len(told["refusals"]) == 2
