"""Captions are changed with a journal: what was there comes back, and nothing is overwritten that was not seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data import caption_edits as edits
from trainer.data.caption_edits import Edit, EditRefused, Journal


def write(folder: Path, **captions: str) -> None:
    for name, text in captions.items():
        (folder / f"{name}.txt").write_text(text)


def change_all(folder: Path, change: edits.Change) -> list[Edit]:
    found = [edits.edit(path, edits.in_every_line(change)) for path in sorted(folder.glob("*.txt"))]
    return [item for item in found if item is not None]


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (edits.add_tag("fox", ",", first=True), "red, small", "fox, red, small"),
        (edits.add_tag("fox", ",", first=False), "red", "red, fox"),
        (edits.add_tag("fox", ",", first=False), "red, fox", "red, fox"),
        (edits.add_tag("fox", ",", first=False), "", "fox"),
        (edits.remove_tag("red", ","), "red, dark red, small", "dark red, small"),
        (edits.remove_tag("red", ","), "dark red,small", "dark red,small"),
        (edits.replace_tag("red", "blue", ","), "red, small, blue", "blue, small"),
        (edits.replace_text("red", "blue"), "dark red, redder", "dark blue, blueder"),
    ],
)
def test_a_change_of_one_caption(change: edits.Change, before: str, after: str) -> None:
    assert change(before) == after


def test_every_line_that_holds_text_is_changed_and_line_ends_stay() -> None:
    change = edits.in_every_line(edits.add_tag("fox", ",", first=True))
    assert change("red\r\n\nblue\n") == "fox, red\r\n\nfox, blue\n"
    assert change("\n") == "fox"


def test_undoing_restores_every_byte_even_of_another_encoding_and_after_a_restart(tmp_path: Path) -> None:
    write(tmp_path, a="red, small", c="nothing to do")
    (tmp_path / "b.txt").write_bytes("café, red".encode("latin-1"))
    planned = change_all(tmp_path, edits.add_tag("fox", ",", first=True))
    Journal(tmp_path / "journal").apply("add fox", planned)
    assert (tmp_path / "b.txt").read_text(encoding="utf-8") == "fox, café, red"
    journal = Journal(tmp_path / "journal")
    assert (journal.latest() or ("", 0, 0))[:2] == ("add fox", 3)
    outcome = journal.undo()
    assert outcome is not None and len(outcome.written) == 3
    assert (tmp_path / "b.txt").read_bytes() == "café, red".encode("latin-1")
    assert (tmp_path / "a.txt").read_text() == "red, small"
    assert journal.latest() is None and journal.undo() is None


def test_a_file_that_did_not_exist_is_gone_again_after_undoing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    item = edits.edit(tmp_path / "new.txt", lambda _: "a fox")
    assert item is not None
    journal.apply("write", [item])
    assert (tmp_path / "new.txt").read_text() == "a fox"
    journal.undo()
    assert not (tmp_path / "new.txt").exists()


def test_a_caption_that_no_file_holds_is_what_a_change_begins_with(tmp_path: Path) -> None:
    change = edits.add_tag("fox", ",", first=True)
    item = edits.edit(tmp_path / "new.txt", change, "told by metadata")
    assert item is not None and (item.before, item.after, item.caption) == (
        None,
        b"fox, told by metadata",
        "told by metadata",
    )
    (tmp_path / "new.txt").write_text("")
    item = edits.edit(tmp_path / "new.txt", change, "told by metadata")  # the file counts, empty as it is
    assert item is not None and (item.before, item.after) == (b"", b"fox")


def test_a_caption_changed_meanwhile_is_neither_overwritten_nor_undone(tmp_path: Path) -> None:
    write(tmp_path, a="red", b="red")
    planned = change_all(tmp_path, edits.replace_text("red", "blue"))
    write(tmp_path, a="edited elsewhere")
    journal = Journal(tmp_path / "journal")
    outcome = journal.apply("replace", planned)
    assert [path.name for path in outcome.written] == ["b.txt"]
    assert outcome.refused[0][0].name == "a.txt" and "changed by someone else" in outcome.refused[0][1]
    write(tmp_path, b="edited later")
    undone = journal.undo()
    assert undone is not None and undone.written == ()
    assert [(tmp_path / name).read_text() for name in ("a.txt", "b.txt")] == ["edited elsewhere", "edited later"]


def test_a_change_that_was_interrupted_can_be_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, a="red", b="red", c="red")
    planned = change_all(tmp_path, edits.replace_text("red", "blue"))
    real = edits.files.write_bytes

    def stop(path: Path, data: bytes, *, durable: bool = True) -> None:
        if path.name == "b.txt":
            raise KeyboardInterrupt
        real(path, data, durable=durable)

    monkeypatch.setattr(edits.files, "write_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        Journal(tmp_path / "journal").apply("replace", planned)
    monkeypatch.undo()
    assert [(tmp_path / f"{name}.txt").read_text() for name in "abc"] == ["blue", "red", "red"]
    outcome = Journal(tmp_path / "journal").undo()
    assert outcome is not None and outcome.refused == ()
    assert [(tmp_path / f"{name}.txt").read_text() for name in "abc"] == ["red", "red", "red"]


def test_changes_are_undone_latest_first(tmp_path: Path) -> None:
    write(tmp_path, a="one")
    journal = Journal(tmp_path / "journal")
    for text in ("two", "three"):
        journal.apply(text, change_all(tmp_path, lambda _, text=text: text))  # type: ignore[misc]
    journal.undo()
    assert (tmp_path / "a.txt").read_text() == "two"
    journal.undo()
    assert (tmp_path / "a.txt").read_text() == "one"


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    write(tmp_path / "outside", secret="red")
    (tmp_path / "a.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    outcome = Journal(tmp_path / "journal").apply("replace", change_all(tmp_path, edits.replace_text("red", "blue")))
    assert outcome.written == () and "is a link" in outcome.refused[0][1]
    assert (tmp_path / "outside" / "secret.txt").read_text() == "red"


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(EditRefused, match=r"a\.txt cannot be read"):
        edits.edit(tmp_path / "a.txt", str.upper)
