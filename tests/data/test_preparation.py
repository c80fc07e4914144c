"""kohya's folders are built by copying; nothing that is there is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support import posix
from trainer.data import dataset, preparation
from trainer.data.preparation import Part, PreparationRefused
from trainer.options.config import Config


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Two pictures with a caption, and what is not to be copied."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"caption {number}")
    (folder / "notes.md").write_text("not part of it")
    posix.make_pipe(folder / "pipe.png")
    return folder


def prepare(target: Path, images: Part, regularisation: Part | None = None) -> preparation.Plan:
    planned = preparation.plan(target, images, regularisation, (".txt",))
    preparation.carry_out(planned)
    return planned


def test_a_plain_folder_becomes_one_that_trains(plain: Path, tmp_path: Path) -> None:
    planned = prepare(tmp_path / "set", Part(plain, 10, "zkz cat"), Part(plain, 1, "cat"))
    config = Config(train_data_dir=str(planned.train_data_dir), output_dir=str(tmp_path / "output"))
    found = dataset.scan(config)
    assert {(entry.relative, entry.repeats, entry.caption) for entry in found.entries} == {
        ("10_zkz cat/0.png", 10, "caption 0"),
        ("10_zkz cat/1.png", 10, "caption 1"),
    }
    assert planned.reg_data_dir == tmp_path / "set" / "reg"
    assert sorted(path.name for path in (tmp_path / "set" / "reg" / "1_cat").iterdir()) == [
        "0.png", "0.txt", "1.png", "1.txt",
    ]  # fmt: skip
    assert len(list(plain.iterdir())) == 6


def test_preparing_again_copies_only_what_is_new(plain: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "set", Part(plain, 10, "cat"))
    Image.new("RGB", (64, 64), "white").save(plain / "new.png")
    planned = preparation.plan(tmp_path / "set", Part(plain, 10, "cat"), None, (".txt",))
    assert [source.name for source, _ in planned.copies] == ["new.png"]
    assert planned.there == 4


def test_a_file_of_another_content_is_never_overwritten(plain: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "set", Part(plain, 10, "cat"))
    edited = tmp_path / "set" / "img" / "10_cat" / "0.txt"
    edited.write_text("my own words")
    with pytest.raises(PreparationRefused, match=r"0\.txt is there already with another content"):
        prepare(tmp_path / "set", Part(plain, 10, "cat"))
    assert edited.read_text() == "my own words"


def test_a_file_that_appears_meanwhile_is_not_overwritten(plain: Path, tmp_path: Path) -> None:
    planned = preparation.plan(tmp_path / "set", Part(plain, 10, "cat"), None, (".txt",))
    late = tmp_path / "set" / "img" / "10_cat" / "1.png"
    late.parent.mkdir(parents=True)
    late.write_bytes(b"somebody else's")
    with pytest.raises(FileExistsError):
        preparation.carry_out(planned)
    assert late.read_bytes() == b"somebody else's"
    assert not list(late.parent.glob(".tmp*"))


def test_everything_in_the_way_is_named_at_once(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(PreparationRefused) as refusal:
        preparation.plan(tmp_path, Part(plain, 0, "../up"), Part(tmp_path / "nowhere", 1, "x" * 300), (".txt",))
    text = str(refusal.value)
    assert all(part in text for part in ("repeats is 0", "'../up' cannot be", "no folder", "longer than 255"))
