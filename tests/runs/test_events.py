"""events.jsonl: what is written is read once and in order, and nothing that happens to the file stops either side."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faults import Call, FileCalls
from trainer.runs import events
from trainer.runs.events import EventWriter, read_events

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def lines(path: Path) -> list[Any]:
    """Every line of the file; each has to be JSON as the standard has it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines()]


def read_all(path: Path, limit: int) -> list[dict[str, Any]]:
    """Everything, in as many calls as it takes."""
    found, offset = [], 0
    while True:
        some, after = read_events(path, offset, limit)
        found += some
        if after == offset:
            return found
        offset = after


# --- reading -------------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 80), min_size=1, max_size=30), values=st.lists(st.text(), min_size=1, max_size=6))
def test_a_reader_that_comes_at_any_time_sees_each_event_once_and_in_order(
    sizes: list[int], values: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    written = [{"event": "step", "global_step": number, "text": text} for number, text in enumerate(values)]
    data = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in written).encode()
    found: list[dict[str, Any]] = []
    offset = place = 0
    for size in [*sizes, len(data)]:  # the file grows by these, and is read each time
        place += size
        path.write_bytes(data[:place])
        some, offset = read_events(path, offset)
        found += some
    assert found == written
    assert offset == len(data)


def test_an_unfinished_last_line_is_left_for_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"event": "b')
    found, offset = read_events(path)
    assert (found, offset) == ([{"event": "a"}], 15)
    with path.open("ab") as file:
        file.write(b'"}\n')
    assert read_events(path, offset) == ([{"event": "b"}], path.stat().st_size)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b'"event"',
        b'{"no": "event"}',
        b'{"event": "step", "loss": 0.1',
        b"\xff\xfe\x00",
        b"\x00" * 1000,
        b'{"event": "step", "text": "\xff"}',
        b"[" * 100_000,
        b'{"event": ' * 100_000,
        b"9" * 100_000,
        b'{"event": "step"}{"event": "step"}',
    ],
)
def test_a_damaged_line_is_passed_over(damaged: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "before"}\n' + damaged + b'\n{"event": "after"}\n')
    found, offset = read_events(path)
    assert [event["event"] for event in found] == ["before", "after"]
    assert offset == path.stat().st_size


@given(content=st.binary(max_size=200) | st.text().map(str.encode), limit=st.integers(1, 64))
def test_any_bytes_are_read_to_their_last_line_end(
    content: bytes, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    path.write_bytes(content + b'\n{"event": "last"}\n')
    assert read_events(path)[0][-1] == {"event": "last"}
    read_all(path, limit)


@pytest.mark.parametrize("limit", [1, 7, 15, 16, 17, 40, 1000])
def test_a_reader_that_takes_little_at_a_time_comes_to_the_end(limit: int, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(
        b'{"event": "a"}\n' * 3 + b'{"event": "long", "text": "' + b"x" * 500 + b'"}\n' + b'{"event": "b"}\n'
    )
    found = [event["event"] for event in read_all(path, limit)]
    if limit == 1000:
        assert found == ["a", "a", "a", "long", "b"]
    else:  # a line longer than that is passed over
        assert set(found) <= {"a", "b"}
        assert limit < 15 or found == ["a", "a", "a", "b"]


def test_a_file_that_became_shorter_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "of the old run"}\n' * 5)
    _, offset = read_events(path)
    path.write_bytes(b'{"event": "of the new run"}\n')
    assert read_events(path, offset)[0] == [{"event": "of the new run"}]


def test_no_file_means_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl") == ([], 0)
    assert read_events(tmp_path) == ([], 0)


# --- writing -------------------------------------------------------------------------------------------------------


@given(fields=st.dictionaries(st.text(min_size=1).map(lambda name: f"x{name}"), json_values, max_size=4))
def test_whatever_an_event_holds_is_one_line_of_json(
    fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    writer = EventWriter(path)
    writer.write("first", 1, **fields)
    writer.write("second", 2)
    assert [line["event"] for line in lines(path)] == ["first", "second"]
    assert [event["event"] for event in read_events(path)[0]] == ["first", "second"]


def test_numbers_that_are_not_finite_are_written_as_text(tmp_path: Path) -> None:
    EventWriter(tmp_path / "e").write(
        "step", 1, loss=float("nan"), more=[float("inf"), {"deep": -float("inf")}], lr=0.1
    )
    [line] = lines(tmp_path / "e")
    assert (line["loss"], line["more"], line["lr"]) == ("nan", ["inf", {"deep": "-inf"}], 0.1)


def test_a_file_name_that_is_not_utf8_can_be_told(tmp_path: Path) -> None:
    EventWriter(tmp_path / "e").write("warning", 1, path=os.fsdecode(b"picture\xe9.png"))
    assert read_events(tmp_path / "e")[0][0]["path"] == os.fsdecode(b"picture\xe9.png")


def test_a_torn_last_line_is_closed_before_the_next_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"event": "to')
    EventWriter(path).write("b", 2)
    assert [event["event"] for event in read_events(path)[0]] == ["a", "b"]


def test_events_of_several_threads_do_not_mix(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "e")

    def write(name: str) -> None:
        for step in range(50):
            writer.write(name, step, text="x" * 500)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(line["event"], line["global_step"]) for line in lines(tmp_path / "e")]
    assert sorted(found) == [(name, step) for name in "abcd" for step in range(50)]
    assert [step for name, step in found if name == "a"] == list(range(50))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_what_the_disk_refuses_is_kept_told_once_and_written_when_it_can_be(
    number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, writer = tmp_path / "e", EventWriter(tmp_path / "e")
    refusing = True

    def refuse(call: Call) -> None:
        if refusing:
            call.half()
            raise OSError(number, os.strerror(number))

    with FileCalls(refuse, thread="MainThread"):
        for step in range(3):
            writer.write("step", step)
        refusing = False
        writer.write("step", 3)
    assert [message.count("cannot be written") for message in caplog.messages] == [1]
    assert [event["global_step"] for event in read_events(path)[0]] == [0, 1, 2, 3]


def test_a_disk_that_refuses_for_ever_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_PENDING", 5)
    writer = EventWriter(tmp_path / "no folder" / "e")
    for step in range(20):
        writer.write("step", step)
    (tmp_path / "no folder").mkdir()
    writer.write("step", 20)
    assert [event["global_step"] for event in read_events(tmp_path / "no folder" / "e")[0]] == [16, 17, 18, 19, 20]


@pytest.mark.parametrize("room", range(0, 230, 3))
def test_a_disk_that_takes_a_part_repeats_and_loses_no_event(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = tmp_path / "e", io.FileIO.write
    full = False

    class SmallDisk(io.FileIO):
        def write(self, data: Any) -> int:
            left = room - self.seek(0, os.SEEK_END) if full else len(data)
            if left <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written(self, bytes(data)[:left])

    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: SmallDisk(path, mode.replace("b", "")))
    monkeypatch.setattr(time, "time", lambda: 1.0)
    writer = EventWriter(path)
    full = True
    for step in range(5):
        writer.write("step", step)
    full = False
    writer.write("step", 5)
    monkeypatch.undo()
    assert [event["global_step"] for event in read_events(path)[0]] == [0, 1, 2, 3, 4, 5]
