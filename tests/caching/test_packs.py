"""Packs: what was put comes back, whatever happens to the process or the disk in between; never anything else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.caching import packs
from trainer.caching.packs import Arrays, Packs

COUNT = 5
WRITER = """
import sys, numpy as np
from pathlib import Path
from tests.caching.test_packs import arrays_of, key_of
from trainer.caching.packs import Packs
folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = Packs(folder)
print("ready", flush=True)
for number in range(first, first + count):
    store.put(key_of(number), arrays_of(number))
    print(number, flush=True)
"""


def key_of(number: int) -> bytes:
    return (number * 0x9E3779B97F4A7C15 % 2**128).to_bytes(16, "big")


def arrays_of(number: int) -> Arrays:
    draw = np.random.default_rng(number)
    return {"mean": draw.standard_normal((4, 6, 5), dtype=np.float32), "ids": draw.integers(0, 9, 3 + number % 4)}


def equal(left: Arrays | None, right: Arrays) -> bool:
    return (
        left is not None
        and left.keys() == right.keys()
        and all(np.array_equal(left[name], right[name]) for name in left)
    )


def filled(folder: Path, count: int = COUNT) -> Path:
    store = Packs(folder)
    for number in range(count):
        store.put(key_of(number), arrays_of(number))
    store.finish_writing()
    return folder


def refill(folder: Path) -> set[int]:
    """Open the packs as a new process would, put what is not there, and check all; returns what was not there."""
    store = Packs(folder)
    lost = set()
    for number in range(COUNT):
        found = store.get(key_of(number))
        assert found is None or equal(found, arrays_of(number))  # nothing wrong is ever returned
        if found is None:
            lost.add(number)
            store.put(key_of(number), arrays_of(number))
    store.finish_writing()
    again = Packs(folder)
    assert all(equal(again.get(key_of(number)), arrays_of(number)) for number in range(COUNT))
    return lost


def test_what_was_put_comes_back_read_only(tmp_path: Path) -> None:
    store = Packs(filled(tmp_path))
    assert store.missing([key_of(number) for number in range(COUNT + 2)]) == [COUNT, COUNT + 1]
    for number in range(COUNT):
        found = store.get(key_of(number))
        assert found is not None and equal(found, arrays_of(number))
        assert not found["mean"].flags.writeable
    assert store.get(key_of(COUNT)) is None


def test_what_is_put_is_there_at_once_and_for_others_once_they_refresh(tmp_path: Path) -> None:
    one, other = Packs(tmp_path), Packs(tmp_path)
    one.put(key_of(1), arrays_of(1))
    assert equal(one.get(key_of(1)), arrays_of(1))
    assert other.missing([key_of(1)]) == [0]
    other.refresh()
    assert equal(other.get(key_of(1)), arrays_of(1))
    other.put(key_of(2), arrays_of(2))  # into another pack: the first one is being written
    assert packs.numbers_in(tmp_path) == [0, 1]
    one.finish_writing()
    third = Packs(tmp_path)
    third.put(key_of(3), arrays_of(3))
    assert packs.numbers_in(tmp_path) == [0, 1]


def test_keys_that_share_their_first_half_are_told_apart(tmp_path: Path) -> None:
    store = Packs(tmp_path)
    keys = [b"12345678" + bytes([number]) * 8 for number in (9, 1, 255)]
    for number, key in enumerate(keys):
        store.put(key, arrays_of(number))
    store.refresh()
    assert [equal(store.get(key), arrays_of(number)) for number, key in enumerate(keys)] == [True] * 3
    assert store.missing([*keys, b"12345678" + b"\x05" * 8]) == [3]


def test_packs_are_bounded_in_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_BYTES", 2000)
    filled(tmp_path, 12)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.pack"))]
    assert sizes == [2112] * 4  # full with the record that brought it above the bound
    store = Packs(tmp_path)
    assert all(equal(store.get(key_of(number)), arrays_of(number)) for number in range(12))


def test_a_pack_cut_off_anywhere_loses_only_what_was_behind_the_cut(tmp_path: Path) -> None:
    source = filled(tmp_path / "source")
    entries, _ = packs.read_entries(packs.index_file(source, 0))
    size = packs.pack_file(source, 0).stat().st_size
    ends = [int(entry["offset"] + entry["length"]) for entry in entries]
    assert ends[-1] == size
    for cut in [0, 1, 40, 97, *(end + shift for end in ends for shift in (-1, 0, 1, 70) if end + shift <= size)]:
        folder = Path(shutil.copytree(source, tmp_path / f"cut{cut}"))
        os.truncate(packs.pack_file(folder, 0), cut)
        assert refill(folder) == {number for number, end in enumerate(ends) if end > cut}
        shutil.rmtree(folder)


def test_a_pack_cut_off_while_it_is_read_loses_only_what_was_behind_the_cut(tmp_path: Path) -> None:
    store = Packs(filled(tmp_path / "packs"))
    assert all(equal(store.get(key_of(number)), arrays_of(number)) for number in range(COUNT))
    path = packs.pack_file(store.folder, 0)
    os.truncate(path, path.stat().st_size - 1)
    assert store.get(key_of(COUNT - 1)) is None
    assert all(equal(store.get(key_of(number)), arrays_of(number)) for number in range(COUNT - 1))
    os.truncate(path, 0)
    assert store.get(key_of(0)) is None
    store.put(key_of(0), arrays_of(0))
    assert equal(store.get(key_of(0)), arrays_of(0))


def test_an_index_cut_off_anywhere_or_lost_loses_nothing(tmp_path: Path) -> None:
    source = filled(tmp_path / "source")
    size = packs.index_file(source, 0).stat().st_size
    for cut in (0, 1, 39, 40, 41, 120, size - 1, size):
        folder = Path(shutil.copytree(source, tmp_path / f"cut{cut}"))
        os.truncate(packs.index_file(folder, 0), cut)
        assert refill(folder) == set()
    packs.index_file(source, 0).unlink()
    assert refill(source) == set()


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_pack_or_an_index_is_ever_served(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    folder = filled(tmp_path_factory.mktemp("flipped"), COUNT)
    for name in ("00000.pack", "00000.index"):
        path = folder / name
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= 1 << bit
        path.write_bytes(data)
        assert len(refill(folder)) <= 1
    shutil.rmtree(folder)


def test_a_damaged_record_is_reported_once_and_put_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Packs(filled(tmp_path))
    with packs.pack_file(tmp_path, 0).open("r+b") as file:
        file.seek(150)
        file.write(b"damage")
    assert store.get(key_of(0)) is None and store.get(key_of(0)) is None
    assert caplog.text.count("00000.pack is damaged at byte 0") == 1
    assert store.missing([key_of(number) for number in range(COUNT)]) == [0]
    store.put(key_of(0), arrays_of(0))
    assert equal(store.get(key_of(0)), arrays_of(0))


def test_a_disk_that_takes_half_a_record_keeps_the_pack_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Packs(filled(tmp_path))
    write_all = packs._write_all

    def fails(file: object, data: bytes) -> None:
        write_all(file, data[: len(data) // 2])  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packs, "_write_all", fails)
    with pytest.raises(OSError, match="No space left"):
        store.put(key_of(7), arrays_of(7))
    monkeypatch.undo()
    assert store.get(key_of(7)) is None
    store.put(key_of(8), arrays_of(8))
    store.finish_writing()
    again = Packs(tmp_path)
    assert equal(again.get(key_of(8)), arrays_of(8))
    assert again.missing([key_of(number) for number in (*range(COUNT), 7)]) == [COUNT]


def writer(folder: Path, first: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_writer_killed_at_any_moment_loses_at_most_the_record_it_was_writing(tmp_path: Path) -> None:
    written = 0
    draw = np.random.default_rng(5)
    for _ in range(4):
        process = writer(tmp_path, written, 10**6)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.0, 0.1))
        process.kill()
        told = process.stdout.read().split("\n")[:-1]  # without a line that was cut off
        process.wait()
        written = int(told[-1]) + 1 if told else written
        store = Packs(tmp_path)
        assert store.missing([key_of(number) for number in range(written)]) == []
        while store.get(key_of(written)):
            written += 1
        assert all(equal(store.get(key_of(number)), arrays_of(number)) for number in range(written))
    assert written > 20
    assert packs.numbers_in(tmp_path) == [0]  # each went on in the pack that the one before it left


def test_two_processes_write_into_one_folder_at_once(tmp_path: Path) -> None:
    writers = [writer(tmp_path, first, 200) for first in (0, 100)]  # a hundred of them twice
    for process in writers:
        assert process.communicate()[0].split()[-1] in ("199", "299")
        assert process.returncode == 0
    store = Packs(tmp_path)
    assert all(equal(store.get(key_of(number)), arrays_of(number)) for number in range(300))


def test_compacting_keeps_what_is_wanted_and_drops_damaged_and_second_records(tmp_path: Path) -> None:
    filled(tmp_path)
    with packs.pack_file(tmp_path, 0).open("r+b") as file:
        file.seek(150)
        file.write(b"damage")
    store = Packs(tmp_path)
    assert store.get(key_of(0)) is None
    for number in (0, 1, 1):
        store.put(key_of(number), arrays_of(number))
    store.finish_writing()
    packs.compact(tmp_path, lambda key: key != key_of(3))
    store = Packs(tmp_path)
    assert store.missing([key_of(number) for number in range(COUNT)]) == [3]
    assert all(equal(store.get(key_of(number)), arrays_of(number)) for number in (0, 1, 2, 4))
    entries, complete = packs.read_entries(packs.index_file(tmp_path, 1))
    assert complete and len(entries) == 4 and packs.numbers_in(tmp_path) == [1]


def test_compacting_what_needs_none_changes_no_file(tmp_path: Path) -> None:
    filled(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    packs.compact(tmp_path, lambda key: True)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_another_process_finds_what_was_compacted_meanwhile(tmp_path: Path) -> None:
    reader = Packs(filled(tmp_path))
    packs.compact(tmp_path, lambda key: key != key_of(3))
    reader.refresh()
    assert equal(reader.get(key_of(2)), arrays_of(2))
