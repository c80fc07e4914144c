"""What watching has shown, on the page and in the report; and choosing blindly between samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from gui.places import Places
from gui.server.side_process import Work
from gui.tabs import blind_panel
from gui.tabs.blind_panel import BlindPanel
from gui.tabs.shift_panel import ShiftPanel
from gui.views import judged
from gui.views.dataset_view import Looker
from gui.views.monitor import View, Watch
from tests.gui.test_gui_fake_run import make_run
from tests.support.browser import SLOW, Served, choose, needs_browser, open_page, open_tab
from trainer.judging import report
from trainer.options.config import Config
from trainer.runs import blind, kept_portraits
from trainer.runs.events import EventWriter
from trainer.runs.run_folder import RunFolder

BANDS = [{"from": 0, "to": 500, "loss": 0.25}, {"from": 500, "to": 1000, "loss": 0.75}]


def watched_run(output: Path) -> RunFolder:
    """The usual run with an event of each kind that watching writes."""
    run = make_run(output, status="finished")
    events = EventWriter(run.events_file)
    events.write("validation", 40, loss=0.5, bands=BANDS)
    events.write("resume_validation", 50, loss=0.5, bands=BANDS, before_step=50, before_loss=0.5, equal=True)
    events.write(
        "warning", 50, kind="slow", title="It is slow", seen="<b>a step takes 3 s", reasons=["heat"], ways_out=["wait"]
    )
    for step, shade in ((50, 10), (60, 200)):
        for seed in (1, 2):
            path = f"samples/step{step:08d}-00-{seed}.png"
            Image.new("RGB", (32, 32), (shade, seed * 20, 0)).save(run.path / path)
            more = {"ssim": 0.75, "before_step": 50} if step == 60 else {}
            events.write("sample_saved", step, path=path, prompt="a <fox>", index=0, seed=seed, **more)
    compared = {"before": "samples/step00000050-00-1.png", "path": "samples/step00000060-00-1.png"}
    events.write("samples_compared", 50, **compared, before_step=50, ssim=1.0, equal=True)
    events.write("rolled_back", 60, to_step=50, number=1, scale=0.5)
    moved = {"kind": "tag", "distance": 0.42, "meaning": "large: it moves", "changes": [["snow", 0, 0.25]]}
    events.write("dataset_shift", 50, images=[3, 4], shifts=[moved])
    events.write("checkpoint_saved", 60, bytes=10_000_000, write_seconds=0.5, verify_seconds=0.1)
    events.write("resources", 60, read_bytes=5_000_000, read_seconds=0.25)
    events.write("memory_judged", 60, estimated=9_000_000_000, measured=10_000_000_000, ratio=0.9)
    blind.keep(run, "run step 50", "run step 60", "a fox", 1, "second")
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return watched_run(tmp_path / "output")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    watched_run(home / "output")
    return home


def test_everything_that_was_seen_is_a_card_and_in_the_report(run: RunFolder) -> None:
    page, written = judged.page(run), report.write(run)
    for words in (
        "Validation loss by timesteps", "equal to the bit", "0-500", "equal to the pixel", "SSIM", "x 0.5",
        "large: it moves", "snow 0 → 25 %", "20 MB", "9 GB", "0 to 1, 0 without difference",
    ):  # fmt: skip
        assert words in page and words in written, words
    assert "It is slow" in page and "<b>a step" not in page and "a <fox>" not in page
    assert "http" not in page.replace("https://doi.org", "").replace("http://www.w3.org", "")


def test_a_run_of_which_nothing_is_known_says_what_would_be_there(tmp_path: Path) -> None:
    assert "Nothing of this run to judge yet" in judged.page(RunFolder(tmp_path))


def test_a_drill_is_told_in_figures() -> None:
    outcome = {
        "steps": 8, "killed_after": 5, "resumed_at": 4, "grade": "bit-exact", "first_difference": None,
        "different_files": [], "checkpoint_bytes": 5_000_000, "blocking_seconds": 0.05, "write_seconds": 0.5,
        "step_seconds": 0.25, "first_step_seconds": 9.0, "peak_memory": 2_000_000_000,
    }  # fmt: skip
    told = json.dumps({"verdict": "passed", "lines": ["PASSED"], "outcome": outcome})
    card = judged.drill_card(Work(0.0, alive=False, text=told))
    for words in ("bit-equal; bit-exact", "5 MB", "50 ms", "2 GB"):
        assert words in card
    assert judged.drill_card(None) == ""


def test_a_pair_has_one_prompt_and_seed_and_hides_where_it_is_from(run: RunFolder, tmp_path: Path) -> None:
    places = Places(home=tmp_path, state=tmp_path / "state")
    with gr.Blocks():
        panel = BlindPanel(places)
    view: View = Watch().look(run)
    assert {step for _, step in blind_panel.steps(view)} >= {60, 50}
    found = blind_panel.pairs(view, view, 50, 60)
    assert [(one.seed, other.seed) for one, other in found] == [(1, 1), (2, 2)]
    sides = set()
    for _ in range(40):
        shown: dict[Any, Any] = panel._show(view, view, 50, 60)
        asked = shown[panel.asked]
        sides.add(asked["first_is"])
        assert (asked["first"], asked["second"]) == (f"{view.name} step 50", f"{view.name} step 60")
        assert "step" not in shown[panel.pair].split("base64")[0]
    assert sides == {"left", "right"}
    assert panel._show(view, view, 50, 50)[panel.asked] is None


def test_the_dataset_tab_compares_its_images_with_those_of_a_run(run: RunFolder, tmp_path: Path) -> None:
    places = Places(home=tmp_path, state=tmp_path / "state")
    with gr.Blocks():
        panel = ShiftPanel(places)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (250, 250, 240 + number)).save(folder / f"{number}.png")
    job = Looker().look(Config(train_data_dir=str(folder), output_dir=str(tmp_path), resolution="64"), deep=False)
    job.wait()
    assert "keeps no portrait" in panel.compared(str(run.path), job.looked)
    dark = {"version": 1, "digest": "then", "images": 9, "seen": 9, "counts": {"brightness": {"0.0-0.1": 9}}}
    kept_portraits.write(run, dark)
    shown = panel.compared(str(run.path), job.looked)
    assert "9 images then, 3 now" in shown and "1.00 ██████████" in shown and "0.9-1.0 0 → 100 %" in shown
    assert "Choose a run" in panel.compared("", job.looked)


@needs_browser
def test_the_monitor_tab_shows_what_was_seen_and_the_samples_tab_asks_blindly(
    browser: Browser, served: Served, home: Path
) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(SLOW)
    open_page(page, served)
    open_tab(page, "Monitor")
    page.get_by_text("What was seen: alarms").click()
    expect(page.locator("#judged")).to_contain_text("Validation loss by timesteps")
    expect(page.locator("#judged .pictures img").first).to_be_visible()
    open_tab(page, "Samples")
    page.get_by_text("Choose blindly between two").click()
    choose(page, "blind-first", "step 60")
    choose(page, "blind-second", "step 50", exact=True)
    page.locator("#blind-next").click()
    expect(page.locator("#blind-pair img")).to_have_count(2)
    page.locator("#blind-left").click()
    expect(page.locator("#blind-tally")).to_contain_text("95 % interval")
    page.close()
    assert blind.tallies(RunFolder(home / "output" / "fox"))[-1].decided >= 1
