"""Evaluations of real checkpoints and model files at tiny size, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.support import judges
from tests.support.runs_at_tiny_size import config_for, events_of, run
from trainer.__main__ import main
from trainer.judging import evaluation, subjects
from trainer.judging.subjects import Painter
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder

SAMPLES = 5


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of four steps with two checkpoints."""
    output = tmp_path_factory.mktemp("trained")
    samples = {"sample_prompts": "a fox --s 2 --d 7", "sample_every_n_steps": 4}
    config = config_for(
        tiny_model, tiny_images, output, max_train_steps=4, save_every_n_steps=2, learning_rate=0.05, **samples
    )
    run(config)
    return config


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("networks")
    inception = judges.make_inception(folder / "inception.safetensors")
    clip, dino = judges.make_clip(folder / "clip"), judges.make_dino(folder / "dino")
    return ["--inception", str(inception), "--clip", str(clip), "--dino", str(dino)]


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    options = ["--samples", str(SAMPLES), "--steps", "2", "--batch-size", "2", "--json"]
    assert main(["evaluate", *options, *arguments]) == 0
    results: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["results"]
    return results


def test_every_figure_of_every_checkpoint_is_measured_recorded_and_told(
    trained: Config, networks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate(capsys, str(trained.run_dir), *networks)
    assert [result["step"] for result in results] == [2, 4]
    for result in results:
        assert set(result["figures"]) == set(evaluation.METRICS) and result["skipped"] == {}
        assert len(result["nearest"]) == SAMPLES and result["nearest"][0]["training"].startswith("2_thing/")
        assert any("fid: 5 generated and 7 training pictures are few" in line for line in result["warnings"])
        assert len(result["weights"]["inception"]["sha256"]) == 64
    assert results[0]["figures"]["fid"] != results[1]["figures"]["fid"]
    told = events_of(trained, "evaluation")
    assert [(event["global_step"], event["figures"]) for event in told] == [
        (result["step"], result["figures"]) for result in results
    ]
    kept = json.loads((trained.run_dir / told[0]["path"]).read_text())
    assert kept["figures"] == results[0]["figures"]


def test_an_evaluation_that_was_cut_short_makes_what_is_missing_and_gives_the_same(
    trained: Config, networks: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(trained.run_dir / "checkpoints" / "step-00000004")
    (whole,) = evaluate(capsys, path, *networks[2:])
    folder = next((trained.run_dir / "evaluation" / "step-00000004").glob("pictures-*"))
    pictures = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len(pictures) == SAMPLES
    gone = sorted(pictures)[:2]
    for name in gone:
        (folder / name).unlink()
    (folder / f".tmp-{gone[0]}-abcdefgh").write_bytes(b"half a picture")
    painted: list[int] = []
    paint = Painter.paint

    def counted(painter: Painter, subject: subjects.Subject, prompts: list[Prompt]) -> Any:
        painted.append(len(prompts))
        return paint(painter, subject, prompts)

    monkeypatch.setattr(Painter, "paint", counted)
    (again,) = evaluate(capsys, path, *networks[2:])
    assert sum(painted) == 2
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == pictures
    assert again["figures"] == whole["figures"]


def test_a_model_file_has_the_pictures_of_its_checkpoint(trained: Config, capsys: pytest.CaptureFixture[str]) -> None:
    exact = trained.replace(output_name="exact", save_precision="float", max_train_steps=2)
    run(exact)
    evaluate(capsys, str(exact.run_dir / "checkpoints" / "step-00000002"))
    evaluate(capsys, str(Path(exact.output_dir) / "exact.safetensors"))
    folders = sorted((exact.run_dir / "evaluation").glob("*/pictures-*"))
    first, second = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert len(first) == SAMPLES and first == second


def test_without_networks_pictures_are_made_and_each_figure_says_why_it_is_not_there(
    trained: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (result,) = evaluate(capsys, str(trained.run_dir / "checkpoints" / "step-00000002"), "--clip", "/nowhere")
    assert result["figures"] == {} and result["pictures"] == SAMPLES
    assert result["skipped"]["clip"] == "clip: there is no /nowhere"
    assert result["skipped"]["dino"] == "no weights were named for dino"


def test_prompts_of_a_file_are_taken_in_turn_each_with_a_seed_of_its_own() -> None:
    asked = [Prompt("a", "no", 64, 64, 1, 5.0, 3), Prompt("b", "", 64, 64, 2, 7.0, 4)]
    made = evaluation.prompts_of(asked, 5, seed=3)
    assert [(prompt.text, prompt.negative, prompt.steps) for prompt in made] == [
        *[("a", "no", 3), ("b", "", 4)] * 2,
        ("a", "no", 3),
    ]
    assert len({prompt.seed for prompt in made}) == 5
    assert evaluation.prompts_of(asked, 3, seed=3) == made[:3]


def test_paths_that_are_nothing_to_judge_are_all_named(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.png").touch()
    assert main(["evaluate", str(tmp_path), str(tmp_path / "picture.png")]) == 3
    told = capsys.readouterr().err
    assert "is no checkpoint, no run and no model file" in told and "picture.png is not a .safetensors file" in told


def test_the_table_has_a_line_for_each_figure_and_a_column_for_each_subject(
    trained: Config, networks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    paths = [str(trained.run_dir / "checkpoints" / f"step-0000000{step}") for step in (2, 4)]
    options = ["--samples", str(SAMPLES), "--steps", "2", "--batch-size", "2"]
    assert main(["evaluate", *options, *paths, *networks[2:]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step-00000002", "step-00000004"]
    assert [line.split()[0] for line in lines[1:7]] == [
        *("clip_score", "clip_retrieval", "clip_similarity", "dino_similarity", "memorised", "nearest")
    ]


# --- sample images after the training ---


def sample(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """The last thing that the command says."""
    capsys.readouterr()
    assert main(["sample", "--json", *arguments]) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return told


def test_a_sample_made_after_the_training_is_the_one_that_was_made_in_it(
    trained: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(Path(trained.run_dir))
    before = events_of(trained, "sample_saved")
    sources = [str(folder.checkpoints / "step-00000004"), str(folder.path.with_suffix(".safetensors"))]
    pictures = [Path(path) for path in sample(capsys, *sources)["pictures"]]
    assert ImageChops.difference(Image.open(pictures[0]), Image.open(folder.path / before[0]["path"])).getbbox() is None
    told = events_of(trained, "sample_saved")[len(before) :]
    assert [folder.path / event["path"] for event in told] == pictures
    assert [(event["global_step"], event["prompt"], event["seed"]) for event in told] == [(4, "a fox", 7)] * 2
    stamps = [path.stat().st_mtime_ns for path in pictures]
    assert sample(capsys, *sources)["pictures"] == [str(path) for path in pictures]
    assert [path.stat().st_mtime_ns for path in pictures] == stamps  # what is there is not made again


def test_what_cannot_be_sampled_is_refused_with_the_way_out(
    trained: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(Path(trained.run_dir))
    checkpoint = str(folder.checkpoints / "step-00000002")
    assert "no checkpoint, no run and no model file" in sample(capsys, str(tmp_path), code=3)["refusal"]
    assert "--d x: that is not a whole number" in sample(capsys, checkpoint, "--prompts=a fox --d x", code=3)["refusal"]
    record = folder.run_file.read_bytes()
    run_folder.write_run(folder, json.loads(record) | run_folder.this_process() | {"status": "running"})
    try:
        assert "being trained" in sample(capsys, checkpoint, code=3)["refusal"]
        [made] = sample(capsys, checkpoint, "--output", str(tmp_path / "apart"))["pictures"]
        assert Path(made).parent == tmp_path / "apart"
    finally:
        folder.run_file.write_bytes(record)
