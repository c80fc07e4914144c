"""One process works on a run, and any number may look at it meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.damages import content_of
from tests.support.forked_trainer import Server, Trainer
from tests.support.runs_at_tiny_size import config_for, events_of
from tests.support.runs_at_tiny_size import run as train
from trainer import files
from trainer.__main__ import main
from trainer.checkpoints import choosing
from trainer.options.config import Config
from trainer.runs import manifest, run_folder
from trainer.runs.events import read_events
from trainer.runs.run_folder import RunFolder, RunInUse

REFUSED = 3


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    return config_for(tiny_model, tiny_images, tmp_path, max_train_steps=100_000, save_every_n_steps=0)


def at_work(trainers: Server, config: Config) -> Trainer:
    """A trainer that is past its first step and will not end by itself."""
    trainer = trainers.start(config)
    while not events_of(config, "step"):
        assert run_folder.process_start(trainer.pid), trainer.printed
        time.sleep(0.02)
    return trainer


# --- one that trains -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"overwrite_run": True}, {"resume_from_checkpoint": "latest"}])
def test_a_second_trainer_of_the_run_is_refused_by_the_firsts_process_number_and_disturbs_nothing(
    options: dict[str, Any], config: Config, trainers: Server
) -> None:
    first = at_work(trainers, config)
    before = RunFolder(config.run_dir).run_file.read_bytes()
    second = trainers.start(config.replace(**options))
    assert second.wait() == REFUSED
    assert f"is in use by process {first.pid} on " in second.printed
    assert RunFolder(config.run_dir).run_file.read_bytes() == before
    assert run_folder.status(RunFolder(config.run_dir)) == "running"
    first.kill()
    first.wait()


def test_the_lock_of_a_killed_trainer_is_taken_over(config: Config, trainers: Server) -> None:
    first = at_work(trainers, config)
    first.kill()
    first.wait()
    assert json.loads(RunFolder(config.run_dir).lock_file.read_text())["pid"] == first.pid
    assert run_folder.status(RunFolder(config.run_dir)) == "interrupted"
    assert trainers.train(config.replace(max_train_steps=2)) == 0


def test_of_two_trainers_started_together_one_trains_and_one_is_refused(config: Config, trainers: Server) -> None:
    config = config.replace(max_train_steps=3)
    both = [trainers.start(config) for _ in range(2)]
    assert sorted(trainer.wait() for trainer in both) == [0, REFUSED]
    assert [event["global_step"] for event in events_of(config, "step")] == [1, 2, 3]


# --- the lock ------------------------------------------------------------------------------------------------------


NOBODY: dict[str, Any] = {
    "nothing": "",
    "half a line": "{",
    "a list": "[]",
    "no process": {},
    "no number": {"pid": None},
    "a text for a number": {"pid": "1"},
    "a process that is gone": {"pid": 2**22 + 1},
    "another process with the number now": {"pid": os.getppid() if os.name == "nt" else 1},  # begun at another time
    "another start of the machine": {"boot_id": "another"},
}


@pytest.mark.parametrize("kind", NOBODY)
def test_a_lock_that_no_live_process_holds_is_taken_over(kind: str, tmp_path: Path) -> None:
    run, holder = RunFolder(tmp_path), NOBODY[kind]
    run.lock_file.write_text(holder if isinstance(holder, str) else json.dumps({**run_folder.this_process(), **holder}))
    with run_folder.locked(run):
        assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()
    assert run.lock_file.read_text() == ""


def test_a_lock_file_that_names_a_live_process_is_respected_where_the_system_cannot_lock(tmp_path: Path) -> None:
    run, parent = RunFolder(tmp_path), os.getppid()
    holder = {**run_folder.this_process(), "pid": parent, "process_start": run_folder.process_start(parent)}
    run.lock_file.write_text(json.dumps(holder))
    with pytest.raises(RunInUse, match=f"process {parent} on "), run_folder.locked(run):
        pass
    assert json.loads(run.lock_file.read_text()) == holder


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(ZeroDivisionError), run_folder.locked(run):
        raise ZeroDivisionError
    with run_folder.locked(run):
        pass


# --- those that look -----------------------------------------------------------------------------------------------


def test_readers_never_fail_and_see_no_damage_while_a_trainer_saves_and_prunes(
    config: Config, trainers: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config.replace(max_train_steps=60, save_every_n_steps=1, keep_last_n_checkpoints=2)
    run, latest = RunFolder(config.run_dir), config.replace(resume_from_checkpoint="latest")
    trainer = trainers.start(config)
    newest = offset = 0
    while run_folder.process_start(trainer.pid):
        for thorough in (False, True):
            found = manifest.listing(run.checkpoints, thorough=thorough)
            assert [item.problem for item in found if item.problem] == []
            assert not newest or found
            newest = max([newest, *(item.step for item in found)])
        if newest:
            assert choosing.choose(latest).rejected == ()
            assert main(["verify", str(run.path)]) == 0
            assert main(["verify", "--sums", str(run.path)]) == 0
            assert main(["list", "--json", str(run.path)]) == 0
            assert run_folder.status(run) in ("running", "finished", "interrupted")
        events, offset = read_events(run.events_file, offset)
        assert all(event["global_step"] <= 60 for event in events)
    assert trainer.wait() == 0
    assert "DAMAGED" not in capsys.readouterr().out
    assert [item.step for item in manifest.listing(run.checkpoints, thorough=True)] == [60, 59]


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with three checkpoints."""
    config = config_for(tiny_model, tiny_images, tmp_path_factory.mktemp("saved"), max_train_steps=3)
    train(config)
    return config


@pytest.mark.parametrize("reads", range(0, 22, 3))
def test_a_checkpoint_that_is_deleted_while_it_is_read_is_left_out(
    reads: int, saved: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is deleted before the file with this number is read."""
    digest_of = files.sha256_file

    def looking(name: str) -> Config:
        """A copy of the run in which the checkpoint goes whose file is read then."""
        shutil.copytree(saved.run_dir, tmp_path / name / "run")
        counter = itertools.count()

        def delete_and_read(path: Path) -> str:
            if next(counter) == reads:
                manifest.delete(path.parent)
            return digest_of(path)

        monkeypatch.setattr(files, "sha256_file", delete_and_read)
        return saved.replace(output_dir=str(tmp_path / name), resume_from_checkpoint="latest")

    found = manifest.listing(RunFolder(looking("listed").run_dir).checkpoints, thorough=True)
    assert [item.problem for item in found] == [""] * (2 if reads < 18 else 3)
    assert main(["verify", str(looking("verified").run_dir)]) == 0
    assert "DAMAGED" not in capsys.readouterr().out
    assert choosing.choose(looking("chosen")).rejected == ()


def test_a_reader_that_sees_the_only_checkpoint_replaced_by_a_newer_one_finds_the_newer(
    saved: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, read = RunFolder(saved.run_dir).checkpoints, manifest.read

    def looking(name: str) -> Config:
        (tmp_path / name).mkdir()
        shutil.copytree(checkpoints / "step-00000001", tmp_path / name / "run" / "checkpoints" / "step-00000001")

        def replace_and_read(folder: Path) -> manifest.Manifest:
            if folder.name == "step-00000001" and folder.is_dir():
                shutil.copytree(checkpoints / "step-00000002", folder.with_name("step-00000002"))
                manifest.delete(folder)
            return read(folder)

        monkeypatch.setattr(manifest, "read", replace_and_read)
        return saved.replace(output_dir=str(tmp_path / name), resume_from_checkpoint="latest")

    for thorough in (False, True):
        run = RunFolder(looking(f"listed {thorough}").run_dir)
        assert [item.step for item in manifest.listing(run.checkpoints, thorough=thorough)] == [2]
    assert choosing.choose(looking("chosen")).manifest.step == 2


def test_looking_changes_nothing(saved: Config, tmp_path: Path) -> None:
    shutil.copytree(saved.run_dir, tmp_path / "run")
    before = content_of(tmp_path)
    run = RunFolder(tmp_path / "run")
    manifest.listing(run.checkpoints, thorough=True)
    main(["verify", str(run.path)])
    main(["list", str(run.path)])
    choosing.choose(saved.replace(output_dir=str(tmp_path), resume_from_checkpoint="latest"))
    assert content_of(tmp_path) == before
