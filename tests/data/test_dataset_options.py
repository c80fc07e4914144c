"""Each dataset option by its effect on the samples that a training is given."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.data import captions, dataset
from trainer.data.buckets import micro_batches
from trainer.data.dataset import DatasetError, Entry, Scan
from trainer.data.metadata_files import MetadataError
from trainer.data.prompt_weights import parse
from trainer.data.subsets import Subset
from trainer.options.checks import resolve
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Given
from trainer.recipe.timesteps import WholeTimesteps
from trainer.training.loader import Loader, MicroBatch, Origin, Plan, Samples, Sources, Use

SIDE = 16


def picture(path: Path, colour: Any = (200, 100, 50), size: tuple[int, int] = (SIDE, SIDE), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def pictures(folder: Path, count: int, start: int = 0, caption: str = "") -> Path:
    for number in range(start, start + count):
        path = picture(folder / f"{number}.png", (number, 255 - number, 7))
        if caption:
            path.with_suffix(".txt").write_text(caption)
    return folder


def config_for(folder: Path, **options: Any) -> Config:
    defaults = {"train_data_dir": str(folder), "output_dir": str(folder.parent / "output"), "resolution": str(SIDE)}
    return Config(**{**defaults, **options})


def scan(folder: Path, **options: Any) -> Scan:
    return dataset.scan(config_for(folder, **options))


def codes(texts: Any) -> dict[str, torch.Tensor]:
    return {"tokens": torch.tensor([[len(text)] for text in texts])}


SOURCES = Sources(codes, None, None, 4, 8, torch.device("cpu"), WholeTimesteps(0, 1000))


def micro_batch(config: Config, found: Scan, epoch: int = 0) -> MicroBatch:
    return Samples(config, SOURCES).micro_batch([Use(entry, epoch, 0) for entry in found.entries], 1.0)


def pixels(config: Config, epochs: int = 30) -> list[torch.Tensor]:
    """The one image's pixels, as often as it is used."""
    found = dataset.scan(config)
    return [micro_batch(config, found, epoch).tensors["pixels"][0] for epoch in range(epochs)]


def uses_of(config: Config, steps: int) -> list[list[Use]]:
    found = dataset.scan(config)
    plan = Plan(config, found.entries, 1, Origin())
    return [plan.samples(step)[0] for step in range(steps)]


def texts(caption: str, uses: int = 40, warmed: float = 1.0, **options: Any) -> list[str]:
    """What a caption becomes in its uses."""
    config = Config(**options)
    return [captions.caption_of_use(caption, config, "image", epoch, 0, warmed) for epoch in range(uses)]


# --- captions ------------------------------------------------------------------------------------------------------


def test_prefix_and_suffix_are_shuffled_and_counted_by_keep_tokens() -> None:
    assert texts("a, b", 1, caption_prefix="x,", caption_suffix=", y") == ["x, a, b , y"]
    shuffled = texts("a, b", caption_prefix="x,", caption_suffix=", y", shuffle_caption=True, keep_tokens=1)
    assert all(text.startswith("x, ") for text in shuffled)
    assert {text.split(", ").index("y") for text in shuffled} == {1, 2, 3}


def test_the_separator_decides_what_is_shuffled() -> None:
    found = texts("a, b; c; d", caption_separator=";", shuffle_caption=True)
    assert all("a, b" in text for text in found)
    assert len(set(found)) == 6


def test_keep_tokens_separator_keeps_what_is_before_the_first_and_after_the_second() -> None:
    found = texts("a, b ||| c, d, e ||| f", keep_tokens_separator="|||", shuffle_caption=True, keep_tokens=3)
    assert all(text.startswith("a, b, ") and text.endswith(", f") for text in found)
    assert len(set(found)) == 6
    assert texts("a ||| b", 1, keep_tokens_separator="|||") == ["a, b"]


def test_parts_under_the_secondary_separator_stay_together() -> None:
    found = texts("a, b;;;c, d", secondary_separator=";;;", shuffle_caption=True, caption_tag_dropout_rate=0.3)
    assert {"b,c" in text for text in found} == {True, False}
    assert not any(("b" in text) != ("c" in text) for text in found)


def test_a_wildcard_and_a_line_are_chosen_at_every_use() -> None:
    found = Counter(texts("{{a {red|green|blue} cat}}\na dog", 300, enable_wildcard=True))
    assert found.keys() == {"{a red cat}", "{a green cat}", "{a blue cat}", "a dog"}
    assert 120 < found["a dog"] < 180 and min(found.values()) > 30
    assert texts("a {red|green} cat\na dog", 1) == ["a {red|green} cat"]


def test_wildcards_leave_the_other_draws_as_they_were() -> None:
    options: dict[str, Any] = {"shuffle_caption": True, "caption_dropout_rate": 0.3}
    assert texts("a, b, c", **options) == texts("a, b, c", enable_wildcard=True, **options)


def test_all_lines_of_a_caption_file_are_read_for_wildcards(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png").with_suffix(".txt").write_text("one\ntwo\n")
    assert scan(tmp_path / "images").entries[0].caption == "one"
    assert scan(tmp_path / "images", enable_wildcard=True).entries[0].caption == "one\ntwo"


def test_captions_grow_while_tokens_warm_up() -> None:
    options: dict[str, Any] = {"token_warmup_step": 8.0, "token_warmup_min": 2}
    grown = [texts("a, b, c, d, e, f", 1, warmed, **options)[0] for warmed in (0.0, 0.5, 0.99, 1.0)]
    assert grown == ["a, b", "a, b, c, d", "a, b, c, d, e", "a, b, c, d, e, f"]


@pytest.mark.parametrize(("warmup", "planned"), [(4.0, 100), (0.5, 8)])  # steps, or a share of them
def test_the_warm_up_of_tokens_follows_the_steps(tmp_path: Path, warmup: float, planned: int) -> None:
    config = config_for(pictures(tmp_path / "images", 2), token_warmup_step=warmup)
    plan = Plan(config, dataset.scan(config).entries, 1, Origin(), planned)
    assert [plan.samples(step)[0][0].warmed for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_every_nth_epoch_is_without_captions() -> None:
    assert texts("a", 4, caption_dropout_every_n_epochs=2) == ["a", "", "a", ""]


def test_the_first_extension_with_a_file_counts(tmp_path: Path) -> None:
    for name, extensions in (("a", (".txt", ".caption")), ("b", (".caption",)), ("c", ())):
        path = picture(tmp_path / "1_thing" / f"{name}.png", (len(extensions), 0, 0))
        for extension in extensions:
            path.with_suffix(extension).write_text(f"{name}{extension}")
    found = scan(tmp_path, caption_extension=".txt, .caption")
    assert sorted(entry.caption for entry in found.entries) == ["a.txt", "b.caption", "thing"]
    config, _ = resolve({"caption_extension": Given([".txt", ".caption"], "")})
    assert config.caption_extensions == (".txt", ".caption")


# --- captions in one file ------------------------------------------------------------------------------------------


def test_a_metadata_file_captions_images_in_all_folders_it_names(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.png", "c.png"):
        picture(tmp_path / "images" / name, (len(name), 0, 0))
    (tmp_path / "images" / "c.txt").write_text("from the file beside it")
    rows = [{"file_name": name, "text": f"caption of {name}"} for name in ("a.png", "deep/b.png", "c.png")]
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = scan(tmp_path / "images", dataset_repeats=3)
    assert {entry.relative: entry.caption for entry in found.entries} == {
        "a.png": "caption of a.png",
        "deep/b.png": "caption of deep/b.png",
        "c.png": "from the file beside it",
    }
    assert found.samples == 9
    assert not any(finding.kind == "no_caption" for finding in found.findings)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_metadata_may_be_a_table(tmp_path: Path, kind: str) -> None:
    picture(tmp_path / "images" / "a.png")
    path = tmp_path / "images" / f"metadata.{kind}"
    if kind == "csv":
        path.write_text('file_name,prompt\na.png,"a, b"\n')
    else:
        pyarrow.parquet.write_table(pyarrow.table({"file_name": ["a.png"], "prompt": ["a, b"]}), path)
    assert scan(tmp_path / "images", caption_column="prompt").entries[0].caption == "a, b"
    with pytest.raises(MetadataError, match="no column 'text'; set caption_column to one of prompt"):
        scan(tmp_path / "images")


def test_what_is_wrong_with_a_metadata_file_is_told_with_its_line(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for text, problem in (
        ('{"file_name": "a.png", "text": "a"}\n{broken', "line 2 is not JSON"),
        ('["a.png", "text"]', 'row 1 has no "file_name"'),
        ('{"text": "a"}', 'row 1 has no "file_name"'),
        ('{"file_name": "a.png", "prompt": "a"}', "has no column 'text'; set caption_column to one of prompt"),
    ):
        (tmp_path / "metadata.jsonl").write_text(text)
        with pytest.raises(MetadataError, match=problem):
            scan(tmp_path)


def test_metadata_may_have_several_captions_of_an_image_and_some_of_none(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = [{"file_name": "a.png", "text": ["first", "second"]}, {"file_name": "gone.png", "text": "x"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = scan(tmp_path)
    assert [entry.caption for entry in found.entries] == ["first"]
    assert [entry.caption for entry in scan(tmp_path, enable_wildcard=True).entries] == ["first\nsecond"]
    assert [(item.kind, item.path.name) for item in found.findings if item.kind != "too_small"] == [
        ("lonely_caption", "gone.png")
    ]


def test_kohyas_metadata_joins_captions_and_tags(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 2)
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"0": {"caption": "a cat", "tags": "red, small"}, str(tmp_path / "images/1.png"): {}}))
    found = scan(tmp_path / "images", in_json=str(path))
    assert {entry.path.name: entry.caption for entry in found.entries} == {"0.png": "a cat, red, small", "1.png": ""}


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_hugging_face_dataset_is_unpacked_once(tmp_path: Path, kind: str) -> None:
    rows = []
    for number in range(3):
        data = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), (number, 0, 0)).save(data, "JPEG")
        rows.append({"image": {"bytes": data.getvalue(), "path": None}, "text": f"caption {number}"})
    table = pyarrow.Table.from_pylist(rows)
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
        (folder / "data" / "test-00000-of-00001.parquet").write_bytes(b"not read")
    else:
        with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
    found = scan(folder)
    assert sorted(entry.caption for entry in found.entries) == ["caption 0", "caption 1", "caption 2"]
    assert {entry.path.suffix for entry in found.entries} == {".jpg"}
    assert scan(folder).entries == found.entries
    with pytest.raises(MetadataError, match="set caption_column to one of text"):
        scan(folder, caption_column="prompt")


def test_a_parquet_file_beside_images_does_not_take_their_place(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 2)
    (tmp_path / "images" / "notes.parquet").write_bytes(b"something else")
    assert len(scan(tmp_path / "images").entries) == 2


# --- folders -------------------------------------------------------------------------------------------------------


def test_plain_folders_are_repeated_as_asked(tmp_path: Path) -> None:
    assert scan(pictures(tmp_path / "images", 3), dataset_repeats=4).samples == 12
    assert scan(pictures(tmp_path / "2_thing", 3).parent, dataset_repeats=4).samples == 6


@pytest.mark.parametrize(
    ("train", "reg", "repeats", "unused"),
    [
        (6, 2, [3, 3], 0),  # too few: each three times
        (7, 2, [3, 4], 0),  # and one of them once more
        (4, 6, [1, 1, 1, 1], 2),  # too many: two are not used
    ],
)
def test_regularisation_images_are_used_as_often_as_training_images(
    tmp_path: Path, train: int, reg: int, repeats: list[int], unused: int
) -> None:
    pictures(tmp_path / "images" / "1_my cat", train)
    pictures(tmp_path / "reg" / "1_cat", reg, start=100)
    found = scan(tmp_path / "images", reg_data_dir=str(tmp_path / "reg"))
    of_reg = [entry for entry in found.entries if entry.subset.is_reg]
    assert sorted(entry.repeats for entry in of_reg) == repeats
    assert {entry.caption for entry in of_reg} == {"cat"}
    assert found.samples == 2 * train
    assert any(f"{unused} regularisation images are not used" in notice for notice in found.notices) == bool(unused)


def test_prior_loss_weight_weighs_regularisation_images(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 1)
    pictures(tmp_path / "reg", 1, start=100)
    config = config_for(tmp_path / "images", reg_data_dir=str(tmp_path / "reg"), prior_loss_weight=0.25)
    found = dataset.scan(config)
    weights = micro_batch(config, found).tensors["weights"].tolist()
    assert {entry.subset.is_reg: weight for entry, weight in zip(found.entries, weights, strict=True)} == {
        False: 1.0,
        True: 0.25,
    }


def test_regularisation_images_are_never_validated_with(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 4)
    pictures(tmp_path / "reg", 4, start=100)
    found = scan(tmp_path / "images", reg_data_dir=str(tmp_path / "reg"), validation_split=0.5)
    assert found.validation and not any(entry.subset.is_reg for entry in found.validation)
    held_out = found.validation[0]
    shutil.copyfile(held_out.path, tmp_path / "reg" / "copy.png")  # neither trained nor measured twice
    again = scan(tmp_path / "images", reg_data_dir=str(tmp_path / "reg"), validation_split=0.5)
    assert [entry.path for entry in again.validation] == [entry.path for entry in found.validation]
    assert held_out.digest not in {entry.digest for entry in again.entries}


# --- the dataset file ----------------------------------------------------------------------------------------------


DATASET_FILE = """
[general]
enable_bucket = true
caption_extension = ".caption"
num_repeats = 2

[[datasets]]
resolution = 16
batch_size = 4
keep_tokens = 1

  [[datasets.subsets]]
  image_dir = "{folder}/5_cat"
  class_tokens = "a cat"

  [[datasets.subsets]]
  image_dir = "{folder}/dogs"
  keep_tokens = 2
  num_repeats = 3
  flip_aug = true

[[datasets]]
resolution = [32, 16]
batch_size = 1
enable_bucket = false

  [[datasets.subsets]]
  image_dir = "{folder}/5_cat"
"""


SMALL_BUCKETS = {"min_bucket_reso": 8, "max_bucket_reso": 64, "bucket_reso_steps": 8}


def dataset_file(tmp_path: Path, text: str = DATASET_FILE) -> Config:
    pictures(tmp_path / "5_cat", 2)
    pictures(tmp_path / "dogs", 3, start=50)
    path = tmp_path / "dataset.toml"
    path.write_text(text.replace("{folder}", str(tmp_path)))
    return config_for(tmp_path / "nowhere", dataset_config=str(path), train_batch_size=2, **SMALL_BUCKETS)


def test_the_lower_level_of_a_dataset_file_wins(tmp_path: Path) -> None:
    found = dataset.scan(dataset_file(tmp_path))
    told = {
        (entry.path.parent.name, entry.bucket): (
            entry.repeats,
            entry.caption,
            entry.subset.options.keep_tokens,
            entry.subset.options.flip_aug,
            entry.subset.options.train_batch_size,
        )
        for entry in found.entries
    }
    assert told == {
        ("5_cat", (16, 16)): (2, "a cat", 1, False, 4),  # a name like 5_cat is not read for repeats here
        ("dogs", (16, 16)): (3, "", 2, True, 4),
        ("5_cat", (32, 16)): (2, "", 0, False, 1),
    }
    assert any("train_data_dir is ignored" in notice for notice in found.notices)


def test_datasets_of_several_resolutions_and_batch_sizes_take_turns(tmp_path: Path) -> None:
    config = dataset_file(tmp_path)
    found = dataset.scan(config)
    plan = Plan(config, found.entries, 2, Origin())
    assert plan.steps_per_epoch == found.steps_per_epoch(2) == 2 + 2
    for epoch in range(3):
        steps = [plan.samples(epoch * 4 + place)[0] for place in range(4)]
        sizes = [(use[0].entry.bucket, len(use)) for use in steps]
        assert sorted(sizes) == [((16, 16), 5), ((16, 16), 8), ((32, 16), 2), ((32, 16), 2)]
        assert Counter(use.entry.id for step in steps for use in step) == {
            entry.id: entry.repeats for entry in found.entries
        }
    step = Loader(config, plan, SOURCES).build(0)
    assert all(batch.tensors["noise"].shape[0] <= 4 for batch in step.micro_batches)


def test_everything_wrong_with_a_dataset_file_is_told_with_its_line(tmp_path: Path) -> None:
    text = """
[general]
shufle_caption = true
learning_rate = 1.0
image_dir = "x"
[[datasets]]
resolution = "many"
network_multiplier = 0.5
[[datasets.subsets]]
image_dir = "{folder}/cats"
keep_tokens = -1
[[datasets.subsets]]
is_reg = 1
resolution = 64
"""
    with pytest.raises(ConfigError) as raised:
        dataset.scan(dataset_file(tmp_path, text))
    lines = str(raised.value).splitlines()
    for line, part in (
        (3, "shufle_caption: there is no such option; did you mean shuffle_caption?"),
        (4, "learning_rate: is an option of the whole run"),
        (5, "image_dir: does not belong in general, but in subsets"),
        (7, "resolution: 'many' is not a resolution"),
        (8, "network_multiplier: is not supported"),
        (10, "image_dir: there is no folder"),
        (11, "keep_tokens: -1 is below 0"),
        (13, "is_reg: 1 is not true or false"),
        (14, "resolution: does not belong in subsets, but in general or datasets"),
        (12, "image_dir: is missing"),
    ):
        assert any(part in found and f"dataset.toml, line {line})" in found for found in lines), (part, lines)


def test_options_of_a_subset_that_do_not_go_together_are_refused_where_they_are(tmp_path: Path) -> None:
    text = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{folder}/dogs"\ncolor_aug = true\n'
    config = dataset_file(tmp_path, text).replace(cache_latents=True)
    with pytest.raises(ConfigError, match=r"cache_latents: cannot go with color_aug.*line 2\)"):
        dataset.scan(config)


def test_changed_options_of_a_subset_are_a_difference_on_resume(tmp_path: Path) -> None:
    config = dataset_file(tmp_path)
    before = dataset.record(dataset.scan(config), config)
    assert not dataset.compare(before, dataset.record(dataset.scan(config), config))
    changed = dataset_file(tmp_path, DATASET_FILE.replace("flip_aug = true", "color_aug = true"))
    (line,) = dataset.compare(before, dataset.record(dataset.scan(changed), changed)).lines()
    assert "flip_aug of subset 1: dogs (True then" in line and "color_aug of subset 1: dogs" in line


SAME_NAMES = """
[[datasets]]
[[datasets.subsets]]
image_dir = "{folder}/one/dogs"
flip_aug = true
[[datasets.subsets]]
image_dir = "{folder}/two/dogs"
keep_tokens = 1
"""


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    pictures(tmp_path / "one" / "dogs", 2)
    pictures(tmp_path / "two" / "dogs", 2, start=9)
    config = dataset_file(tmp_path, SAME_NAMES)
    before = dataset.record(dataset.scan(config), config)
    assert before["subsets"] == {"1: dogs": {"flip_aug": True}, "1: dogs (2)": {"keep_tokens": 1}}
    changed = dataset_file(tmp_path, SAME_NAMES.replace("flip_aug", "shuffle_caption"))
    lines = dataset.compare(before, dataset.record(dataset.scan(changed), changed)).lines()
    assert len(lines) == 1 and "flip_aug of subset 1: dogs (True" in lines[0] and "dogs (2)" not in lines[0]


def test_an_image_that_moved_to_a_subset_with_other_options_is_a_difference(tmp_path: Path) -> None:
    pictures(tmp_path / "one" / "dogs", 2)
    pictures(tmp_path / "two" / "dogs", 2, start=9)
    config = dataset_file(tmp_path, SAME_NAMES)
    before = json.loads(json.dumps(dataset.record(dataset.scan(config), config)))
    place = next((tmp_path / "one" / "dogs").glob("*.png"))
    place.rename(tmp_path / "two" / "dogs" / place.name)
    assert dataset.compare(before, dataset.record(dataset.scan(config), config)).treated == (place.name,)
    earlier = {name: value for name, value in before.items() if name != "treatment"}  # did not tell
    assert not dataset.compare(earlier, dataset.record(dataset.scan(config), config))


def test_a_face_that_the_name_tells_otherwise_is_a_difference(tmp_path: Path) -> None:
    path = picture(tmp_path / "images" / "me_8_8_4_4.png")
    config = config_for(tmp_path / "images", face_crop_aug_range="2,4")
    before = json.loads(json.dumps(dataset.record(dataset.scan(config), config)))
    assert not dataset.compare(before, dataset.record(dataset.scan(config), config))
    path.rename(path.with_name("me_12_8_4_4.png"))
    assert dataset.compare(before, dataset.record(dataset.scan(config), config)).treated == ("me_12_8_4_4.png",)


def test_batch_sizes_of_datasets_are_compared_as_global_batches(tmp_path: Path) -> None:
    config = dataset_file(tmp_path)
    found = dataset.scan(config)
    before = dataset.record(found, config, 2)
    (line,) = dataset.compare(before, dataset.record(found, config, 4)).lines()
    assert "global_batch of subset 1: dogs (8 then, 16 now)" in line


def test_a_checkpoint_from_before_affixes_were_shuffled_is_told_apart(tmp_path: Path) -> None:
    config = config_for(pictures(tmp_path / "images", 2), caption_prefix="a photo of", shuffle_caption=True)
    now = dataset.record(dataset.scan(config), config)
    before = {name: value for name, value in now.items() if name != "affixes"} | {"digest": "another"}
    assert "stayed outside then" in dataset.compare(before, now).lines()[0]
    assert not dataset.compare(now, now)


# --- pictures ------------------------------------------------------------------------------------------------------


def striped(path: Path, size: tuple[int, int]) -> Path:
    """Every column has a colour of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.arange(size[0], dtype=np.uint8)
    Image.fromarray(np.stack([np.tile(row, (size[1], 1))] * 3, axis=2)).save(path)
    return path


def columns(found: list[torch.Tensor]) -> set[int]:
    """The first column of each, by its colour."""
    return {round(float(value[0, 0, 0] + 1) * 127.5) for value in found}


def test_random_crop_moves_and_the_centre_stays(tmp_path: Path) -> None:
    striped(tmp_path / "images" / "a.png", (48, SIDE))
    assert columns(pixels(config_for(tmp_path / "images"))) == {16}
    places = columns(pixels(config_for(tmp_path / "images", random_crop=True)))
    assert len(places) > 10 and min(places) < 8 and max(places) > 24


def test_flip_aug_mirrors_half_of_the_uses(tmp_path: Path) -> None:
    striped(tmp_path / "images" / "a.png", (SIDE, SIDE))
    assert columns(pixels(config_for(tmp_path / "images", flip_aug=True))) == {0, 15}


def test_color_aug_changes_a_third_of_the_uses_a_little(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    plain = pixels(config_for(tmp_path / "images"), 1)[0]
    found = pixels(config_for(tmp_path / "images", color_aug=True), 90)
    changed = [value for value in found if not torch.equal(value, plain)]
    assert 15 < len(changed) < 45
    assert max(float((value - plain).abs().max()) for value in changed) < 0.4


def test_a_face_is_kept_in_the_picture(tmp_path: Path) -> None:
    striped(tmp_path / "images" / "me_100_8_8_8.png", (120, 60))  # centre x 100, y 8, 8 pixels wide and high
    config = config_for(tmp_path / "images", face_crop_aug_range="2.0,4.0")
    found = pixels(config)
    for value in found:
        shown = (value[0, 0] + 1) * 127.5
        assert float(shown.min()) <= 97 and float(shown.max()) >= 103
    assert len({float(value[0, 0, -1] - value[0, 0, 0]) for value in found}) > 10  # the scale varies
    assert columns(pixels(config.replace(face_crop_aug_range=""), 1)) == {31}


def test_a_face_crop_without_faces_is_told(tmp_path: Path) -> None:
    found = scan(pictures(tmp_path / "images", 1), face_crop_aug_range="2.0,4.0")
    assert any("face_crop_aug_range has no effect" in notice for notice in found.notices)


def test_images_are_scaled_as_asked(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(picture(tmp_path / "images" / "a.png"))
    found = {
        name: pixels(config_for(tmp_path / "images", resize_interpolation=name), 1)[0]
        for name in ("lanczos", "nearest", "bilinear", "area", "bicubic")
    }
    assert float(found["area"][0, 0, 0]) == pytest.approx(values[:4, :4, 0].mean() / 127.5 - 1, abs=0.01)
    assert len({tuple(value.flatten().tolist()) for value in found.values()}) == 5


def test_no_upscale_gives_a_small_image_a_bucket_of_its_own_size(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", size=(40, 24))
    options = {"enable_bucket": True, "resolution": "64", "min_bucket_reso": 8, "bucket_reso_steps": 8}
    assert scan(tmp_path / "images", bucket_no_upscale=True, **options).entries[0].bucket == (40, 24)
    width, height = scan(tmp_path / "images", **options).entries[0].bucket
    assert width > 40 and height > 24


# --- masks ---------------------------------------------------------------------------------------------------------


def half_transparent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((SIDE, SIDE, 4), 255, np.uint8)
    values[:, : SIDE // 2, 3] = 0
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("flip", [False, True])
def test_transparency_is_a_mask_when_asked(tmp_path: Path, flip: bool) -> None:
    half_transparent(tmp_path / "images" / "a.png")
    config = config_for(tmp_path / "images", alpha_mask=True, flip_aug=flip)
    found = dataset.scan(config)
    masks = {tuple(micro_batch(config, found, epoch).tensors["mask"].flatten().tolist()) for epoch in range(12)}
    assert masks == ({(0, 1, 0, 1), (1, 0, 1, 0)} if flip else {(0, 1, 0, 1)})
    assert "mask" not in micro_batch(config_for(tmp_path / "images"), scan(tmp_path / "images")).tensors


def test_images_without_transparency_teach_everywhere(tmp_path: Path) -> None:
    half_transparent(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    config = config_for(tmp_path / "images", alpha_mask=True)
    masks = micro_batch(config, dataset.scan(config)).tensors["mask"]
    assert sorted(masks.sum(dim=(1, 2, 3)).tolist()) == [2, 4]


def test_masks_come_from_their_folder_and_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    mask = picture(tmp_path / "masks" / "a.jpg", 128, mode="L")
    config = config_for(tmp_path / "images", masked_loss=True, conditioning_data_dir=str(tmp_path / "masks"))
    found = dataset.scan(config)
    assert micro_batch(config, found).tensors["mask"].flatten().tolist() == pytest.approx([128 / 255] * 4)
    before = dataset.record(found, config)
    picture(mask, 200, mode="L")
    assert dataset.compare(before, dataset.record(dataset.scan(config), config)).treated == ("a.png",)
    mask.unlink()
    with pytest.raises(DatasetError, match="1 images have no mask that can be read"):
        dataset.scan(config)


# --- what goes together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"cache_latents": True, "color_aug": True}, "cache_latents: cannot go with color_aug"),
        ({"cache_latents": True, "random_crop": True}, "cache_latents: cannot go with random_crop"),
        ({"cache_latents": True, "face_crop_aug_range": "1.0,2.0"}, "cannot go with face_crop_aug_range"),
        ({"face_crop_aug_range": "2.0"}, "is not a range"),
        ({"face_crop_aug_range": [1.0, 3.0], "enable_bucket": True}, "cannot go with enable_bucket"),
        ({"max_token_length": 100}, "100 is not 75, 150 or 225"),
        ({"masked_loss": True}, "needs conditioning_data_dir"),
        ({"conditioning_data_dir": "x", "family": "sd"}, "has no effect without masked_loss"),
        ({"caption_extension": "txt"}, "begin with a dot"),
        ({"caption_separator": "", "shuffle_caption": True}, "caption_separator: is empty"),
        (
            {"cache_text_encoder_outputs": True, "enable_wildcard": True, "network_train_unet_only": True},
            "cannot go with enable_wildcard, which varies the caption",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        resolve({name: Given(value, "") for name, value in options.items()})


def test_presets_of_sd_scripts_that_say_nothing_load(tmp_path: Path) -> None:
    given = {"max_token_length": 0, "reg_data_dir": "", "prior_loss_weight": 1, "color_aug": False, "in_json": ""}
    config, notices = resolve({name: Given(value, "") for name, value in given.items()})
    assert config == Config() and notices == []


# --- emphasis ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("plain text", [("plain text", 1.0)]),
        ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
        ("a [red] cat", [("a ", 1.0), ("red", 1 / 1.1), (" cat", 1.0)]),
        ("(a (red:2.0):0.5)", [("a ", 0.5), ("red", 1.0)]),
        (r"\(red\)", [("(red)", 1.0)]),
        ("(open", [("open", 1.1)]),
        ("a) b: c", [("a) b: c", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_brackets_are_read_as_weights(text: str, pieces: list[tuple[str, float]]) -> None:
    assert [(piece, pytest.approx(weight)) for piece, weight in pieces] == parse(text)


# --- which samples a step trains -----------------------------------------------------------------------------------


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Config, list[Entry]]:
    """Images of any repeats in any buckets, some of datasets with a batch size of their own."""
    config = Config(train_batch_size=draw(st.integers(1, 4)), seed=draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    own = [Subset(Path(), Path(), config.replace(train_batch_size=size)) for size in sizes]
    entries = []
    for number in range(draw(st.integers(1, 25))):
        entries.append(
            Entry(
                id=f"{number:04d}",
                file=f"{number}.png",
                relative="",
                digest=str(number),
                size=(16, 16),
                bucket=draw(st.sampled_from([(16, 16), (32, 16), (16, 32)])),
                caption="",
                repeats=draw(st.integers(1, 4)),
                subset=draw(st.sampled_from(own)),
            )
        )
    return config, entries


def batches_of(config: Config, plan: Plan, epoch: int, processes: int) -> list[list[list[Use]]]:
    """[step][micro-batch over all processes] -> samples."""
    steps = []
    for place in range(plan.steps_per_epoch):
        uses, numbers = plan.samples(epoch * plan.steps_per_epoch + place)
        per_device = uses[0].entry.subset.options.train_batch_size
        dealt = micro_batches(range(len(uses)), numbers, per_device, processes)
        steps.append([[uses[index] for share in shares for index in share] for shares in dealt])
    return steps


@given(made=datasets(), epoch=st.integers(0, 50), accumulation=st.integers(1, 3), processes=st.sampled_from((1, 2, 4)))
def test_every_image_is_used_as_often_as_it_is_repeated_in_batches_of_one_bucket(
    made: tuple[Config, list[Entry]], epoch: int, accumulation: int, processes: int
) -> None:
    config, entries = made
    plan = Plan(config, entries, accumulation * processes, Origin())
    steps = batches_of(config, plan, epoch, processes)
    used = Counter((use.entry.id, use.repeat) for step in steps for batch in step for use in batch)
    assert used == {(entry.id, repeat): 1 for entry in entries for repeat in range(entry.repeats)}
    assert all(use.epoch == epoch for step in steps for batch in step for use in batch)
    for step in steps:
        sizes = {use.entry.subset.options.train_batch_size for batch in step for use in batch}
        assert len(sizes) == 1  # batch sizes are not mixed
        assert all(len({use.entry.bucket for use in batch}) == 1 for batch in step)
        assert sum(len(batch) for batch in step) <= sizes.pop() * accumulation * processes


@given(made=datasets(), epoch=st.integers(0, 50))
def test_any_number_of_processes_trains_the_same_steps_in_the_same_order(
    made: tuple[Config, list[Entry]], epoch: int
) -> None:
    config, entries = made
    told = []
    for processes, accumulation in ((1, 4), (2, 2), (4, 1)):
        plan = Plan(config, entries, processes * accumulation, Origin())
        steps = batches_of(config, plan, epoch, processes)
        told.append([sorted((use.entry.id, use.repeat) for batch in step for use in batch) for step in steps])
    assert told[0] == told[1] == told[2]
    again = Plan(config, entries, 4, Origin())
    again.samples(12345)  # what was asked before does not matter
    assert [list(again.samples(epoch * again.steps_per_epoch + place)[0]) for place in range(2)] == [
        list(plan.samples(epoch * plan.steps_per_epoch + place)[0]) for place in range(2)
    ]


# --- addresses -----------------------------------------------------------------------------------------------------


def drawn(config: Config) -> dict[tuple[str, int], tuple[Any, ...]]:
    """What every use of the first epoch of every image is given."""
    found = dataset.scan(config)
    samples = Samples(config, SOURCES)
    result: dict[tuple[str, int], tuple[Any, ...]] = {}
    for entry in found.entries:
        for repeat in range(entry.repeats):
            use = Use(entry, 0, repeat)
            tensors = samples.micro_batch([use], 1.0).tensors
            values = tuple(tuple(tensors[name].flatten().tolist()) for name in ("pixels", "noise", "timesteps"))
            result[_name(entry), repeat] = (samples.caption(use), *values)
    return result


def _name(entry: Entry) -> str:
    return f"{entry.id} {entry.subset.is_reg}"


def test_adding_images_leaves_every_draw_of_the_others_as_it_was(tmp_path: Path) -> None:
    pictures(tmp_path / "images" / "2_thing", 3, caption="a, b, {c|d|e}, f")
    pictures(tmp_path / "reg" / "1_class", 3, start=100)
    config = config_for(
        tmp_path / "images",
        reg_data_dir=str(tmp_path / "reg"),
        shuffle_caption=True,
        enable_wildcard=True,
        caption_tag_dropout_rate=0.3,
        color_aug=True,
        flip_aug=True,
        random_crop=True,
    )
    before = drawn(config)
    assert len(before) == 12
    pictures(tmp_path / "images" / "2_thing", 2, start=60)
    pictures(tmp_path / "reg" / "1_class", 4, start=200)
    after = drawn(config)
    kept = before.keys() & after.keys()
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    assert all((name, repeat) in after for name, repeat in before if name.endswith("False"))
