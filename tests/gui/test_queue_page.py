"""The run bar and the queue in a real browser: what Start, Resume and Add to queue do, and what comes too late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route, expect

from gui.forms import draft as drafts
from gui.places import CODE
from tests.gui.test_gui_fake_run import make_run
from tests.gui.test_gui_train_page import WCAG_AA
from tests.support.browser import (
    Served,
    choose,
    field,
    load_preset,
    needs_browser,
    open_tab,
    settle,
)
from trainer.runs import queue, run_folder
from trainer.runs.run_folder import RunFolder

pytestmark = needs_browser


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "presets").mkdir()
    (home / "presets" / "demo").symlink_to(CODE / "presets" / "demo")
    make_run(home / "output", "fox", status="stopped")
    state = home / "state" / "rekindle"
    queue.pause(state / "queue")  # nothing is to be trained here
    return home


def message(page: Page) -> Any:
    return expect(page.locator("#form-message"))


def rows(page: Page) -> list[str]:
    return [text.split("\t")[1] for text in page.locator("#queue-table tbody tr").all_inner_texts()]


# --- one order of events ---


def test_the_first_page_has_the_demo_in_its_form(page: Page) -> None:
    expect(page.locator("#preset-picker input")).to_have_value("demo")
    expect(page.locator("#form-changes")).to_contain_text("Matches demo.")
    expect(field(page, "pretrained_model_name_or_path")).to_have_value("presets/demo/model")
    expect(page.locator("#form-run")).to_contain_text("the new run zorb")


@pytest.mark.parametrize("button", ["form-revert", "preset-load"])
def test_an_edit_that_arrives_after_the_form_was_filled_anew_comes_to_nothing(
    page: Page, served: Served, button: str
) -> None:
    load_preset(page, "demo")
    field(page, "learning_rate").fill("0.003")
    expect(page.locator("#form-changes")).to_contain_text("1 unsaved change")
    late: list[Route] = []

    def hold_the_edit(route: Route) -> None:
        if not late and "0.7," in (route.request.post_data or ""):
            late.append(route)
        else:
            route.continue_()

    page.route("**/gradio_api/**", hold_the_edit)
    field(page, "learning_rate").fill("0.7")
    for _ in range(300):  # the page sends it by itself, and the answer to that is long in coming
        page.wait_for_timeout(100)
        if late:
            break
    assert late
    page.locator(f"#{button}").click()
    expect(page.locator("#form-changes")).to_contain_text("Matches demo.")
    late[0].continue_()
    page.wait_for_timeout(1500)
    expect(page.locator("#form-changes")).to_contain_text("Matches demo.")
    expect(field(page, "learning_rate")).to_have_value("0.002")
    kept = drafts.read(served.places.draft_file)
    assert kept is not None and kept.changes() == []
    page.reload()
    expect(field(page, "learning_rate")).to_have_value("0.002")


def test_a_preset_that_is_chosen_is_loaded_at_once_where_nothing_is_unsaved(page: Page) -> None:
    choose(page, "preset-picker", "sd15-lora-style-8gb")
    expect(page.locator("#form-changes")).to_contain_text("Matches sd15-lora-style-8gb.")
    settle(page)
    field(page, "learning_rate").fill("0.003")
    expect(page.locator("#form-changes")).to_contain_text("1 unsaved change")
    choose(page, "preset-picker", "demo")
    expect(page.locator("#preset-about")).to_contain_text("zorb")
    expect(page.locator("#form-changes")).to_contain_text("1 unsaved change since sd15-lora-style-8gb")


def test_an_upload_has_one_name(page: Page) -> None:
    content = {"name": "mine.toml", "mimeType": "application/toml", "buffer": b"network_dim = 3\n"}
    page.locator("#preset-upload input[type=file], input[type=file]").first.set_input_files(content)  # type: ignore[arg-type]
    message(page).to_contain_text("mine.toml was loaded")
    expect(page.locator("#preset-picker input")).to_have_value("file mine.toml (not a preset)")
    expect(page.locator("#preset-name").locator("input, textarea").first).to_have_value("mine")
    expect(page.locator("#preset-about")).to_contain_text("The options of file mine.toml")
    expect(page.locator("#form-changes")).to_contain_text("Matches file mine.toml.")


# --- one run, one button ---


def test_start_where_the_run_exists_asks_and_the_watched_run_is_resumed_in_one_click(
    page: Page, served: Served
) -> None:
    load_preset(page, "demo")
    choose(page, "run-picker", "fox")
    expect(page.locator("#resume-training")).to_have_text("Resume from step 150")
    expect(page.locator("#stop-training")).to_be_hidden()
    field(page, "output_name").fill("fox")
    expect(page.locator("#form-run")).to_contain_text("fox, which exists up to step 150")
    page.locator("#start-training").click()
    expect(page.locator("#question-text")).to_contain_text("already holds checkpoints, up to step 150")
    expect(page.locator("#question-yes")).to_have_text("Resume from step 150")
    expect(page.locator("#question-other")).to_have_text("Begin afresh")
    page.locator("#question-no").click()
    expect(page.locator("#question-text")).to_be_hidden()
    page.locator("#resume-training").click()  # the form differs from what the run had
    expect(page.locator("#question-text")).to_contain_text("The form has other values than fox was trained with")
    page.locator("#question-yes").click()
    message(page).to_contain_text("Not started")  # its model and images are not here
    assert run_folder.status(RunFolder(served.home / "output" / "fox")) == "stopped"


def test_a_resume_that_the_trainer_would_refuse_is_not_started(page: Page, served: Served) -> None:
    make_run(
        served.home / "output", "refusal", status="stopped", train_data_dir="presets/demo/images",
        pretrained_model_name_or_path="presets/demo/model",
    )  # fmt: skip
    load_preset(page, "demo")
    field(page, "output_name").fill("refusal")
    field(page, "resume_from_checkpoint").fill("latest")
    expect(page.locator("#form-run")).to_contain_text("continues refusal")
    page.locator("#start-training").click()
    message(page).to_contain_text("Not started; the trainer would refuse:")
    assert not (served.home / "output" / ".rekindle" / "refusal.json").exists()
    assert "refusal" not in [one.name for one in queue.read(served.places.queue).entries]


def test_a_run_that_was_killed_before_it_saved_is_not_told_to_continue(page: Page, served: Served) -> None:
    run = make_run(served.home / "output", "early", status="running")
    for folder in run.checkpoints.iterdir():
        folder.rename(run.path / f"was-{folder.name}")
    choose(page, "run-picker", "early")
    expect(page.locator("#run-notice")).to_contain_text("It had saved nothing yet; press Begin again")
    expect(page.locator("#resume-training")).to_have_text("Begin again")


# --- the queue ---


def test_trainings_are_queued_ordered_edited_and_removed(page: Page, served: Served) -> None:
    load_preset(page, "demo")
    for name in ("one", "two"):
        field(page, "output_name").fill(name)
        expect(page.locator("#form-run")).to_contain_text(f"the new run {name}")
        page.locator("#add-to-queue").click()
        message(page).to_contain_text(f"{name} was added to the queue")
    page.locator("#add-to-queue").click()
    message(page).to_contain_text("is in the queue already")
    open_tab(page, "Queue")
    expect(page.locator("#queue-table")).to_contain_text("Paused: 2 trainings waiting")
    assert rows(page) == ["one", "two"]
    page.get_by_role("button", name="Up: two").click()
    expect(page.locator("#queue-table tbody tr").first).to_contain_text("two")
    assert [entry.name for entry in queue.read(served.places.queue).entries] == ["two", "one"]
    findings = Axe().run(page, options=WCAG_AA)
    assert findings.violations_count == 0, findings.generate_report()

    page.get_by_role("button", name="Edit: one").click()
    expect(page.locator("#queue-editing-text")).to_contain_text("entry 1 of the queue, one")
    expect(page.locator("#preset-picker input")).to_have_value("queue 1: one (not a preset)")
    field(page, "max_train_steps").fill("77")
    expect(page.locator("#form-changes")).to_contain_text("77")
    page.locator("#queue-edit-save").click()
    message(page).to_contain_text("has the form's options now")
    entry = queue.read(served.places.queue).entry(1)
    assert queue.config_of(served.places.queue, entry).max_train_steps == 77

    expect(page.locator("#queue-editing-text")).to_be_hidden()
    for name in ("one", "two"):
        page.get_by_role("button", name=f"Remove: {name}").click()
        expect(page.get_by_role("button", name=f"Remove: {name}")).to_have_count(0)
    expect(page.locator("#queue-table")).to_contain_text("The queue is empty")


def test_start_appends_while_another_run_holds_the_device(page: Page, served: Served) -> None:
    run = make_run(served.home / "output", "busy", status="running", alive=True)
    load_preset(page, "demo")
    page.locator("#start-training").click()
    message(page).to_contain_text("zorb was added to the queue")
    [entry] = queue.read(served.places.queue).entries
    assert (entry.name, entry.state) == ("zorb", "waiting")
    assert json.loads(run.run_file.read_text())["status"] == "running"
    queue.remove(served.places.queue, entry.number)
    run_folder.write_run(run, json.loads(run.run_file.read_text()) | {"status": "stopped"})
    assert Path(entry.home) == served.home
