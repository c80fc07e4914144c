"""Validation: images held out by content, losses that can be compared, a training that does not notice."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.test_exact_resume import copy_at
from tests.support.runs_at_tiny_size import assert_bit_equal, config_for, events_of, run, steps_of, tensors_of
from trainer.data import dataset
from trainer.data.dataset import DatasetError, Scan
from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Given
from trainer.recipe import early_stopping
from trainer.recipe.early_stopping import Record
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder
from trainer.training import validation
from trainer.training.loader import MicroBatch
from trainer.training.validation import Validator


def pictures(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        colour = np.random.default_rng(number).integers(0, 255, 3)
        Image.new("RGB", (16, 16), tuple(int(value) for value in colour)).save(folder / f"{number}.png")
    return folder


def scan(folder: Path, **options: Any) -> Scan:
    return dataset.scan(
        Config(**{"train_data_dir": str(folder), "output_dir": str(folder.parent / "output"), **options})
    )


def ids(entries: tuple[dataset.Entry, ...]) -> set[str]:
    return {entry.id for entry in entries}


# --- which images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.3])  # of 4 images none is within 2 %, so the nearest one is taken
def test_adding_images_never_brings_a_trained_one_into_validation(tmp_path: Path, share: float) -> None:
    folder = tmp_path / "images"
    trained: set[str] = set()
    for count in range(4, 40, 4):
        found = scan(pictures(folder, range(count - 4, count)), validation_split=share)
        assert not ids(found.validation) & trained
        assert found.validation
        trained |= ids(found.entries)
    assert len(found.entries) + len(found.validation) == 36
    assert share > 0.1 or len(found.validation) <= 3


def test_another_validation_seed_holds_out_other_images(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", range(20))
    one, other = (ids(scan(folder, validation_split=0.3, validation_seed=seed).validation) for seed in (1, 2))
    assert one != other
    assert ids(scan(folder, validation_split=0.3, seed=1).validation) == one


def test_copies_of_a_picture_are_held_out_together(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", range(20))
    for number in range(20):
        shutil.copy(folder / f"{number}.png", folder / f"copy{number}.png")
    found = scan(folder, validation_split=0.3)
    assert not {entry.digest for entry in found.entries} & {entry.digest for entry in found.validation}


def test_a_folder_of_validation_images_is_not_trained_even_where_it_holds_copies(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", range(6))
    pictures(tmp_path / "held out", range(4, 8))
    found = scan(folder, validation_data_dir=str(tmp_path / "held out"), flip_aug=True, caption_dropout_rate=0.5)
    assert sorted(entry.path.name for entry in found.entries) == ["0.png", "1.png", "2.png", "3.png"]
    assert sorted(entry.path.name for entry in found.validation) == ["4.png", "5.png", "6.png", "7.png"]
    assert any("2 images are not trained" in notice for notice in found.notices)
    assert not any(entry.subset.options.flip_aug for entry in found.validation)


def test_nothing_left_to_train_is_refused(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", range(2))
    with pytest.raises(DatasetError, match="none is left to train; lower validation_split"):
        scan(folder, validation_data_dir=str(folder))


def test_another_split_is_a_difference_of_the_images(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", range(12))
    records = []
    for split in (0.0, 0.4):
        config = Config(train_data_dir=str(folder), output_dir=str(tmp_path), validation_split=split)
        records.append(dataset.record(dataset.scan(config), config))
    difference = dataset.compare(*records)
    assert difference.treated and not difference.added and not difference.removed


# --- what the losses mean ------------------------------------------------------------------------------------------


def test_the_record_counts_validations_since_the_best() -> None:
    record = Record("some").after(1, 1.0, 0.9, 0.1).after(2, 0.95, 0.8, 0.1)
    assert (record.best_step, record.not_better, record.loss) == (1, 1, 0.95)
    record = record.after(3, float("nan"), 0.8, 0.1)
    assert (record.best_step, record.not_better, record.loss) == (1, 2, None)
    record = record.after(4, 0.8, 0.7, 0.1)
    assert (record.best_step, record.not_better, record.train_loss_at_best) == (4, 0, 0.7)


def test_overfitting_is_told_once_when_validation_rises_while_training_falls() -> None:
    record, told = Record(), []
    for step, (loss, train_loss) in enumerate([(1.0, 1.0), (1.1, 0.9), (1.2, 0.8), (1.3, 0.7), (1.4, 0.6)], start=1):
        record = record.after(step, loss, train_loss, 0.0)
        told += [step] if early_stopping.warning(record, train_loss) else []
    assert told == [4]
    rising = Record("", 4, 1.3, 1, 1.0, 0.5, 3)
    assert early_stopping.warning(rising, 0.6) is None  # training gets worse too: that is no overfitting


def test_patience_without_validation_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs images to validate with"):
        resolve({"early_stopping_patience": Given(2, "")})


# --- in a run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held out")
    pictures(folder, range(3))
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"thing {number}")
    return folder


def validations(config: Config) -> dict[int, float]:
    return {event["global_step"]: event["loss"] for event in events_of(config, "validation")}


def test_validation_changes_nothing_of_the_training_and_is_equal_after_any_resume(
    tiny_model: Path, tiny_images: Path, held_out: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "network_dropout": 0.3,
        "flip_aug": True,
        "caption_dropout_rate": 0.3,
        "use_ema": True,
        "save_every_n_steps": 2,
    }
    plain = config_for(tiny_model, tiny_images, tmp_path / "plain", **options)
    run(plain)
    validated = config_for(
        tiny_model, tiny_images, tmp_path / "validated", **options,
        validation_data_dir=str(held_out), validate_every_n_steps=3,
    )  # fmt: skip
    run(validated)
    assert steps_of(validated) == steps_of(plain)
    assert_bit_equal(tensors_of(validated), tensors_of(plain))
    assert list(validations(validated)) == [3, 6]
    event = events_of(validated, "validation")[1]
    assert event["images"] == 3 and event["best_loss"] <= event["loss"] and event["train_loss"] > 0
    for step in (2, 6):
        resumed = copy_at(validated, tmp_path / f"at{step}", step)
        run(resumed)
        again = {event["global_step"]: event["loss"] for event in events_of(resumed, "validation")[2:]}
        assert again == {key: loss for key, loss in validations(validated).items() if key > step}


def test_each_band_of_timesteps_has_its_loss_and_a_resume_measures_what_it_restored(
    tiny_model: Path, tiny_images: Path, held_out: Path, tmp_path: Path
) -> None:
    config = config_for(
        tiny_model, tiny_images, tmp_path, validation_data_dir=str(held_out), validate_every_n_steps=2,
        max_train_steps=4, min_timestep=100, max_timestep=900, use_ema=True, max_data_loader_n_workers=0,
    )  # fmt: skip
    run(config.replace(max_train_steps=2))
    run(config.replace(resume_from_checkpoint="latest"))
    first, second = events_of(config, "validation")
    assert [(band["from"], band["to"]) for band in first["bands"]] == [(100, 300), (300, 500), (500, 700), (700, 900)]
    # As many draws fall into each band, so the loss is the mean of theirs.
    assert first["loss"] == pytest.approx(np.mean([band["loss"] for band in first["bands"]]), rel=1e-5)
    assert len({band["loss"] for band in first["bands"]}) == 4
    (resumed,) = events_of(config, "resume_validation")
    assert (resumed["global_step"], resumed["before_step"], resumed["equal"]) == (2, 2, True)
    assert resumed["loss"] == resumed["before_loss"] == first["loss"] and resumed["bands"] == first["bands"]
    assert second["not_better"] in (0, 1)  # the one after the resume is not counted
    run(config.replace(max_train_steps=5, resume_from_checkpoint="latest", validate_at_resume=False))
    assert len(events_of(config, "resume_validation")) == 1


def test_a_loss_that_differs_after_an_exact_resume_is_told(
    tiny_model: Path, tiny_images: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(
        tiny_model, tiny_images, tmp_path, validation_data_dir=str(held_out), validate_every_n_steps=2,
        max_train_steps=2, max_data_loader_n_workers=0,
    )  # fmt: skip
    run(config)
    monkeypatch.setattr(validation, "EPOCH", -2)  # other noise than before, as if something were broken
    run(config.replace(max_train_steps=3, resume_from_checkpoint="latest"))
    (told,) = [event for event in events_of(config, "warning") if event["kind"] == "validation_differs"]
    assert "although nothing is known to differ" in told["message"]


def test_every_epoch_is_validated_by_default(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    config = config_for(
        tiny_model, tiny_images, tmp_path, validation_split=0.3, max_validation_steps=1, cache_latents=True,
        cache_text_encoder_outputs=True, network_train_unet_only=True,
    )  # fmt: skip
    run(config)
    (started,) = events_of(config, "run_started")
    assert list(validations(config)) == list(range(started["steps_per_epoch"], 9, started["steps_per_epoch"]))
    assert {event["images"] for event in events_of(config, "validation")} <= {1, 2}


def test_early_stopping_ends_the_run_and_counts_on_after_a_resume(
    tiny_model: Path, tiny_images: Path, held_out: Path, tmp_path: Path
) -> None:
    straight = config_for(
        tiny_model, tiny_images, tmp_path / "straight", validation_data_dir=str(held_out), validate_every_n_steps=1,
        early_stopping_patience=3, early_stopping_min_delta=10.0, keep_last_n_checkpoints=0,
    )  # fmt: skip
    assert run(straight) == "finished"
    (ended,) = events_of(straight, "run_finished")
    assert (ended["reason"], ended["global_step"]) == ("early_stopping", 4)
    assert list(validations(straight)) == [1, 2, 3, 4]
    resumed = copy_at(straight, tmp_path / "resumed", 2)
    assert run(resumed) == "finished"
    assert events_of(resumed, "run_finished")[-1]["global_step"] == 4
    assert_bit_equal(tensors_of(resumed, 4), tensors_of(straight, 4))
    # What early stopping ended is complete, until more patience is asked for.
    assert run(resumed) == "finished"
    assert len(steps_of(resumed)) == 4
    assert run(resumed.replace(early_stopping_patience=0)) == "finished"
    assert len(steps_of(resumed)) == 8
    record = run_folder.read_run(RunFolder(resumed.run_dir))
    assert record is not None and record["status"] == "finished"


def test_a_stop_in_the_middle_of_a_validation_saves_and_the_resume_makes_it_first(
    tiny_model: Path, tiny_images: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = config_for(
        tiny_model, tiny_images, tmp_path / "straight", validation_data_dir=str(held_out), validate_every_n_steps=2,
        save_every_n_steps=0,
    )  # fmt: skip
    run(straight)
    config = straight.replace(output_dir=str(tmp_path / "stopped"))
    micro_batches = Validator._micro_batches
    begun: list[int] = []

    def interrupted(self: Validator) -> Iterator[tuple[int, MicroBatch]]:
        begun.append(1)
        for number, micro_batch in enumerate(micro_batches(self)):
            if len(begun) == 2 and number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield micro_batch

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "_micro_batches", interrupted)
        assert run(config) == "stopped"
    assert list(validations(config)) == [2]
    assert events_of(config, "run_finished")[-1]["global_step"] == 4
    assert run(config.replace(resume_from_checkpoint="latest")) == "finished"
    assert validations(config) == validations(straight)
    assert steps_of(config) == steps_of(straight)
    assert_bit_equal(tensors_of(config), tensors_of(straight))
