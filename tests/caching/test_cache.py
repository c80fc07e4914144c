"""The caches of latents and text encoder outputs: what they are keyed by, how they are filled, repaired and pruned."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support import tiny
from tests.support.runs_at_tiny_size import (
    assert_bit_equal,
    config_for,
    distributed,
    events_of,
    run,
    steps_of,
    tensors_of,
)
from trainer.__main__ import main
from trainer.caching import filling, packs, stores
from trainer.caching.filling import CacheFull, Encoder
from trainer.caching.stores import DiskStore
from trainer.data import dataset
from trainer.data.dataset import Entry
from trainer.data.pictures import PictureChanged
from trainer.distributed.agreement import Agreement
from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Given
from trainer.options.writing import to_toml
from trainer.refusal import Refused
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopRequested

SETTINGS = {"family": "sd", "model": "a digest", "encoder": "torch.float32"}


class Counted:
    """An encoder that is easy to compute by hand, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.lent = 0

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(pixels))
        return pixels[:, :, ::8, ::8].clone(), pixels.abs()[:, :, ::8, ::8].clone()

    def states(self, captions: Sequence[str]) -> list[dict[str, Any]]:
        self.batches.append(len(captions))
        return [{"states": np.full((3, 2), float(sum(caption.encode())), np.float32)} for caption in captions]

    @contextlib.contextmanager
    def lending(self) -> Iterator[None]:
        self.lent += 1
        yield

    def of_pictures(self, **settings: Any) -> Encoder[Tensor]:
        return Encoder(self.encode, {**SETTINGS, **settings}, {"model": "a model"}, self.lending)

    def of_captions(self, **settings: Any) -> Encoder[Sequence[str]]:
        return Encoder(self.states, {**SETTINGS, **settings}, {"model": "a model"}, self.lending)


class Told:
    """Keeps what it is told of the progress; may stop it."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[tuple[int, int]] = []
        self.end: tuple[int, int] | None = None
        self._stop_after = stop_after

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
        if self._stop_after is not None and done >= self._stop_after:
            raise StopRequested

    def finished(self, total: int, computed: int) -> None:
        self.end = (total, computed)


def options(tmp_path: Path, **changes: Any) -> Config:
    defaults: dict[str, Any] = {
        "train_data_dir": str(tmp_path / "images"),
        "output_dir": str(tmp_path / "output"),
        "resolution": "64",
        "enable_bucket": True,
        "min_bucket_reso": 32,
        "bucket_reso_steps": 16,
        **tiny.CACHED,
    }
    return Config(**{**defaults, **changes})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Options over five pictures in two buckets."""
    tiny.make_images(tmp_path / "images", count=5, sizes=((64, 64), (96, 48)))
    return options(tmp_path)


def entries_of(config: Config) -> tuple[Entry, ...]:
    return dataset.scan(config).entries


def fill(config: Config, told: Told | None = None, **settings: Any) -> tuple[Counted, Any]:
    """Cache the latents; the encoder that was used, and the source."""
    counted = Counted()
    told = told or Told()
    source = filling.latent_source(config, entries_of(config), counted.of_pictures(**settings), Agreement(), told)
    return counted, source


def computed(config: Config, **settings: Any) -> int:
    """How many latents are computed when they are cached now."""
    told = Told()
    fill(config, told, **settings)
    assert told.end is not None
    return told.end[1]


def flip_a_bit_of_every_record(folder: Path) -> None:
    for number in packs.numbers_in(folder):
        path = packs.pack_file(folder, number)
        data = bytearray(path.read_bytes())
        for entry in packs.read_entries(packs.index_file(folder, number))[0]:
            data[int(entry["offset"] + entry["length"]) - packs.ALIGNMENT] ^= 1
        path.write_bytes(data)


def only_collection(config: Config, kind: str = "latents") -> Path:
    (found,) = [item.path for item in stores.collections(config.cache_path) if item.kind == kind]
    return found


# --- filling -------------------------------------------------------------------------------------------------------


def test_every_picture_is_encoded_once_in_full_batches_of_one_bucket(config: Config) -> None:
    counted, _ = fill(config.replace(vae_batch_size=2))
    assert counted.batches == [2, 2, 2]  # three of one bucket and two of the other
    again, _ = fill(config.replace(vae_batch_size=2))
    assert again.batches == []


def test_with_flip_aug_the_mirror_image_is_encoded_too(config: Config) -> None:
    _, source = fill(config.replace(flip_aug=True))
    for entry in entries_of(config):
        plain, mirrored = (np.array(source(entry, is_mirrored)["mean"]) for is_mirrored in (False, True))
        pixels = filling.pixels_of(entry, True)
        assert np.array_equal(mirrored, pixels[:, ::8, ::8]) and not np.array_equal(plain, mirrored)


def test_an_interrupted_filling_goes_on_where_it_was(config: Config) -> None:
    with pytest.raises(StopRequested):
        fill(config, Told(stop_after=2))
    told = Told()
    fill(config, told)
    assert told.calls[0] == (2, 5) and told.end == (5, 3)


def test_every_damaged_value_is_noticed_and_encoded_again_as_it_was(config: Config) -> None:
    config = config.replace(vae_batch_size=2, flip_aug=True)
    entries = entries_of(config)
    _, source = fill(config)
    uses = [(entry, mirrored) for entry in entries for mirrored in (False, True)]
    before = [{name: np.array(array) for name, array in source(*use).items()} for use in uses]
    flip_a_bit_of_every_record(only_collection(config))
    counted, source = fill(config)
    assert counted.batches == []  # damage is found when a value is read
    for use, expected in zip(uses, before, strict=True):
        found = source(*use)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert counted.batches == [2] * 10 and counted.lent == 10
    assert computed(config) == 0
    _, source = fill(config)
    assert all(
        np.array_equal(source(*use)["mean"], expected["mean"]) for use, expected in zip(uses, before, strict=True)
    )


def test_captions_are_encoded_in_full_batches_and_found_by_their_text(config: Config) -> None:
    counted = Counted()
    config = config.replace(text_encoder_batch_size=4)
    source = filling.text_source(config, entries_of(config), counted.of_captions(), Agreement(), Told())
    assert counted.batches == [4, 4]  # five captions and the empty one
    for entry in entries_of(config):
        assert np.all(source(entry.caption)["states"] == sum(entry.caption.encode()))
    assert not source("")["states"].any()
    flip_a_bit_of_every_record(only_collection(config, "text"))
    source = filling.text_source(config, entries_of(config), counted.of_captions(), Agreement(), Told())
    assert counted.batches == [4, 4] and not source("")["states"].any() and counted.lent == 1


def test_a_picture_that_changes_between_the_scan_and_its_encoding_is_refused(config: Config) -> None:
    entries = entries_of(config)
    tiny.Image.new("RGB", (64, 64)).save(entries[0].path)
    with pytest.raises(PictureChanged, match=f"{entries[0].path.name} was changed after the images were looked at"):
        filling.latent_source(config, entries, Counted().of_pictures(), Agreement(), Told())


def test_a_disk_that_is_too_small_is_refused_before_hours_are_spent(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskStore, "room", lambda self: 1000)
    with pytest.raises(CacheFull, match=r"cache_dir: the disk is too small: .* Free some space"):
        fill(config)


def test_a_disk_that_refuses_a_write_ends_with_the_way_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(self: DiskStore, key: bytes, arrays: packs.Arrays) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskStore, "put", put)
    with pytest.raises(CacheFull, match="No space left on device; what is cached already is kept"):
        fill(config)


def test_a_batch_that_the_gpu_cannot_take_names_the_options_to_lower(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: Counted, pixels: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")

    monkeypatch.setattr(Counted, "encode", encode)
    with pytest.raises(Refused, match=r"vae_batch_size, .* lower them, or resolution .*20.00 GiB"):
        fill(config)


def test_what_memory_cannot_take_is_warned_of(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stores.MemoryStore, "room", lambda self: 1000)
    fill(config.replace(cache_latents_to_disk=False))
    assert "of memory" in caplog.text and "cache_latents_to_disk = true" in caplog.text


# --- keys ----------------------------------------------------------------------------------------------------------


def test_names_places_times_and_other_pictures_do_not_matter(config: Config, tmp_path: Path) -> None:
    assert computed(config) == 5
    folder = tmp_path / "images"
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        os.utime(path, (number, number))
    shutil.move(folder, tmp_path / "elsewhere")
    moved = config.replace(train_data_dir=str(tmp_path / "elsewhere"), flip_aug=True)
    assert computed(moved.replace(flip_aug=False)) == 0
    next((tmp_path / "elsewhere").rglob("picture0.png")).unlink()
    tiny.Image.new("RGB", (64, 64)).save(next((tmp_path / "elsewhere").iterdir()) / "new.png")
    assert computed(moved.replace(flip_aug=False)) == 1
    assert computed(moved) == 5  # the mirror images


@pytest.mark.parametrize(
    "change",
    [{"resolution": "48"}, {"flip_aug": True}, {"vae_batch_size": 2}, {"bucket_reso_steps": 24}],
    ids=lambda change: next(iter(change)),
)
def test_an_option_that_shapes_latents_makes_new_ones(config: Config, change: dict[str, Any]) -> None:
    computed(config)
    assert computed(config.replace(**change)) > 0
    assert computed(config) == 0  # the others are still there


@pytest.mark.parametrize("name", ["model", "encoder", "family"])
def test_another_encoder_makes_new_latents(config: Config, name: str) -> None:
    computed(config)
    assert computed(config, **{name: "another"}) == 5


def test_every_content_and_treatment_has_a_key_of_its_own(config: Config) -> None:
    entries = [
        dataclasses.replace(entry, bucket=bucket) for entry in entries_of(config) for bucket in ((64, 64), (64, 48))
    ]
    keys = {stores.latent_key(entry, mirrored) for entry in entries for mirrored in (False, True)}
    keys |= {stores.text_key(text) for text in ("", "a", "a ", "A", "ä", "\udce4")}
    assert len(keys) == 5 * 2 * 2 + 6 and {len(key) for key in keys} == {packs.KEY_BYTES}
    pictures = {stores.latent_key(entry, False)[: stores.CONTENT_BYTES] for entry in entries}
    assert len(pictures) == 5 and pictures < stores.contents_of(entries)


def test_the_settings_of_a_model_change_with_its_precision_and_clip_skip(
    tiny_model: Path, tmp_path: Path, tiny_images: Path
) -> None:
    config = config_for(
        tiny_model,
        tiny_images,
        tmp_path,
        **tiny.CACHED,
        cache_only=True,
    )
    for changes in ({}, {}, {"clip_skip": 2}, {"mixed_precision": "bf16"}):
        run(config.replace(**changes))
    kinds = [item.kind for item in stores.collections(config.cache_path)]
    assert (kinds.count("latents"), kinds.count("text")) == (2, 3)


# --- combinations that cannot be cached ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "option", "message"),
    [
        ({"cache_latents": True, "random_crop": True}, "cache_latents", "random_crop"),
        (
            {"cache_text_encoder_outputs": True, "shuffle_caption": True},
            "cache_text_encoder_outputs",
            "shuffle_caption",
        ),
        ({"cache_only": True, "cache_latents": True}, "cache_only", "cache_latents_to_disk = true"),
    ],
)
def test_what_cannot_be_cached_is_refused_by_name(given: dict[str, Any], option: str, message: str) -> None:
    source = {name: Given(value, "") for name, value in ({"network_train_unet_only": True} | given).items()}
    with pytest.raises(ConfigError) as refused:
        resolve(source)
    assert [problem.key for problem in refused.value.problems] == [option]
    assert message in str(refused.value)


# --- whole runs ----------------------------------------------------------------------------------------------------


CACHED_MIRRORED = {
    **tiny.CACHED,
    "flip_aug": True,
    "vae_batch_size": 2,
    "max_train_steps": 3,
}


def test_cache_only_prepares_the_caches_trains_nothing_and_tells_how_far_it_is(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, **CACHED_MIRRORED, cache_only=True)
    assert run(config) == "cached"
    assert events_of(config, "step") == [] and events_of(config, "checkpoint_saved") == []
    ends = [event for event in events_of(config, "caching") if event["done"] == event["total"]]
    assert [(event["what"], event["total"], event["computed"]) for event in ends] == [
        ("latents", 14, 14),
        ("captions", 8, 8),
    ]
    assert events_of(config, "run_finished")[0]["reason"] == "cached"
    assert run_folder.status(RunFolder(config.run_dir)) == "finished"

    trained = config.replace(cache_only=False)
    assert run(trained) == "finished"
    ends = [event for event in events_of(trained, "caching") if event["done"] == event["total"]]
    assert [event["computed"] for event in ends[2:]] == [0, 0]


def test_caches_in_memory_on_disk_and_damaged_ones_train_to_the_same_bits(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    on_disk = config_for(tiny_model, tiny_images, tmp_path / "disk", **CACHED_MIRRORED)
    run(on_disk)
    memory = {"cache_latents_to_disk": False, "cache_text_encoder_outputs_to_disk": False}
    in_memory = config_for(tiny_model, tiny_images, tmp_path / "memory", **{**CACHED_MIRRORED, **memory})
    run(in_memory)
    for collection in stores.collections(on_disk.cache_path):
        flip_a_bit_of_every_record(collection.path)
    damaged = on_disk.replace(output_dir=str(tmp_path / "damaged"), cache_dir=str(on_disk.cache_path))
    run(damaged)
    for other in (in_memory, damaged):
        assert steps_of(other) == steps_of(on_disk)
        assert_bit_equal(tensors_of(other, 3), tensors_of(on_disk, 3))


def test_a_stop_is_answered_while_the_caches_are_filled(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    config = config_for(tiny_model, tiny_images, tmp_path, **CACHED_MIRRORED)
    drop = run_folder.drop_old_requests

    def ask_at_once(folder: RunFolder, *others: Any) -> None:
        drop(folder, *others)
        run_folder.ask(folder, "stop")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "drop_old_requests", ask_at_once)
        with pytest.raises(StopRequested):
            run(config)
    assert run_folder.status(RunFolder(config.run_dir)) == "stopped"


def test_two_processes_share_the_encoding_and_train_as_one_does(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    in_memory = {"cache_text_encoder_outputs_to_disk": False, "text_encoder_batch_size": 2}
    one = config_for(tiny_model, tiny_images, tmp_path / "one", **{**CACHED_MIRRORED, **in_memory})
    run(one)
    two = one.replace(output_dir=str(tmp_path / "two"), train_batch_size=1)
    (tmp_path / "two").mkdir()
    distributed(two, 2, tmp_path)
    (latents,) = stores.collections(two.cache_path)
    assert latents.entries == 14  # nothing twice
    assert len(packs.numbers_in(latents.path)) <= 2  # a process that is done before the other begins leaves it its pack
    for expected, found in zip(steps_of(one).values(), steps_of(two).values(), strict=True):
        assert found[-1] == expected[-1] and found[1] == pytest.approx(expected[1], rel=1e-5)


# --- listing and pruning -------------------------------------------------------------------------------------------


def test_collections_are_listed_with_what_is_in_them(config: Config) -> None:
    before = time.time()
    _, source = fill(config.replace(flip_aug=True))
    (found,) = stores.collections(config.cache_path)
    assert (found.kind, found.entries, found.in_use) == ("latents", 10, True)
    assert found.settings["model"] == "a digest" and found.about == {"model": "a model"}
    assert found.bytes > 10 * 2 * 3 * 8 * 6 * 4 and found.last_used >= before - 1
    del source
    (found,) = stores.collections(config.cache_path)
    assert not found.in_use


def test_pruning_removes_what_is_no_longer_in_the_dataset_and_keeps_every_treatment_of_the_rest(
    config: Config, tmp_path: Path
) -> None:
    fill(config.replace(flip_aug=True))
    fill(config.replace(resolution="48"))
    next((tmp_path / "images").rglob("picture0.png")).unlink()
    wanted = stores.contents_of(entries_of(config))
    dry = stores.prune(config.cache_path, contents=wanted, dry_run=True)
    assert [item.entries for item in dry] == [3]  # it, its mirror image, and it in the smaller bucket
    (pruned,) = stores.prune(config.cache_path, contents=wanted)
    assert pruned.entries == 3 and pruned.bytes > 0 and pruned.reason == "3 no longer in the dataset"
    assert computed(config.replace(flip_aug=True)) == computed(config.replace(resolution="48")) == 0
    assert stores.prune(config.cache_path, contents=wanted)[0].entries == 0


def test_values_that_two_runs_put_at_once_are_counted_and_pruned(config: Config) -> None:
    opened = [DiskStore(config.cache_path, "latents", {}, {}) for _ in range(2)]
    for store in opened:
        store.put(bytes(16), {"mean": np.zeros(4)})
        store.finish_writing()
        store.close()
    (would,) = stores.prune(config.cache_path, dry_run=True)
    assert (would.entries, would.reason) == (1, "1 there twice")
    assert stores.prune(config.cache_path)[0].entries == 1
    assert stores.prune(config.cache_path, dry_run=True)[0].entries == 0


def test_pruning_leaves_alone_what_a_run_uses(config: Config) -> None:
    _, source = fill(config)
    (pruned,) = stores.prune(config.cache_path, everything=True)
    assert (pruned.entries, pruned.whole) == (0, False) and "in use" in pruned.reason
    assert all(source(entry, False) for entry in entries_of(config))


def test_collections_not_used_for_long_are_removed(config: Config) -> None:
    fill(config)
    fill(config.replace(vae_batch_size=2))
    old = stores.collections(config.cache_path)[1]
    long_ago = time.time() - 40 * 86400
    os.utime(old.path / stores.LOCK, (long_ago, long_ago))
    removed = [item.collection.path for item in stores.prune(config.cache_path, unused_days=30) if item.whole]
    assert removed == [old.path] and not old.path.exists()
    assert len(stores.collections(config.cache_path)) == 1


def test_pruning_never_touches_what_is_not_its_own(config: Config, tmp_path: Path) -> None:
    fill(config)
    folder = only_collection(config)
    outside = tmp_path / "outside"
    shutil.copytree(folder, outside)
    foreign = [
        config.cache_path / "pictures.sqlite",
        config.cache_path / "latents" / "notes.txt",
        config.cache_path / "latents" / "0123456789abcdef" / "00000.pack",  # no settings: not ours
        config.cache_path / "latents" / "ab" / "photo.safetensors",
        folder / "photo.png",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (config.cache_path / "latents" / "fedcba9876543210").symlink_to(outside)
    (folder / "00009.pack").symlink_to(outside / "00000.pack")
    before = sorted(path.name for path in outside.iterdir())
    stores.prune(config.cache_path, everything=True)
    stores.remove_earlier_format(config.cache_path)
    assert all(path.read_text() == "mine" for path in foreign)
    assert sorted(path.name for path in outside.iterdir()) == before
    assert sorted(path.name for path in folder.iterdir()) == ["00009.pack", "photo.png"]


def test_files_of_the_earlier_format_are_told_of_and_removed(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    earlier = config.cache_path / "latents" / "ab" / f"{'ab' * 32}.safetensors"
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"12345")
    fill(config)
    assert f"{config.cache_path} holds 1 files (0.0 MB) of an earlier cache format" in caplog.text
    assert f"python -m trainer cache prune {config.cache_path} removes them" in caplog.text
    assert dataclasses.astuple(stores.earlier_format(config.cache_path)) == (1, 5)
    stores.remove_earlier_format(config.cache_path)
    assert not earlier.parent.exists() and stores.earlier_format(config.cache_path).files == 0
    assert computed(config) == 0


# --- the command ---------------------------------------------------------------------------------------------------


def command(*arguments: str) -> int:
    return main(["cache", *arguments])


def test_the_command_lists_and_prunes_what_a_preset_no_longer_needs(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(to_toml(config))
    fill(config)
    next((tmp_path / "images").rglob("picture0.png")).unlink()
    assert command("list", "--config", str(preset)) == 0
    told = capsys.readouterr().out
    assert "latents         5 values" in told and "1 no longer in the dataset; cache prune removes" in told
    assert command("prune", "--config", str(preset), "--dry-run") == 0
    assert "1 of 5 values would go" in capsys.readouterr().out
    assert command("prune", "--config", str(preset)) == 0
    assert "1 of 5 values removed: 1 no longer in the dataset" in capsys.readouterr().out
    assert command("list", config.output_dir, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["collections"]
    assert (row["entries"], row["in_use"], row["settings"]["model"]) == (4, False, "a digest")
    assert command("prune", config.output_dir, "--all", "--json") == 0
    assert json.loads(capsys.readouterr().out)["collections"][0]["whole"]
    assert stores.collections(config.cache_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list"], "name a cache folder, or a preset with --config"),
        (["prune", "nowhere"], "there is no folder nowhere"),
        (["prune", "--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_the_command_refuses_with_the_way_out(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 3
    assert message in capsys.readouterr().out
