"""What the browser shows of a run: log, loss curve, branches, status. No browser is needed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gui import monitor, run_bar, runner, samples_tab
from gui.monitor import History, Sample, Watch
from gui.places import Places
from gui.runner import Started
from tests.test_gui_fake_run import loss_at, make_run, settings, write_session
from trainer import files, runs
from trainer.runs import RunFolder


def told(*events: tuple[str, int, dict[str, Any]]) -> History:
    history = History()
    for event, step, fields in events:
        history.add({"event": event, "global_step": step, "time": 1000.0 + step, **fields})
    return history


def steps(first: int, last: int) -> list[tuple[str, int, dict[str, Any]]]:
    return [("step", step, {"loss": float(step), "epoch": 1}) for step in range(first, last + 1)]


# --- the log ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", ["a", "b"]),
        ("1/9\r2/9\r3/9", ["3/9"]),
        ("long line\rshort", ["shortline"]),
        ("windows\r\nends", ["windows", "ends"]),
        ("\x1b[31mred\x1b[0m", ["red"]),
        ("1/2\r2/2\ndone", ["2/2", "done"]),
    ],
)
def test_the_log_reads_as_on_a_terminal(text: str, shown: list[str]) -> None:
    assert monitor.terminal_lines(text) == shown


def test_the_log_of_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert monitor.log_tail(tmp_path / "console.log") == ""


def test_the_log_ends_with_the_last_lines_and_begins_with_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_text("".join(f"line {number} {'x' * 90}\n" for number in range(5000)))
    lines = monitor.log_tail(path).splitlines()
    assert len(lines) == monitor.LOG_LINES
    assert lines[-1].startswith("line 4999 ")
    path.write_text("y" * monitor.LOG_BYTES + "half\nwhole")
    assert monitor.log_tail(path) == "whole"


def test_the_log_can_begin_where_a_start_began(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_text("before\nafter\n")
    assert monitor.log_tail(path, start=len("before\n")) == "after"


def test_bytes_that_are_no_text_do_not_stop_the_log(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"good\n\xff\xfe\nend")
    assert monitor.log_tail(path).splitlines()[0] == "good"


# --- the curve ---


def test_a_short_curve_is_drawn_as_it_is() -> None:
    assert monitor.thin([1, 2, 3], [0.1, 0.2, 0.3]) == ([1, 2, 3], [0.1, 0.2, 0.3])


def test_a_thinned_curve_keeps_its_spikes_and_its_order() -> None:
    values = [1.0] * 100_000
    values[31_415], values[27_182] = 9.0, -9.0
    places, heights = monitor.thin(range(100_000), values)
    assert len(places) <= monitor.MOST_POINTS
    assert places == sorted(places)
    assert heights[places.index(31_415)] == 9.0
    assert heights[places.index(27_182)] == -9.0


def test_the_smoothed_curve_of_a_constant_is_that_constant() -> None:
    history = told(*[("step", step, {"loss": 3.0}) for step in range(1, 6)])
    assert history.smoothed() == pytest.approx([3.0] * 5)


def test_steps_beyond_the_resumed_one_become_an_abandoned_branch() -> None:
    history = told(*steps(1, 8), ("resumed", 5, {"step": 5}), *steps(6, 7))
    assert history.current.steps == [1, 2, 3, 4, 5, 6, 7]
    assert [branch.steps for branch in history.abandoned] == [[6, 7, 8]]
    assert history.resumes == [5]


def test_the_smoothed_curve_after_a_resume_is_that_of_a_straight_run() -> None:
    straight = told(*steps(1, 9))
    resumed = told(*steps(1, 8), ("resumed", 5, {"step": 5}), *steps(6, 9))
    assert resumed.smoothed() == straight.smoothed()


def test_two_resumes_leave_two_abandoned_branches() -> None:
    history = told(*steps(1, 6), ("resumed", 4, {"step": 4}), *steps(5, 9), ("resumed", 2, {"step": 2}), *steps(3, 3))
    assert [branch.steps for branch in history.abandoned] == [[5, 6], [3, 4, 5, 6, 7, 8, 9]]
    assert history.current.steps == [1, 2, 3]
    assert history.resumes == [2]


def test_a_run_that_begins_anew_without_a_resume_leaves_the_old_steps_behind() -> None:
    history = told(*steps(1, 4), ("run_started", 0, {"session": 2}), *steps(1, 2))
    assert history.current.steps == [1, 2]
    assert [branch.steps for branch in history.abandoned] == [[1, 2, 3, 4]]


def test_a_session_that_fails_before_it_resumes_abandons_nothing() -> None:
    history = told(*steps(1, 4), ("run_started", 2, {"session": 2}), ("run_failed", 2, {"error": "no"}))
    assert history.current.steps == [1, 2, 3, 4]
    assert history.abandoned == []


def test_checkpoint_marks_of_an_abandoned_branch_are_gone() -> None:
    history = told(*steps(1, 6), ("checkpoint_saved", 3, {}), ("checkpoint_saved", 6, {}), ("resumed", 3, {"step": 3}))
    assert history.checkpoints == [3]


def test_a_loss_that_is_not_finite_is_not_drawn() -> None:
    history = told(("step", 1, {"loss": 0.5}), ("step", 2, {"loss": "nan"}))
    assert history.current.steps == [1]
    assert history.step == 2


@pytest.mark.parametrize(
    "event",
    [
        {"event": "step"},
        {"event": "step", "global_step": "many"},
        {"event": "step", "global_step": 3, "loss": [1], "time": None, "epoch": "x", "lr": {"unet": "?"}},
        {"event": "resumed", "global_step": 3, "step": "three"},
        {"event": "sample_saved", "global_step": 3, "path": 7},
        {"event": "from_the_future", "global_step": 3},
    ],
)
def test_an_event_that_is_not_as_it_should_be_is_passed_over(event: dict[str, Any]) -> None:
    history = told(*steps(1, 2))
    history.add(event)
    assert history.current.steps == [1, 2]


def test_the_figure_has_the_branches_the_curves_and_the_marks(tmp_path: Path) -> None:
    view = Watch().look(make_run(tmp_path))
    figure = monitor.loss_figure(view.history, "fox")
    traces = {trace.name: trace for trace in figure.data}
    assert set(traces) == {"abandoned branch", "loss", "smoothed", "checkpoint"}
    assert list(traces["abandoned branch"].x) == list(range(101, 131))
    assert list(traces["loss"].x) == list(range(1, 151))
    assert list(traces["checkpoint"].x) == [50, 100, 150]
    assert [shape.x0 for shape in figure.layout.shapes] == [100]


def test_a_long_run_draws_at_most_two_thousand_points_a_curve() -> None:
    history = told(*steps(1, 30_000))
    figure = monitor.loss_figure(history, "long")
    assert all(len(trace.x) <= monitor.MOST_POINTS for trace in figure.data)


# --- reading ---


def test_events_are_read_on_from_where_the_reader_was(tmp_path: Path) -> None:
    run, watch = make_run(tmp_path), Watch()
    before = watch.look(run)
    assert watch.look(run).stamp == before.stamp
    write_session(run, settings(tmp_path), 3, range(151, 161), resumed_at=150)
    after = watch.look(run)
    assert after.stamp != before.stamp
    assert after.history.step == 160


def test_what_a_page_is_drawing_does_not_change_under_it(tmp_path: Path) -> None:
    run, watch = make_run(tmp_path), Watch()
    before = watch.look(run).history
    drawn = (before.current.steps.copy(), before.smoothed(), before.checkpoints.copy())
    write_session(run, settings(tmp_path), 3, range(51, 61), resumed_at=50)
    assert watch.look(run).history.step == 60
    assert (before.current.steps, before.smoothed(), before.checkpoints) == drawn


def test_a_new_reader_sees_what_the_old_one_saw(tmp_path: Path) -> None:
    run, watch = make_run(tmp_path), Watch()
    watch.look(run)
    write_session(run, settings(tmp_path), 3, range(151, 156), resumed_at=150)
    old, new = watch.look(run).history, Watch().look(run).history
    assert (old.current, old.abandoned, old.samples) == (new.current, new.abandoned, new.samples)


def test_a_run_folder_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    run, watch = make_run(tmp_path), Watch()
    watch.look(run)
    run.path.rename(tmp_path / "aside")
    run.path.mkdir()
    write_session(run, settings(tmp_path), 1, range(1, 4))
    assert watch.look(run).history.current.steps == [1, 2, 3]


def test_a_torn_last_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    run, watch = RunFolder(tmp_path / "torn"), Watch()
    run.path.mkdir()
    line = json.dumps({"event": "step", "global_step": 1, "time": 1.0, "loss": loss_at(1)}) + "\n"
    run.events_file.write_text(line[:20])
    assert watch.look(run).history.current.steps == []
    run.events_file.write_text(line)
    assert watch.look(run).history.current.steps == [1]


# --- status ---


def started(run: RunFolder, *, alive: bool, exit_code: int | None = None, offset: int = 0) -> None:
    """The record of a start that was made just now, of which the run's own record says nothing yet."""
    here = runs.this_process()
    begun = Started(
        pid=here["pid"],
        process_start=here["process_start"] if alive else "gone",
        boot_id=here["boot_id"],
        host=here["host"],
        time=time.time(),
        console_offset=offset,
        before=runner._identity(runs.read_run(run)),
        exit_code=exit_code,
    )
    runner._write_started(run, begun)


def test_a_start_whose_process_lives_is_starting_until_the_run_says_more(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    started(run, alive=True)
    assert Watch().look(run).condition == "starting"


def test_a_start_whose_process_is_gone_shows_its_last_words(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    offset = run.console_file.stat().st_size
    with run.console_file.open("a") as file:
        file.write("Refused: <b>network_dim</b> differs\n")
    started(run, alive=False, exit_code=3, offset=offset)
    view = Watch().look(run)
    assert view.condition == "refused"
    assert view.message == "Refused: <b>network_dim</b> differs"
    shown = run_bar.notice(view)
    assert "The trainer refused to start" in shown
    assert "Refused: &lt;b&gt;network_dim" in shown


@pytest.mark.parametrize("hours", [-1, 0, 1], ids=["clock set forward", "", "clock set back"])
def test_a_record_of_another_process_than_before_the_start_decides_whatever_the_clock_says(
    tmp_path: Path, hours: int
) -> None:
    run = make_run(tmp_path, status="finished")
    when = time.time() + 3600 * hours
    begun = runner.Started(1, "gone", "", "", time=when, console_offset=0, before="of an earlier session", exit_code=3)
    runner._write_started(run, begun)
    assert Watch().look(run).condition == "finished"


@pytest.mark.parametrize("status", ["stopped", "finished", "failed"])
def test_the_recorded_status_is_shown(tmp_path: Path, status: str) -> None:
    view = Watch().look(make_run(tmp_path, status=status))
    assert view.condition == status
    assert run_bar.notice(view)


def test_a_run_whose_process_is_gone_is_interrupted_and_tells_the_way_on(tmp_path: Path) -> None:
    view = Watch().look(make_run(tmp_path, status="running"))
    assert view.condition == "interrupted"
    assert "Continue this run" in run_bar.notice(view)
    assert "last checkpoint is at step 150" in run_bar.notice(view)


def test_a_run_that_was_asked_to_stop_is_stopping(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="running", alive=True)
    assert Watch().look(run).condition == "running"
    assert runner.ask_stop(run)
    assert Watch().look(run).condition == "stopping"
    assert runs.take_requests(run) == {"stop"}


def test_a_session_is_not_stopping_because_the_one_before_it_was_asked_to(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="running", alive=True)
    assert runner.ask_stop(run)
    record = runs.read_run(run)
    assert record is not None
    parent = {"pid": os.getppid(), "process_start": runs.process_start(os.getppid())}
    runs.write_run(run, record | parent)  # another process works on it now
    assert Watch().look(run).condition == "running"


def test_only_a_running_run_can_be_asked_to_save(tmp_path: Path) -> None:
    assert not runner.ask(make_run(tmp_path, "done", status="finished"), "save")
    assert runner.ask(make_run(tmp_path, "going", status="running", alive=True), "save")


def test_the_status_line_has_step_epoch_speed_and_time_left(tmp_path: Path) -> None:
    line = run_bar.status_line(Watch().look(make_run(tmp_path, status="running", alive=True)))
    for words in ("running", "step 150 of 200", "epoch 8", "2.5 it/s", "about 20 s left"):
        assert words in line


def test_steps_written_in_one_go_do_not_make_the_speed_infinite() -> None:
    history = History()
    for step in range(1, 41):  # four steps a second, told once a second
        history.add({"event": "step", "global_step": step, "time": float((step - 1) // 4), "loss": 1.0})
    assert history.seconds_per_step() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("seconds", "words"), [(4, "4 s"), (125, "2 min"), (3600, "1 h"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")]
)
def test_times_are_told_in_two_units_at_most(seconds: float, words: str) -> None:
    assert monitor.duration(seconds) == words


# --- which run, which picture ---


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "home").mkdir()
    return Places(tmp_path / "home", tmp_path / "state")


def test_the_run_that_was_active_last_comes_first(places: Places) -> None:
    output = places.home / "output"
    first, second = make_run(output, "first"), make_run(output, "second")
    files.write_bytes(first.run_file, first.run_file.read_bytes())
    assert run_bar.choices(places) == [("first", str(first.path)), ("second", str(second.path))]


def test_a_run_started_in_another_folder_is_found_again(places: Places, tmp_path: Path) -> None:
    run = make_run(tmp_path / "elsewhere", "far")
    assert run_bar.choices(places) == []
    places.remember_output_folder(run.path.parent)
    assert run_bar.choices(places) == [("far", str(run.path))]


def test_a_start_without_a_run_yet_is_among_the_choices(places: Places) -> None:
    run = RunFolder(places.home / "output" / "new")
    started(run, alive=True)
    assert run_bar.choices(places) == [("new", str(run.path))]
    assert run_bar.chosen(places, str(run.path)) == run


@pytest.mark.parametrize("value", ["/etc", "../secret", "", None, 7, "output/fox/../../secret", "\0"])
def test_only_a_known_run_can_be_opened(places: Places, value: Any) -> None:
    make_run(places.home / "output")
    make_run(places.home, "secret")
    assert run_bar.chosen(places, value) is None
    assert run_bar.chosen(places, str(places.home / "secret")) is None
    assert run_bar.chosen(places, str(places.home / "output" / "fox" / ".." / ".." / "secret")) is None


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/passwd", "config.toml", "samples/../config.toml", "\0"])
def test_a_sample_outside_the_samples_folder_is_not_shown(tmp_path: Path, path: str) -> None:
    run = make_run(tmp_path / "output")
    (tmp_path / "secret.png").write_bytes((run.samples / "00000050-0.png").read_bytes())
    assert samples_tab.confined(run, path) is None


def test_a_link_out_of_the_samples_folder_is_not_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "output")
    (run.samples / "link.png").symlink_to(run.config_file)
    assert samples_tab.confined(run, "samples/link.png") is None


def test_samples_come_newest_step_first_as_thumbnails(tmp_path: Path) -> None:
    view = Watch().look(make_run(tmp_path / "output"))
    samples = samples_tab.newest_first(view)
    items, complete = samples_tab.gallery_items(view.run, samples, tmp_path / "thumbnails")
    assert complete
    assert [caption for _, caption in items[:3]] == [
        "step 150 · a fox in the snow",
        "step 150 · a red fox",
        "step 100 · a fox in the snow",
    ]
    assert all(Path(path).parent == tmp_path / "thumbnails" and path.endswith(".webp") for path, _ in items)


def test_a_sample_that_is_no_picture_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "output")
    (run.samples / "broken.png").write_bytes(b"no picture")
    sample = Sample(1, "samples/broken.png", "a fox", 0)
    assert samples_tab.gallery_items(run, [sample], tmp_path / "thumbnails") == ([], True)
