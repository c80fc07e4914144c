"""Starting and stopping: what is refused, what the trainer is given, what happens to runs when the server leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gui.places import CODE, Places
from gui.server import runner
from tests.gui.test_gui_fake_run import make_run, settings
from tests.support import posix
from trainer.options import checks
from trainer.runs import launch, run_folder
from trainer.runs.launch import Started
from trainer.runs.run_folder import RunFolder

# Stands in for a trainer, which would take long to load: leaves when asked to, as if it had saved.
OBEDIENT = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
while not (run / "control" / "stop").exists():
    time.sleep(0.05)
record = json.loads((run / "run.json").read_text())
(run / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path, tmp_path / "state" / "rekindle")


@pytest.fixture
def running(places: Places) -> Iterator[RunFolder]:
    """A run whose process lives and obeys."""
    run = make_run(places.home / "output", "busy")
    process = subprocess.Popen([sys.executable, "-c", OBEDIENT, str(run.path)])
    here = run_folder.this_process() | {"pid": process.pid, "process_start": run_folder.process_start(process.pid)}
    record = run_folder.read_run(run)
    assert record is not None
    run_folder.write_run(run, record | here | {"status": "running"})
    yield run
    process.kill()
    process.wait()


def test_a_running_run_is_not_started_again(places: Places, running: RunFolder) -> None:
    with pytest.raises(runner.StartRefused, match="busy is already running"):
        runner.start(settings(running.path.parent, "busy"), places)


def test_a_starting_run_is_not_started_again(places: Places) -> None:
    run = RunFolder(places.home / "output" / "new")
    here = run_folder.this_process()
    launch.write_started(run, Started(**here, time=time.time(), console_offset=0))
    with pytest.raises(runner.StartRefused, match=f"already starting; its trainer is process {os.getpid()}"):
        runner.start(settings(run.path.parent, "new"), places)


def test_the_trainer_is_started_with_a_list_of_arguments_and_a_complete_config(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, alone = "'REKINDLE_PASSWORD' in os.environ", "os.getsid(0) == os.getpid()"
    report = f"import os, sys; print({secret}, os.getcwd(), sys.argv[1:], {alone})"
    monkeypatch.setenv("REKINDLE_PASSWORD", "secret")
    monkeypatch.setattr(runner, "command", lambda file: [sys.executable, "-c", report, str(file)])
    of = settings(places.home / "output", "a name; rm -rf $HOME", learning_rate=3e-7)
    run = runner.start(of, places)
    wait_for_end(run)
    request = run.path.parent / ".rekindle" / "a name; rm -rf $HOME.toml"
    assert checks.read_config(request) == of
    told = run.console_file.read_text().splitlines()[-1]
    assert told == f"False {places.home} {[str(request)]} True"


def test_the_line_for_a_shell_starts_the_same_training(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    report = "import sys, trainer; print(sys.argv[1:])"
    monkeypatch.setattr(runner, "command", lambda file: [sys.executable, "-c", report, str(file)])
    of = settings(places.home / "out put", "it's a name; $HOME", learning_rate=3e-7)
    line = runner.shell_line(of, places)
    told = subprocess.run(line, shell=True, cwd="/", capture_output=True, text=True, check=True).stdout
    request = places.home / "out put" / ".rekindle" / "it's a name; $HOME.toml"
    assert told == f"{[str(request)]}\n"
    assert checks.read_config(request) == of
    assert not (places.home / "out put" / "it's a name; $HOME").exists()


def test_killing_ends_the_process_and_those_it_started_at_once(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    monkeypatch.setattr(runner, "command", lambda file: [sys.executable, "-c", stubborn])
    run = runner.start(settings(places.home / "output"), places)
    below = ""
    while not below.isdigit():
        below = run.console_file.read_text().splitlines()[-1]
        time.sleep(0.05)
    assert runner.kill(run)
    assert wait_for_end(run).exit_code == (signal.SIGTERM if posix.WINDOWS else -9)
    assert run_folder.process_start(int(below)) is None
    assert not runner.kill(run)


def test_a_run_whose_record_names_a_process_of_another_boot_is_not_killed(places: Places) -> None:
    run = make_run(places.home / "output", status="running")
    here = run_folder.this_process()
    record = run_folder.read_run(run)
    assert record is not None
    run_folder.write_run(run, record | here | {"boot_id": "an earlier one"})
    assert not runner.kill(run)


def test_the_last_words_and_the_exit_code_of_a_trainer_that_leaves_at_once_are_kept(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = "import sys; print('Refused: no'); sys.exit(3)"
    monkeypatch.setattr(runner, "command", lambda file: [sys.executable, "-c", refuse])
    run = runner.start(settings(places.home / "output"), places)
    assert wait_for_end(run).exit_code == 3
    assert run.console_file.read_text().endswith("Refused: no\n")


def test_the_arguments_are_those_of_the_command_line() -> None:
    assert runner.command("x.toml") == [sys.executable, "-m", "trainer", "train", "--config", "x.toml"]


def wait_for_end(run: RunFolder) -> Started:
    for _ in range(600):
        begun = launch.read_started(run)
        assert begun is not None
        if begun.exit_code is not None:
            return begun
        time.sleep(0.05)
    raise AssertionError(f"the process did not end: {begun}")


# --- when the server leaves ---


def serve_and_leave(places: Places, **environment: str) -> str:
    """Start the server, end it with SIGTERM and return what it wrote to standard error."""
    process = subprocess.Popen(
        [sys.executable, str(CODE / "app.py"), "--headless", "--server_port", "0"],
        env=os.environ | {"REKINDLE_HOME": str(places.home), "XDG_STATE_HOME": str(places.state.parent)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Rekindle: ")
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0
        return told
    finally:
        process.kill()


def test_closing_the_server_leaves_a_run_alone(places: Places, running: RunFolder) -> None:
    serve_and_leave(places)
    assert run_folder.status(running) == "running"
    assert run_folder.take_requests(running) == set()


def test_in_a_container_closing_the_server_has_runs_saved_first(places: Places, running: RunFolder) -> None:
    told = serve_and_leave(places, REKINDLE_STOP_RUNS_ON_EXIT="1")
    assert run_folder.status(running) == "stopped"
    assert "was asked to save and stop" in told
    assert "is still running" not in told
