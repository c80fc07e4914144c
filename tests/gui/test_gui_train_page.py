"""The Train tab in a real browser: presets, unsaved changes, search and jumps, questions, narrow screens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from gui.forms import presets
from gui.places import CODE
from tests.gui.test_gui_fake_run import make_run
from tests.gui.test_gui_form import other_values
from tests.support.browser import (
    SLOW,
    Served,
    choose,
    field,
    load_preset,
    needs_browser,
    open_page,
    open_tab,
    save_preset,
    settle,
)
from trainer.models.families import TABLE
from trainer.options import checks, sources
from trainer.options.config import OPTIONS
from trainer.options.problems import Given
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder

pytestmark = needs_browser
WCAG_AA = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "presets").mkdir()
    (home / "presets" / "demo").symlink_to(CODE / "presets" / "demo")
    make_run(home / "output", "fox", status="stopped")
    return home


def message(page: Page) -> Any:
    return expect(page.locator("#form-message"))


# --- presets ---


def varied() -> dict[str, Any]:
    """A value other than the default for every option that may have one beside the others."""
    values: dict[str, Any] = {}
    for known in OPTIONS.values():
        for value in other_values(known):
            tried = values | {known.name: value}
            if value is not None and not checks.check({name: Given(one, "") for name, one in tried.items()}).problems:
                values = tried
                break
    return values


def test_every_option_goes_from_a_preset_to_the_form_and_back_unchanged(page: Page, served: Served) -> None:
    values = varied()
    had = [known for known in OPTIONS.values() if known.applies_to(TABLE[values["family"]])]
    assert len(values) > 0.85 * len(had)  # the others exclude one another
    presets.save(served.places, "everything", values)
    load_preset(page, "user/everything")
    save_preset(page, "again")
    message(page).to_contain_text("Saved as presets/user/again.toml")
    folder = served.places.user_presets
    assert (folder / "again.toml").read_text() == (folder / "everything.toml").read_text()
    load_preset(page, "Defaults of every option", "Every option is at its default")
    save_preset(page, "defaults")
    message(page).to_contain_text("Saved as presets/user/defaults.toml")
    assert (folder / "defaults.toml").read_text() == ""


def test_unsaved_changes_are_counted_and_come_back_after_another_preset_was_loaded(page: Page) -> None:
    load_preset(page, "demo")
    changes = page.locator("#form-changes")
    expect(changes).to_contain_text("Matches demo.")
    field(page, "learning_rate").fill("0.003")
    page.locator("#opt-flip_aug input").check()
    expect(changes).to_contain_text("2 unsaved changes since demo:")
    expect(changes).to_contain_text("Learning rate 0.002 → 0.003")
    load_preset(page, "sd15-lora-style-8gb")
    expect(changes).to_contain_text("Matches sd15-lora-style-8gb.")
    page.locator("#form-undo").click()
    expect(changes).to_contain_text("2 unsaved changes since demo:")
    expect(field(page, "learning_rate")).to_have_value("0.003")
    expect(page.locator("#opt-flip_aug input")).to_be_checked()
    page.locator("#form-revert").click()
    expect(changes).to_contain_text("Matches demo.")
    expect(field(page, "learning_rate")).to_have_value("0.002")


def test_what_is_chosen_at_once_in_a_list_is_not_undone_by_an_answer_that_comes_late(page: Page) -> None:
    slow = page.context.new_cdp_session(page)
    slow.send("Network.enable")
    speed = {"offline": False, "latency": 200, "downloadThroughput": -1, "uploadThroughput": -1}
    slow.send("Network.emulateNetworkConditions", speed)
    for name in ("sd15-lora-style-8gb", "demo", "sd15-lora-style-8gb"):
        choose(page, "preset-picker", name)
        page.wait_for_timeout(1500)  # in which the answer to the focus comes
        expect(page.locator("#preset-picker input")).to_have_value(name)


def test_a_draft_survives_the_servers_sudden_end_with_what_had_changed(page: Page, served: Served) -> None:
    load_preset(page, "demo")
    field(page, "network_dim").press_sequentially("2")  # 162, still being typed
    expect(page.locator("#form-changes")).to_contain_text("1 unsaved change since demo: Network dim (rank) 16 → 162")
    served.kill()
    page.goto("about:blank")  # it would load itself again by itself, perhaps just when it is told to
    served.start()
    open_page(page, served)
    expect(field(page, "network_dim")).to_have_value("162")
    expect(page.locator("#form-changes")).to_contain_text("1 unsaved change since demo")
    expect(page.locator("#preset-picker input")).to_have_value("demo")


def test_another_preset_is_replaced_and_one_deleted_only_after_a_question(page: Page, served: Served) -> None:
    file = presets.save(served.places, "precious", {"network_dim": 3})
    load_preset(page, "demo")
    save_preset(page, "precious")
    expect(page.locator("#question-text")).to_contain_text("There is another preset precious already. Replace it?")
    page.locator("#question-no").click()
    expect(page.locator("#question-text")).to_be_hidden()
    assert "network_dim = 3" in file.read_text()
    page.locator("#preset-save").click()
    page.locator("#question-yes").click()
    message(page).to_contain_text("replacing what it held")
    expect(page.locator("#preset-picker input")).to_have_value("user/precious")
    page.locator("#preset-delete").click()
    expect(page.locator("#question-text")).to_contain_text("Delete the preset user/precious?")
    assert file.exists()
    page.locator("#question-yes").click()
    message(page).to_contain_text("was deleted")
    assert not file.exists()


def test_a_preset_is_downloaded_and_uploaded_and_mistakes_are_named_by_line(page: Page, tmp_path: Path) -> None:
    load_preset(page, "demo")
    field(page, "network_dim").fill("24")
    with page.expect_download() as sent:
        page.locator("#preset-download").click()
    assert sent.value.suggested_filename == "demo.toml"
    file = tmp_path / "mine.toml"
    sent.value.save_as(file)
    assert checks.check(sources.read_toml(file)).values["network_dim"] == 24
    file.write_text(file.read_text() + "\nlearning_rat = 1\n")
    line = len(file.read_text().splitlines())
    choose(page, "preset-picker", "Defaults of every option")
    page.locator("#preset-load").click()
    expect(field(page, "network_dim")).to_have_value("16")
    with page.expect_file_chooser() as chooser:
        page.locator("#preset-upload").click()
    chooser.value.set_files(file)
    message(page).to_contain_text(f"did you mean learning_rate? (mine.toml, line {line})")
    expect(field(page, "network_dim")).to_have_value("24")
    expect(page.locator("#preset-name input, #preset-name textarea").first).to_have_value("mine")


# --- at the fields ---


def test_by_keyboard_a_folder_is_browsed_for_and_a_change_taken_back_where_it_was_made(
    page: Page, served: Served
) -> None:
    load_preset(page, "demo")
    field(page, "train_data_dir").fill("output/nothing")
    said = page.locator("#opt-train_data_dir .at-field")
    expect(said).to_contain_text("there is no folder or file")
    browse = page.get_by_role("button", name="Browse for Train data folder")
    browse.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#browser")
    expect(dialog.get_by_role("status")).to_contain_text("There is no")
    expect(dialog.locator("li button").first).to_be_focused()
    page.keyboard.press("Backspace")
    expect(dialog.locator("nav.way")).to_have_text(served.home.name)
    dialog.get_by_role("searchbox").fill("outp")
    expect(dialog.locator("li button")).to_have_text("output/")
    dialog.locator("li button").focus()
    page.keyboard.press("Enter")
    expect(dialog.locator("nav.way")).to_have_text(f"{served.home.name}/output")
    assert Axe().run(page, options=WCAG_AA).violations_count == 0
    dialog.get_by_role("button", name="Choose this folder").press("Enter")
    expect(browse).to_be_focused()
    expect(field(page, "train_data_dir")).to_have_value("output")
    expect(said).not_to_contain_text("there is no folder")
    said.get_by_role("button").press("Enter")
    expect(field(page, "train_data_dir")).to_have_value("presets/demo/dataset")
    expect(said).to_have_count(0)


def test_prompts_are_edited_as_rows_and_what_has_no_field_stays(page: Page) -> None:
    field(page, "sample_prompts").fill("# mine\na fox --n blurry --w 512 --ss euler\na -- b --d 7")
    block = page.locator("#opt-sample_prompts")
    block.get_by_role("button", name="Edit as rows").click()
    rows = page.locator("#prompt-rows fieldset")
    expect(rows).to_have_count(2)
    expect(rows.nth(0).get_by_label("Negative prompt")).to_have_value("blurry")
    rows.nth(0).get_by_label("Width").fill("768")
    expect(rows.nth(1).get_by_label("Prompt", exact=True)).to_have_value("a -- b")
    rows.nth(1).get_by_role("button", name="Remove").click()
    page.get_by_role("button", name="Add a prompt").click()
    page.keyboard.type("an owl")
    rows.nth(1).get_by_label("Steps").fill("20")
    page.get_by_role("button", name="Use these prompts").click()
    written = "# mine\na fox --n blurry --w 768 --ss euler\nan owl --s 20"
    expect(field(page, "sample_prompts")).to_have_value(written)
    expect(page.locator("#form-changes")).to_contain_text("Sample prompts")
    expect(block.get_by_role("button", name="Edit as rows")).to_be_focused()


def test_only_common_options_are_shown_where_they_are_enough_and_what_differs_always(page: Page) -> None:
    load_preset(page, "demo")
    field(page, "network_dim").fill("24")
    page.get_by_role("button", name="Common options").click()
    expect(page.locator("#section-network-advanced")).to_be_hidden()
    page.locator("#option-search").fill("network weights")
    page.keyboard.press("Enter")  # leads to where it is, and so shows all
    field(page, "network_weights").fill("nowhere.safetensors")
    expect(page.locator("#opt-network_weights .at-field")).to_contain_text("there is no folder or file")
    page.get_by_role("button", name="Common options").click()
    expect(page.locator("#section-network-advanced")).to_be_visible()
    expect(page.locator("#section-training-advanced")).to_be_hidden()
    page.get_by_role("button", name="All options").click()
    expect(page.locator("#section-training-advanced")).to_be_visible()


# --- finding and launching ---


def test_the_search_finds_an_option_by_its_help_and_the_keyboard_jumps_to_it(page: Page) -> None:
    page.keyboard.press("/")
    expect(page.locator("#option-search")).to_be_focused()
    page.keyboard.type("wavelets")
    expect(page.locator("#option-found")).to_contain_text("No option has these words")
    page.locator("#option-search").fill("fast layers fade")
    expect(page.locator("#option-found li").first).to_contain_text("Multires noise discount")
    expect(page.locator("#opt-multires_noise_discount")).to_have_count(0)  # its accordion was never open
    page.keyboard.press("Enter")
    expect(field(page, "multires_noise_discount")).to_be_focused()
    expect(page.locator("#opt-multires_noise_discount")).to_be_in_viewport()


def test_the_key_of_an_option_is_told_on_hover(page: Page) -> None:
    page.locator("#opt-network_dim").hover()
    expect(page.locator("#opt-network_dim")).to_have_attribute(
        "title", "TOML: network_dim    command line: --network_dim"
    )


def test_a_problem_in_a_place_never_visited_is_named_at_start_and_its_link_leads_there(
    page: Page, served: Served
) -> None:
    presets.save(served.places, "odd", {"bucket_reso_steps": 12, "train_data_dir": "none"})
    choose(page, "preset-picker", "user/odd")
    page.locator("#preset-load").click()
    message(page).to_contain_text("was loaded, except for this")
    open_tab(page, "Monitor")
    page.locator("#start-training").click()
    problem = page.get_by_role("link", name="Dataset › Bucket resolution steps: 12 is not a multiple of 8")
    expect(problem).to_be_visible()
    assert page.locator("#opt-bucket_reso_steps").count() == 0
    problem.click()
    expect(field(page, "bucket_reso_steps")).to_be_focused()
    expect(page.locator("#tab-train-button")).to_have_attribute("aria-selected", "true")


def test_the_printed_command_works_when_it_is_pasted_in_a_shell(page: Page) -> None:
    load_preset(page, "demo")
    page.locator("#print-command").click()
    line = page.locator("#form-message pre").inner_text()
    told = subprocess.run(f"{line} --dry-run", shell=True, cwd="/", capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "20 steps an epoch, 400 steps in all" in told.stdout + told.stderr


def test_killing_asks_first_and_two_browsers_see_how_it_ended(browser: Browser, page: Page, served: Served) -> None:
    run = RunFolder(served.home / "output" / "fox")
    record = run_folder.read_run(run)
    assert record is not None
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    here = {"pid": process.pid, "process_start": run_folder.process_start(process.pid), "boot_id": run_folder.boot_id()}
    run_folder.write_run(run, record | here | {"status": "running"})
    other = browser.new_page()
    try:
        open_page(other, served)
        for one in (page, other):
            expect(one.locator("#run-status")).to_contain_text("running")
        page.locator("#kill-training").click()
        expect(page.locator("#question-text")).to_contain_text("End fox at once, without saving?")
        assert process.poll() is None
        page.locator("#question-yes").click()
        process.wait(timeout=300)
        for one in (page, other):
            expect(one.locator("#run-status")).to_contain_text("interrupted")
            expect(one.locator("#kill-training")).to_be_disabled()
    finally:
        process.kill()
        other.close()
        run_folder.write_run(run, record)


# --- for everybody ---


def tabs(page: Page) -> Iterator[str]:
    """Open one tab after the other; those that do not fit are in a menu."""
    names = page.evaluate(
        "[...document.querySelectorAll('[id^=tab-][id$=-button]')].map(one => one.textContent.trim())"
    )
    inside = page.locator(".overflow-menu")
    for name in dict.fromkeys([*names, "Monitor", "Samples", "Runs"]):
        tab = page.get_by_role("tab", name=name, exact=True)
        if tab.count() and tab.is_visible():
            tab.click()
        else:
            inside.get_by_role("button").first.click()
            inside.get_by_text(name, exact=True).click()
        expect(page.locator(f"#tab-{name.lower()}")).to_be_visible()
        settle(page)
        yield name


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1024), ("dark", 390)])
def test_every_tab_follows_the_rules_of_wcag_2_aa(browser: Browser, served: Served, scheme: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(SLOW)
    open_page(page, served)
    page.locator("#preset-load").click()  # for a message to look at
    found = {}
    for name in tabs(page):
        for one in Axe().run(page, options=WCAG_AA).response["violations"]:
            found[f"{name}: {one['id']}"] = [node["html"] for node in one["nodes"]]
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found[f"{name}: scrolls sideways"] = [str(width)]
    page.close()
    assert not found, json.dumps(found, indent=1)


def test_on_a_narrow_screen_everything_can_be_reached_without_scrolling_sideways(
    browser: Browser, served: Served
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, has_touch=True)
    open_page(page, served)
    for name in tabs(page):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    bar, notice = (page.locator(f"#{name}").bounding_box() for name in ("run-bar", "run-notice"))
    said = notice["height"] if notice else 0  # how the last run ended
    assert bar and bar["height"] - said <= 200  # a quarter of the screen
    page.locator("#run-more").click()
    for button in ("start-training", "save-now", "sample-now", "kill-training", "print-command", "add-to-queue"):
        box = page.locator(f"#{button}").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] >= 30, button
    open_tab(page, "Train")
    field(page, "learning_rate").fill("0.5")
    expect(page.locator("#form-changes")).to_contain_text("Learning rate")
    page.close()
