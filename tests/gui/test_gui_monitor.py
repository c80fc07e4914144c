"""What the browser shows of a run: log, loss curve, branches, status. No browser is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gui.app import Page
from gui.places import Places
from gui.server import console_log, runner
from gui.tabs import live, monitor_tab, run_bar
from gui.views import advice, charts, comparison, curves, monitor, runs
from gui.views.charts import Asked, Curves
from gui.views.history import History, Sample
from gui.views.monitor import Watch
from tests.gui.test_gui_fake_run import loss_at, make_run, settings, write_session
from trainer import files, quantities
from trainer.recipe import loss_average
from trainer.runs import events, launch, run_folder, shelf
from trainer.runs.launch import Started
from trainer.runs.run_folder import RunFolder


def told(*events: tuple[str, int, dict[str, Any]]) -> History:
    history = History()
    for event, step, fields in events:
        history.add({"event": event, "global_step": step, "time": 1000.0 + step, **fields})
    return history


def steps(first: int, last: int) -> list[tuple[str, int, dict[str, Any]]]:
    return [("step", step, {"loss": float(step), "epoch": 1}) for step in range(first, last + 1)]


def step_list(rows: curves.Array) -> list[int]:
    return [int(step) for step in rows["step"]]


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
    assert console_log.terminal_lines(text) == shown


def test_the_log_of_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert console_log.tail(tmp_path / "console.log") == ""


def test_the_log_ends_with_the_last_lines_and_begins_with_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_text("".join(f"line {number} {'x' * 90}\n" for number in range(5000)))
    lines = console_log.tail(path).splitlines()
    assert len(lines) == console_log.LOG_LINES
    assert lines[-1].startswith("line 4999 ")
    path.write_text("y" * console_log.LOG_BYTES + "half\nwhole")
    assert console_log.tail(path) == "whole"


def test_the_log_can_begin_where_a_start_began(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_text("before\nafter\n")
    assert console_log.tail(path, start=len("before\n")) == "after"


def test_bytes_that_are_no_text_do_not_stop_the_log(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"good\n\xff\xfe\nend")
    assert console_log.tail(path).splitlines()[0] == "good"


# --- the curve ---


def test_a_short_curve_is_drawn_as_it_is() -> None:
    steps, values = curves.thin(np.array([1, 2, 3]), np.array([0.1, 0.2, 0.3]))
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("count", [2001, 100_000, 100_999])
def test_a_thinned_curve_keeps_its_spikes_and_its_order(count: int) -> None:
    values = np.ones(count)
    values[1415], values[-1] = 9.0, -9.0
    places, heights = curves.thin(np.arange(count), values)
    assert len(places) <= curves.MOST_POINTS
    assert places.tolist() == sorted(set(places.tolist()))
    assert heights[places == 1415].tolist() == [9.0]
    assert heights[places == count - 1].tolist() == [-9.0]


def test_values_that_are_not_finite_are_not_drawn() -> None:
    steps, values = curves.thin(np.array([1, 2, 3]), np.array([0.5, np.nan, np.inf]))
    assert (steps.tolist(), values.tolist()) == ([1], [0.5])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 0.999])
def test_smoothing_is_the_moving_average_without_its_bias(share: float) -> None:
    values = np.random.default_rng(3).uniform(0.1, 0.4, 1000)
    average, expected = 0.0, []
    for count, value in enumerate(values, start=1):
        average = share * average + (1 - share) * value
        expected.append(average / (1 - share**count))
    assert curves.smooth(values, share) == pytest.approx(expected, rel=1e-9)


def test_no_smoothing_leaves_the_curve_as_it_is() -> None:
    assert curves.smooth(np.array([3.0, 1.0]), 0.0).tolist() == [3.0, 1.0]


def test_the_loss_that_is_told_is_the_average_of_the_trainers_log_and_checkpoints() -> None:
    history = told(*steps(1, 7), ("resumed", 4, {"step": 4}), *steps(5, 6))
    assert history.loss == pytest.approx(sum(range(1, 7)) / 6)  # that of all while the run is young
    long = told(*steps(1, 3000), ("resumed", 2900, {"step": 2900}), *steps(2901, 2950))
    average = None
    for step in range(1, 2951):
        average = loss_average.averaged(average, float(step), step)
    assert long.loss == average
    assert long.loss_at(2950) == average
    assert long.loss_at(2951) is None


def test_steps_beyond_the_resumed_one_become_an_abandoned_branch() -> None:
    history = told(*steps(1, 8), ("resumed", 5, {"step": 5}), *steps(6, 7))
    assert step_list(history.current.rows) == [1, 2, 3, 4, 5, 6, 7]
    assert [step_list(branch) for branch in history.abandoned] == [[6, 7, 8]]
    assert history.resumes == [5]


def test_the_smoothed_curve_after_a_resume_is_that_of_a_straight_run() -> None:
    straight = told(*steps(1, 9))
    resumed = told(*steps(1, 8), ("resumed", 5, {"step": 5}), *steps(6, 9))
    assert resumed.loss == pytest.approx(straight.loss)


def test_two_resumes_leave_two_abandoned_branches() -> None:
    history = told(*steps(1, 6), ("resumed", 4, {"step": 4}), *steps(5, 9), ("resumed", 2, {"step": 2}), *steps(3, 3))
    assert [step_list(branch) for branch in history.abandoned] == [[5, 6], [3, 4, 5, 6, 7, 8, 9]]
    assert step_list(history.current.rows) == [1, 2, 3]
    assert history.resumes == [2]


def test_a_run_that_begins_anew_without_a_resume_leaves_the_old_steps_behind() -> None:
    history = told(*steps(1, 4), ("run_started", 0, {"session": 2}), *steps(1, 2))
    assert step_list(history.current.rows) == [1, 2]
    assert [step_list(branch) for branch in history.abandoned] == [[1, 2, 3, 4]]


def test_a_session_that_fails_before_it_resumes_abandons_nothing() -> None:
    history = told(*steps(1, 4), ("run_started", 2, {"session": 2}), ("run_failed", 2, {"error": "no"}))
    assert step_list(history.current.rows) == [1, 2, 3, 4]
    assert history.abandoned == []


def test_checkpoint_marks_of_an_abandoned_branch_are_gone() -> None:
    history = told(*steps(1, 6), ("checkpoint_saved", 3, {}), ("checkpoint_saved", 6, {}), ("resumed", 3, {"step": 3}))
    assert history.checkpoints == [3]


def test_a_resume_from_a_branch_that_was_left_behind_draws_that_branch_again() -> None:
    def session(number: int, begin: int, last: int, *chain: tuple[str, int]) -> list[tuple[str, int, dict[str, Any]]]:
        resumed = ("resumed", begin, {"step": begin, "lineage": [[*link] for link in chain]})
        started = ("run_started", begin, {"session": number, "id": chain[-1][0]})
        losses = [("step", step, {"loss": float(number)}) for step in range(begin + 1, last + 1)]
        made: list[tuple[str, int, dict[str, Any]]] = [
            ("checkpoint_saved", last, {}),
            ("sample_saved", last, {"path": f"{number}.png", "index": 0, "prompt": "a"}),
            ("validation", last, {"loss": float(number)}),
        ]
        return [started, *([resumed] if number > 1 else []), *losses, *made]

    first, second = session(1, 0, 6, ("a", 0)), session(2, 4, 9, ("a", 0), ("b", 4))
    assert told(*first, *second).current.rows["loss"].tolist() == [1.0] * 4 + [2.0] * 5
    history = told(*first, *second, *session(3, 6, 8, ("a", 0), ("c", 6)))
    assert history.current.rows["loss"].tolist() == [1.0] * 6 + [3.0] * 2
    assert step_list(history.current.rows) == list(range(1, 9))
    assert [branch["loss"].tolist() for branch in history.abandoned] == [[2.0] * 5]
    assert (history.checkpoints, history.resumes, history.validation) == ([6, 8], [6], [(6, 1.0), (8, 3.0)])
    assert {path for path, sample in history.samples.items() if not sample.abandoned} == {"1.png", "3.png"}
    again = told(
        *first, *second, *session(3, 6, 8, ("a", 0), ("c", 6)), *session(4, 9, 9, ("a", 0), ("b", 4), ("d", 9))
    )
    assert again.current.rows["loss"].tolist() == [1.0] * 4 + [2.0] * 5
    assert [branch["loss"].tolist() for branch in again.abandoned] == [[1.0] * 2 + [3.0] * 2]


def test_a_loss_that_is_not_finite_is_not_drawn() -> None:
    history = told(("step", 1, {"loss": 0.5}), ("step", 2, {"loss": "nan"}))
    traces = traces_of(charts.loss_figure([drawn(history)], Asked()))
    assert list(traces["loss"]["x"]) == [1]
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
    assert step_list(history.current.rows[np.isfinite(history.current.rows["loss"])]) == [1, 2]


def drawn(history: History, key: str = "fox", until: int | None = None) -> Curves:
    return Curves(key, key, history, until=until)


def traces_of(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure["data"]}


def test_the_figure_has_the_branches_the_curves_and_the_marks(tmp_path: Path) -> None:
    view = Watch().look(make_run(tmp_path))
    figure = charts.loss_figure([drawn(view.history)], Asked())
    traces = traces_of(figure)
    assert set(traces) == {"abandoned branch", "loss", "smoothed", "checkpoint", "sample"}
    assert traces["abandoned branch"]["x"] == list(range(101, 131))
    assert traces["loss"]["x"] == list(range(1, 151))
    assert traces["checkpoint"]["x"] == [50, 100, 150]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [100]
    assert [note["xanchor"] for note in figure["layout"]["annotations"]] == ["auto"]  # not cut at the chart's edge


def test_a_long_run_draws_at_most_two_thousand_points_a_curve() -> None:
    figure = charts.loss_figure([drawn(told(*steps(1, 30_000)))], Asked())
    assert all(len(trace["x"]) <= curves.MOST_POINTS for trace in figure["data"])


def test_details_that_were_never_told_are_not_drawn() -> None:
    history = told(("step", 1, {"loss": 0.5, "lr": 1e-4}), ("step", 2, {"loss": 0.5, "lr": 2e-4}))
    figure = charts.detail_figure(drawn(history), Asked())
    assert {name: trace["y"] for name, trace in traces_of(figure).items()} == {"learning rate": [1e-4, 2e-4]}


def test_every_trained_part_has_its_own_learning_rate() -> None:
    rates = {"unet": 2e-4, "text_encoder": 5e-5}
    history = told(*(("step", step, {"loss": 0.5, "lr": 2e-4, "lrs": rates}) for step in (1, 2)))
    figure = charts.detail_figure(drawn(history), Asked())
    shown = {name: trace["y"] for name, trace in traces_of(figure).items()}
    assert shown == {"unet": [2e-4, 2e-4], "text encoder": [5e-5, 5e-5]}


def test_what_the_machine_and_each_gpu_did_is_drawn_below() -> None:
    gpus = [{"load": share, "memory": 8e9, "temperature": 70, "watts": None} for share in (0.5, 0.75)]
    reading = {"cpu": 0.25, "memory": 4e9, "disk_free": 2e10, "gpus": gpus}
    history = told(*steps(1, 3), ("resources", 3, reading), *steps(4, 4), ("resources", 4, reading))
    figure = charts.detail_figure(drawn(history), Asked())
    shown = [(trace["name"], trace["x"], trace["y"][-1]) for trace in figure["data"] if trace["x"] == [3, 4]]
    assert shown == [
        ("processor", [3, 4], 25.0), ("GPU 0", [3, 4], 50.0), ("GPU 1", [3, 4], 75.0),
        ("this process", [3, 4], 4.0), ("GPU 0", [3, 4], 8.0), ("GPU 1", [3, 4], 8.0),
        ("GPU 0", [3, 4], 70.0), ("GPU 1", [3, 4], 70.0), ("disk free", [3, 4], 20.0),
    ]  # fmt: skip
    titles = [axis["title"]["text"] for name, axis in figure["layout"].items() if name.startswith("yaxis")]
    assert titles == ["load, %", "in use, GB", "GPU, °C", "disk free, GB"]
    assert sum(trace["showlegend"] for trace in figure["data"]) == 4  # each name once


def test_curves_are_drawn_by_steps_epochs_or_time() -> None:
    history = told(("run_started", 0, {"steps_per_epoch": 2, "total_steps": 4}), *steps(1, 4))
    by = {
        axis: traces_of(charts.loss_figure([drawn(history)], charts.as_asked(axis, 0)))["loss"]["x"]
        for axis in charts.AXES
    }
    assert by["steps"] == [1, 2, 3, 4]
    assert by["epochs"] == [0.5, 1.0, 1.5, 2.0]
    assert by["time"] == pytest.approx([step / 3600 for step in (1, 2, 3, 4)], rel=1e-4)


def test_only_what_is_new_is_sent_until_something_else_changes() -> None:
    history = told(*steps(1, 10))
    first = charts.news([drawn(history)], Asked(), "")
    assert first["whole"]
    assert charts.news([drawn(history)], Asked(), first["have"]) == {"have": first["have"]}
    for event, step, fields in steps(11, 12):
        history.add({"event": event, "global_step": step, "time": 1000.0 + step, **fields})
    more = charts.news([drawn(history)], Asked(), first["have"])
    assert "whole" not in more
    grown = {trace["uid"]: trace for trace in more["charts"]["loss-chart"]["data"]}
    known = {trace["uid"]: trace["name"] for trace in first["charts"]["loss-chart"]["data"]}
    assert {known[uid]: (trace["x"], trace["more"]) for uid, trace in grown.items()} == {
        "loss": ([11, 12], True), "smoothed": ([11, 12], True)
    }  # fmt: skip
    history.add({"event": "resumed", "global_step": 8, "step": 8, "time": 2000.0})
    assert charts.news([drawn(history)], Asked(), more["have"])["whole"]
    assert charts.news([drawn(history)], Asked(axis="time"), more["have"])["whole"]
    assert charts.news([drawn(history)], Asked(), "nonsense")["whole"]


def test_what_was_sent_piece_by_piece_is_what_is_sent_at_once() -> None:
    history = told(*steps(1, 10))
    first = charts.news([drawn(history)], Asked(), "")
    have, figure = first["have"], first["charts"]["loss-chart"]["data"]
    for step in range(11, 15):
        history.add({"event": "step", "global_step": step, "time": 1000.0 + step, "loss": float(step)})
        more = charts.news([drawn(history)], Asked(), have)
        have = more["have"]
        for trace in more["charts"]["loss-chart"]["data"]:
            old = next(one for one in figure if one["uid"] == trace["uid"])
            old["x"], old["y"] = old["x"] + trace["x"], old["y"] + trace["y"]
    at_once = charts.news([drawn(history)], Asked(), "")["charts"]["loss-chart"]["data"]
    assert [(trace["x"], trace["y"]) for trace in figure] == [(trace["x"], trace["y"]) for trace in at_once]


def test_several_runs_share_a_chart_and_a_parent_ends_where_the_branch_begins() -> None:
    runs_drawn = [
        drawn(told(*steps(5, 9))),
        drawn(told(*steps(1, 9)), "parent", until=4),
        drawn(told(*steps(1, 3)), "other"),
    ]
    traces = traces_of(charts.loss_figure(runs_drawn, Asked()))
    assert {name: traces[name]["x"] for name in ("fox", "parent", "other")} == {
        "fox": [5, 6, 7, 8, 9], "parent": [1, 2, 3, 4], "other": [1, 2, 3]
    }  # fmt: skip
    assert len({trace["uid"] for trace in traces.values()}) == len(traces)


def test_samples_of_an_abandoned_branch_are_marked_until_they_are_made_again() -> None:
    history = told(
        *steps(1, 4),
        ("sample_saved", 4, {"path": "samples/4.png", "prompt": "a fox", "seed": 7}),
        ("resumed", 2, {"step": 2}),
    )
    assert history.samples["samples/4.png"] == Sample(4, "samples/4.png", "a fox", 0, 7, abandoned=True)
    history.add({"event": "sample_saved", "global_step": 4, "path": "samples/4.png", "prompt": "a fox"})
    assert not history.samples["samples/4.png"].abandoned


# --- what is told beside the curves ---


def test_work_of_known_length_is_told_with_its_time_left() -> None:
    history = History()
    for done, now in ((0, 100.0), (10, 110.0), (20, 120.0)):
        fields = {"what": "latents", "done": done, "total": 60}
        history.add({"event": "caching", "global_step": 0, "time": now, **fields})
    assert history.phase is not None
    assert history.phase.name == "caching latents"
    assert (history.phase.done, history.phase.total, history.phase.seconds_left) == (20, 60, 40.0)
    last = {"what": "latents", "done": 30, "total": 60, "seconds_left": 12.5}
    history.add({"event": "caching", "global_step": 0, "time": 130.0, **last})
    assert history.phase.seconds_left == 12.5
    history.add({"event": "step", "global_step": 1, "time": 130.0, "loss": 0.5})
    assert history.phase is None


def test_elapsed_time_counts_every_session_and_not_the_pause_between(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    lines = [
        {"event": kind, "global_step": step, "time": now}
        for kind, step, now in (
            ("run_started", 0, 1000.0), ("step", 1, 1060.0), ("run_started", 1, 9000.0), ("step", 2, 9030.0)
        )
    ]  # fmt: skip
    run.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Watch().look(run).elapsed() == (30.0, 90.0)


def test_overfitting_is_told_with_the_nearest_checkpoint_until_validation_gets_better(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    writer = events.EventWriter(run.events_file)
    for step, loss in ((60, 0.5), (100, 0.4), (140, 0.6)):
        writer.write("validation", step, loss=loss, best_step=min(step, 100))
    writer.write("warning", 140, kind="overfitting", message="learns its images by heart")
    shown = monitor_tab.hint(Watch().look(run))
    assert "learns its images by heart" in shown
    assert "nearest to step 100 is of 100" in shown
    writer.write("validation", 150, loss=0.3, best_step=150)
    assert monitor_tab.hint(Watch().look(run)) == ""


def test_validation_losses_are_drawn_beside_the_training_loss() -> None:
    history = told(*steps(1, 3), ("validation", 2, {"loss": 0.5}), ("validation", 2, {"loss": 0.4}))
    traces = traces_of(charts.loss_figure([drawn(history)], Asked()))
    assert (traces["validation"]["x"], traces["validation"]["y"]) == ([2], [0.4])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "gradient_checkpointing"),
        ("[Errno 28] No space left on device", "The disk is full"),
        ("10 steps in a row had no finite loss and gradient", "Lower the learning rate"),
        ("every checkpoint in x is damaged; nothing was changed", "Verify"),
        ("the run x is in use by process 7 on host", "Stop that process"),
        ("No module named 'bitsandbytes'", "A package is missing"),
        ("CUDA error: device-side assert triggered", "driver"),
        ("[Errno 13] Permission denied: '/out'", "may not be written"),
    ],
)
def test_an_error_is_explained_with_what_to_change(error: str, words: str) -> None:
    assert words in " ".join(advice.of_failure(error))


def test_an_error_that_is_not_known_keeps_the_trainers_own_advice() -> None:
    assert advice.of_failure("something odd", "See console.log.") == ["See console.log."]


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
    drawn = (before.current.rows.tobytes(), before.loss, before.checkpoints.copy())
    write_session(run, settings(tmp_path), 3, range(51, 61), resumed_at=50)
    assert watch.look(run).history.step == 60
    assert (before.current.rows.tobytes(), before.loss, before.checkpoints) == drawn


def test_a_new_reader_sees_what_the_old_one_saw(tmp_path: Path) -> None:
    run, watch = make_run(tmp_path), Watch()
    watch.look(run)
    write_session(run, settings(tmp_path), 3, range(151, 156), resumed_at=150)
    old, new = watch.look(run).history, Watch().look(run).history
    assert step_list(old.current.rows) == step_list(new.current.rows)
    assert [step_list(branch) for branch in old.abandoned] == [step_list(branch) for branch in new.abandoned]
    assert old.samples == new.samples


def test_long_runs_that_nobody_looks_at_are_forgotten_and_read_again(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "second")
    watch = Watch(most_bytes=first.events_file.stat().st_size + 1)
    before = watch.look(first)
    for _ in range(2):  # the first of them reads
        watch.look(second)
    assert list(watch._readers) == [second.path]
    again = watch.look(first)
    assert again.stamp == before.stamp and step_list(again.history.current.rows) == step_list(
        before.history.current.rows
    )


def test_what_a_look_has_no_time_for_is_read_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "CHUNK_BYTES", 4096)
    run, watch = make_run(tmp_path), Watch()
    view = watch.look(run)
    assert 0 < view.read < 1
    assert view.history.step < 150
    for _ in range(1000):
        view = watch.look(run)
        if view.read == 1:
            break
        time.sleep(0.01)
    assert (view.read, view.history.step) == (1.0, 150)


def test_a_torn_last_line_is_no_reason_to_go_on_reading(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with run.events_file.open("a") as file:
        file.write('{"event": "st')
    assert Watch().look(run).read == 1.0


def test_a_run_folder_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    run, watch = make_run(tmp_path), Watch()
    watch.look(run)
    run.path.rename(tmp_path / "aside")
    run.path.mkdir()
    write_session(run, settings(tmp_path), 1, range(1, 4))
    assert step_list(watch.look(run).history.current.rows) == [1, 2, 3]


def test_a_torn_last_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    run, watch = RunFolder(tmp_path / "torn"), Watch()
    run.path.mkdir()
    line = json.dumps({"event": "step", "global_step": 1, "time": 1.0, "loss": loss_at(1)}) + "\n"
    run.events_file.write_text(line[:20])
    assert step_list(watch.look(run).history.current.rows) == []
    run.events_file.write_text(line)
    assert step_list(watch.look(run).history.current.rows) == [1]


# --- status ---


def started(run: RunFolder, *, alive: bool, exit_code: int | None = None, offset: int = 0) -> None:
    """The record of a start that was made just now, of which the run's own record says nothing yet."""
    here = run_folder.this_process()
    begun = Started(
        pid=here["pid"],
        process_start=here["process_start"] if alive else "gone",
        boot_id=here["boot_id"],
        host=here["host"],
        time=time.time(),
        console_offset=offset,
        before=launch.identity(run_folder.read_run(run)),
        exit_code=exit_code,
    )
    launch.write_started(run, begun)


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
    begun = launch.Started(1, "gone", "", "", time=when, console_offset=0, before="of an earlier session", exit_code=3)
    launch.write_started(run, begun)
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
    assert launch.ask_stop(run)
    assert Watch().look(run).condition == "stopping"
    assert run_folder.take_requests(run) == {"stop"}


def test_a_session_is_not_stopping_because_the_one_before_it_was_asked_to(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="running", alive=True)
    assert launch.ask_stop(run)
    record = run_folder.read_run(run)
    assert record is not None
    parent = {"pid": os.getppid(), "process_start": run_folder.process_start(os.getppid())}
    run_folder.write_run(run, record | parent)  # another process works on it now
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
    ("seconds", "words"),
    [(4, "4 s"), (125, "2 min"), (3600, "1 h"), (7500, "2 h 5 min"), (273_600, "3 d 4 h"), (1e300, "–")],
)
def test_times_are_told_in_two_units_at_most(seconds: float, words: str) -> None:
    assert quantities.brief_duration(seconds) == words


# --- which run ---


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "home").mkdir()
    return Places(tmp_path / "home", tmp_path / "state")


def paths(places: Places) -> list[str]:
    return [path for _, path in runs.choices(places)]


def test_the_picker_tells_status_progress_and_date_and_leaves_archived_runs_out(places: Places) -> None:
    run = make_run(places.home / "output")
    now = time.localtime(runs.summary(run).active)
    assert [label for label, _ in runs.choices(places)] == [
        f"fox · stopped at 150 of 200 · {now.tm_hour:02}:{now.tm_min:02}"
    ]
    shelf.archive(run)
    assert runs.choices(places) == []
    assert runs.choices(places, archived=True) != []


def test_the_run_that_was_active_last_comes_first(places: Places) -> None:
    output = places.home / "output"
    first, second = make_run(output, "first"), make_run(output, "second")
    files.write_bytes(first.run_file, first.run_file.read_bytes())
    assert paths(places) == [str(first.path), str(second.path)]


def test_a_run_started_in_another_folder_is_found_again(places: Places, tmp_path: Path) -> None:
    run = make_run(tmp_path / "elsewhere", "far")
    assert runs.choices(places) == []
    places.remember_output_folder(run.path.parent)
    assert paths(places) == [str(run.path)]


def test_a_start_without_a_run_yet_is_among_the_choices(places: Places) -> None:
    run = RunFolder(places.home / "output" / "new")
    started(run, alive=True)
    assert paths(places) == [str(run.path)]
    assert runs.chosen(places, str(run.path)) == run


def test_a_run_whose_folder_was_deleted_is_no_choice_any_more(places: Places) -> None:
    run = make_run(places.home / "output")
    started(run, alive=False)
    shutil.rmtree(run.path)
    assert runs.choices(places) == []
    assert runs.chosen(places, str(run.path)) is None


@pytest.mark.parametrize("value", ["/etc", "../secret", "", None, 7, "output/fox/../../secret", "\0"])
def test_only_a_known_run_can_be_opened(places: Places, value: Any) -> None:
    make_run(places.home / "output")
    make_run(places.home, "secret")
    assert runs.chosen(places, value) is None
    assert runs.chosen(places, str(places.home / "secret")) is None
    assert runs.chosen(places, str(places.home / "output" / "fox" / ".." / ".." / "secret")) is None


def test_a_branch_draws_its_parent_also_when_that_was_renamed(places: Places) -> None:
    parent, branch = make_run(places.home / "output", "fox"), make_run(places.home / "output", "vixen")
    told_parent, told_branch = run_folder.read_run(parent), run_folder.read_run(branch)
    assert told_parent is not None and told_branch is not None
    origin = {"run_id": told_parent["run_id"], "step": 100, "path": str(parent.checkpoints / "step-00000100")}
    run_folder.write_run(branch, told_branch | {"parent": origin})
    assert runs.parent_of(places, branch) == (parent, 100)
    renamed = shelf.rename(parent, "old fox")
    found = runs.curves(places, Watch(), branch, [])
    assert [(item.name, item.until) for item in found] == [("vixen", None), ("old fox (parent, up to step 100)", 100)]
    assert runs.parent_of(places, renamed) is None


def test_a_message_about_a_save_goes_when_the_save_has_happened(places: Places) -> None:
    run = make_run(places.home / "output", status="running", alive=True)
    page = Page(places)
    data: dict[Any, Any] = {page.bar.picker: str(run.path), page.seen: {}, page.bar.awaited: None}
    data |= dict.fromkeys(page.samples.inputs()) | {page.bar.message: ""}
    asked = page.save_now(data)
    data |= {page.bar.message: asked[page.bar.message], page.bar.awaited: asked[page.bar.awaited]}
    before = live.news(places, page.watch.look(run))
    assert page.bar.message not in page.refresh(data)
    events.EventWriter(run.events_file).write("checkpoint_saved", 150, path="checkpoints/step-00000150", bytes=1)
    assert live.news(places, page.watch.look(run)) != before
    updates = page.refresh(data)
    assert (updates[page.bar.message], updates[page.bar.awaited]) == ("", None)
    other = page.refresh(data | {page.bar.message: "something else came meanwhile"})
    assert page.bar.message not in other


def test_sampling_is_told_as_what_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path, status="running", alive=True)
    writer = events.EventWriter(run.events_file)
    writer.write("run_started", 0, total_steps=200, steps_per_epoch=20, session=3)
    assert "Loading the model" in run_bar.status_line(Watch().look(run))
    writer.write("sampling", 0, done=0, total=2)
    assert "Sampling 1 of 2" in run_bar.status_line(Watch().look(run))
    writer.write("sampling", 0, done=1, total=2)
    assert "Sampling 2 of 2" in run_bar.status_line(Watch().look(run))
    writer.write("sampling", 0, done=2, total=2)
    assert "Sampling" not in run_bar.status_line(Watch().look(run))


def test_lines_that_are_as_they_were_are_not_sent_again(places: Places) -> None:
    run = make_run(places.home / "output", status="running", alive=True)
    watch = Watch()
    first = live.update(places, watch, str(run.path), {}, whole=True)
    assert set(first["parts"]) == {"run-status", "run-progress", "run-facts", "run-hint", "run-log"}
    assert first["short"]["percent"] == 75
    with run.console_file.open("a") as console:
        console.write("more\n")
    second = live.update(places, watch, str(run.path), first["have"], whole=True)
    assert "run-log" in second["parts"] and "run-progress" not in second["parts"]
    assert "run-facts" not in live.update(places, watch, str(run.path), {}, whole=False)["parts"]
    assert live.update(places, watch, "/etc", {}, whole=True)["short"] == {}


def test_the_options_of_runs_are_compared_without_their_names(places: Places) -> None:
    one = make_run(places.home / "output", "one", learning_rate=1e-3)
    two = make_run(places.home / "output", "two", learning_rate=2e-3)
    shown = comparison.table([one, two])
    assert re.findall(r"<td>(.*?)</td>", shown) == ["Training", "learning_rate", "0.001", "0.002"]
    assert "the same" in comparison.table([one, one])
