"""A run's second place: nothing half-written is ever continued, and another machine goes on as this one would have."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.support.runs_at_tiny_size import (
    assert_bit_equal,
    config_for,
    events_of,
    exported_tensors_of,
    run,
    steps_of,
    tensors_of,
)
from trainer import files
from trainer.checkpoints import mirror, preflight
from trainer.checkpoints.choosing import ResumeRefused
from trainer.checkpoints.mirror import Mirror, MirrorAway, Mirroring
from trainer.options.config import Config
from trainer.runs import lineage, manifest, run_folder
from trainer.runs.events import EventWriter
from trainer.runs.run_folder import RunFolder

Sessions = list[tuple[str, int]]
CHANGING = ("put_file", "pipe_file", "rm_file", "rm", "copy", "mv")


class Network(LocalFileSystem):
    """A folder behind a network that can be cut: `cut` says, of each call's name, whether it fails. A copy that fails
    has written half of the file."""

    protocol = "cut"
    cut: Callable[[str], bool] = staticmethod(lambda call: False)

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if Network.cut(name):
            if name == "put_file":
                data = Path(arguments[0]).read_bytes()
                Path(arguments[1]).write_bytes(data[: len(data) // 2])
            raise ConnectionError("the network is down")
        return getattr(super(), name)(*arguments, **options)

    def put_file(self, *arguments: Any, **options: Any) -> Any:
        return self._call("put_file", *arguments, **options)

    def pipe_file(self, *arguments: Any, **options: Any) -> Any:
        return self._call("pipe_file", *arguments, **options)

    def cat_file(self, *arguments: Any, **options: Any) -> Any:
        return self._call("cat_file", *arguments, **options)

    def get_file(self, *arguments: Any, **options: Any) -> Any:
        return self._call("get_file", *arguments, **options)

    def ls(self, *arguments: Any, **options: Any) -> Any:
        return self._call("ls", *arguments, **options)

    def rm_file(self, *arguments: Any, **options: Any) -> Any:
        return self._call("rm_file", *arguments, **options)

    def rm(self, *arguments: Any, **options: Any) -> Any:
        return self._call("rm", *arguments, **options)

    def copy(self, *arguments: Any, **options: Any) -> Any:
        return self._call("copy", *arguments, **options)

    def mv(self, *arguments: Any, **options: Any) -> Any:
        return self._call("mv", *arguments, **options)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Network]]:
    fsspec.register_implementation("cut", Network, clobber=True)
    monkeypatch.setattr(mirror, "TRIES", ())
    yield Network
    Network.cut = staticmethod(lambda call: False)


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    return config_for(
        tiny_model, tiny_images, tmp_path / "here", checkpoint_mirror=str(tmp_path / "there"),
        resume_from_checkpoint="auto",
    )  # fmt: skip


def on_another_machine(config: Config, tmp_path: Path) -> Config:
    return config.replace(output_dir=str(tmp_path / "elsewhere"))


# --- whole runs ---


def test_another_machine_goes_on_from_the_mirror_bit_equal(config: Config, tmp_path: Path) -> None:
    straight = config.replace(checkpoint_mirror="", output_dir=str(tmp_path / "straight"), resume_from_checkpoint="")
    run(straight)
    run(config.replace(max_train_steps=5))
    assert [event["global_step"] for event in events_of(config, "checkpoint_mirrored")]
    shutil.rmtree(config.output_dir)
    other = on_another_machine(config, tmp_path)
    run(other)
    assert steps_of(other) == steps_of(straight)
    assert_bit_equal(tensors_of(other), tensors_of(straight))
    assert_bit_equal(exported_tensors_of(other), exported_tensors_of(straight))
    assert [event["step"] for event in events_of(other, "resumed")] == [5]
    there = Mirror(other)
    record = there.record()
    assert record and record["status"] == "finished" and len(record["sessions"]) == 2
    result = Path(other.output_dir, "run.safetensors")
    assert (tmp_path / "there" / result.name).read_bytes() == result.read_bytes()
    assert events_of(config.replace(output_dir=str(tmp_path / "there")), "run_finished")


def test_a_mirror_that_is_away_does_not_stop_the_training_and_gets_everything_when_it_is_back(
    config: Config, tmp_path: Path, network: type[Network]
) -> None:
    cut_off = config.replace(checkpoint_mirror=f"cut://{tmp_path / 'there'}", max_train_steps=3)
    calls = itertools.count()
    network.cut = staticmethod(lambda call: call in CHANGING and next(calls) < 4)
    waits = (0.01, 0.02)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "FIRST_WAIT", waits[0])
        patch.setattr(mirror, "LONGEST_WAIT", waits[1])
        run(cut_off)
    assert [event["kind"] for event in events_of(cut_off, "warning")].count("mirror") == 1
    there = Mirror(cut_off).checkpoints(tmp_path / "outline")
    assert [item.step for item in there] == [3, 2, 1]


def test_nothing_here_and_no_word_from_the_mirror_is_no_reason_to_begin_anew(
    config: Config, tmp_path: Path, network: type[Network]
) -> None:
    cut_off = config.replace(checkpoint_mirror=f"cut://{tmp_path / 'there'}")
    network.cut = staticmethod(lambda call: True)
    with pytest.raises(ResumeRefused, match=r"the network is down\. Without it nobody knows"):
        run(cut_off)
    assert not RunFolder(config.run_dir).run_file.exists()


def test_a_run_of_that_name_at_the_mirror_is_not_written_over(config: Config, tmp_path: Path) -> None:
    run(config.replace(max_train_steps=2))
    other = on_another_machine(config, tmp_path).replace(resume_from_checkpoint="", max_train_steps=1)
    with pytest.raises(ResumeRefused, match="has a run run up to step 2; continue it with resume_from_checkpoint"):
        run(other)
    run(other.replace(overwrite_run=True))
    assert [item.step for item in Mirror(other).checkpoints(tmp_path / "outline")] == [1]
    (aside,) = (tmp_path / "there").glob("run-replaced-*")
    assert sorted(path.name for path in (aside / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


# --- without a model ---


class Machine:
    """A run folder whose checkpoints are made up, and what mirrors it."""

    def __init__(self, folder: Path, address: str, sessions: Sessions | None = None, **options: Any) -> None:
        named = {"output_dir": str(folder), "output_name": "run", "checkpoint_mirror": address}
        self.config = Config(**{**named, "resume_from_checkpoint": "latest", **options})
        self.run = RunFolder(self.config.run_dir)
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        self.warnings: list[str] = []
        if sessions:
            self.begin(sessions)

    def begin(self, sessions: Sessions) -> None:
        """A session, whose lineage this is, begins."""
        record = run_folder.read_run(self.run) or run_folder.new_run("run") | {"run_id": "1"}
        record["sessions"] = [*record["sessions"], {"id": sessions[-1][0], "lineage": sessions}]
        run_folder.write_run(self.run, record)
        self.sessions = sessions

    def save(self, step: int) -> None:
        folder = self.run.checkpoints / manifest.folder_name(step)
        folder.mkdir()
        for name in manifest.REQUIRED:
            (folder / name).write_bytes(f"{name} of step {step} of {self.sessions}".encode() * 20)
        files.write_bytes(folder / "state.json", files.json_bytes({"version": 1, "lineage": self.sessions}))
        listed = manifest.compose(folder, step, "1", time.time(), epoch=0, loss=0.5)
        (folder / manifest.MANIFEST).write_bytes(listed)

    def mirroring(self) -> Mirroring:
        events = EventWriter(self.run.events_file)
        return Mirroring(self.config, self.run, events, lambda kind, text: self.warnings.append(text), None)

    def copy(self) -> None:
        mirroring = self.mirroring()
        mirroring.wake()
        mirroring.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def at_mirror(machine: Machine, tmp_path: Path) -> list[int]:
    return [item.step for item in Mirror(machine.config).checkpoints(tmp_path / f"outline-{time.monotonic_ns()}")]


def fetched(address: str, folder: Path) -> int | None:
    """The newest step that another machine would go on from."""
    other = Machine(folder, address)
    mirror.restore(other.config)
    found = manifest.listing(other.run.checkpoints, thorough=True)
    assert all(item.manifest for item in found)
    return found[0].step if found else None


def test_a_connection_that_is_cut_at_any_call_leaves_a_whole_checkpoint_or_none(
    tmp_path: Path, network: type[Network]
) -> None:
    for lost_at in itertools.count(1):
        folder = tmp_path / str(lost_at)
        address = f"cut://{folder / 'there'}"
        machine = Machine(folder / "here", address, [("a", 0)], keep_last_n_checkpoints=2)
        calls = itertools.count(1)
        was_cut: list[int] = []

        def cut(call: str, calls: Iterator[int] = calls, lost_at: int = lost_at, was_cut: list[int] = was_cut) -> bool:
            if call in CHANGING and next(calls) >= lost_at:
                was_cut.append(lost_at)
            return bool(was_cut) and call in CHANGING

        network.cut = staticmethod(cut)
        mirrored = 0
        for step in (1, 2, 3, 4):
            machine.save(step)
            try:
                machine.mirroring()._copy(folder / "outline")
            except MirrorAway:
                break
            mirrored = step
        network.cut = staticmethod(lambda call: False)
        if mirrored:
            assert (fetched(address, folder / "elsewhere") or 0) >= mirrored
        else:
            assert fetched(address, folder / "elsewhere") in (None, 1)
        if not was_cut:
            assert at_mirror(machine, folder) == [4, 3]
            break
    assert lost_at > 40


def test_what_a_run_went_back_behind_is_not_continued_even_where_it_could_not_be_moved(
    tmp_path: Path, network: type[Network]
) -> None:
    address = f"cut://{tmp_path / 'there'}"
    machine = Machine(tmp_path / "here", address, [("a", 0)], keep_last_n_checkpoints=0)
    for step in (1, 2, 3):
        machine.save(step)
    machine.copy()
    machine.begin([("a", 0), ("b", 2)])  # it goes on from step 2
    shutil.rmtree(machine.run.checkpoints / manifest.folder_name(3))
    network.cut = staticmethod(lambda call: call in ("copy", "rm", "rm_file"))
    with pytest.raises(MirrorAway):
        machine.mirroring()._copy(tmp_path / "outline")
    assert at_mirror(machine, tmp_path) == [3, 2, 1]
    assert fetched(address, tmp_path / "elsewhere") == 2
    network.cut = staticmethod(lambda call: False)
    machine.save(3)  # another one than that of the first session
    machine.copy()
    assert at_mirror(machine, tmp_path) == [3, 2, 1]
    assert len(list((tmp_path / "there" / "run" / "abandoned").iterdir())) == 1
    assert fetched(address, tmp_path / "third") == 3
    there = manifest.read(tmp_path / "there" / "run" / "checkpoints" / manifest.folder_name(3))
    assert there.digest == manifest.read(machine.run.checkpoints / manifest.folder_name(3)).digest


def test_a_machine_that_comes_back_goes_on_from_what_another_one_did_meanwhile(tmp_path: Path) -> None:
    address = str(tmp_path / "there")
    first = Machine(tmp_path / "here", address, [("a", 0)])
    first.save(1)
    first.copy()
    second = Machine(tmp_path / "elsewhere", address)
    mirror.restore(second.config)
    second.begin([("a", 0), ("b", 1)])
    second.save(2)
    second.copy()
    assert fetched(address, tmp_path / "here") == 2
    record = run_folder.read_run(first.run)
    assert record and [session["id"] for session in record["sessions"]] == ["a", "b"]
    second.begin([("a", 0), ("b", 1), ("c", 2)])  # its own record is ahead now
    second.save(3)
    assert fetched(address, tmp_path / "elsewhere") == 3


def test_damage_at_the_mirror_is_passed_over(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "here", str(tmp_path / "there"), [("a", 0)])
    machine.save(1)
    machine.save(2)
    machine.copy()
    (tmp_path / "there" / "run" / "checkpoints" / manifest.folder_name(2) / "weights.safetensors").write_bytes(b"")
    assert fetched(str(tmp_path / "there"), tmp_path / "elsewhere") == 1


def test_the_mirror_is_pruned_by_the_same_rule_and_keeps_what_is_pinned(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "here", str(tmp_path / "there"), [("a", 0)], keep_last_n_checkpoints=2)
    machine.save(1)
    manifest.pin(machine.run.checkpoints / manifest.folder_name(1))
    for step in (2, 3, 4):
        machine.save(step)
        machine.copy()
    assert at_mirror(machine, tmp_path) == [4, 3, 1]
    manifest.pin(machine.run.checkpoints / manifest.folder_name(1), pinned=False)
    machine.copy()
    assert at_mirror(machine, tmp_path) == [4, 3]


def test_another_runs_mirror_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "here", str(tmp_path / "there"), [("a", 0)])
    machine.save(1)
    machine.copy()
    other = Machine(tmp_path / "elsewhere", str(tmp_path / "there"))
    run_folder.write_run(other.run, run_folder.new_run("run"))
    with pytest.raises(ResumeRefused, match="has another run named run; choose another address"):
        mirror.restore(other.config)


def test_a_step_that_is_asked_for_is_fetched_where_it_is_not_here(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "here", str(tmp_path / "there"), [("a", 0)])
    for step in (1, 2):
        machine.save(step)
    machine.copy()
    other = Machine(tmp_path / "elsewhere", str(tmp_path / "there"))
    mirror.restore(dataclasses.replace(other.config, resume_from_checkpoint="1"))
    assert [item.step for item in manifest.listing(other.run.checkpoints)] == [1]


@pytest.mark.parametrize(
    ("address", "why"), [("nothing://a", "is nothing that fsspec reaches"), ("dropbox://a", "needs another package")]
)
def test_an_address_that_cannot_be_used_is_refused_by_name(address: str, why: str, config: Config) -> None:
    (problem,) = preflight.missing(config.replace(checkpoint_mirror=address))
    assert problem.key == "checkpoint_mirror" and why in problem.message


def test_a_real_server_of_s3_holds_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        address = "s3://bucket/runs"
        machine = Machine(tmp_path / "here", address, [("a", 0)], keep_last_n_checkpoints=2)
        for step in (1, 2, 3):
            machine.save(step)
            machine.copy()
        assert machine.warnings == []
        assert at_mirror(machine, tmp_path) == [3, 2]
        assert fetched(address, tmp_path / "elsewhere") == 3
        machine.begin([("a", 0), ("b", 2)])
        shutil.rmtree(machine.run.checkpoints / manifest.folder_name(3))
        machine.copy()
        assert at_mirror(machine, tmp_path) == [2, 1]
        assert fetched(address, tmp_path / "third") == 2
    finally:
        server.stop()


def test_a_lineage_of_the_record_is_that_of_the_checkpoints(config: Config) -> None:
    run(config.replace(max_train_steps=2))
    run(config.replace(max_train_steps=3))
    record = run_folder.read_run(RunFolder(config.run_dir))
    newest = manifest.listing(RunFolder(config.run_dir).checkpoints)[0]
    assert record
    state = lineage.of_checkpoint(newest.path, newest.step)
    assert state and lineage.sessions_of(record["sessions"][-1]) == state.sessions


def test_of_two_machines_that_train_one_run_only_the_later_one_writes_to_the_mirror(tmp_path: Path) -> None:
    address = str(tmp_path / "there")
    first = Machine(tmp_path / "here", address, [("a", 0)])
    first.save(1)
    mirroring = first.mirroring()
    mirroring.wake()
    until(lambda: at_mirror(first, tmp_path) == [1])
    second = Machine(tmp_path / "elsewhere", address)
    mirror.restore(second.config)
    second.begin([("a", 0), ("b", 1)])
    second.save(2)
    second.copy()
    first.save(3)
    mirroring.wake()
    mirroring.close()
    assert [warning for warning in first.warnings if "Another machine goes on with this run" in warning]
    assert at_mirror(second, tmp_path) == [2, 1]
    assert fetched(address, tmp_path / "third") == 2


@pytest.mark.parametrize(
    "record",
    [
        b"", b"[]", b"{}", b'{"run_id": 1, "sessions": []}', b'{"run_id": "1", "sessions": {}}',
        b'{"run_id": "1", "sessions": [{"id": "a", "lineage": [["a", "zero"]]}]}', b"\xff\xfe", b"[" * 100_000,
    ],
    ids=range(8),
)  # fmt: skip
def test_a_record_that_is_damaged_or_made_to_harm_is_refused_and_stops_no_training(
    record: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "TRIES", ())
    monkeypatch.setattr(mirror, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(mirror, "CLOSING_SECONDS", 0.3)
    machine = Machine(tmp_path / "here", str(tmp_path / "there"), [("a", 0)])
    machine.save(1)
    machine.copy()
    (tmp_path / "there" / "run" / "run.json").write_bytes(record)
    other = Machine(tmp_path / "elsewhere", str(tmp_path / "there"))
    with pytest.raises(ResumeRefused, match="checkpoint_mirror"):
        mirror.restore(other.config)
    machine.save(2)
    machine.copy()
    assert len(machine.warnings) == 1 and "Nothing can be copied" in machine.warnings[0]


def test_the_output_folder_is_no_mirror_of_itself(config: Config) -> None:
    (Path(config.output_dir) / "inner").mkdir(parents=True)
    (problem,) = preflight.missing(config.replace(checkpoint_mirror=f"{config.output_dir}/inner/.."))
    assert problem.key == "checkpoint_mirror" and "is output_dir itself" in problem.message
