"""The page in a real browser: what a person sees and does, with a ready-made run folder and with a real training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from gui.forms import presets
from gui.places import CODE, Places
from tests.gui.test_gui_fake_run import make_run, settings, write_session
from tests.support.browser import (
    SLOW,
    Served,
    choose,
    field,
    fresh_page,
    load_preset,
    needs_browser,
    open_page,
    open_tab,
    save_preset,
)
from trainer.options import checks, sources
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder

pytestmark = needs_browser


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    make_run(home / "output", "old", status="finished")
    make_run(home / "output", "fox", status="running", alive=True)
    values = {"output_name": "fox", "network_dim": 8, "unet_lr": 0.0, "min_timestep": 7, "use_ema": True}
    presets.save(Places(home, home), "tiny fox", values)
    return home


# --- the form ---


def test_loading_a_preset_sets_every_option(page: Page) -> None:
    field(page, "network_alpha").fill("3")
    field(page, "network_alpha").blur()
    expect(page.locator("#form-changes")).to_contain_text("unsaved change")
    load_preset(page, "user/tiny fox")
    expect(field(page, "network_dim")).to_have_value("8")
    expect(field(page, "unet_lr")).to_have_value("0.0")
    expect(field(page, "text_encoder_lr")).to_have_value("")
    expect(field(page, "network_alpha")).to_have_value("1")
    expect(page.locator("#opt-use_ema input")).to_be_checked()
    page.get_by_role("button", name="Loss and noise: advanced").click()
    expect(field(page, "min_timestep")).to_have_value("7")


def test_a_changed_option_is_saved_with_the_others(page: Page, served: Served) -> None:
    load_preset(page, "user/tiny fox")
    field(page, "learning_rate").fill("3e-5")
    save_preset(page, "second fox")
    expect(page.locator("#form-message")).to_contain_text("Saved as presets/user/second fox.toml")
    saved = checks.check(sources.read_toml(served.places.user_presets / "second fox.toml"))
    assert saved.problems == []
    assert saved.values == {
        "output_name": "fox",
        "network_dim": 8,
        "unet_lr": 0.0,
        "min_timestep": 7,
        "use_ema": True,
        "learning_rate": 3e-5,
    }
    expect(page.locator("#preset-picker input")).to_have_value("user/second fox")


def test_a_name_with_a_path_in_it_is_refused_in_words(page: Page, served: Served) -> None:
    save_preset(page, "../escape")
    expect(page.locator("#form-message")).to_contain_text("cannot be a preset's name")
    assert not (served.home / "presets" / "escape.toml").exists()


def test_starting_with_a_wrong_value_names_section_and_option(page: Page) -> None:
    load_preset(page, "user/tiny fox")
    field(page, "network_dim").fill("0")
    field(page, "max_train_epochs").fill("many")
    page.locator("#start-training").click()
    message = page.locator("#form-message")
    expect(message).to_contain_text("Network › Network dim (rank): 0 is below 1")
    expect(message).to_contain_text("Training › Max train epochs: 'many' is not a number")


def test_what_is_written_before_the_form_has_arrived_is_not_put_back(browser: Browser, served: Served) -> None:
    with fresh_page(browser, served) as page:
        field(page, "network_dim").fill("24")
        expect(page.locator("#form-changes")).to_contain_text("24")
        slow = page.context.new_cdp_session(page)
        slow.send("Network.enable")
        speed = {"offline": False, "latency": 300, "downloadThroughput": -1, "uploadThroughput": -1}
        slow.send("Network.emulateNetworkConditions", speed)
        page.goto(served.address, wait_until="commit")
        field(page, "network_dim").fill("25")
        expect(page.locator("#form-changes")).to_contain_text("25")
        expect(field(page, "network_dim")).to_have_value("25")


def test_edits_are_there_again_after_a_reload(page: Page, served: Served) -> None:
    field(page, "network_dim").fill("24")
    field(page, "network_dim").blur()
    page.locator("#opt-flip_aug input").check()
    for _ in range(100):
        if served.places.draft_file.exists() and '"flip_aug": true' in served.places.draft_file.read_text():
            break
        page.wait_for_timeout(100)
    open_page(page, served)
    expect(field(page, "network_dim")).to_have_value("24")
    expect(page.locator("#opt-flip_aug input")).to_be_checked()


# --- watching ---


def test_the_run_that_was_active_last_is_shown_with_status_log_and_chart(page: Page) -> None:
    expect(page.locator("#run-picker input")).to_have_value(re.compile("^fox · running · "))
    expect(page.locator("#run-status")).to_contain_text("running")
    expect(page.locator("#run-status")).to_contain_text("of 200")
    expect(page.locator("#run-progress [role=progressbar]")).to_have_attribute("aria-valuenow", re.compile("7[5-9]|8"))
    open_tab(page, "Monitor")
    expect(page.locator("#loss-chart .js-plotly-plot")).to_be_visible()
    expect(page.locator("#loss-chart")).to_contain_text("abandoned branch")
    expect(page.locator("#loss-chart")).to_contain_text("resumed")
    expect(page.locator("#run-log pre")).to_have_text("Loading model\nstep 150/200\nSaved")


def test_new_steps_appear_by_themselves(page: Page, served: Served) -> None:
    run = RunFolder(served.home / "output" / "fox")
    with run.console_file.open("a") as console:
        console.write("step 160/200\n")
    write_session(run, settings(served.home / "output"), 3, range(151, 161), resumed_at=150)
    expect(page.locator("#run-status")).to_contain_text("step 160 of 200")
    open_tab(page, "Monitor")
    expect(page.locator("#run-log")).to_contain_text("step 160/200")
    run.console_file.write_text("Loading model\r\nstep 1/200\rstep 150/200\nSaved\n")


def test_another_run_can_be_chosen(page: Page) -> None:
    choose(page, "run-picker", "old")
    expect(page.locator("#run-status")).to_contain_text("finished")
    expect(page.locator("#stop-training")).to_be_disabled()


def test_stop_and_save_reach_the_run_folder(page: Page, served: Served) -> None:
    run = RunFolder(served.home / "output" / "fox")
    page.locator("#save-now").click()
    expect(page.locator("#form-message")).to_contain_text("A checkpoint was requested")
    assert run_folder.take_requests(run) == {"save"}
    page.locator("#stop-training").click()
    expect(page.locator("#run-status")).to_contain_text("stopping")
    assert run_folder.take_requests(run) == {"stop"}


# --- the page itself ---


def test_the_page_asks_no_other_machine_for_anything_and_logs_no_error(browser: Browser, served: Served) -> None:
    page = browser.new_page(color_scheme="dark")
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    open_page(page, served)
    for tab in ("Resume", "Monitor", "Samples", "Train"):
        open_tab(page, tab)
        page.wait_for_timeout(500)
    page.close()
    here = urlsplit(served.address).netloc
    assert [url for url in asked if urlsplit(url).netloc not in (here, "")] == []
    assert errors == []


# --- a real training ---


def prepare_preset(server: Served) -> str:
    """The preset to train with: the demo that is shipped, or where it has not been built, a tinier one made here."""
    demo = CODE / "presets" / "demo"
    if all(path.exists() for path in (demo.with_suffix(".toml"), demo / "model" / "unet", demo / "dataset")):
        (server.home / "presets").mkdir()
        (server.home / "presets" / "demo").symlink_to(demo)
        return "demo"
    from tests.support import tiny  # brings torch, which only this test needs

    options = {
        "pretrained_model_name_or_path": str(tiny.make_model(server.home / "model")),
        "train_data_dir": str(tiny.make_images(server.home / "images")),
        "resolution": "64",
        "network_dim": 4,
    }
    presets.save(server.places, "journey", options)
    return "user/journey"


def wait_for_run(run: RunFolder, page: Page, *wanted: str) -> str:
    """Wait until the run's own record says one of these; a page is kept alive meanwhile."""
    for _ in range(900):
        if run_folder.status(run) in wanted:
            return run_folder.status(run)
        page.wait_for_timeout(100)
    log = run.console_file.read_text() if run.console_file.exists() else "(no log)"
    raise AssertionError(f"the run is {run_folder.status(run)}, not {wanted}:\n{log}")


def test_the_whole_way_from_a_preset_to_a_finished_run_with_the_servers_sudden_end_in_between(
    browser: Browser, tmp_path: Path
) -> None:
    pytest.importorskip("trainer.training.loop")
    server = Served(tmp_path)
    preset = prepare_preset(server)
    run = RunFolder(tmp_path / "output" / "journey")
    server.start()
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(SLOW)
    status, notice = page.locator("#run-status"), page.locator("#run-notice")
    try:
        page.goto(server.address)
        expect(status).to_contain_text("no run yet")
        load_preset(page, preset)
        field(page, "output_dir").fill("output")
        field(page, "output_name").fill("journey")
        field(page, "max_train_steps").fill("6000")
        expect(page.locator("#form-changes")).to_contain_text("Max train steps")
        save_preset(page, "my journey")
        expect(page.locator("#form-message")).to_contain_text("Saved as presets/user/my journey.toml")

        page.locator("#start-training").click()
        expect(status).to_contain_text(re.compile("starting|running"), timeout=SLOW)
        expect(status).to_contain_text(re.compile(r"running.*step [1-9]", re.DOTALL), timeout=90_000)
        expect(page.locator("#loss-chart .js-plotly-plot")).to_be_visible()
        page.locator("#start-training").click()
        expect(page.locator("#form-message")).to_contain_text("is already running")

        server.kill()  # the page's server ends in mid-run, another begins
        page.goto("about:blank")  # it would load itself again by itself, perhaps just when it is told to
        server.start()
        page.goto(server.address)
        expect(status).to_contain_text(re.compile(r"running.*step [1-9]", re.DOTALL))
        open_tab(page, "Monitor")
        expect(page.locator("#loss-chart .js-plotly-plot")).to_be_visible()
        expect(page.locator("#run-log pre")).not_to_be_empty()

        page.locator("#stop-training").click()
        assert wait_for_run(run, page, "stopped") == "stopped"
        expect(status).to_contain_text("stopped")
        expect(notice).to_contain_text("Stopped after step")
        stopped_at = manifest.listing(run.checkpoints)[0].step

        page.reload()
        open_tab(page, "Resume")
        page.locator("#resume-adopt").click()
        expect(page.locator("#resume-verdict")).to_contain_text("It continues exactly")
        expect(page.locator("#resume-table")).to_contain_text(f"{stopped_at:,}")
        open_tab(page, "Train")
        expect(page.locator("#form-changes")).to_contain_text("Matches run journey.")
        field(page, "learning_rate").fill("0.5")
        expect(page.locator("#form-changes")).to_contain_text("→ 0.5")
        open_tab(page, "Resume")
        expect(page.locator("#resume-differences")).to_contain_text("learning_rate")
        page.locator("#resume-restore").click()
        expect(page.locator("#resume-verdict")).to_contain_text("It continues exactly")
        open_tab(page, "Train")
        field(page, "max_train_steps").fill(str(stopped_at + 20))
        page.locator("#start-training").click()
        expect(status).to_contain_text("starting")
        assert wait_for_run(run, page, "finished", "failed") == "finished"
        expect(status).to_contain_text(f"step {stopped_at + 20} of {stopped_at + 20}")
        expect(page.locator("#loss-chart")).to_contain_text("resumed")
        assert (tmp_path / "output" / "journey.safetensors").is_file()
        if preset == "demo":  # it samples before the first step and every 50
            open_tab(page, "Samples")
            expect(page.locator("#sample-gallery img").first).to_be_visible()
            expect(page.locator("#compare-slider")).to_be_visible()

        open_tab(page, "Train")
        field(page, "resume_from_checkpoint").fill("")
        page.locator("#start-training").click()
        expect(page.locator("#question-text")).to_contain_text("already holds checkpoints")
    finally:
        page.close()
        server.stop()
        if run_folder.status(run) == "running":
            psutil.Process(json.loads(run.run_file.read_text())["pid"]).kill()
