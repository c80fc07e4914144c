"""The Resume tab: checkpoints of real runs at tiny size, what continuing means, and what can be done with them."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as BrowserPage

from gui.app import Page
from gui.forms import form as forms
from gui.places import Places, placed
from gui.server import drills
from gui.server.side_process import Work
from gui.tabs import resume_tab, sampling_panel
from gui.views import checkpoints, resume_check
from gui.views.checkpoints import Verified
from tests.support.browser import Served, choose, field, fresh_page, needs_browser, open_tab
from trainer import files
from trainer.options import writing
from trainer.options.config import OPTIONS, Config
from trainer.runs import branches, events, manifest, run_folder
from trainer.runs.run_folder import RunFolder

STEPS = 4


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run with a checkpoint after each of its four steps."""
    from tests.support import runs_at_tiny_size

    home = tmp_path_factory.mktemp("trained")
    images = shutil.copytree(tiny_images, home / "images")
    settings = runs_at_tiny_size.config_for(
        tiny_model, images, home / "output", output_name="fox", max_train_steps=STEPS, lr_scheduler="cosine",
        max_data_loader_n_workers=0,
    )  # fmt: skip
    assert runs_at_tiny_size.run(settings) == "finished"
    return settings


@pytest.fixture
def places(trained: Config, tmp_path: Path) -> Places:
    """A home with a copy of that run, so that a test may change it."""
    shutil.copytree(trained.output_dir, tmp_path / "output")
    return Places(tmp_path, tmp_path / "state")


@pytest.fixture
def run(places: Places) -> RunFolder:
    return RunFolder(places.home / "output" / "fox")


def test_a_leading_tilde_means_the_home_folder_in_a_check_as_in_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings, _ = resume_check.settings_of(forms.complete({"output_dir": "~/out", "train_data_dir": "~/images"}))
    assert settings is not None
    assert (settings.output_dir, settings.train_data_dir) == (str(tmp_path / "out"), str(tmp_path / "images"))


def values_of(trained: Config, places: Places, **options: Any) -> dict[str, Any]:
    """The form's values for the copy of the run."""
    values = {name: getattr(trained, name) for name in OPTIONS}
    return values | {"output_dir": "output", **options}


def examine(trained: Config, places: Places, **options: Any) -> resume_check.Outcome:
    return plain(resume_check.examine(places, values_of(trained, places, **options), None, ""))


def plain(outcome: resume_check.Outcome) -> resume_check.Outcome:
    """As a person reads it."""
    return replace(outcome, html=unescape(outcome.html), table=unescape(outcome.table))


# --- what continuing means ---


def test_the_sentence_names_step_optimizer_rate_epoch_and_image(trained: Config, places: Places) -> None:
    outcome = examine(trained, places, resume_from_checkpoint="2")
    assert "Continues at step 3 of 4 with AdamW's state, cosine schedule at unet 0.0005" in outcome.html
    assert "epoch 1 image 5, from step-00000002, every byte of which is as it was saved." in outcome.html
    assert "2 later checkpoints, up to step 4" in outcome.html
    assert outcome.in_the_way == ()
    assert "It continues exactly" in outcome.html


def test_a_finished_run_says_so_and_goes_on_when_its_steps_are_raised(trained: Config, places: Places) -> None:
    assert "The run is complete: step 4 of 4" in examine(trained, places, resume_from_checkpoint="latest").html
    outcome = examine(
        trained, places, resume_from_checkpoint="latest", max_train_steps=8, resume_lr_policy="stretch",
        resume_allow=("max_train_steps", "resume_lr_policy"),
    )  # fmt: skip
    assert "Continues at step 5 of 8" in outcome.html


def test_a_curve_that_has_ended_is_refused_with_the_way_out(trained: Config, places: Places) -> None:
    outcome = examine(trained, places, resume_from_checkpoint="latest", max_train_steps=8)
    assert "steps 5 to 8 would train at 0" in outcome.html
    assert "stretch" in outcome.html


def test_differences_are_named_by_class_with_what_can_be_done(trained: Config, places: Places) -> None:
    outcome = examine(
        trained, places, resume_from_checkpoint="2", network_dim=3, learning_rate=0.5, save_every_n_epochs=7
    )
    assert "2 options differ, and the trainer will refuse" in outcome.html
    assert [item.name for item in outcome.in_the_way] == ["network_dim", "learning_rate"]
    [word] = outcome.allowable
    assert word.startswith("learning_rate:")  # this difference, and no other that is made later
    assert f'data-action="allow" data-value="{word}"' in outcome.table
    assert 'data-action="use" data-value="network_dim"' in outcome.table
    assert 'data-action="allow" data-value="network_dim"' not in outcome.table


def test_an_allowed_difference_is_no_longer_in_the_way(trained: Config, places: Places) -> None:
    outcome = examine(
        trained, places, resume_from_checkpoint="2", learning_rate=0.5, resume_allow=("learning_rate",)
    )  # fmt: skip
    assert outcome.in_the_way == ()
    assert "The run will differ, as you allowed." in outcome.html


def test_changed_images_are_named_and_can_be_allowed(trained: Config, places: Places) -> None:
    changed = Path(shutil.copytree(trained.train_data_dir, places.home / "changed"))
    caption = next(changed.rglob("*.txt"))
    caption.write_text("another caption")
    outcome = examine(trained, places, resume_from_checkpoint="2", train_data_dir="changed")
    [word] = outcome.allowable
    assert word.startswith("dataset:")
    assert caption.stem in outcome.table
    assert "But the images are not the checkpoint" in outcome.html
    allowed = examine(
        trained, places, resume_from_checkpoint="2", train_data_dir="changed", resume_allow=(word,)
    )  # fmt: skip
    assert allowed.allowable == ()
    caption.write_text("yet another one")
    changed_since = examine(
        trained, places, resume_from_checkpoint="2", train_data_dir="changed", resume_allow=(word,)
    )  # fmt: skip
    assert changed_since.allowable and changed_since.allowable != (word,)


def test_the_curve_has_the_checkpoints_the_new_one_and_the_point_of_the_resume(trained: Config, places: Places) -> None:
    outcome = examine(
        trained, places, resume_from_checkpoint="2", max_train_steps=8, resume_lr_policy="stretch",
        resume_allow=("all",),
    )  # fmt: skip
    assert outcome.figure is not None
    traces = {trace["name"]: trace for trace in outcome.figure["data"]}
    assert traces["the checkpoint's curve"]["y"][4] == pytest.approx(0.0, abs=1e-9)
    assert (traces["from here on"]["x"][0], traces["from here on"]["x"][-1]) == (2, 8)
    assert traces["resume"]["x"] == [2]
    assert traces["resume"]["y"][0] == pytest.approx(trained.learning_rate * 0.8535533905932737)


def test_the_checkpoints_curve_is_drawn_at_the_rates_it_was_trained_at(trained: Config, places: Places) -> None:
    outcome = examine(
        trained, places, resume_from_checkpoint="2", learning_rate=trained.learning_rate / 4, max_train_steps=8,
        resume_lr_policy="stretch", resume_allow=("all",),
    )  # fmt: skip
    assert outcome.figure is not None
    traces = {trace["name"]: trace for trace in outcome.figure["data"]}
    assert max(traces["the checkpoint's curve"]["y"]) == pytest.approx(trained.learning_rate)
    assert max(traces["from here on"]["y"]) < trained.learning_rate / 4


def test_the_environment_is_compared_once_it_is_known(trained: Config, places: Places, run: RunFolder) -> None:
    environment = manifest.read_json(run.checkpoints / "step-00000002", "environment.json")
    values = values_of(trained, places, resume_from_checkpoint="2")
    assert "It continues exactly" in resume_check.examine(places, values, environment, "").html
    other = resume_check.examine(places, values, environment | {"threads": 64}, "").html
    assert "trajectory-exact" in other
    assert "threads: 1 then, 64 now" in other


def test_starting_afresh_over_checkpoints_is_told_to_be_refused(trained: Config, places: Places) -> None:
    assert "the trainer will refuse to start it afresh" in examine(trained, places).html
    assert "starts at step 1" in examine(trained, places, output_name="new").html


def test_the_trainer_tells_its_environment_as_a_checkpoint_has_it(
    trained: Config, places: Places, run: RunFolder
) -> None:
    settings, _ = resume_check.settings_of(values_of(trained, places))
    assert settings is not None
    told, problem = resume_check.Environments().describe(settings, places)
    assert problem == ""
    then = manifest.read_json(run.checkpoints / "step-00000002", "environment.json")
    assert told is not None
    assert told.keys() == then.keys()


def test_a_run_trained_from_another_folder_is_continued_where_it_is(
    trained: Config, places: Places, run: RunFolder
) -> None:
    values, _ = resume_tab.adopted(places, run)
    assert values is not None
    assert values["output_dir"] == str(run.path.parent)
    assert values["resume_from_checkpoint"] == "latest"


def test_a_copied_run_is_continued_itself_and_not_the_one_it_was_copied_from(
    trained: Config, places: Places, run: RunFolder
) -> None:
    copy = Path(shutil.copytree(run.path, run.path.parent / "copy"))
    values, _ = resume_tab.adopted(places, RunFolder(copy))
    assert values is not None
    assert values["output_name"] == "copy"


# --- the list ---


def shelf(places: Places, run: RunFolder | None, typed: str = "") -> checkpoints.Shelf:
    found = checkpoints.shelf(places, run, typed)
    assert found is not None
    return found


@pytest.mark.parametrize("typed", ["output/fox", "output/fox/checkpoints", "output/fox/checkpoints/step-00000002"])
def test_a_runs_folder_its_checkpoints_or_one_of_them_can_be_pointed_at(
    places: Places, run: RunFolder, typed: str
) -> None:
    found = shelf(places, None, typed)
    assert [item.step for item in found.found] == [4, 3, 2, 1]
    assert found.value(found.found[2]) == str(run.checkpoints / "step-00000002")
    assert shelf(places, run, typed).value(found.found[2]) == "2"


@pytest.mark.parametrize("typed", ["nowhere", "\0", "~no-such-user/x", "x" * 5000])
def test_a_folder_that_is_not_there_is_no_error(places: Places, run: RunFolder, typed: str) -> None:
    assert checkpoints.shelf(places, run, typed) is None
    assert "There is no folder" in checkpoints.where(None, run, typed)


def test_reading_every_byte_finds_what_the_manifest_cannot_show(
    trained: Config, places: Places, run: RunFolder
) -> None:
    weights = run.checkpoints / "step-00000002" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    verified = Verified()
    found = shelf(places, run)
    assert verified.state(found.found[2]) == ("complete", "")
    for item in found.found:
        verified.verify(item)
    assert verified.state(found.found[2])[0].startswith("damaged: weights.safetensors was changed")
    assert verified.state(found.found[3])[0].startswith("verified at ")
    table = checkpoints.table(found, "latest", trained, verified)
    assert table.count("damaged: weights.safetensors") == 1


def test_what_was_verified_counts_until_a_file_changes(places: Places, run: RunFolder) -> None:
    verified, item = Verified(), shelf(places, run).found[0]
    verified.verify(item)
    assert verified.state(item)[1] == "good"
    (item.path / "state.json").write_bytes((item.path / "state.json").read_bytes())
    assert verified.state(item) == ("complete", "")


def test_the_list_tells_which_checkpoints_the_form_could_continue(
    trained: Config, places: Places, run: RunFolder
) -> None:
    item = shelf(places, run).found[0]
    assert checkpoints.fit(item, trained) == "fits"
    assert checkpoints.fit(item, trained.replace(learning_rate=0.5)) == "differs: learning_rate"
    assert checkpoints.fit(item, trained.replace(network_dim=7, seed=7)) == "does not fit: network_dim"
    assert checkpoints.fit(item, None) == "–"


def test_what_was_left_behind_by_going_back_can_be_listed(places: Places, run: RunFolder) -> None:
    aside = run.abandoned / "before-session-002" / "checkpoints"
    aside.mkdir(parents=True)
    (run.checkpoints / "step-00000004").rename(aside / "step-00000004")
    words = checkpoints.where(shelf(places, run), run, "")
    assert "before-session-002: 1 kept" in words
    assert [item.step for item in shelf(places, run, str(aside)).found] == [4]


# --- the drill ---


def wait_for(run: RunFolder, read: Callable[[RunFolder], Work | None], seconds: float = 300.0) -> Work:
    """The work when it has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        work = read(run)
        if work is not None and not work.alive:
            return work
        time.sleep(0.2)
    raise AssertionError(f"it goes on: {read(run)}")


def test_a_drill_that_is_refused_says_why(trained: Config, places: Places, run: RunFolder) -> None:
    settings = Config(**values_of(trained, places, train_data_dir="nowhere"))
    assert drills.start(settings, places) == run
    drill = wait_for(run, drills.read)
    assert "Refused: " in drills.show(drill, time.time())
    assert "nowhere" in drills.show(drill, time.time())


def test_a_verdict_of_a_drill_is_shown_first_and_in_its_colour() -> None:
    stage = json.dumps({"stage": 1, "of": 3, "doing": "Training 8 steps straight"})
    verdict = {"version": 1, "verdict": "passed", "lines": ["PASSED: bit-equal.", "8 steps; killed after step 4"]}
    text = f"{stage}\na warning of a library\n{json.dumps(verdict)}\n"
    shown = drills.show(Work(100.0, False, text), 200.0)
    assert 'class="note good"' in shown
    assert "PASSED: bit-equal." in shown
    assert "killed after step 4" in shown
    going = drills.show(Work(100.0, True, f"{stage}\na warning of a library"), 130.0)
    assert "for 30 s, stage 1 of 3: Training 8 steps straight" in going


# --- samples after the training ---


def test_samples_are_made_of_a_chosen_checkpoint_and_model_file(places: Places, run: RunFolder) -> None:
    page = Page(places)
    panel = page.runs.sampling
    known = [value for _, value in sampling_panel.sources(run)]
    assert len(known) > STEPS
    data: dict[Any, Any] = {page.bar.picker: str(run.path), panel.sources: [], panel.prompts: ""}
    result = str(run.path.with_suffix(".safetensors"))
    assert page.runs._act_on_result(data, "sample", "fox.safetensors")[panel.sources]["value"] == [result]
    assert "Choose a checkpoint" in panel.start(data)[page.bar.message]
    assert "no sample_prompts" in panel.start(data | {panel.sources: known[:1]})[page.bar.message]
    outside = data | {panel.sources: [str(places.home)], panel.prompts: "a fox"}
    assert "Choose a checkpoint" in panel.start(outside)[page.bar.message]
    begun = panel.start(data | {panel.sources: known[:1], panel.prompts: "-- two dashes --s 1\na fox --s 1"})
    assert begun[page.bar.message] == ""
    wait_for(run, sampling_panel.SAMPLING.read)
    assert "2 pictures in the Samples tab" in panel.watch(data)[panel.progress]
    history = page.watch.look(run).history
    assert {(sample.step, sample.prompt) for sample in history.samples.values()} == {(4, "-- two dashes"), (4, "a fox")}


# --- the tab itself ---


def test_only_the_latest_check_of_a_page_is_shown() -> None:
    turns = resume_tab.Turns(most=2)
    first, other = turns.take("a page"), turns.take("another")
    assert (first(), other()) == (True, True)
    second = turns.take("a page")
    assert (first(), second()) == (False, True)
    turns.take("a third")
    assert (other(), second()) == (False, True)


@pytest.fixture(scope="module")
def home(trained: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("served")
    shutil.copytree(trained.output_dir, home / "output")
    run = RunFolder(home / "output" / "fox")
    files.write_text(run.config_file, writing.to_toml(trained.replace(output_dir="output")))
    return home


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[BrowserPage]:
    with fresh_page(browser, served) as page:
        open_tab(page, "Resume")
        page.locator("#resume-adopt").click()
        expect(page.locator("#resume-verdict")).to_contain_text("The run is complete: step 4 of 4")
        yield page


def choose_step(page: BrowserPage, step: int) -> None:
    page.locator("#resume-table").get_by_title(f"Continue from step {step}", exact=True).click()
    expect(page.locator("#resume-verdict")).to_contain_text(f"Continues at step {step + 1} of")


@needs_browser
def test_differences_are_put_right_or_allowed_one_by_one_and_all_at_once(page: BrowserPage) -> None:
    choose_step(page, 2)
    open_tab(page, "Train")
    field(page, "network_dim").fill("9")
    field(page, "learning_rate").fill("0.5")
    field(page, "seed").fill("5")
    open_tab(page, "Resume")
    verdict, differences = page.locator("#resume-verdict"), page.locator("#resume-differences")
    expect(verdict).to_contain_text("3 options differ, and the trainer will refuse")
    expect(differences.get_by_role("row", name=re.compile("network_dim 2 9 locked"))).to_be_visible()
    differences.get_by_title("Allow learning_rate to differ").click()
    expect(verdict).to_contain_text("2 options differ")
    differences.get_by_title("Set network_dim back").click()
    expect(verdict).to_contain_text("1 option differs")
    page.locator("#resume-restore").click()
    expect(verdict).to_contain_text("The run will differ, as you allowed.")
    open_tab(page, "Train")
    expect(field(page, "network_dim")).to_have_value("2")
    expect(field(page, "resume_allow")).to_have_value(re.compile("^learning_rate:"))


def test_an_automatic_start_begins_what_has_no_checkpoint_and_continues_what_has(
    trained: Config, places: Places
) -> None:
    assert "starts at step 1" in examine(trained, places, output_name="new", resume_from_checkpoint="auto").html
    assert "The run is complete: step 4 of 4" in examine(trained, places, resume_from_checkpoint="auto").html
    (places.home / "auto").mkdir()  # a name in the page's home is no path then
    assert placed(places, trained.replace(resume_from_checkpoint="auto")).resume_from_checkpoint == "auto"


@needs_browser
def test_steps_and_policy_are_changed_beside_the_curve_they_draw(page: BrowserPage) -> None:
    steps = page.locator("#resume-steps input")
    steps.fill("8")
    steps.blur()
    expect(page.locator("#resume-verdict")).to_contain_text("steps 5 to 8 would train at 0")
    choose(page, "resume-policy", "stretch")
    expect(page.locator("#resume-verdict")).to_contain_text("Continues at step 5 of 8")
    expect(page.locator("#resume-curve .js-plotly-plot")).to_be_visible()
    open_tab(page, "Train")
    expect(field(page, "max_train_steps")).to_have_value("8")


@needs_browser
def test_a_checkpoint_is_verified_pinned_exported_and_deleted_after_a_question(
    page: BrowserPage, served: Served
) -> None:
    run = RunFolder(served.home / "output" / "fox")
    message, table = page.locator("#form-message"), page.locator("#resume-table")
    page.locator("#resume-verify").click()
    expect(table.get_by_text("verified at")).to_have_count(STEPS)
    choose_step(page, 1)
    page.locator("#resume-pin").click()
    expect(table).to_contain_text("pinned")
    page.locator("#resume-delete").click()
    expect(message).to_contain_text("is pinned. Unpin it first.")
    page.locator("#resume-pin").click()
    expect(table).not_to_contain_text("pinned")
    branches.step_file(Config(output_dir=str(served.home / "output"), output_name="fox"), 1).unlink()
    page.locator("#resume-export").click()
    expect(message).to_contain_text("The model file of step 1 is")
    assert (served.home / "output" / "fox-step00000001.safetensors").is_file()
    page.locator("#resume-delete").click()
    expect(page.locator("#resume-delete-question")).to_contain_text("Delete the checkpoint of step 1")
    page.locator("#resume-delete-yes").click()
    expect(message).to_contain_text("is deleted")
    assert [item.step for item in manifest.listing(run.checkpoints)] == [4, 3, 2]


@needs_browser
def test_a_new_run_branches_off_an_older_step_and_knows_where_it_came_from(page: BrowserPage, served: Served) -> None:
    choose_step(page, 2)
    page.get_by_role("button", name="Continue as a new run").click()
    page.locator("#resume-branch-name").locator("input, textarea").first.fill("fox")
    page.locator("#resume-branch").click()
    expect(page.locator("#form-message")).to_contain_text("There is a run fox already")
    page.locator("#resume-branch-name").locator("input, textarea").first.fill("vixen")
    page.locator("#resume-branch").click()
    expect(page.locator("#resume-verdict")).to_contain_text("It begins a new run, vixen")
    page.locator("#start-training").click()
    run = RunFolder(served.home / "output" / "vixen")
    expect(page.locator("#run-picker input")).to_have_value(re.compile("^vixen · "))
    deadline = time.monotonic() + 300
    while (record := run_folder.read_run(run)) is None or run_folder.status(run) != "finished":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    expect(page.locator("#run-status")).to_contain_text("finished")
    assert record["parent"]["step"] == 2
    assert [event["step"] for event in events.read_events(run.events_file)[0] if event["event"] == "resumed"] == [2]


def test_the_forms_own_values_are_never_lost_to_a_check(trained: Config, places: Places) -> None:
    values = values_of(trained, places, resume_from_checkpoint="2", network_dim=0)
    outcome = resume_check.examine(places, values, None, "")
    assert "Change this first; then the form can be compared" in outcome.html
    assert forms.check_values(values).problems != []
