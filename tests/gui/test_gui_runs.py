"""The list of runs and what is done with them, their model files, and the charts as a browser has them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from gui.places import Places
from gui.views import results, runs
from gui.views.monitor import Watch
from tests.benchmarks.gui_browser import hide
from tests.gui.test_gui_fake_run import make_run, settings, write_session
from tests.support.browser import SLOW, Served, choose, needs_browser, open_page, open_tab
from trainer.options import checks
from trainer.refusal import Refused
from trainer.runs import manifest, run_folder, shelf
from trainer.runs.run_folder import RunFolder

WCAG_AA = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}


def write_model(run: RunFolder, ending: str, step: int) -> Path:
    path = run.path.with_name(f"{run.path.name}{ending}.safetensors")
    header = {"ss_steps": str(step), "ss_epoch": str(step // 20)}
    safetensors.numpy.save_file({"weight": np.zeros(4, np.float32)}, path, header)
    return path


# --- what is done with runs ---


def test_a_renamed_run_takes_its_model_files_along_and_is_continued_under_its_new_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_model(run, "", 150)
    write_model(run, "-step00000100", 100)
    write_model(RunFolder(tmp_path / "foxes"), "", 3)
    there = shelf.rename(run, "red fox")
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "foxes.safetensors", "red fox-step00000100.safetensors", "red fox.safetensors"
    ]  # fmt: skip
    assert checks.read_config(there.config_file).output_name == "red fox"
    record = run_folder.read_run(there)
    assert record is not None and record["output_name"] == "red fox"
    assert [found.step for found in manifest.listing(there.checkpoints, thorough=True)] == [150, 100, 50]


@pytest.mark.parametrize("name", ["", "../fox", "a/b", ".hidden", "x" * 200, "taken", "held"])
def test_a_name_that_cannot_be_is_refused_and_nothing_is_moved(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    make_run(tmp_path, "taken")
    write_model(RunFolder(tmp_path / "held"), "-000001", 20)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refused):
        shelf.rename(run, name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("act", [shelf.archive, shelf.delete, lambda run: shelf.rename(run, "other")])
def test_a_run_that_a_process_works_on_is_left_alone(tmp_path: Path, act: Any) -> None:
    run = make_run(tmp_path)
    with run_folder.locked(run), pytest.raises(Refused):
        act(run)
    assert run.run_file.exists() and not run.archived_file.exists()


def test_deleting_a_run_leaves_its_model_files(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    model = write_model(run, "", 150)
    shelf.delete(run)
    assert list(tmp_path.iterdir()) == [model]


def test_results_tell_step_loss_and_size_and_nothing_else_can_be_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_model(run, "", 150)
    write_model(run, "-step00000100", 100)
    (tmp_path / "fox-step00000050.safetensors").write_bytes(b"torn")
    found = results.listing(run)
    assert [(item.path.name, item.step) for item in found] == [
        ("fox.safetensors", 150),
        ("fox-step00000100.safetensors", 100),
        ("fox-step00000050.safetensors", None),
    ]
    view = Watch().look(run)
    loss = view.history.loss_at(100)
    assert loss is not None and f"{loss:.4f}" in results.table(view)
    assert results.model_file(run, "fox.safetensors") == tmp_path / "fox.safetensors"
    assert results.model_file(run, "../fox.safetensors") is None
    assert results.model_file(run, "fox/config.toml") is None


def test_a_summary_is_read_from_the_end_of_long_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    monkeypatch.setattr(runs, "END_BYTES", 600)
    found = runs.summary(run)
    assert (found.condition, found.step, found.progress) == ("stopped", 150, "150")
    write_session(run, settings(tmp_path), 3, range(151, 153), resumed_at=150)
    monkeypatch.setattr(runs, "END_BYTES", 1 << 16)
    found = runs.summary(run)
    loss = Watch().look(run).history.loss
    assert found.progress == "152 of 200"
    assert loss is not None and found.loss == pytest.approx(loss, rel=1e-5)


# --- in a browser ---


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    make_run(home / "output", "old", status="finished", learning_rate=3e-4)
    write_model(make_run(home / "output", "fox", status="running", alive=True), "", 150)
    return home


CHART = "document.querySelector('#loss-chart .js-plotly-plot')"
LAST = f"() => Math.max(...{CHART}.data.find(one => one.name.endsWith('loss')).x)"
RANGE = f"() => {CHART}._fullLayout.xaxis.range.map(Math.round)"


@needs_browser
def test_a_chart_grows_in_place_keeps_its_zoom_and_rests_while_it_is_not_seen(page: Page, served: Served) -> None:
    run, of = RunFolder(served.home / "output" / "fox"), settings(served.home / "output")
    open_tab(page, "Monitor")
    page.wait_for_function(f"() => {CHART} && {CHART}._fullLayout")
    page.evaluate(f"() => {{ window.same = {CHART}; same.dataset.kept = 'yes'; }}")
    page.evaluate("() => Plotly.relayout(same, {'xaxis.range': [20, 60]})")
    page.evaluate(
        "() => Plotly.restyle(same, {visible: 'legendonly'}, [same.data.findIndex(one => one.name === 'smoothed')])"
    )
    nodes = "() => document.querySelectorAll('*').length"
    before = page.evaluate(nodes)
    for first in (151, 153, 155):
        write_session(run, of, 2, range(first, first + 2))
        page.wait_for_function(f"last => ({LAST})() === last", arg=first + 1)
    assert page.evaluate(RANGE) == [20, 60]
    assert page.evaluate(f"() => {CHART} === same && same.dataset.kept") == "yes"
    assert page.evaluate("() => same._fullData.find(one => one.name === 'smoothed').visible") == "legendonly"
    assert page.evaluate(nodes) - before < 100
    for leave, come_back in (
        (lambda: open_tab(page, "Train"), lambda: open_tab(page, "Monitor")),
        (lambda: hide(page, hidden=True), lambda: hide(page, hidden=False)),
    ):
        leave()
        page.wait_for_timeout(1000)  # for what was under way
        done = "() => [rekindleCharts.drawn, rekindleCharts.asked]"
        before, last = page.evaluate(done), page.evaluate(LAST)
        write_session(run, of, 2, [last + 1])
        page.wait_for_timeout(5000)  # longer than between two drawings
        assert (page.evaluate(done), page.evaluate(LAST)) == (before, last)
        come_back()
        page.wait_for_function(f"last => ({LAST})() === last", arg=last + 1)
    assert page.evaluate(RANGE) == [20, 60]


@needs_browser
def test_runs_are_compared_and_the_difference_of_their_options_is_shown(page: Page, served: Served) -> None:
    open_tab(page, "Runs")
    page.locator("#runs-filter").locator("input, textarea").fill("finished")
    expect(page.locator("#runs-table tbody tr:visible")).to_have_count(1)
    page.get_by_title("Draw old beside").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#loss-chart")).to_contain_text("old")
    expect(page.locator("#run-differences")).to_contain_text("learning_rate")
    page.locator("#chart-log input").check()
    page.wait_for_function(f"() => {CHART}._fullLayout.yaxis.type === 'log'")
    page.locator("#chart-axis").get_by_text("Epochs").click()
    expect(page.locator("#loss-chart .xtitle")).to_have_text("epoch")


@needs_browser
def test_a_reload_keeps_tab_run_and_smoothing_and_the_title_tells_how_far_it_is(page: Page, served: Served) -> None:
    expect(page).to_have_title(re.compile(r"^7\d % · fox · Rekindle$"))
    choose(page, "run-picker", "old")
    expect(page.locator("#run-status")).to_contain_text("finished")
    expect(page).to_have_title("finished · old · Rekindle")
    open_tab(page, "Monitor")
    page.locator("#loss-smoothing input[type=number]").fill("0.5")
    page.locator("#loss-smoothing input[type=number]").blur()
    page.wait_for_function("() => rekindleCharts.view.smoothing === 0.5 && rekindleCharts.view.tab === 'tab-monitor'")
    open_page(page, served)
    expect(page.locator("#loss-chart .js-plotly-plot")).to_be_visible()
    expect(page.locator("#run-status")).to_contain_text("finished")
    expect(page.locator("#loss-smoothing input[type=number]")).to_have_value("0.5")


@needs_browser
def test_a_notification_tells_the_end_of_a_run_once(browser: Browser, served: Served) -> None:
    run = make_run(served.home / "output", "short", status="running", alive=True)
    page = browser.new_page()
    page.set_default_timeout(SLOW)
    page.add_init_script(
        "window.told = []; window.Notification = class { constructor(...all) { told.push(all[0]); }"
        " static permission = 'granted'; static requestPermission = async () => 'granted'; };"
    )
    open_page(page, served)
    expect(page.locator("#run-status")).to_contain_text("running")
    open_tab(page, "Monitor")
    page.locator("#tell-end input").check()
    page.wait_for_function("() => rekindleCharts.view.tell")
    record = run_folder.read_run(run)
    assert record is not None
    run_folder.write_run(run, record | {"status": "finished"})
    page.wait_for_function("() => told.length === 1 && told[0] === 'short: finished'")
    page.close()
    shelf.delete(run)


@needs_browser
def test_a_run_is_renamed_archived_and_deleted_and_a_result_downloaded(page: Page, served: Served) -> None:
    output = served.home / "output"
    make_run(output, "spare", status="stopped")
    open_tab(page, "Runs")
    with page.expect_download() as download:
        page.get_by_title("Download fox.safetensors").click()
    assert download.value.path().read_bytes() == (output / "fox.safetensors").read_bytes()
    page.get_by_title("Rename spare").click()
    page.locator("#runs-name").locator("input, textarea").fill("spare two")
    page.locator("#runs-rename").click()
    expect(page.locator("#runs-table")).to_contain_text("spare two")
    page.get_by_title("Leave spare two out of the lists").click()
    expect(page.locator("#runs-table")).not_to_contain_text("spare")
    page.locator("#runs-archived input").check()
    expect(page.locator("#runs-table")).to_contain_text("archived")
    page.get_by_title("Delete spare two").click()
    expect(page.locator("#question-text")).to_contain_text("Delete the run spare two: 3 checkpoints")
    assert (output / "spare two").exists()
    page.locator("#question-yes").click()
    expect(page.locator("#form-message")).to_contain_text("was deleted")
    assert not (output / "spare two").exists()


@needs_browser
@pytest.mark.parametrize("width", [1440, 390])
def test_charts_and_runs_follow_the_rules_of_wcag_2_aa_on_any_screen(
    browser: Browser, served: Served, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if width < 500 else "light")
    page.set_default_timeout(SLOW)
    found = {}
    for tab in ("tab-monitor", "tab-runs"):
        page.add_init_script(f"localStorage.setItem('rekindle.view', JSON.stringify({{ tab: '{tab}' }}))")
        open_page(page, served)
        shown = "#loss-chart .js-plotly-plot" if tab == "tab-monitor" else "#runs-table table"
        page.locator(shown.partition(" ")[0]).scroll_into_view_if_needed()  # charts are drawn where they are seen
        expect(page.locator(shown)).to_be_visible()
        for one in Axe().run(page, options=WCAG_AA).response["violations"]:
            found[f"{tab}: {one['id']}"] = [node["html"] for node in one["nodes"]]
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
    page.close()
    assert not found, json.dumps(found, indent=1)


def test_a_page_cannot_name_what_is_no_run(tmp_path: Path) -> None:
    make_run(tmp_path / "secret", "fox")
    places = Places(tmp_path / "home", tmp_path / "state")
    assert runs.chosen(places, str(tmp_path / "secret" / "fox")) is None
