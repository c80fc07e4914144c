"""A run as CSV and as one HTML file: everything in it, nothing beside it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from tests.support.browser import needs_browser
from trainer import files
from trainer.__main__ import main
from trainer.judging import curves, drawing
from trainer.judging.drawing import Line
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs import alarm_kinds, run_folder
from trainer.runs.events import EventWriter
from trainer.runs.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of 30 steps that went back to step 20 once and went on to 40, as its files say it."""
    folder = RunFolder(tmp_path / "my & run")
    record = run_folder.new_run("my & run") | {"status": "finished"}
    record["sessions"] = [
        {"session": 1, "from_step": 0, "to_step": 30, "grade": None, "reason": "stopped"},
        {"session": 2, "from_step": 20, "to_step": 40, "grade": "changed", "reason": "finished"},
    ]
    run_folder.write_run(folder, record)
    files.write_text(folder.config_file, to_toml(Config(output_name="my & run", network_dim=24)))
    events = EventWriter(folder.events_file)

    def steps(first: int, last: int, level: float) -> None:
        for step in range(first, last + 1):
            rates = {"unet": 1e-4, "text_encoder": 5e-5}
            numbers = {"epoch": 0, "loss": level / step, "lr": 1e-4, "lrs": rates, "grad_norm": 1.0, "memory": 1}
            events.write("step", step, **numbers, step_seconds=0.5, data_seconds=0.1)

    events.write("run_started", 0, session=1, total_steps=40)
    steps(1, 30, 1.0)
    events.write("run_started", 20, session=2, total_steps=40)
    events.write("resumed", 20, grade="changed", probe_loss=0.25, differences={"learning_rate": [1e-4, 5e-5]})
    steps(21, 40, 2.0)
    events.write("validation", 40, loss=0.125)
    gpu = {"temperature": 70.0, "watts": 300.0, "load": 0.9}
    for kwh in (0.1, 0.2):
        events.write("resources", 40, gpus=[gpu], energy_kwh=kwh, cost=kwh / 2)
    events.write("warning", 35, **alarm_kinds.warning("divergence", "the loss <b>rose</b>"))
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    folder.samples.mkdir()
    Image.fromarray(pixels).save(folder.samples / "a.png")
    events.write("sample_saved", 40, path="samples/a.png", prompt="a <script>", index=0, seed=1)
    events.write("sample_saved", 40, path="../outside.png", prompt="elsewhere", index=1, seed=1)
    for step in (20, 40):
        result = {"step": step, "figures": {"fid": 100.0 / step}, "warnings": ["fid: few pictures"]}
        place = f"evaluation/step-{step:08d}/result.json"
        files.write_bytes(folder.path / place, files.json_bytes(result))
        events.write("evaluation", step, path=place, figures=result["figures"])
    return folder


def test_the_csv_has_each_step_of_the_current_branch_once_with_the_numbers_as_they_were(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run.path), "--csv"]) == 0
    assert capsys.readouterr().out.strip() == str(run.path / "steps.csv")
    rows = list(csv.DictReader(io.StringIO((run.path / "steps.csv").read_text())))
    assert [int(row["global_step"]) for row in rows] == list(range(1, 41))
    assert [float(row["loss"]) for row in rows] == [*(1.0 / s for s in range(1, 21)), *(2.0 / s for s in range(21, 41))]
    assert rows[0]["lr_text_encoder"] == "5e-05" and rows[-1]["validation_loss"] == "0.125"
    assert rows[0]["validation_loss"] == ""


def test_what_came_after_the_step_resumed_at_is_kept_as_a_branch(run: RunFolder) -> None:
    (branch,) = curves.read(run).abandoned
    assert sorted(branch) == list(range(21, 31)) and branch[30]["loss"] == 1.0 / 30


@needs_browser
def test_the_report_opens_without_a_request_to_anywhere_and_shows_everything(
    run: RunFolder, browser: Browser, tmp_path: Path
) -> None:
    target = tmp_path / "elsewhere" / "report.html"
    assert main(["report", str(run.path), "--to", str(target)]) == 0
    context = browser.new_context(offline=True)
    page = context.new_page()
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(target.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [target.as_uri()] and errors == []
    titles = page.locator("h2").all_inner_texts()
    assert titles == ["Curves", "Metrics", "Samples", "Warnings", "Sessions and resumes", "Options"]
    assert page.locator("svg[aria-label='Loss'] polyline").count() == 3  # each step, smoothed, abandoned
    assert page.locator("svg[aria-label='Loss'] .mark title").all_text_contents() == ["resumed (changed)"]
    assert page.locator("svg[aria-label='fid'] circle").count() == 2
    image = page.locator(".pictures img")
    assert image.count() == 1 and image.evaluate("picture => picture.naturalWidth") == 64
    text = page.inner_text("body")
    for words in ("my & run", "a <script>", "the loss <b>rose</b>", "network_dim\t24", "0.200 kWh, cost 0.10"):
        assert words in text
    assert "learning_rate: 0.0001 → 5e-05" in text and "probe loss 0.25" in text
    context.close()


def test_no_word_of_a_report_can_become_an_element(run: RunFolder, tmp_path: Path) -> None:
    assert main(["report", str(run.path)]) == 0
    text = (run.path / "report.html").read_text()
    assert "<script" not in text and "<b>" not in text and not re.search(r"(src|href)=\"(?!data:)", text)


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 3
    assert "is no run" in capsys.readouterr().err


def test_a_chart_keeps_lowest_and_highest_of_many_points_and_leaves_out_what_is_no_number() -> None:
    points = [(float(step), float(step % 7)) for step in range(10_000)] + [(10_000.0, float("nan")), (10_001.0, 99.0)]
    thin = drawing.thinned(points)
    assert len(thin) <= 2 * drawing.MOST_POINTS and (10_001.0, 99.0) in thin
    assert drawing.chart("nothing", [Line("a", [], "red")]) == ""
    assert drawing.chart("one", [Line("a", [(1, 2.0)], "red")]).count("<circle") == 1


def test_ticks_are_round_numbers_within_the_bounds() -> None:
    assert drawing.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert drawing.ticks(0.011, 0.049) == pytest.approx([0.02, 0.03, 0.04])
    assert drawing.ticks(3, 3) == [3]


def test_a_smoothed_line_of_equal_values_is_that_value_from_the_first_on() -> None:
    assert drawing.smoothed([(step, 2.0) for step in range(5)]) == [(step, pytest.approx(2.0)) for step in range(5)]
