"""What starts the queue's trainings: order, devices, what becomes of them; and the command line.

The trainers here are small programs that write what a trainer writes; real ones are in tests/faults/test_queue_kills.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from trainer.__main__ import main
from trainer.checkpoints import remaining
from trainer.commands import queue_runner
from trainer.commands.queue_runner import QueueRunner
from trainer.options.config import Config
from trainer.runs import launch, queue, run_folder
from trainer.runs.queue import Entry, Queue
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopSignals

TRAINER = """
import json, os, pathlib, sys, time, tomllib
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder
options = {}
for section in tomllib.loads(pathlib.Path(sys.argv[1]).read_text()).values():
    options |= section
run = RunFolder(pathlib.Path(options["output_dir"]) / options["output_name"])
does = json.loads(options["training_comment"])
starts = run.path / "starts"
count = int(starts.read_text()) + 1 if starts.exists() else 1
starts.write_text(str(count))
(run.path / "devices").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
if does[0] == "refuse":
    print("Refused: no images"); sys.exit(3)
record = run_folder.new_run(run.path.name) | {"status": "running"} | run_folder.this_process()
run_folder.write_run(run, record)
if does[0] == "die" and count <= does[1]:
    os.kill(os.getpid(), 9)
if does[0] == "wait":
    while not (run.control / "stop").exists() and not (run.path / "end").exists():
        time.sleep(0.02)
    if (run.control / "stop").exists():
        run_folder.write_run(run, record | {"status": "stopped"}); sys.exit(4)
if does[0] == "fail":
    run_folder.write_run(run, record | {"status": "failed"}); print("Failed: out of luck."); sys.exit(1)
run_folder.write_run(run, record | {"status": "finished"})
"""


@dataclass
class Work:
    """A queue in a folder, and what works on it, step by step in this process."""

    home: Path
    devices: list[str] = field(default_factory=lambda: [""])

    @property
    def folder(self) -> Path:
        return self.home / "queue"

    def add(self, name: str, *does: Any, **options: Any) -> Entry:
        config = Config(
            output_dir=str(self.home / "output"), output_name=name, training_comment=json.dumps(does or ["train"])
        )
        return queue.add(self.folder, config, self.home, **options)

    def runner(self) -> QueueRunner:
        return QueueRunner(self.folder, self.devices, StopSignals())

    def look(self, worker: QueueRunner) -> None:
        """What a runner does every half a second."""
        with queue.changing(self.folder) as now:
            for entry in now.among("running"):
                worker._settle(now, entry)
            worker._begin(now)

    def until(self, worker: QueueRunner, true: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        deadline = time.monotonic() + 120
        while not true(self.states()):
            assert time.monotonic() < deadline, self.states()
            self.look(worker)
            time.sleep(0.05)
        return self.states()

    def states(self) -> dict[str, str]:
        return {entry.name: entry.state for entry in queue.read(self.folder).entries}

    def run_of(self, name: str) -> RunFolder:
        return RunFolder(self.home / "output" / name)

    def end(self, name: str) -> None:
        (self.run_of(name).path / "end").touch()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    script = tmp_path / "small.py"
    script.write_text(TRAINER)
    monkeypatch.setattr(launch, "command", lambda file: [sys.executable, str(script), str(file), "train"])
    made = Work(tmp_path)
    yield made
    for entry in queue.read(made.folder).among("running"):
        if entry.process:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(entry.process["pid"]).kill()


def test_each_runs_once_in_order_and_what_fails_does_not_stop_the_rest(work: Work) -> None:
    for name, does in (("good", "train"), ("bad", "fail"), ("wrong", "refuse"), ("last", "train")):
        work.add(name, does)
    QueueRunner(work.folder, [""], StopSignals()).run()
    assert work.states() == {"good": "finished", "bad": "failed", "wrong": "refused", "last": "finished"}
    said = {entry.name: entry.said for entry in queue.read(work.folder).entries}
    assert (said["bad"], said["wrong"]) == ("out of luck.", "no images")
    starts = [entry.started for entry in queue.read(work.folder).entries]
    assert starts == sorted(starts, key=lambda when: when or 0.0)


def test_a_training_whose_process_dies_is_started_again_until_it_has_died_too_often(work: Work) -> None:
    work.add("twice", "die", 2)
    work.add("always", "die", 99)
    QueueRunner(work.folder, [""], StopSignals(), most_deaths=3).run()
    assert work.states() == {"twice": "finished", "always": "failed"}
    assert "died 3 times in a row without saving" in queue.read(work.folder).entry(2).said


def test_each_gpu_has_one_training_and_one_may_have_several(work: Work) -> None:
    work.devices = ["0", "1"]
    for name in ("a", "b"):
        work.add(name, "wait")
    work.add("c", "wait", devices=["1"])
    worker = work.runner()
    work.until(worker, lambda states: list(states.values()) == ["running", "running", "waiting"])
    work.end("a")  # which frees device 0, and not the one that c waits for
    work.until(worker, lambda states: states["a"] == "finished")
    work.look(worker)
    assert work.states()["c"] == "waiting"
    work.end("b")
    work.until(worker, lambda states: states["c"] == "running")
    assert queue.read(work.folder).entry(3).on == ("1",)
    work.end("c")
    work.until(worker, lambda states: states["c"] == "finished")
    assert [(work.run_of(name).path / "devices").read_text() for name in "abc"] == ["0", "1", "1"]


def test_a_training_of_two_gpus_is_not_overtaken_for_ever(work: Work) -> None:
    work.devices = ["0", "1"]
    work.add("one", "wait")
    work.add("both", "train", gpus=2)
    work.add("small", "wait")
    worker = work.runner()
    work.until(worker, lambda states: states["one"] == "running")
    work.look(worker)
    assert work.states() == {"one": "running", "both": "waiting", "small": "waiting"}


def test_several_gpus_are_given_to_one_training_through_accelerate() -> None:
    arguments = launch.command_of_several(Path("x.toml"), 2)
    assert arguments[1:6] == ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    assert arguments[-5:] == ["-m", "trainer", "train", "--config", "x.toml"]


def test_a_paused_queue_starts_only_what_is_to_run_now(work: Work) -> None:
    work.add("first", "train")
    work.add("second", "train")
    queue.pause(work.folder)
    queue.again(work.folder, 2, at_once=True)
    QueueRunner(work.folder, [""], StopSignals()).run()
    assert work.states() == {"first": "waiting", "second": "finished"}


def test_a_run_that_others_started_holds_its_device(work: Work) -> None:
    other = work.run_of("other")
    other.path.mkdir(parents=True)
    run_folder.write_run(other, run_folder.new_run("other") | {"status": "running"} | run_folder.this_process())
    work.add("mine", "train")
    worker = work.runner()
    work.look(worker)
    assert work.states() == {"mine": "waiting"}
    record = run_folder.read_run(other)
    assert record
    run_folder.write_run(other, record | {"status": "finished"})
    work.until(worker, lambda states: states["mine"] == "finished")


def test_another_runner_takes_over_what_runs_and_does_not_start_it_twice(work: Work) -> None:
    work.add("long", "wait")
    work.until(work.runner(), lambda states: states["long"] == "running")
    second = work.runner()
    for _ in range(5):
        work.look(second)
        time.sleep(0.05)
    while not (work.run_of("long").path / "starts").exists():
        time.sleep(0.05)
    work.end("long")
    work.until(second, lambda states: states["long"] == "finished")
    assert (work.run_of("long").path / "starts").read_text() == "1"


def test_a_process_whose_start_was_not_written_down_is_found(work: Work) -> None:
    work.add("long", "wait")
    work.until(work.runner(), lambda states: states["long"] == "running")
    with queue.changing(work.folder) as now:  # as if the runner had been killed in between
        begun = now.entry(1).process
        now.put(Entry(**{**now.entry(1).__dict__, "process": None}))
    work.look(work.runner())
    found = queue.read(work.folder).entry(1).process
    assert found and begun and found["pid"] == begun["pid"]


def test_what_a_person_stops_is_not_started_again_and_what_a_shutdown_stops_is(work: Work) -> None:
    work.add("asked", "wait")
    worker = work.runner()
    work.until(worker, lambda states: states["asked"] == "running")
    queue.note_stop(work.folder, work.run_of("asked"))
    work.run_of("asked").control.mkdir(exist_ok=True)
    (work.run_of("asked").control / "stop").touch()
    work.until(work.runner(), lambda states: states["asked"] == "stopped")

    work.add("shut down", "wait")
    work.until(worker, lambda states: states["shut down"] == "running")
    work.run_of("shut down").control.mkdir(exist_ok=True)
    (work.run_of("shut down").control / "stop").touch()
    process = queue.read(work.folder).entry(2).process
    assert process
    psutil.Process(process["pid"]).wait()  # nobody of the queue saw it
    (work.run_of("shut down").control / "stop").unlink()
    work.until(work.runner(), lambda states: queue.read(work.folder).entry(2).starts == 2)


def test_only_one_process_works_on_a_queue(work: Work) -> None:
    with queue_runner.holding(work.folder), pytest.raises(queue.QueueRefused, match="by another process already"):
        work.runner().run()


# --- expected ends ---


def test_ends_follow_from_the_order_and_the_devices() -> None:
    def entry(number: int, **more: Any) -> Entry:
        return Entry(number, f"/output/{number}", "/", **more)

    known = Queue([
        entry(1, state="running", on=("0",)), entry(2, state="running", on=("1",)), entry(3), entry(4, gpus=2),
        entry(5), entry(6),
    ])  # fmt: skip
    lengths = {1: 100.0, 2: 30.0, 3: 20.0, 4: 10.0, 5: None, 6: 5.0}
    ends = remaining.planned_ends(known, lengths, ["0", "1"], 1000.0)
    assert ends == {1: 1100.0, 2: 1030.0, 3: 1050.0, 4: 1110.0, 6: 1115.0}


# --- the command line ---


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "model").mkdir()
    file = tmp_path / "mine.toml"
    file.write_text('pretrained_model_name_or_path = "model"\ntrain_data_dir = "images"\noutput_name = "mine"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    return file


def test_the_command_line_adds_lists_edits_and_removes(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "add", "--config", str(preset), "--max_train_steps", "7"]) == 0
    assert "1 mine: waiting" in capsys.readouterr().out
    assert main(["queue", "edit", "1", "--learning_rate", "0.5"]) == 0
    folder = queue.usual_folder()
    config = queue.config_of(folder, queue.read(folder).entry(1))
    assert (config.max_train_steps, config.learning_rate) == (7, 0.5)
    capsys.readouterr()
    assert main(["queue", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["number"], row["name"], row["state"]) for row in told["entries"]] == [(1, "mine", "waiting")]
    assert main(["queue", "remove", "1"]) == 0
    assert main(["queue", "list"]) == 0
    assert "The queue is empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "--config", "mine.toml", "--network_dim", "0"], "network_dim: 0 is below 1"),
        (["add", "--config", "none.toml"], "none.toml"),
        (["remove", "9"], "there is no entry 9"),
        (["remove"], "name the entries to remove"),
        (["stop", "9"], "there is no entry 9"),
        (["list", "--learning_rate", "1"], "unknown: --learning_rate 1"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(
    preset: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["queue", *arguments]) == 3
    assert said in capsys.readouterr().err


def test_the_devices_are_those_that_the_environment_names(preset: Path) -> None:
    assert queue_runner.devices_here() == ["0", "3"]
    assert queue_runner.devices_here({"CUDA_VISIBLE_DEVICES": ""}) == [""]
    assert queue_runner.devices_here({"PATH": ""}) in ([""], ["0"])  # no nvidia-smi, or the one of this machine
