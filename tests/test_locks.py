"""Locks: one holds it, or any number share it; the end of a process gives it back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainer import locks

HOLDER = """
import sys
from pathlib import Path
from trainer import locks
file = locks.hold(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path, kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path), kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("theirs", "ours", "free"), [("alone", False, False), ("shared", False, False), ("shared", True, True)]
)
def test_a_lock_of_another_process_is_respected_until_that_is_killed(
    theirs: str, ours: bool, free: bool, tmp_path: Path
) -> None:
    path = tmp_path / "lock"
    with holder(path, theirs) as process:
        if free:
            locks.hold(path, shared=ours).close()
        else:
            with pytest.raises(locks.Held):
                locks.hold(path, shared=ours)
        process.kill()
    locks.hold(path).close()


def test_a_lock_that_may_not_be_created_is_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        locks.hold(tmp_path / "lock", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_replaced_is_no_longer_the_one_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locks.hold(path) as file:
        assert locks.is_still(file, path)
        (tmp_path / "other").touch()
        assert not locks.is_still(file, tmp_path / "other") and not locks.is_still(file, tmp_path / "none")
