"""What a resume decides - rates, permissions, the branch it goes on with - holds at every later one, and no further."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support import paper
from tests.support.paper import PICTURES, History, Picture, Training, history_of
from trainer.checkpoints import choosing, decisions
from trainer.checkpoints.resume import ResumeRefused
from trainer.options.checks import read_config
from trainer.options.config import Config
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder

LATEST: dict[str, Any] = {"resume_from_checkpoint": "latest"}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(**{**paper.OPTIONS, "output_dir": str(tmp_path)})


def session(config: Config, steps: int, pictures: Iterable[Picture] = PICTURES, *, saves: bool = True) -> Training:
    """A process that trains some steps, saves after the last one, and is killed."""
    training = Training(config, tuple(pictures))
    training.train(steps)
    if saves:
        training.save()
    training.kill()
    return training


def contents(history: History) -> list[Any]:
    return [trained.content for trained in history]


def latest(config: Config) -> History:
    return history_of(choosing.choose(config.replace(resume_from_checkpoint="latest")).path)


def refusal(config: Config, pictures: Iterable[Picture] = PICTURES) -> str:
    with pytest.raises(ResumeRefused) as refused:
        Training(config, tuple(pictures))
    return str(refused.value)


def without(*names: str) -> tuple[Picture, ...]:
    return tuple(picture for picture in PICTURES if picture.name not in names)


# --- learning rates ------------------------------------------------------------------------------------------------

RATES: dict[str, dict[str, Any]] = {
    "a factor": {"resume_lr_scale": 0.5},
    "a warm-up": {"resume_warmup_steps": 4},
    "restart": {"resume_lr_policy": "restart"},
    "stretch": {"resume_lr_policy": "stretch", "max_train_steps": 80},
    "all together": {"resume_lr_policy": "restart", "resume_lr_scale": 0.5, "resume_warmup_steps": 4},
}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("wanted", ["latest", "auto"])
def test_twenty_restarts_by_one_command_are_one_restart(name: str, wanted: str, config: Config, tmp_path: Path) -> None:
    session(config, 5)
    shutil.copytree(tmp_path / "run", tmp_path / "again" / "run")
    command = config.replace(resume_from_checkpoint=wanted, **RATES[name])
    once = session(command, 40)
    for _ in range(20):
        often = session(command.replace(output_dir=str(tmp_path / "again")), 2)
    assert contents(often.history) == contents(once.history)
    assert contents(often.history) != contents(session(config.replace(output_dir=str(tmp_path / "else")), 45).history)


@pytest.mark.parametrize("name", RATES)
def test_a_decision_that_no_checkpoint_has_yet_is_taken_at_the_same_step_again(name: str, config: Config) -> None:
    session(config, 5)
    command = config.replace(**LATEST, **RATES[name])
    killed = session(command, 5, saves=False)
    assert contents(session(command, 5).history) == contents(killed.history)


def test_leaving_the_options_out_keeps_what_was_decided(config: Config) -> None:
    session(config, 5)
    session(config.replace(**LATEST, resume_lr_scale=0.5), 5)
    plain = Training(config.replace(**LATEST))
    plain.train(1)
    assert plain.history[-1].rate == 0.5 * (1 - 10 / 60)
    assert plain.verdict and plain.verdict.grade == "bit-exact"


def test_another_value_or_another_name_is_another_decision(config: Config) -> None:
    session(config, 5)
    asked: list[dict[str, Any]] = [{"resume_lr_scale": 0.5}, {"resume_lr_scale": 0.25}, {"resume_lr_decision": "more"}]
    for step, options in enumerate(asked):
        config = config.replace(**LATEST, **options)
        training = session(config, 1)
        assert training.history[-1].rate == (0.5, 0.125, 0.03125)[step] * (1 - (5 + step) / 60)
    state = manifest.read_json(choosing.choose(config).path, "state.json")
    assert [(item["step"], item["scale"], item["name"]) for item in state["decisions"]["rates"]] == [
        (5, 0.5, ""), (6, 0.25, ""), (7, 0.25, "more")
    ]  # fmt: skip


def test_a_curve_is_drawn_again_when_its_length_is_another(config: Config) -> None:
    session(config, 60)
    restart = {"resume_lr_policy": "restart"}
    session(config.replace(**LATEST, max_train_steps=80, **restart), 10)
    again = session(config.replace(**LATEST, max_train_steps=80, **restart), 10)
    assert [again.history[step].rate for step in (60, 70)] == [1.0, 0.5]
    longer = session(config.replace(**LATEST, max_train_steps=100, **restart), 10)
    assert longer.history[80].rate == 1.0


def test_going_back_before_a_decision_undoes_it_and_repeating_it_there_takes_it_there(config: Config) -> None:
    session(config, 5)
    session(config.replace(**LATEST, resume_lr_scale=0.5), 5)
    assert session(config.replace(resume_from_checkpoint="5"), 1).history[-1].rate == 1 - 5 / 60
    back = config.replace(resume_from_checkpoint="5", resume_lr_scale=0.5)
    for _ in range(2):
        assert session(back, 1).history[-1].rate == 0.5 * (1 - 5 / 60)


def test_what_another_run_decided_is_not_decided_for_this_one(config: Config) -> None:
    session(config, 5)
    half = {"resume_lr_scale": 0.5}
    parent = session(config.replace(**LATEST, **half), 5)
    branch = config.replace(output_name="branch", **half)
    path = {"resume_from_checkpoint": str(parent.run.checkpoints / "step-00000010")}
    for wanted in (path, path, LATEST, {"resume_from_checkpoint": "auto"}):
        assert session(branch.replace(**wanted), 1, saves=False).history[-1].rate == 0.25 * (1 - 10 / 60)
    session(branch.replace(**LATEST), 1)
    assert session(branch.replace(**LATEST), 1).history[-1].rate == 0.25 * (1 - 11 / 60)


def test_a_resume_says_what_it_decides_and_what_was_decided_already(config: Config) -> None:
    session(config, 5)
    command = config.replace(**LATEST, resume_lr_scale=0.5, resume_warmup_steps=3)
    first, second = session(command, 5), session(command, 5)
    assert first.verdict and second.verdict
    [told] = first.verdict.rate_lines()
    assert told == "Learning rate: decided now, at step 5, and kept from here on: times 0.5, warm-up over 3 steps"
    [told] = second.verdict.rate_lines()
    assert "was decided at step 5 and is not decided again" in told and "resume_lr_decision" in told
    record = run_folder.read_run(first.run)
    assert record
    assert [bool(entry["learning_rate"]) for entry in record["sessions"]] == [False, True, False]


def test_a_checkpoint_from_before_decisions_were_recorded_counts_what_its_options_tell_as_decided(
    config: Config, tmp_path: Path
) -> None:
    session(config, 5)
    command = config.replace(**LATEST, resume_lr_scale=0.5, resume_allow=("seed",))
    folder = Training(command)
    folder.train(1)
    path = folder.save()
    folder.kill()
    state = manifest.read_json(path, "state.json")
    del state["decisions"], state["lineage"]
    (path / "state.json").write_bytes(json.dumps(state).encode())
    (path / "config.toml").write_text(
        (path / "config.toml").read_text().replace("resume_allow = []", 'resume_allow = ["seed"]')
    )
    read = manifest.read(path)
    listing = manifest.compose(path, read.step, read.run_id, read.created, read.epoch, read.loss)
    (path / manifest.MANIFEST).write_bytes(listing)
    assert session(command, 1, saves=False).history[-1].rate == 0.5 * (1 - 6 / 60)
    assert "seed" in refusal(command.replace(seed=1))


# --- permissions ---------------------------------------------------------------------------------------------------


def test_a_permission_is_for_one_resume(config: Config) -> None:
    session(config, 5)
    command = config.replace(**LATEST, resume_allow=("dataset",))
    session(command, 2, without("a"))
    session(command, 2, without("a"))  # nothing differs any more
    told = refusal(command, without("a", "b"))
    assert '"dataset" was for the earlier resume' in told
    word = told.partition('resume_allow = ["')[2].partition('"')[0]
    assert word.startswith("dataset:")
    session(command.replace(resume_allow=(word,)), 2, without("a", "b"))
    assert "dataset" in refusal(command.replace(resume_allow=(word,)), without("a", "b", "c"))


def test_a_permission_holds_when_the_resume_is_repeated_before_its_first_save_and_for_the_same_change_only(
    config: Config,
) -> None:
    session(config, 5)
    command = config.replace(**LATEST, resume_allow=("dataset",))
    session(command, 2, without("a"), saves=False)
    assert "dataset" in refusal(command, without("a", "b"))
    session(command, 2, without("a"))


def test_a_permission_that_nothing_needed_is_over_too(config: Config) -> None:
    session(config, 5)
    command = config.replace(**LATEST, resume_allow=("all",))
    session(command, 2)
    assert 'resume_allow = ["dataset:' in refusal(command, without("a"))


def test_a_change_that_is_undone_and_made_again_is_asked_again(config: Config) -> None:
    session(config, 5)
    command = config.replace(**LATEST, resume_allow=("dataset",))
    session(command, 2, without("a"))
    session(command.replace(resume_allow=("all",)), 2)
    assert "dataset" in refusal(command, without("a"))
    assert "dataset" in refusal(command.replace(resume_allow=("dataset", "all")), without("a"))


def test_an_automatic_start_uses_its_permissions_up(config: Config) -> None:
    command = config.replace(resume_from_checkpoint="auto", resume_allow=("dataset",))
    session(command, 5)
    assert "dataset" in refusal(command, without("a"))


def test_what_was_allowed_is_recorded_everywhere(config: Config) -> None:
    session(config, 5)
    command = config.replace(**LATEST, resume_allow=("all",), seed=7)
    training = session(command, 2, without("a"))
    expected = [("seed", ("42 -> 7",)), ("dataset", ("removed (1): a.png",))]
    record = run_folder.read_run(training.run)
    state = manifest.read_json(choosing.choose(command).path, "state.json")
    [event] = [json.loads(line) for line in training.run.events_file.read_text().splitlines() if '"resumed"' in line]
    assert record
    for allowed in (record["sessions"][-1]["allowed"], state["decisions"]["allowed"], event["allowed"]):
        assert [(item["name"], tuple(item["change"])) for item in allowed] == expected
        assert all(item["step"] == 5 for item in allowed)


def test_the_runs_own_options_allow_what_was_allowed_and_nothing_else(config: Config) -> None:
    session(config, 5)
    command = config.replace(**LATEST, resume_allow=("all",), resume_lr_scale=0.5)
    training = session(command, 2, without("a"), saves=False)
    own = read_config(training.run.config_file)
    [word] = own.resume_allow
    assert word.startswith("dataset:")
    assert "dataset" in refusal(own, without("a", "b"))
    session(own, 2, without("a"))


def test_continuing_leaves_out_what_was_decided_as_soon_as_a_checkpoint_has_it(config: Config) -> None:
    def adopted() -> tuple[Any, ...]:
        own = decisions.to_continue(RunFolder(config.run_dir), read_config(RunFolder(config.run_dir).config_file))
        return bool(own.resume_allow), own.resume_lr_scale, own.resume_from_checkpoint

    session(config, 5)
    assert adopted() == (False, 1.0, "latest")
    command = config.replace(**LATEST, resume_allow=("all",), resume_lr_scale=0.5)
    session(command, 2, without("a"), saves=False)
    assert adopted() == (True, 0.5, "latest")
    session(command, 2, without("a"))
    assert adopted() == (False, 1.0, "latest")
    paper.damage(choosing.choose(command).path)
    assert adopted() == (True, 0.5, "latest")  # it falls back to where this was not decided


# --- one permission, one difference --------------------------------------------------------------------------------

OTHER_CHANGES: dict[str, dict[str, Any]] = {
    "repeats": {"repeats": 3},
    "mask": {"mask": "f" * 32},
    "role": {"validation": True},
    "caption": {"caption": "another"},
}


@pytest.mark.parametrize("change", OTHER_CHANGES)
def test_allowing_another_resolution_allows_only_other_buckets(change: str, config: Config) -> None:
    session(config, 5)
    command = config.replace(**LATEST, resolution="96", resume_allow=("resolution",))
    changed = (dataclasses.replace(PICTURES[0], **OTHER_CHANGES[change]), *PICTURES[1:])
    assert "dataset: the images differ" in refusal(command, changed)
    session(command, 2)


# --- epochs --------------------------------------------------------------------------------------------------------


def uses_by_epoch(history: History) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for trained in history:
        for use in trained.uses:
            found.setdefault(use[2], []).append(use)
    return found


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        ({"enable_bucket": False}, PICTURES),
        ({"bucket_reso_steps": 32}, PICTURES),
        ({"seed": 1}, PICTURES),
        ({"train_batch_size": 3}, PICTURES),
        ({}, (dataclasses.replace(PICTURES[0], repeats=3), *PICTURES[1:])),
        ({}, (dataclasses.replace(PICTURES[0], validation=True), *PICTURES[1:])),
        ({}, without("c")),
    ],
)
def test_an_epoch_ends_where_the_order_of_its_batches_changes(
    options: dict[str, Any], pictures: tuple[Picture, ...], config: Config
) -> None:
    whole = uses_by_epoch(session(config, 4).history)  # 6 uses in 3 steps: the second epoch is under way
    changed = session(config.replace(**LATEST, resume_allow=("all",), **options), 12, pictures)
    epochs = uses_by_epoch(changed.history)
    assert all(len(set(uses)) == len(uses) for uses in epochs.values())
    assert epochs[1] == whole[1]  # what was left of it is not trained
    expected = {(use[1], use[3]) for use in epochs[2]}
    assert len(expected) == sum(picture.repeats for picture in pictures if not picture.validation)
    assert {(use[1], use[3]) for use in epochs[3]} == expected


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        ({"resolution": "128", "min_bucket_reso": 64, "max_bucket_reso": 256, "bucket_reso_steps": 32}, PICTURES),
        ({"learning_rate": 0.5}, PICTURES),
        ({}, (dataclasses.replace(PICTURES[0], caption="another"), *PICTURES[1:])),
    ],
)
def test_an_epoch_goes_on_where_the_order_stays_as_it_was(
    options: dict[str, Any], pictures: tuple[Picture, ...], config: Config, tmp_path: Path
) -> None:
    session(config, 4)
    changed = session(config.replace(**LATEST, resume_allow=("all",), **options), 8, pictures)
    straight = session(config.replace(output_dir=str(tmp_path / "straight")), 12)
    assert uses_by_epoch(changed.history) == uses_by_epoch(straight.history)


def test_a_length_in_epochs_is_that_many_epochs_also_where_one_of_them_was_cut_short(config: Config) -> None:
    long = config.replace(max_train_epochs=4)
    assert max(uses_by_epoch(session(long, 100, saves=False).history)) == 3
    begun = session(long.replace(output_name="changed"), 4)  # one step into the second epoch of three steps each
    fewer = without("d")
    command = begun.config.replace(**LATEST, resume_allow=("dataset",))
    changed = Training(command, fewer)
    assert changed.verdict and changed.verdict.total_steps == 4 + 2 * 2
    changed.train(1)
    changed.save()
    changed.kill()
    resumed = Training(begun.config.replace(**LATEST), fewer)
    resumed.train(100)
    epochs = uses_by_epoch(resumed.history)
    assert list(epochs) == [0, 1, 2, 3] and resumed.step == 8 and resumed.over
    assert len(epochs[2]) == len(epochs[3]) == 4


# --- branches ------------------------------------------------------------------------------------------------------


def two_branches(config: Config) -> tuple[Path, History]:
    """A run that went back to step 4 and has the other branch's 4 to 10 now; step 6 of the one left behind."""
    every_two = Training(config)
    for _ in range(4):
        every_two.train(2)
        every_two.save()
    every_two.kill()
    other = Training(config.replace(resume_from_checkpoint="4", resume_lr_scale=0.5))
    for _ in range(3):
        other.train(2)
        other.save()
    other.kill()
    [left_behind] = other.run.abandoned.glob("*/checkpoints/step-00000006")
    return left_behind, history_of(left_behind)


def test_after_a_resume_of_a_branch_left_behind_the_latest_is_of_that_branch(config: Config) -> None:
    path, history = two_branches(config)
    resumed = Training(config.replace(resume_from_checkpoint=str(path)))
    resumed.kill()  # before its first save
    assert latest(config) == history
    listed = manifest.listing(resumed.run.checkpoints)
    assert [found.step for found in listed] == [6, 4, 2]
    assert all(history_of(found.path) == history[: found.step] for found in listed)
    assert path.is_dir()  # what was kept is kept
    kept = [file.parent.parent.name for file in resumed.run.abandoned.glob("*/checkpoints/step-00000010")]
    assert kept == ["before-session-003"]


def test_older_states_of_the_other_branch_move_aside_too(config: Config) -> None:
    path, _ = two_branches(config)
    newest = path.with_name("step-00000008")  # the other branch has a step 6 of its own
    history = history_of(newest)
    resumed = Training(config.replace(resume_from_checkpoint=str(newest)))
    resumed.kill()
    listed = manifest.listing(resumed.run.checkpoints)
    assert [found.step for found in listed] == [8, 4, 2]
    assert all(history_of(found.path) == history[: found.step] for found in listed)


def test_a_damaged_latest_gives_way_to_an_older_state_of_its_own_branch(config: Config) -> None:
    path, history = two_branches(config)
    resumed = session(config.replace(resume_from_checkpoint=str(path)), 2)
    for step in (8, 6):
        paper.damage(resumed.run.checkpoints / manifest.folder_name(step))
    assert latest(config) == history[:4]


def test_a_branch_left_behind_is_resumed_also_where_the_run_has_nothing_else(config: Config) -> None:
    path, history = two_branches(config)
    run = RunFolder(config.run_dir)
    for found in manifest.listing(run.checkpoints):
        manifest.delete(found.path)
    assert "were moved aside" in refusal(config.replace(**LATEST))
    assert "were moved aside" in refusal(config.replace(resume_from_checkpoint="auto"))
    Training(config.replace(resume_from_checkpoint=str(path))).kill()
    assert latest(config) == history


def test_a_new_run_has_the_state_it_began_with_from_its_first_moment(config: Config) -> None:
    parent = session(config, 4)
    branch = config.replace(output_name="branch", resume_from_checkpoint=str(parent.run.checkpoints / "step-00000004"))
    for _ in range(2):
        begun = session(branch, 2, saves=False)
        assert latest(branch) == parent.history
    goes_on = session(branch.replace(resume_from_checkpoint="auto"), 2)
    record = run_folder.read_run(begun.run)
    assert record and record["parent"]["step"] == 4
    assert [entry["session"] for entry in record["sessions"]] == [1, 2, 3]
    assert contents(goes_on.history) == contents(session(config.replace(**LATEST), 2).history)
    assert "belongs to another run" in refusal(branch)


def test_a_run_whose_record_is_lost_is_still_the_same_run(config: Config) -> None:
    run_id = session(config, 4).session.run_id
    RunFolder(config.run_dir).run_file.unlink()
    for _ in range(2):
        assert session(config.replace(**LATEST), 2, saves=False).session.run_id == run_id


# --- other runs ----------------------------------------------------------------------------------------------------


def test_another_runs_files_are_read_and_never_moved_or_changed(config: Config) -> None:
    parent = Training(config)
    for _ in range(3):
        parent.train(2)
        path = parent.save()
    parent.kill()
    paper.damage(path)
    before = {file: file.read_bytes() for file in parent.run.path.rglob("*") if file.is_file()}
    branch = session(config.replace(output_name="branch", resume_from_checkpoint=str(parent.run.path)), 2)
    assert branch.verdict and branch.verdict.step == 4 and len(branch.verdict.rejected) == 1
    assert {file: file.read_bytes() for file in parent.run.path.rglob("*") if file.is_file()} == before
    [event] = [json.loads(line) for line in branch.run.events_file.read_text().splitlines() if "rejected" in line]
    assert event["path"] == str(path)


# --- auto ----------------------------------------------------------------------------------------------------------


def test_auto_begins_a_run_that_has_no_checkpoint_and_continues_one_that_has(config: Config, tmp_path: Path) -> None:
    auto = config.replace(resume_from_checkpoint="auto")
    assert session(auto, 3, saves=False).verdict is None
    assert session(auto, 3).verdict is None
    assert session(auto, 3).verdict is not None
    assert contents(latest(auto)) == contents(session(config.replace(output_dir=str(tmp_path / "other")), 6).history)


def test_auto_refuses_checkpoints_that_are_all_damaged_as_latest_does(config: Config) -> None:
    path = session(config, 3).run.checkpoints / "step-00000003"
    paper.damage(path)
    told = refusal(config.replace(resume_from_checkpoint="auto"))
    assert "every checkpoint in" in told and "is damaged" in told
    assert told == refusal(config.replace(**LATEST))
    manifest.set_aside(path, "damaged")
    assert "there is no checkpoint" in refusal(config.replace(resume_from_checkpoint="auto"))


def test_where_an_automatic_run_is_interrupted_does_not_matter_to_its_rates(config: Config, tmp_path: Path) -> None:
    auto = config.replace(resume_from_checkpoint="auto", resume_lr_policy="restart", resume_lr_scale=0.5)
    straight = session(auto.replace(output_dir=str(tmp_path / "straight")), 9)
    for _ in range(3):
        interrupted = session(auto, 3)
    assert contents(interrupted.history) == contents(straight.history)
