"""Pictures that are excluded or deleted to the bin, and come back."""

from __future__ import annotations

from pathlib import Path

from trainer.data import put_aside
from trainer.data.put_aside import BIN, EXCLUDED


def make(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return [folder / name for name in names]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_picture_goes_and_comes_with_what_is_called_like_it(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "a.txt", "a.caption", "a b.png", "a.b.txt")
    gone = put_aside.put([tmp_path / "a.png"], EXCLUDED)
    assert (gone.moved, gone.refused) == ((tmp_path / EXCLUDED / "a.png",), ())
    assert names(tmp_path) == ["a b.png", "a.b.txt"]
    assert put_aside.listing([tmp_path, tmp_path / "nowhere"], EXCLUDED) == [tmp_path / EXCLUDED / "a.png"]
    back = put_aside.put_back(gone.moved)
    assert back.moved == (tmp_path / "a.png",)
    assert names(tmp_path) == ["a b.png", "a.b.txt", "a.caption", "a.png", "a.txt"]


def test_a_caption_of_two_pictures_stays_until_the_last_of_them_goes(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "a.jpg", "a.txt")
    put_aside.put([tmp_path / "a.png"], BIN)
    assert names(tmp_path) == ["a.jpg", "a.txt"]
    put_aside.put([tmp_path / "a.jpg"], BIN)
    assert names(tmp_path) == []
    assert names(tmp_path / BIN) == ["a (2).jpg", "a (2).txt", "a.png"]


def test_nothing_is_overwritten_in_either_direction(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    put_aside.put([tmp_path / "a.png"], EXCLUDED)
    make(tmp_path, "a.png")
    (tmp_path / "a.png").write_text("another")
    back = put_aside.put_back([tmp_path / EXCLUDED / "a.png"])
    assert back.moved == () and "another a.png" in back.refused[0][1]
    assert (tmp_path / "a.png").read_text() == "another"
    assert put_aside.put([tmp_path / "missing.png"], EXCLUDED).refused[0][0] == tmp_path / "missing.png"


def test_an_emptied_bin_is_empty_and_what_was_excluded_is_not_in_it(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "a.txt", "b.png")
    put_aside.put([tmp_path / "a.png"], BIN)
    put_aside.put([tmp_path / "b.png"], EXCLUDED)
    assert put_aside.empty_bins([tmp_path]).moved == (tmp_path / BIN / "a.png",)
    assert names(tmp_path / BIN) == []
    assert names(tmp_path / EXCLUDED) == ["b.png"]
