"""A resume with other images than before, by permission: what did not change goes on as if nothing had."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support import tiny
from tests.support.runs_at_tiny_size import config_for, events_of, run
from trainer.checkpoints.resume import ResumeRefused
from trainer.models.model import Model
from trainer.options.config import Config
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder
from trainer.training.loader import Samples, Use

Drawn = dict[tuple[str, int, int], dict[str, Any]]


@pytest.fixture
def config(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Config:
    """Seven pictures used twice in four steps an epoch; the last step begins the third epoch."""
    shutil.copytree(tiny_images, tmp_path / "images")
    return config_for(
        tiny_model,
        tmp_path / "images",
        tmp_path / "output",
        train_batch_size=4,
        max_train_steps=12,
        save_every_n_steps=4,
        shuffle_caption=True,
        flip_aug=True,
        resume_allow=("dataset",),
    )


def watched(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Everything drawn for each use of an image, by its name, epoch and repeat, filled in while a run trains."""
    drawn: Drawn = {}
    micro_batch = Samples.micro_batch

    def watch(samples: Samples, uses: Sequence[Use], *more: Any) -> Any:
        result = micro_batch(samples, list(uses), *more)
        for row, use in enumerate(uses):
            drawn[use.entry.path.name, use.epoch, use.repeat] = {
                name: tensor[row] for name, tensor in result.tensors.items() if name != "weights"
            }
        return result

    monkeypatch.setattr(Samples, "micro_batch", watch)
    return drawn


def assert_same_draws(left: Drawn, right: Drawn, changed: set[str]) -> int:
    """What was drawn for the pictures that are in both and not changed is equal; returns how many uses they had."""
    both = [use for use in left.keys() & right.keys() if use[0] not in changed]
    for use in both:
        assert left[use].keys() == right[use].keys()
        assert all(torch.equal(left[use][name], right[use][name]) for name in left[use]), use
    return len(both)


def change(images: Path) -> set[str]:
    """One picture more, one less, one other picture, one other caption; the names of those that are there."""
    [folder] = images.iterdir()
    Image.new("RGB", (64, 64), "purple").save(folder / "new.png")
    Image.new("RGB", (64, 64), "orange").save(folder / "picture1.png")
    (folder / "picture0.png").unlink()
    (folder / "picture2.txt").write_text("something else, entirely")
    return {"new.png", "picture1.png", "picture2.png"}


def test_unchanged_images_keep_their_noise_crops_and_captions(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        before = watched(patched)
        run(config)
    changed = change(Path(config.train_data_dir))
    with monkeypatch.context() as patched:
        after = watched(patched)
        run(config.replace(resume_from_checkpoint="4"))
    assert assert_same_draws(before, after, changed) >= 8  # four pictures, twice in the second epoch
    assert {name for name, _, _ in after} >= changed and "picture0.png" not in {name for name, _, _ in after}


def test_the_change_is_refused_by_name_without_permission_and_recorded_with_it(config: Config) -> None:
    run(config)
    change(Path(config.train_data_dir))
    resumed = config.replace(resume_from_checkpoint="4")
    with pytest.raises(ResumeRefused) as refusal:
        run(resumed.replace(resume_allow=()))
    run(resumed)
    [event] = events_of(config, "resumed")
    for line in (
        "added (1): 2_thing/new.png",
        "removed (1): 2_thing/picture0.png",
        "another picture (1): 2_thing/picture1.png",
        "caption changed (1): 2_thing/picture2.png",
    ):
        assert line in str(refusal.value) and line in event["dataset"]
    record = run_folder.read_run(RunFolder(config.run_dir))
    assert record
    [allowed] = record["sessions"][-1]["allowed"]
    assert allowed["name"] == "dataset" and allowed["change"] == event["dataset"]
    assert event["grade"] == "changed"


def test_caches_are_kept_and_only_what_changed_is_encoded_again(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = config.replace(
        **tiny.CACHED,
        shuffle_caption=False,
        flip_aug=False,
        text_encoder_batch_size=1,
    )
    run(cached)
    change(Path(config.train_data_dir))
    pictures = [0]
    captions: list[str] = []
    encode_images, encode_captions = Model.encode_images, Model.encode_captions

    def images(model: Model, pixels: torch.Tensor) -> Any:
        pictures[0] += len(pixels)
        return encode_images(model, pixels)

    def texts(model: Model, chosen: Sequence[str]) -> Any:
        captions.extend(chosen)
        return encode_captions(model, chosen)

    monkeypatch.setattr(Model, "encode_images", images)
    monkeypatch.setattr(Model, "encode_captions", texts)
    run(cached.replace(resume_from_checkpoint="4"))
    assert pictures[0] == 2  # the new one and the other one
    assert sorted(captions) == ["something else, entirely", "thing"]  # new.png has its folder's name
