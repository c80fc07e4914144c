"""A damaged checkpoint is refused and named, never loaded, never deleted; the newest sound one takes its place."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import damages
from tests.support.damages import (
    DAMAGES,
    FILES,
    STEPS,
    Sound,
    check_refused,
    checkpoint_of,
    content_of,
    rewrite_manifest,
)
from tests.support.forked_trainer import Server
from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, events_of, run, tensors_of
from trainer.__main__ import main
from trainer.checkpoints import choosing
from trainer.checkpoints.resume import ResumeRefused
from trainer.models.parts import Parts
from trainer.runs import manifest
from trainer.runs.manifest import MANIFEST, CheckpointDamaged
from trainer.runs.run_folder import RunFolder

DRAWS = 3  # of each damage; there are more than 200 in all


@pytest.fixture(scope="module")
def sound(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return damages.train_sound(tiny_model, tiny_images, tmp_path_factory.mktemp("sound"))


# --- every damage is found -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "kind"), DAMAGES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_the_latest(
    file: str, kind: str, sound: Sound, tmp_path: Path
) -> None:
    for number in range(DRAWS):
        config = sound.copy(tmp_path / str(number))
        damages.damage(sound, config, file, kind, random.Random(f"{file} {kind} {number}"))
        check_refused(config, file)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"{", b" {"), (b"}\n", b"}\n\n"), (b": ", b":  "), (b"\n", b"\r\n"), (b"\n ", b"\n"), (b'"', b"'")],
)
def test_white_space_and_notation_of_the_manifest_count_as_damage(
    old: bytes, new: bytes, sound: Sound, tmp_path: Path
) -> None:
    config = sound.copy(tmp_path)
    path = checkpoint_of(config) / MANIFEST
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    assert MANIFEST in check_refused(config, MANIFEST)


def test_a_manifest_of_a_newer_version_is_refused_with_the_advice_to_update(sound: Sound, tmp_path: Path) -> None:
    config = sound.copy(tmp_path)
    rewrite_manifest(checkpoint_of(config), version=2)
    with pytest.raises(CheckpointDamaged, match="version 2; this program reads up to 1: update it"):
        manifest.verify(checkpoint_of(config))
    with pytest.raises(ResumeRefused, match=f"or go on from an older one with resume_from_checkpoint = {STEPS - 1}"):
        choosing.choose(config)


@pytest.mark.parametrize("digit", ["3", "5", "9"])  # 1 with one bit flipped
def test_a_flipped_bit_that_makes_a_version_newer_is_damage(digit: str, sound: Sound, tmp_path: Path) -> None:
    config = sound.copy(tmp_path)
    path = checkpoint_of(config) / MANIFEST
    text = path.read_text()
    assert text.count('"version": 1') == 1
    path.write_text(text.replace('"version": 1', f'"version": {digit}'))
    assert choosing.choose(config).path == checkpoint_of(config, STEPS - 1)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_another_steps_folder_under_this_steps_name_is_refused(step: int, sound: Sound, tmp_path: Path) -> None:
    config = sound.copy(tmp_path)
    shutil.rmtree(checkpoint_of(config))
    shutil.copytree(checkpoint_of(config, step), checkpoint_of(config))
    assert check_refused(config, MANIFEST) == f"it is of step {step}, but its folder is named step-00000004"


def test_another_runs_folder_is_refused_by_its_run(
    sound: Sound, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, max_train_steps=2, use_ema=True)
    run(config)
    shutil.copytree(checkpoint_of(sound.config), checkpoint_of(config))
    resumed = config.replace(max_train_steps=5, resume_from_checkpoint="latest")
    with pytest.raises(ResumeRefused, match="belongs to another run"):
        run(resumed)


def test_latest_passes_over_all_that_are_damaged_to_the_newest_sound_one(sound: Sound, tmp_path: Path) -> None:
    config = sound.copy(tmp_path)
    (checkpoint_of(config, 4) / MANIFEST).unlink()
    (checkpoint_of(config, 3) / "weights.safetensors").write_bytes(b"")
    (checkpoint_of(config, 1) / "state.json").unlink()
    chosen = choosing.choose(config)
    assert chosen.path == checkpoint_of(config, 2)
    assert [path for path, _ in chosen.rejected] == [checkpoint_of(config, 4), checkpoint_of(config, 3)]


def test_a_damaged_checkpoint_that_was_asked_for_by_its_step_is_refused_with_the_newest_sound_one(
    sound: Sound, tmp_path: Path
) -> None:
    config = sound.copy(tmp_path)
    (checkpoint_of(config, 2) / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(ResumeRefused) as refused:
        choosing.choose(config.replace(resume_from_checkpoint="2"))
    assert "optimizer.safetensors has 0 bytes" in str(refused.value)
    assert f"the newest sound one is {checkpoint_of(config, 4)}" in str(refused.value)


# --- nothing else is -----------------------------------------------------------------------------------------------


def test_sound_checkpoints_that_were_copied_touched_and_locked_are_no_alarm(sound: Sound, tmp_path: Path) -> None:
    config = sound.copy(tmp_path)
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (0, 0))
        path.chmod(0o555)
    found = manifest.listing(RunFolder(config.run_dir).checkpoints, thorough=True)
    assert [(item.step, item.problem) for item in found] == [(4, ""), (3, ""), (2, ""), (1, "")]
    assert choosing.choose(config).rejected == ()


def test_files_that_were_put_beside_those_of_a_checkpoint_are_no_alarm(sound: Sound, tmp_path: Path) -> None:
    config = sound.copy(tmp_path)
    (checkpoint_of(config) / "notes.txt").write_text("the good one")
    assert manifest.verify(checkpoint_of(config)).step == STEPS


# --- what a resume does about it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "kind"),
    [("weights.safetensors", "a bit of the body flipped"), ("state.json", "another step's"), (MANIFEST, "removed")],
)
def test_a_resume_sets_the_damaged_checkpoint_aside_and_ends_bit_equal(
    file: str, kind: str, sound: Sound, tmp_path: Path
) -> None:
    config = sound.copy(tmp_path)
    damages.damage(sound, config, file, kind, random.Random(0))
    reason, damaged = check_refused(config, file), content_of(checkpoint_of(config))
    assert run(config) == "finished"

    aside = RunFolder(config.run_dir).checkpoints / "rejected" / "step-00000004"
    assert content_of(aside) == damaged
    assert aside.with_name("step-00000004.txt").read_text() == reason + "\n"
    [event] = events_of(config, "checkpoint_rejected")
    assert (event["path"], event["reason"]) == (str(aside), reason)
    assert_bit_equal(tensors_of(config, STEPS), tensors_of(sound.config, STEPS))


def test_with_every_checkpoint_damaged_the_resume_is_refused_and_nothing_changes(
    sound: Sound, trainers: Server, tmp_path: Path
) -> None:
    config = sound.config.replace(output_dir=str(tmp_path), resume_from_checkpoint="latest")
    shutil.copytree(sound.config.output_dir, tmp_path, dirs_exist_ok=True)
    for step, file in enumerate(FILES[:STEPS], start=1):
        path = checkpoint_of(config, step) / file
        path.write_bytes(path.read_bytes()[:-1])
    before = content_of(config.run_dir)
    trainer = trainers.start(config)
    assert trainer.wait() == 3
    assert content_of(config.run_dir) == before
    assert "every checkpoint in" in trainer.printed
    for file in FILES[:STEPS]:
        assert file in trainer.printed


def test_damage_done_after_the_verdict_is_found_before_anything_is_loaded(
    sound: Sound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sound.copy(tmp_path).replace(resume_from_checkpoint="3")
    load = Parts._load

    def damage_and_load(parts: Parts, component: str) -> dict[str, Any]:
        path = checkpoint_of(config, 3) / "ema.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
        return load(parts, component)

    monkeypatch.setattr(Parts, "_load", damage_and_load)
    with pytest.raises(ResumeRefused, match=r"ema\.safetensors was changed"):
        run(config)


# --- the command ---------------------------------------------------------------------------------------------------


def test_verify_names_every_damaged_checkpoint_and_exits_1(
    sound: Sound, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = sound.copy(tmp_path)
    assert main(["verify", str(config.run_dir)]) == 0
    (checkpoint_of(config, 2) / "dataset.json").unlink()
    (checkpoint_of(config, 3) / MANIFEST).write_bytes(b"[]")
    assert main(["verify", str(config.run_dir)]) == 1
    out = capsys.readouterr().out
    assert "step-00000002: DAMAGED: dataset.json is missing" in out
    assert f"step-00000003: DAMAGED: {MANIFEST} is damaged" in out
