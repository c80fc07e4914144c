"""What Windows needs instead of what POSIX has; all of it runs everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from trainer.runs import branches, run_folder, signals
from trainer.runs.run_folder import RunFolder, RunInUse

TRAINER = """
import sys, time
from trainer.runs import signals
signals.BY_FILE = True
with signals.StopSignals() as stop:
    print("ready", flush=True)
    if sys.argv[1] == "waits":
        with stop.at_once():
            time.sleep(600)
    while not stop.requested:
        time.sleep(0.01)
    sys.exit(4)
"""


@pytest.mark.parametrize(("kind", "code"), [("steps", 4), ("waits", signals.EXIT_NOW)])
def test_a_process_that_hears_no_sigterm_is_stopped_by_a_file(
    kind: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "BY_FILE", True)
    command = [sys.executable, "-c", TRAINER, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        start = run_folder.process_start(process.pid)
        signals.ask_to_stop({**run_folder.this_process(), "pid": process.pid, "process_start": start})
        assert process.wait(60) == code


def test_no_process_but_the_one_meant_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(signals, "BY_FILE", True)
    monkeypatch.setattr(Path, "touch", lambda path: asked.append(path))
    here = run_folder.this_process()
    for other in ({"process_start": "another"}, {"boot_id": "another"}, {"pid": None}):
        signals.ask_to_stop({**here, **other})
    assert not asked


def test_without_proc_a_process_is_known_by_its_number_and_the_date_of_its_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "HAS_PROC", False)
        here = run_folder.this_process()
        assert here["process_start"] == str(psutil.Process().create_time())
        assert run_folder.is_alive(here)
        assert not run_folder.is_alive({**here, "process_start": "1.5"})
        assert not run_folder.is_alive({**here, "host": "another", "boot_id": "another"})
        with subprocess.Popen([sys.executable, "-c", ""]) as gone:
            while run_folder.process_start(gone.pid) is not None:  # then it is a zombie
                time.sleep(0.01)


def test_a_run_folder_that_cannot_be_renamed_is_emptied_and_its_lock_stays(tmp_path: Path) -> None:
    run, aside = RunFolder(tmp_path / "cat"), tmp_path / "cat-replaced"
    run.checkpoints.mkdir(parents=True)
    for path in (run.run_file, run.events_file, run.console_file, run.checkpoints / "one"):
        path.write_text(path.name)
    with run_folder.locked(run):
        branches.move_contents(run.path, aside)
        with pytest.raises(RunInUse), run_folder.locked(run):
            pass
    assert sorted(os.listdir(run.path)) == [".held", ".lock", "console.log"]  # what a process may have open
    assert sorted(os.listdir(aside)) == ["checkpoints", "console.log", "events.jsonl", "run.json"]
    assert (aside / "checkpoints" / "one").read_text() == "one"


def test_who_holds_a_run_can_be_read_while_it_is_held(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run_folder.locked(run):
        assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()
