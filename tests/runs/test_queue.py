"""The queue's file: order, what may be changed, and what an entry is started with."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs.test_manifest import make_checkpoint
from trainer.options.config import Config
from trainer.runs import queue, run_folder
from trainer.runs.queue import Origin, QueueRefused
from trainer.runs.run_folder import RunFolder


def config(home: Path, name: str, **options: object) -> Config:
    return Config(output_dir=str(home / "output"), output_name=name, **options)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return [entry.name for entry in queue.read(folder).entries]


def test_an_empty_folder_is_an_empty_queue(tmp_path: Path) -> None:
    assert queue.read(tmp_path / "nowhere").entries == []


def test_entries_keep_their_order_and_can_be_given_another(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    for name in ("a", "b", "c"):
        queue.add(folder, config(tmp_path, name), tmp_path)
    queue.add(folder, config(tmp_path, "d"), tmp_path, first=True)
    assert names(folder) == ["d", "a", "b", "c"]
    queue.move(folder, 3, 0)
    assert names(folder) == ["c", "d", "a", "b"]
    queue.remove(folder, 1)
    assert names(folder) == ["c", "d", "b"]
    assert not queue.config_file(folder, 1).exists()
    assert queue.add(folder, config(tmp_path, "e"), tmp_path).number == 5  # no number is used twice


def test_an_entry_keeps_the_options_it_was_added_with(tmp_path: Path) -> None:
    asked = config(tmp_path, "a", learning_rate=3e-7, resume_allow=("seed",))
    entry = queue.add(tmp_path / "queue", asked, tmp_path)
    assert queue.config_of(tmp_path / "queue", entry) == asked


def test_a_run_is_not_queued_twice(tmp_path: Path) -> None:
    queue.add(tmp_path / "queue", config(tmp_path, "a"), tmp_path)
    with pytest.raises(QueueRefused, match="in the queue already, as entry 1"):
        queue.add(tmp_path / "queue", config(tmp_path, "a"), tmp_path)


def test_a_beginning_that_would_be_refused_is_not_queued(tmp_path: Path) -> None:
    make_checkpoint(RunFolder(tmp_path / "output" / "a").checkpoints, 7)
    with pytest.raises(QueueRefused, match="already holds checkpoints, the newest of step 7"):
        queue.add(tmp_path / "queue", config(tmp_path, "a"), tmp_path)
    queue.add(tmp_path / "queue", config(tmp_path, "a", resume_from_checkpoint="latest"), tmp_path)


def test_what_runs_is_neither_removed_nor_edited(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    entry = queue.add(folder, config(tmp_path, "a"), tmp_path)
    with queue.changing(folder) as now:
        now.put(replace(entry, state="running"))
    for change in (lambda: queue.remove(folder, 1), lambda: queue.edit(folder, 1, config(tmp_path, "a"))):
        with pytest.raises(QueueRefused, match="stop it first"):
            change()
    with pytest.raises(QueueRefused, match="does not wait"):
        queue.move(folder, 1, 0)


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "queue"
    queue.add(folder, config(tmp_path, "a"), tmp_path)
    before = (folder / "queue.json").read_bytes()
    with pytest.raises(QueueRefused, match="no entry 9"), queue.changing(folder) as now:
        now.paused = True
        now.entry(9)
    assert (folder / "queue.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read"), ('{"version": 99}', "version 99"), ('{"version": 1}', "is not a queue"), ("[]", "not a")],
)
def test_a_damaged_or_newer_file_is_refused_and_left_as_it_is(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "queue.json").write_text(content)
    with pytest.raises(QueueRefused, match=said):
        queue.add(tmp_path, config(tmp_path, "a"), tmp_path)
    assert (tmp_path / "queue.json").read_text() == content


def _add_some(folder: Path, who: int) -> None:
    for number in range(5):
        queue.add(folder, config(folder, f"{who}-{number}"), folder)


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")  # as everywhere, also on Windows
    processes = [context.Process(target=_add_some, args=(tmp_path, who)) for who in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert sorted(names(tmp_path)) == sorted(f"{who}-{number}" for who in range(3) for number in range(5))
    assert [entry.number for entry in queue.read(tmp_path).entries] == list(range(1, 16))


# --- what an entry is started with ---


def test_a_first_start_is_as_it_was_asked_for(tmp_path: Path) -> None:
    asked = config(tmp_path, "a", overwrite_run=True)
    entry = queue.add(tmp_path / "queue", asked, tmp_path)
    assert queue.config_to_start(tmp_path / "queue", entry) == asked


def test_what_has_saved_goes_on_from_there_and_decides_nothing_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "output" / "a")
    make_checkpoint(run.checkpoints, 7)
    asked = config(
        tmp_path, "a", resume_from_checkpoint="7", resume_allow=("seed",), resume_lr_policy="restart",
        resume_lr_scale=0.5, resume_warmup_steps=3,
    )  # fmt: skip
    entry = replace(queue.add(tmp_path / "queue", asked, tmp_path), origin=queue.origin_of(run))
    assert queue.config_to_start(tmp_path / "queue", entry) == asked  # what is there was there before
    make_checkpoint(run.checkpoints, 9)
    assert queue.config_to_start(tmp_path / "queue", entry) == config(tmp_path, "a", resume_from_checkpoint="latest")


def test_a_replaced_run_is_not_replaced_again_when_it_is_started_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "output" / "a")
    old, new = run_folder.new_run("a"), run_folder.new_run("a")
    run.path.mkdir(parents=True)
    run_folder.write_run(run, old)
    asked = config(tmp_path, "a", overwrite_run=True)
    entry = queue.add(tmp_path / "queue", asked, tmp_path)
    entry = replace(entry, origin=Origin(old["run_id"], ()))
    assert queue.config_to_start(tmp_path / "queue", entry).overwrite_run  # killed before it moved the old one
    run_folder.write_run(run, new)
    assert not queue.config_to_start(tmp_path / "queue", entry).overwrite_run


def test_editing_what_has_begun_makes_a_resume_of_it(tmp_path: Path) -> None:
    folder, run = tmp_path / "queue", RunFolder(tmp_path / "output" / "a")
    entry = queue.add(folder, config(tmp_path, "a"), tmp_path)
    with queue.changing(folder) as now:
        now.put(replace(entry, state="stopped", origin=Origin(), stop_asked=True))
    make_checkpoint(run.checkpoints, 3)
    edited = queue.edit(folder, 1, config(tmp_path, "a", learning_rate=1e-5, resume_allow=("learning_rate",)))
    assert edited.state == "waiting" and not edited.stop_asked
    started = queue.config_to_start(folder, edited)
    assert (started.resume_from_checkpoint, started.resume_allow) == ("latest", ("learning_rate",))
