"""Images and captions: found, turned upright, named when they cannot be read, and compared by content."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data import captions, dataset, pictures
from trainer.data import folder_scan as scanning
from trainer.data.augmentation import cut_at
from trainer.data.dataset import DatasetError
from trainer.options.config import Config

LANCZOS = Image.Resampling.LANCZOS


def picture(path: Path, size: tuple[int, int] = (64, 64), colour: Any = "red", mode: str = "RGB", **save: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **save)
    return path


def config_for(folder: Path, **options: Any) -> Config:
    defaults = {"train_data_dir": str(folder / "images"), "output_dir": str(folder / "output"), "resolution": "64"}
    return Config(**{**defaults, **options})


def scan(folder: Path, **options: Any) -> dataset.Scan:
    return dataset.scan(config_for(folder, **options))


# --- folders -------------------------------------------------------------------------------------------------------


def test_kohyas_folders_give_repeats_and_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "3_red cat" / "a.png")
    picture(tmp_path / "images" / "1_dog" / "b.png", colour="blue")
    (tmp_path / "images" / "1_dog" / "b.txt").write_text("a blue dog\nsecond line")
    found = scan(tmp_path)
    assert {(entry.relative, entry.repeats, entry.caption) for entry in found.entries} == {
        ("3_red cat/a.png", 3, "red cat"),
        ("1_dog/b.png", 1, "a blue dog"),
    }
    assert found.samples == 4
    assert any("1 of 2 images have no .txt file" in notice for notice in found.notices)


def test_a_plain_folder_is_one_repeat_without_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (entry,) = scan(tmp_path).entries
    assert (entry.repeats, entry.caption) == (1, "")


def test_what_is_left_out_of_kohyas_layout_is_named(tmp_path: Path) -> None:
    for name in ("2_cat/a.png", "0_none/b.png", "misc/c.png", "d.png"):
        picture(tmp_path / "images" / name)
    notices = " ".join(scan(tmp_path).notices)
    assert "0_none is skipped: 0 repeats" in notices
    assert "misc is skipped" in notices and "1 images directly in" in notices


def test_folders_without_repeats_are_refused_with_the_name_to_give_them(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "cats" / "a.png")
    with pytest.raises(DatasetError, match='like "10_cats"'):
        scan(tmp_path)


def test_a_date_in_place_of_repeats_is_refused_not_trained_millions_of_times(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / "images" / "20251121_beach" / f"{number}.png", colour=(number, 0, 0))
    with pytest.raises(DatasetError, match=r"20251121_beach is used 20,251,121 times.*is it a date"):
        scan(tmp_path)


def test_a_disk_that_does_not_answer_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> bool:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(Path, "exists", failing)
    with pytest.raises(DatasetError, match=r"cannot be read: .*Stale file handle: .*images.*check their disk"):
        scan(tmp_path)


def test_files_that_cannot_be_read_are_skipped_by_name(tmp_path: Path) -> None:
    images = tmp_path / "images"
    whole = picture(images / "good.jpg", size=(64, 64))
    (images / "truncated.jpg").write_bytes(whole.read_bytes()[:-300])
    (images / "empty.png").touch()
    (images / "text.png").write_text("not a picture")
    (images / "link.png").symlink_to(images / "nowhere.png")
    found = scan(tmp_path)
    assert [entry.relative for entry in found.entries] == ["good.jpg"]
    assert {skipped.path.name for skipped in found.skipped} == {"truncated.jpg", "empty.png", "text.png", "link.png"}
    assert all(skipped.reason for skipped in found.skipped)


def test_a_picture_of_enormous_size_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    picture(tmp_path / "images" / "small.png", size=(8, 8))
    picture(tmp_path / "images" / "large.png", size=(64, 64))
    found = scan(tmp_path)
    assert [entry.relative for entry in found.entries] == ["small.png"]
    assert "decompression bomb" in found.skipped[0].reason


def test_a_caption_in_another_encoding_is_read_and_named(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    found = scan(tmp_path)
    assert found.entries[0].caption == "café"
    assert [finding.kind for finding in found.findings] == ["caption_encoding"]


# --- pictures ------------------------------------------------------------------------------------------------------


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture(tmp_path / "images" / "a.jpg", size=(64, 32), exif=exif)
    assert scan(tmp_path).entries[0].size == (32, 64)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", colour=(255, 0, 0, 0), mode="RGBA")
    assert pictures.open_picture(path).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("I;16", 65535, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
        ("LA", (50, 255), (50, 50, 50)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: Any, expected: tuple[int, ...]) -> None:
    path = picture(tmp_path / "a.png", mode=mode, colour=colour)
    assert pictures.open_picture(path).getpixel((0, 0)) == expected


def test_a_picture_covers_its_bucket_and_is_cropped_at_the_centre() -> None:
    wide = Image.new("RGB", (100, 50), "white")
    wide.paste("black", (0, 0, 25, 50))
    fitted = cut_at(wide.size, (50, 50)).apply(wide, (50, 50), LANCZOS)
    assert fitted.size == (50, 50)
    assert fitted.getpixel((2, 25)) == (255, 255, 255)
    assert cut_at(wide.size, (50, 50), (0.0, 0.5)).apply(wide, (50, 50), LANCZOS).getpixel((2, 25)) == (0, 0, 0)


def test_pixels_run_from_minus_one_to_one() -> None:
    pixels = pictures.to_pixels(Image.new("RGB", (8, 16), (0, 255, 0)))
    assert pixels.shape == (3, 16, 8)
    np.testing.assert_array_equal(pixels[:, 0, 0], [-1, 1, -1])


# --- captions ------------------------------------------------------------------------------------------------------


def caption_of(entry: dataset.Entry, config: Config, epoch: int, repeat: int) -> str:
    return captions.caption_of_use(entry.caption, config, entry.id, epoch, repeat)


def entry_with(tmp_path: Path, caption: str) -> dataset.Entry:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_text(caption)
    return scan(tmp_path).entries[0]


def test_shuffling_keeps_the_first_parts_and_loses_none(tmp_path: Path) -> None:
    entry = entry_with(tmp_path, "a, b, c, d, e")
    config = config_for(tmp_path, shuffle_caption=True, keep_tokens=2)
    captions = {caption_of(entry, config, epoch, 0) for epoch in range(20)}
    assert len(captions) > 3
    assert all(caption.startswith("a, b, ") and sorted(caption.split(", ")) == list("abcde") for caption in captions)
    assert caption_of(entry, config, 5, 0) == caption_of(entry, config, 5, 0)


def test_dropout_empties_the_caption_at_its_rate(tmp_path: Path) -> None:
    entry = entry_with(tmp_path, "a, b")
    config = config_for(tmp_path, caption_dropout_rate=0.25)
    empty = sum(caption_of(entry, config, epoch, 0) == "" for epoch in range(2000))
    assert 0.2 < empty / 2000 < 0.3


def test_every_nth_epoch_can_be_without_captions(tmp_path: Path) -> None:
    entry = entry_with(tmp_path, "a, b")
    config = config_for(tmp_path, caption_dropout_every_n_epochs=3)
    assert [caption_of(entry, config, epoch, 0) for epoch in range(4)] == ["a, b", "a, b", "", "a, b"]


def test_tags_are_left_out_but_not_those_that_are_kept(tmp_path: Path) -> None:
    entry = entry_with(tmp_path, "a, b, c, d")
    config = config_for(tmp_path, caption_tag_dropout_rate=0.5, keep_tokens=1)
    captions = [caption_of(entry, config, epoch, 0) for epoch in range(50)]
    assert all(caption.split(", ")[0] == "a" for caption in captions)
    assert {len(caption.split(", ")) for caption in captions} >= {1, 2, 3}


# --- fingerprint ---------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, colour in enumerate(("red", "green", "blue")):
        picture(tmp_path / "images" / f"{number}.png", colour=colour)
        (tmp_path / "images" / f"{number}.txt").write_text(f"caption {number}")
    return tmp_path


def record(folder: Path, **options: Any) -> dict[str, Any]:
    config = config_for(folder, **options)
    return dataset.record(dataset.scan(config), config)


def test_times_names_and_places_are_no_difference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = record(images)
    os.utime(images / "images" / "0.png", (1, 1))
    (images / "images" / "1.png").rename(images / "images" / "renamed.png")
    (images / "images" / "1.txt").rename(images / "images" / "renamed.txt")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(images / "images", elsewhere / "images")
    for folder in (images, elsewhere):
        assert not dataset.compare(before, record(folder))


def test_every_change_of_content_is_named(images: Path) -> None:
    before = record(images)
    folder = images / "images"
    picture(folder / "0.png", colour="purple")  # another picture under the same name
    (folder / "1.txt").write_text("another caption")
    (folder / "2.png").unlink()
    picture(folder / "new.png", colour="white")
    difference = dataset.compare(before, record(images))
    assert difference.changed == ("0.png",)
    assert difference.captions == ("1.png",)
    assert difference.removed == ("2.png",)
    assert difference.added == ("new.png",)


def test_a_changed_pixel_is_found_even_when_size_and_time_are_set_back(images: Path) -> None:
    path = images / "images" / "0.png"
    Image.new("RGB", (64, 64), "red").save(path, compress_level=0)
    before, times = record(images), path.stat()
    data = bytearray(path.read_bytes())
    changed = Image.new("RGB", (64, 64), "red")
    changed.putpixel((5, 5), (254, 0, 0))
    changed.save(path, compress_level=0)
    assert len(path.read_bytes()) == len(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert dataset.compare(before, record(images)).changed == ("0.png",)


def test_long_lists_of_changes_are_cut_with_a_count(images: Path) -> None:
    before = record(images)
    for number in range(15):
        picture(images / "images" / f"more{number:02d}.png", colour=(number, 0, 0))
    (line,) = dataset.compare(before, record(images)).lines()
    assert line.startswith("added (15): more00.png") and line.endswith("and 5 more")


def test_adding_an_image_leaves_the_draws_of_the_others_as_they_were(images: Path) -> None:
    config = config_for(images, shuffle_caption=True, caption_dropout_rate=0.3)
    before = {entry.id: caption_of(entry, config, 3, 0) for entry in dataset.scan(config).entries}
    picture(images / "images" / "new.png", colour="white")
    after = {entry.id: caption_of(entry, config, 3, 0) for entry in dataset.scan(config).entries}
    assert len(after) == 4 and after.items() >= before.items()


def test_copies_of_one_picture_are_two_images(images: Path) -> None:
    shutil.copy(images / "images" / "0.png", images / "images" / "copy.png")
    assert len({entry.id for entry in scan(images).entries}) == 4


def test_unchanged_files_are_not_read_again(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(images)
    looked: list[Path] = []
    monkeypatch.setattr(scanning, "look", lambda path: looked.append(path))
    assert scan(images) == first
    assert looked == []
