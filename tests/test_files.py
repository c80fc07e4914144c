"""Files where they are changed, and names that a file system cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer import files


def test_a_file_that_a_reader_holds_open_is_replaced_once_it_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([True, True, False])
    replace = Path.replace

    def refused_twice(self: Path, target: Path) -> Path:
        if next(refusals):
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        return replace(self, target)

    (tmp_path / "run.json").write_text("old")
    monkeypatch.setattr(Path, "replace", refused_twice)
    monkeypatch.setattr(files, "PATIENCE", 60.0)
    files.write_text(tmp_path / "run.json", "new")
    assert (tmp_path / "run.json").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_refusal_that_does_not_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    with pytest.raises(PermissionError):
        files.rename(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my cat", ""),
        ("zöe 猫.v2", ""),
        ("console", ""),
        ("", "not a name"),
        ("..", "not a name"),
        ("a/b", "not a name"),
        ("x" * 201, "longer than 200 bytes"),
        ("猫" * 67, "longer than 200 bytes"),
        ("cat:1", "does not allow"),
        ("cat?", "does not allow"),
        ("cat\t", "does not allow"),
        ("cat.", "ends with a dot or a space"),
        ("cat ", "ends with a dot or a space"),
        ("CON", "a device"),
        ("nul.txt", "a device"),
        ("com1", "a device"),
    ],
)
def test_a_name_that_windows_does_not_hold_or_folds_is_refused_with_the_reason(name: str, reason: str) -> None:
    said = files.unusable_name(name, windows=True)
    assert reason in said and bool(reason) == bool(said)


def test_elsewhere_only_what_no_file_system_holds_is_refused() -> None:
    assert [files.unusable_name(name, windows=False) for name in ("cat:1", "CON", "cat.")] == ["", "", ""]
    assert files.unusable_name("a/b", windows=False) and files.unusable_name("x" * 201, windows=False)
