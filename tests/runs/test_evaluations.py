"""The best checkpoint by a figure of its evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoints import retention
from trainer.options.config import Config
from trainer.runs import evaluations
from trainer.runs.manifest import Found, Manifest
from trainer.runs.run_folder import RunFolder


def found(step: int) -> Found:
    made = Manifest(step, "run", 0.0, 0, None, {}, digest=f"digest {step}")
    return Found(Path(f"step-{step:08d}"), step, made, "", pinned=False)


def judged(run: RunFolder, step: int, time: float, pictures: int = 10, **figures: float) -> None:
    folder = run.path / "evaluation" / f"{step}"
    folder.mkdir(parents=True)
    result: dict[str, Any] = {"digest": f"digest {step}", "time": time, "pictures": pictures, "real": 5, "weights": {}}
    (folder / "result.json").write_text(json.dumps({**result, "figures": figures}))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    judged(run, 1, 1.0, kid=0.3, clip_score=20.0)
    judged(run, 2, 2.0, kid=0.1, clip_score=30.0)
    judged(run, 3, 3.0, kid=0.2, clip_score=10.0)
    (run.path / "evaluation/2/more").mkdir()
    (run.path / "evaluation/3/result.json.torn").write_text("{")
    return run


@pytest.mark.parametrize(("by", "best"), [("kid", 2), ("clip_score", 2), ("fid", None), ("validation_loss", None)])
def test_the_best_has_the_lowest_or_the_highest_figure(run: RunFolder, by: str, best: int | None) -> None:
    assert evaluations.best([found(step) for step in (1, 2, 3, 4)], by, run) == best


def test_figures_that_were_measured_otherwise_do_not_count(run: RunFolder) -> None:
    judged(run, 4, 4.0, pictures=500, kid=0.15)
    assert evaluations.best([found(step) for step in (1, 2, 3, 4)], "kid", run) == 4
    assert evaluations.best([found(step) for step in (1, 3)], "kid", run) == 3  # 2 and 4 are no longer there


def test_the_best_by_a_figure_is_kept_when_newer_ones_are_written(run: RunFolder) -> None:
    config = Config(keep_last_n_checkpoints=1, best_checkpoint_by="kid")
    kept = [found(step) for step in (4, 3, 2, 1)]
    assert retention.steps_to_delete(run, kept, config, None) == [3, 1]
    assert retention.steps_to_delete(run, kept, config.replace(keep_best_checkpoint=False), None) == [3, 2, 1]
