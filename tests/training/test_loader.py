"""The stream of steps: always the same, wherever it begins and whoever prepares it; what fails is named."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support import tiny
from trainer.caching.packs import Arrays
from trainer.data import dataset, pictures
from trainer.data.dataset import Entry
from trainer.data.pictures import PictureChanged, PictureError, PictureGone
from trainer.options.config import Config
from trainer.recipe import timesteps
from trainer.recipe.timesteps import Density, FlowTimesteps
from trainer.training import loader
from trainer.training.loader import Loader, MicroBatch, Origin, Plan, SampleFailed, Samples, Sources, Step, Use


def tokenize(captions: Sequence[str]) -> dict[str, Tensor]:
    return {"tokens": torch.tensor([[len(caption)] for caption in captions])}


class Latents:
    """Latents that tell which picture they are of; preparing some can fail, or be waited for."""

    def __init__(self) -> None:
        self.failing: dict[str, Exception] = {}
        self.held: dict[str, threading.Event] = {}

    def __call__(self, entry: Entry, mirrored: bool) -> Arrays:
        if entry.id in self.held:
            self.held[entry.id].wait(10)
        if entry.id in self.failing:
            raise self.failing[entry.id]
        mean = np.full((4, 8, 8), int(entry.digest[:4], 16) + 0.5 * mirrored, np.float32)
        mean.flags.writeable = False  # as those from a cache
        return {"mean": mean, "std": mean}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tiny.make_images(tmp_path / "images", count=10, repeats=2)
    return Config(train_data_dir=str(tmp_path / "images"), resolution="64", train_batch_size=4, flip_aug=True)


def loader_of(config: Config, latents: Latents | None = None) -> Loader:
    entries = dataset.scan(config).entries
    sources = Sources(tokenize, latents or Latents(), None, 4, 8, torch.device("cpu"), timesteps.from_config(config))
    return Loader(config, Plan(config, entries, 1, Origin()), sources)


def taken(config: Config, start: int, count: int, latents: Latents | None = None) -> list[Step]:
    steps = loader_of(config, latents).steps(start)
    try:
        return list(islice(steps, count))
    finally:
        steps.close()


def assert_equal(left: Sequence[Step], right: Sequence[Step]) -> None:
    assert [step.digest for step in left] == [step.digest for step in right]
    for one, other in zip(left, right, strict=True):
        for mine, theirs in zip(one.micro_batches, other.micro_batches, strict=True):
            assert mine.tensors.keys() == theirs.tensors.keys()
            assert all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in mine.tensors)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same_bits(config: Config, workers: int) -> None:
    alone = taken(config.replace(max_data_loader_n_workers=0), 0, 12)
    assert_equal(taken(config.replace(max_data_loader_n_workers=workers), 0, 12), alone)


def test_a_stream_that_begins_anywhere_is_the_rest_of_the_one_that_began_at_first(config: Config) -> None:
    whole = taken(config, 0, 12)
    assert [step.index for step in whole] == list(range(12))
    for start in (1, 5, 11):
        assert_equal(taken(config, start, 12 - start), whole[start:])
    far = taken(config, 10**9, 1)[0]
    assert (far.index, far.epoch) == (10**9, 10**9 // 5)


def test_an_epoch_that_does_not_divide_ends_with_a_smaller_step(config: Config) -> None:
    entries = dataset.scan(config).entries
    plan = Plan(config, entries[:7], 1, Origin())
    assert plan.steps_per_epoch == 4
    assert [len(plan.samples(step)[0]) for step in range(8)] == [4, 4, 4, 2] * 2


def test_datasets_of_two_batch_sizes_each_train_every_sample_once_an_epoch(config: Config) -> None:
    entries = dataset.scan(config).entries
    larger = dataclasses.replace(entries[0].subset, options=config.replace(train_batch_size=3))
    mixed = [dataclasses.replace(entry, subset=larger) if place < 5 else entry for place, entry in enumerate(entries)]
    plan = Plan(config, mixed, 1, Origin())
    steps = [plan.samples(step)[0] for step in range(plan.steps_per_epoch)]
    assert sorted(len(step) for step in steps) == [1, 2, 3, 3, 3, 4, 4]
    assert sorted((use.entry.id, use.repeat) for step in steps for use in step) == sorted(
        (entry.id, repeat) for entry in entries for repeat in (0, 1)
    )
    assert all(len({use.entry.subset.options.train_batch_size for use in step}) == 1 for step in steps)


def test_a_plan_holds_a_few_bytes_for_each_sample(config: Config) -> None:
    entries = dataset.scan(config).entries
    many = [dataclasses.replace(entries[0], repeats=1000)] * 100
    plan = Plan(config, many, 1, Origin())
    plan.samples(0)
    arrays = [value for value in vars(plan).values() if isinstance(value, np.ndarray)]
    arrays += [*plan._order(0), *(members for members, _ in plan._groups)]
    assert sum(array.nbytes for array in arrays) / 100_000 <= 24


def test_a_worker_that_fails_ends_the_stream_with_the_name_of_the_image(config: Config) -> None:
    entry = dataset.scan(config).entries[3]
    latents = Latents()
    latents.failing[entry.id] = RuntimeError("out of luck")
    for workers in (0, 2):
        with pytest.raises(SampleFailed, match=f"{entry.path.name} could not be prepared: RuntimeError: out of luck"):
            taken(config.replace(max_data_loader_n_workers=workers), 0, 5, latents)
    assert "remove" in SampleFailed.advice and "resume from the latest checkpoint" in SampleFailed.advice
    latents.failing[entry.id] = PictureError(entry.path, "it is truncated")
    with pytest.raises(PictureError, match=f"{entry.path.name} cannot be read: it is truncated"):
        taken(config, 0, 5, latents)


# --- files that do not stay as they were ---------------------------------------------------------------------------


def prepared(config: Config, entry: Entry) -> MicroBatch:
    """One use of an image, from its file."""
    samples = Samples(config, Sources(tokenize, None, None, 4, 8, torch.device("cpu"), timesteps.from_config(config)))
    return samples.micro_batch([Use(entry, 0, 0)], 1.0)


def test_another_picture_under_the_name_of_one_that_is_trained_is_refused_not_trained(config: Config) -> None:
    first, second = dataset.scan(config).entries[:2]
    shutil.copyfile(second.path, first.path)
    with pytest.raises(PictureChanged, match=f"{first.path.name} was changed after the images were looked at"):
        prepared(config, first)
    assert "resume_allow" in PictureChanged.advice


def test_another_mask_under_the_name_of_one_that_is_used_is_refused_not_used(config: Config, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "images" / "2_thing", tmp_path / "masks")
    config = config.replace(masked_loss=True, conditioning_data_dir=str(tmp_path / "masks"))
    entry = dataset.scan(config).entries[0]
    assert entry.mask
    Image.new("L", (64, 64)).save(entry.mask)
    with pytest.raises(PictureChanged, match=re.escape(str(entry.mask))):
        prepared(config, entry)


def test_a_disk_that_is_away_for_a_moment_changes_nothing(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = dataset.scan(config).entries[0]
    expected = prepared(config, entry).tensors
    away = entry.path.rename(entry.path.with_name("away"))
    monkeypatch.setattr(pictures.time, "sleep", lambda seconds: seconds == 4 and away.rename(entry.path))
    found = prepared(config, entry).tensors
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [record.getMessage() for record in caplog.records] == [
        f"{entry.path} cannot be read: No such file or directory; trying again for 30 s"
    ]


def test_a_picture_that_stays_away_ends_the_stream_with_its_name(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = dataset.scan(config).entries[0]
    entry.path.unlink()
    waited: list[float] = []
    monkeypatch.setattr(pictures.time, "sleep", waited.append)
    with pytest.raises(PictureGone, match=f"{entry.path.name} cannot be read: No such file or directory"):
        prepared(config, entry)
    assert 20 < sum(waited) < 60


def test_a_wait_that_is_too_long_names_the_images(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader, "LONG_WAIT", 0.05)
    caplog.set_level(logging.WARNING)
    entry = dataset.scan(config).entries[3]
    latents = Latents()
    latents.held[entry.id] = threading.Event()
    threading.Timer(0.3, latents.held[entry.id].set).start()
    assert_equal(taken(config, 0, 5, latents), taken(config, 0, 5))
    assert "Still waiting for the images of step" in caplog.text and str(entry.path) in caplog.text


def test_a_step_that_is_ready_in_the_last_moment_of_a_long_wait_is_trained(config: Config) -> None:
    class ReadyTooLate(Future[Step]):
        def result(self, timeout: float | None = None) -> Step:
            if timeout is not None:
                raise TimeoutError
            return super().result()

    (step,) = taken(config, 0, 1)
    built = ReadyTooLate()
    built.set_result(step)
    assert loader_of(config)._patiently(0, built) is step


def test_the_next_batches_are_prepared_while_one_is_trained_and_never_more_than_a_few(config: Config) -> None:
    built: list[int] = []
    mine = loader_of(config.replace(max_data_loader_n_workers=2))
    build = mine.build

    def counted(step: int) -> Step:
        built.append(step)
        return build(step)

    mine.build = counted  # type: ignore[method-assign]
    steps = mine.steps(0)
    next(steps)
    deadline = time.monotonic() + 300
    while len(built) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(built) == [0, 1, 2, 3]
    steps.close()


def test_leaving_the_stream_ends_its_threads(config: Config) -> None:
    taken(config.replace(max_data_loader_n_workers=3), 0, 2)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")] == []


def test_worker_threads_prepare_for_the_gpu_of_their_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cpu", "cuda", "cuda:1"):
        with loader.thread_pool(1, "loader", torch.device(device)) as pool:
            pool.submit(int).result()
    assert chosen == [torch.device("cuda:1")]


def test_a_batch_does_not_depend_on_torchs_default_precision(config: Config) -> None:
    """Loading a component in half precision changes that default for a moment, for all threads."""
    density = Density("sigmoid", 1.0, 1.0, "none", 0.0, 1.0, 1.29)
    found = dataset.scan(config).entries[0]
    sources = Sources(tokenize, None, None, 4, 8, torch.device("cpu"), FlowTimesteps(density))
    uses = [Use(found, 0, 0)]
    expected = Samples(config, sources).micro_batch(uses, 1 / 3).tensors
    torch.set_default_dtype(torch.bfloat16)
    try:
        tensors = Samples(config, sources).micro_batch(uses, 1 / 3).tensors
    finally:
        torch.set_default_dtype(torch.float32)
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name
