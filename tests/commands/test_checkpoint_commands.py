"""The commands on a run's checkpoints: what they do, and what they say where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs.test_manifest import make_checkpoint
from tests.support.damages import rewrite_manifest
from trainer.__main__ import main
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with the checkpoints 1 and 2, in a folder of runs."""
    found = RunFolder(tmp_path / "output" / "fox")
    for step in (1, 2):
        make_checkpoint(found.checkpoints, step)
    run_folder.write_run(found, run_folder.new_run("fox"))
    return found


def test_pin_keeps_a_checkpoint_and_unpin_lets_it_go(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(run.checkpoints / "step-00000001")
    assert main(["pin", path]) == 0
    assert [item.pinned for item in manifest.listing(run.checkpoints)] == [False, True]
    assert main(["list", str(run.path)]) == 0
    assert "pinned" in capsys.readouterr().out.splitlines()[-1]
    assert main(["pin", "--unpin", path]) == 0
    assert not any(item.pinned for item in manifest.listing(run.checkpoints))


def test_a_checkpoint_can_be_pinned_from_inside_its_folder(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.checkpoints / "step-00000001")
    assert main(["pin", "."]) == 0
    assert [item.pinned for item in manifest.listing(run.checkpoints)] == [False, True]


def test_what_was_deleted_while_it_was_pinned_leaves_no_pin(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="deleted"):
        manifest.pin(tmp_path / "step-00000001")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["pin", "export"])
def test_a_run_in_place_of_a_checkpoint_is_refused_with_its_newest(
    command: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(run.path)]) == 3
    assert f"is no checkpoint; the newest one in it is {run.checkpoints / 'step-00000002'}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "list", "pin", "export"])
def test_a_folder_of_runs_is_refused_with_the_runs_in_it(
    command: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(run.path.parent)]) == 3
    assert f"there are runs in it: {run.path}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "list", "pin", "export"])
def test_any_other_folder_is_no_damaged_checkpoint_and_no_new_run(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture.png").touch()
    assert main([command, str(tmp_path)]) == 3
    assert "and there is none in it" in capsys.readouterr().err


def test_a_checkpoint_without_its_manifest_is_damaged(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.checkpoints / "step-00000001"
    (folder / "manifest.json").unlink()
    assert main(["verify", str(folder)]) == 1
    assert "DAMAGED" in capsys.readouterr().out


def test_a_training_says_at_its_end_how_it_ended_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "wrong.toml"
    preset.write_text("network_dim = 0\nlearning_rat = 1\n")
    assert main(["train", "--config", str(preset), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["version"], told["ended"], told["exit_code"]) == (1, "refused", 3)
    assert [reason.split()[0] for reason in told["reasons"]]


def test_a_checkpoint_of_a_newer_program_is_not_called_damaged(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite_manifest(run.checkpoints / "step-00000002", version=2)
    assert main(["verify", str(run.path)]) == 1
    told = capsys.readouterr().out
    assert "TOO NEW: it is of version 2" in told and "update it" in told and "DAMAGED" not in told
