"""Files as people really have them: looked at without decoding, remembered, and every one of them named."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import nasty, posix
from tests.support.nasty import Nasty
from trainer import __main__ as command_line
from trainer.data import dataset, dataset_report, findings, folder_scan, inspection, pictures
from trainer.data.findings import KINDS, Finding
from trainer.data.folder_scan import Facts
from trainer.data.inspection import Look
from trainer.options.config import Config
from trainer.options.writing import to_toml


def config_for(folder: Path, output: Path, **options: Any) -> Config:
    return Config(**{"train_data_dir": str(folder), "output_dir": str(output), "resolution": "64", **options})


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Nasty:
    return nasty.make(tmp_path_factory.mktemp("trouble") / "images")


@pytest.fixture(scope="module")
def found(trouble: Nasty, tmp_path_factory: pytest.TempPathFactory) -> dataset.Scan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what is wrong with the files
        return dataset.scan(config_for(trouble.folder, tmp_path_factory.mktemp("output")))


# --- two hundred nasty files ----------------------------------------------------------------------------------------


def test_every_nasty_file_is_handled_by_name(trouble: Nasty, found: dataset.Scan) -> None:
    assert len(trouble.expected) >= 200
    kinds: dict[str, set[str]] = {entry.path.name: set() for entry in found.entries}
    for finding in found.findings:
        kinds.setdefault(finding.path.name, set()).add(finding.kind)
    wrong = {
        name: (kinds.get(name), expected)
        for name, expected in trouble.expected.items()
        if not _matches(kinds.get(name), expected)
    }
    assert wrong == {}


def _matches(kinds: set[str] | None, expected: set[str]) -> bool:
    if kinds is None:
        return False
    if expected == {nasty.GOOD}:
        return not kinds
    return len(kinds) == len(expected) and all(kinds & set(choices.split("|")) for choices in expected)


def test_no_nasty_file_is_lost(trouble: Nasty, found: dataset.Scan) -> None:
    told = {entry.path for entry in found.entries} | {finding.path for finding in found.skipped}
    there = {path for path in trouble.folder.iterdir() if folder_scan.is_picture_name(path.name)}
    assert there - told == set()
    assert not {entry.path for entry in found.entries} & {finding.path for finding in found.skipped}


def test_sizes_from_headers_are_those_of_the_decoded_pictures(found: dataset.Scan) -> None:
    decoded = {entry.path: pictures.open_picture(entry.path).size for entry in found.entries}
    assert {entry.path: entry.size for entry in found.entries} == decoded


def test_a_training_over_the_nasty_folder_takes_the_good_ones(trouble: Nasty, tiny_model: Path, tmp_path: Path) -> None:
    from tests.support import runs_at_tiny_size as runs

    config = runs.config_for(tiny_model, trouble.folder, tmp_path, max_train_steps=2, train_batch_size=4)
    assert runs.run(config) == "finished"
    (started,) = runs.events_of(config, "run_started")
    assert started["skipped"] > 50


def test_the_report_names_every_file_and_what_to_do(
    trouble: Nasty, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(to_toml(config_for(trouble.folder, tmp_path / "output")))
    assert command_line.main(["dataset", "--config", str(preset), "--all"]) == 0
    text = capfd.readouterr().out
    bad = [name for name, kinds in trouble.expected.items() if kinds != {nasty.GOOD}]
    assert [name for name in bad if name not in text] == []
    assert KINDS["truncated"].advice in text and "Traceback" not in text
    assert command_line.main(["dataset", "--config", str(preset), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert {Path(item["path"]).name for item in told["findings"]} == {*bad, "caption long.png"}


# --- looking without decoding ---------------------------------------------------------------------------------------


def picture(path: Path, size: tuple[int, int] = (64, 64), colour: Any = "red", **save: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **save)
    return path


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp", "avif"])
def test_a_whole_picture_is_not_decoded(extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / f"a.{extension}", (48, 32))

    def refuse(path: Path) -> Image.Image:
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(folder_scan, "open_picture", refuse)
    facts = folder_scan.look(path)
    assert (facts.width, facts.height, facts.problem) == (48, 32, "")


def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(b"eXIf")))
    data = io.BytesIO()
    Image.new("RGB", (48, 32)).save(data, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data.getvalue()[:-12] + chunk + data.getvalue()[-12:])
    facts = folder_scan.look(path)
    assert (facts.width, facts.height) == pictures.open_picture(path).size == (32, 48)


def test_a_scan_that_is_interrupted_keeps_what_it_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        picture(tmp_path / "images" / f"{number}.png", colour=(number, 0, 0))
    config = config_for(tmp_path / "images", tmp_path / "output")
    monkeypatch.setattr(folder_scan, "REMEMBERED_AT_ONCE", 2)
    looked: list[Path] = []

    def interrupt(path: Path, look: Any = folder_scan.look) -> Facts:
        looked.append(path)
        if len(looked) == 5:
            raise KeyboardInterrupt
        return look(path)

    monkeypatch.setattr(folder_scan, "look", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dataset.scan(config, workers=1)
    assert len(dataset.scan(config).entries) == 6
    assert len(looked) == 5 + 2  # of the first four nothing is read again


@pytest.mark.parametrize("name", ["a.png", "a.txt"])
def test_a_file_that_could_not_be_read_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    picture(tmp_path / "images" / "a.png").with_suffix(".txt").write_text("cat")
    picture(tmp_path / "images" / "b.png", colour="blue").with_suffix(".txt").write_text("dog")
    config = config_for(tmp_path / "images", tmp_path / "output")
    opened = Path.open

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        assert "Input/output error" in dataset.scan(config).findings[0].detail
    assert dataset.scan(config).findings == () and len(dataset.scan(config).entries) == 2


def test_a_changed_caption_is_read_again(tmp_path: Path) -> None:
    path = picture(tmp_path / "images" / "a.png")
    config = config_for(tmp_path / "images", tmp_path / "output")
    path.with_suffix(".txt").write_text("one")
    assert dataset.scan(config).entries[0].caption == "one"
    path.with_suffix(".txt").write_text("two")
    assert dataset.scan(config).entries[0].caption == "two"


def test_a_memory_that_is_damaged_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "images" / "a.png")
    config = config_for(tmp_path / "images", tmp_path / "output")
    dataset.scan(config)
    for path in config.cache_path.glob("*.sqlite"):
        path.write_bytes(b"no database" * 1000)
    assert len(dataset.scan(config).entries) == 1
    monkeypatch.setattr(folder_scan, "look", lambda path: pytest.fail(f"{path} was read again"))
    assert len(dataset.scan(config).entries) == 1


def test_pictures_are_remembered_by_what_they_are_not_by_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "two"):
        picture(tmp_path / folder / "images" / "a.png", colour="red" if folder == "one" else "blue")
    entries = []
    for folder in ("one", "two"):
        monkeypatch.chdir(tmp_path / folder)
        (entry,) = dataset.scan(config_for(Path("images"), tmp_path / "output")).entries
        entries.append(entry)
    assert entries[0].digest != entries[1].digest


# --- the deeper look ------------------------------------------------------------------------------------------------


def noisy(path: Path, seed: int, size: tuple[int, int] = (96, 96), **save: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, **save)
    return path


def test_damage_in_the_middle_of_a_jpeg_is_found_by_decoding_and_skipped_from_then_on(tmp_path: Path) -> None:
    images = tmp_path / "images"
    noisy(images / "good.jpg", 1)
    path = noisy(images / "hurt.webp", 2, lossless=True)
    data = bytearray(path.read_bytes())
    data[40:-40] = bytes(len(data) - 80)
    path.write_bytes(data)
    config = config_for(images, tmp_path / "output")
    assert len(dataset_report.make(config).found.entries) == 2
    assert [(item.kind, item.path.name) for item in dataset_report.make(config, deep=True).deeper] == [
        ("damaged", "hurt.webp")
    ]
    assert [entry.path.name for entry in dataset.scan(config).entries] == ["good.jpg"]


def test_damage_that_only_decoding_shows_ends_a_training_by_name(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.support import runs_at_tiny_size as runs

    path = noisy(tmp_path / "images" / "hurt.webp", 2, lossless=True)
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes(len(data) - 80) + data[-40:])
    preset = tmp_path / "preset.toml"
    preset.write_text(to_toml(runs.config_for(tiny_model, tmp_path / "images", tmp_path / "output", max_train_steps=1)))
    assert command_line.main(["train", "--config", str(preset)]) == 1
    text = "".join(capfd.readouterr())
    assert "hurt.webp cannot be read" in text and "dataset --deep" in text and "Traceback" not in text


def test_near_copies_are_found_whatever_their_format_and_size(tmp_path: Path) -> None:
    images = tmp_path / "images"
    original = noisy(images / "a.png", 1)
    Image.open(original).resize((80, 80)).save(images / "b.jpg", quality=70)
    noisy(images / "other.png", 2)
    (finding,) = dataset_report.make(config_for(images, tmp_path / "output"), deep=True).deeper
    assert finding == Finding("near_duplicate", images / "b.jpg", "", (original,))


def test_plain_pictures_of_different_colours_are_no_copies() -> None:
    looks = [Look("", 0, 200, 0, 0), Look("", 0, 0, 0, 200), Look("", 0, 205, 0, 0), Look("", (1 << 64) - 1, 200, 0, 0)]
    assert inspection.near_copies(looks) == [[0, 2]]


def test_near_copies_are_all_pairs_within_the_distance() -> None:
    draw = np.random.default_rng(0)
    hashes = [int(value) for value in draw.integers(0, 2**63, 60, dtype=np.uint64)]
    hashes += [value ^ (1 << int(draw.integers(63))) ^ (1 << int(draw.integers(63))) for value in hashes[:20]]
    looks = [Look("", value, 9, 9, 9) for value in hashes]
    near = {frozenset((a, b)) for a in range(80) for b in range(a) if (hashes[a] ^ hashes[b]).bit_count() <= 5}
    assert {frozenset(group) for group in inspection.near_copies(looks)} == near


# --- the report -----------------------------------------------------------------------------------------------------


def test_a_report_counts_folders_samples_steps_and_tags(tmp_path: Path) -> None:
    for number in range(3):
        path = picture(tmp_path / "images" / "2_cat" / f"{number}.png", colour=(number, 0, 0))
        path.with_suffix(".txt").write_text("cat, sitting" if number else "cat, " + "long " * 80)
    picture(tmp_path / "images" / "1_dog" / "b.png", colour="blue")
    made = dataset_report.make(config_for(tmp_path / "images", tmp_path / "output", train_batch_size=2))
    assert [(item.path.name, item.images, item.repeats, item.samples) for item in made.folders()] == [
        ("1_dog", 1, 1, 1),
        ("2_cat", 3, 2, 6),
    ]
    assert (made.found.samples, made.steps_per_epoch) == (7, 4)
    assert made.tags(2) == [("cat", 3), ("sitting", 2)]
    assert (made.caption_lengths().longest, made.caption_lengths().too_long) == (81, 1)


@pytest.mark.parametrize(
    ("limit", "files"), [(75, ["100.png", "200.png", "japanese.png"]), (150, ["200.png"]), (225, [])]
)
def test_captions_longer_than_the_text_encoder_reads_are_named(tmp_path: Path, limit: int, files: list[str]) -> None:
    captions = {"70": "tag, " * 35, "100": "tag, " * 50, "200": "tag, " * 100, "japanese": "猫" * 90}
    for number, (name, caption) in enumerate(captions.items()):
        path = picture(tmp_path / "images" / f"{name}.png", colour=(number, 0, 0))
        path.with_suffix(".txt").write_text(caption)
    made = dataset_report.make(config_for(tmp_path / "images", tmp_path / "output", max_token_length=limit))
    assert sorted(item.path.name for item in made.findings if item.kind == "long_caption") == files
    assert made.caption_lengths().too_long == len(files)


def test_the_most_frequent_tags_are_in_the_same_order_every_time() -> None:
    assert list(dataset_report.tag_counts(["b, a, c", "c, d, d"], ",").items()) == [
        ("b", 1),
        ("a", 1),
        ("c", 2),
        ("d", 1),
    ]


def test_a_report_tells_training_regularisation_and_validation_apart(tmp_path: Path) -> None:
    for number in range(8):
        picture(tmp_path / "images" / f"{number}.png", colour=(number, 0, 0))
    picture(tmp_path / "reg" / "1_cat" / "a.png", colour="blue")
    options = {"reg_data_dir": str(tmp_path / "reg"), "validation_split": 0.5}
    made = dataset_report.make(config_for(tmp_path / "images", tmp_path / "output", **options))
    assert {(item.path.name, item.use) for item in made.folders()} == {
        ("images", "trained"), ("images", "validation"), ("1_cat", "regularisation"),
    }  # fmt: skip
    assert sum(item.images for item in made.folders()) == 9


def test_a_folder_of_nothing_but_trouble_is_reported_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    made = dataset_report.make(config_for(tmp_path / "images", tmp_path / "output"))
    assert "no images" in made.refusal
    assert [finding.kind for finding in made.findings] == ["empty_file"]


def test_every_kind_of_finding_says_what_to_do() -> None:
    assert all(kind.title and kind.advice.endswith(".") for kind in KINDS.values())
    (head, *_) = findings.lines([Finding("bomb", Path("a.png"), "too large")])
    assert head.startswith("Too many pixels (1, skipped). Scale the picture down")


@posix.posix_only
@pytest.mark.skipif(posix.IS_ROOT, reason="root may read every file")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    path.chmod(0)
    assert folder_scan.look(path).detail == "Permission denied"
