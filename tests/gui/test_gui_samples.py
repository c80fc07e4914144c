"""The Samples tab: previews by step and prompt, as small copies; a whole one when it is asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Browser, expect

from gui.places import Places
from gui.tabs import samples_tab
from gui.tabs.samples_tab import Column, Row, SamplesTab
from gui.views import thumbnails
from gui.views.history import Sample
from gui.views.monitor import View, Watch
from tests.gui.test_gui_fake_run import make_run
from tests.support.browser import SLOW, Served, choose, needs_browser, open_page, open_tab

SNOW, RED = "a fox in the snow", "a red fox"


def samples_of(view: View) -> list[Sample]:
    return list(view.history.samples.values())


# --- which files ---


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/passwd", "config.toml", "samples/../config.toml", "\0"])
def test_a_sample_outside_the_samples_folder_is_not_shown(tmp_path: Path, path: str) -> None:
    run = make_run(tmp_path / "output")
    (tmp_path / "secret.png").write_bytes((run.samples / "00000050-0.png").read_bytes())
    assert thumbnails.confined(run, path) is None


def test_a_link_out_of_the_samples_folder_is_not_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "output")
    (run.samples / "link.png").symlink_to(run.config_file)
    assert thumbnails.confined(run, "samples/link.png") is None


@pytest.mark.parametrize("name", ["notes.html", "picture.svg"])
def test_what_is_no_picture_by_its_name_is_not_served(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    (run.samples / name).write_text("<script>")
    assert thumbnails.confined(run, f"samples/{name}") is None


def test_a_small_copy_is_made_once_and_none_of_what_is_no_picture(tmp_path: Path) -> None:
    run = make_run(tmp_path / "output")
    file = run.samples / "00000050-0.png"
    small = thumbnails.small(file, tmp_path / "small")
    assert small is not None and small == thumbnails.small(file, tmp_path / "small")
    file.write_bytes(b"no picture")
    assert thumbnails.small(file, tmp_path / "small") is None
    assert list((tmp_path / "small").iterdir()) == [small]


def test_only_the_newest_copies_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.webp").touch()
    thumbnails.prune(tmp_path, most=2)
    assert len(list(tmp_path.iterdir())) == 2


# --- the order ---


def test_steps_come_newest_first_and_those_of_abandoned_branches_last() -> None:
    samples = [Sample(50, "a", SNOW, 0), Sample(150, "b", SNOW, 0), Sample(120, "c", SNOW, 0, abandoned=True)]
    assert samples_tab.rows(samples) == [Row(150, False), Row(50, False), Row(120, True)]


def test_prompts_come_in_their_order_and_another_seed_is_another_column() -> None:
    samples = [Sample(50, "a", SNOW, 0, 1), Sample(50, "b", RED, 1, 2), Sample(100, "c", SNOW, 0, 7)]
    assert samples_tab.columns(samples) == [Column(SNOW, 7), Column(SNOW, 1), Column(RED, 2)]
    assert Column(SNOW, 7).label == "a fox in the snow · seed 7"


def test_the_grid_has_a_row_for_each_step_with_the_resume_between(tmp_path: Path) -> None:
    view = Watch().look(make_run(tmp_path / "output"))
    samples = samples_of(view)
    html = samples_tab.grid(view, samples, samples_tab.rows(samples))
    rows = re.findall(r"<th scope=.row.>(.*?)</th>|(resumed after step \d+)", html)
    assert ["".join(row) for row in rows] == ["step 150", "resumed after step 100", "step 100", "step 50"]
    assert re.findall(r"<th scope=.col.>(.*?)</th>", html) == ["Step", SNOW, RED]
    assert html.count("<img ") == 6
    assert html.count("data-whole=") == 6


def test_many_samples_are_shown_by_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_tab, "MOST_SHOWN", 4)  # two steps of two prompts
    view = Watch().look(make_run(tmp_path / "output"))
    first, second = samples_tab.gallery(view, 0), samples_tab.gallery(view, 1)
    assert re.findall(r"<th scope=.row.>(.*?)</th>", first) == ["step 150", "step 100"]
    assert re.findall(r"<th scope=.row.>(.*?)</th>", second) == ["step 50"]
    assert ("Older steps" in first, "Newer steps" in first) == (True, False)
    assert ("Older steps" in second, "Newer steps" in second) == (False, True)
    assert samples_tab.gallery(view, 99) == second


def test_prompts_are_shown_as_text(tmp_path: Path) -> None:
    view = Watch().look(make_run(tmp_path / "output"))
    view.history.samples["samples/00000150-0.png"] = Sample(150, "samples/00000150-0.png", "<script>&", 0)
    html = samples_tab.gallery(view, 0)
    assert "<script>" not in html
    assert "&lt;script&gt;&amp;" in html


# --- what is compared ---


def test_the_newest_step_goes_on_to_be_compared_until_another_is_chosen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "output")
    lines = run.events_file.read_text().splitlines(keepends=True)
    with gr.Blocks():
        tab = SamplesTab(Places(tmp_path, tmp_path / "state"))
    shown: dict[Any, Any] = dict.fromkeys(tab.inputs())

    def look(count: int, seen: Any) -> Any:
        run.events_file.write_text("".join(lines[:count]))
        updates, seen = tab.show(Watch().look(run), seen, shown)
        changed = {item: update for item, update in updates.items() if item in shown and isinstance(update, dict)}
        shown.update({item: update["value"] for item, update in changed.items() if "value" in update})
        return seen

    sampled = [number + 1 for number, line in enumerate(lines) if '"sample_saved"' in line]
    seen = look(sampled[1], None)  # both prompts at step 50
    assert (shown[tab.prompt], shown[tab.left], shown[tab.right]) == (0, "50", "50")
    shown[tab.prompt] = 1
    seen = look(sampled[2], seen)  # step 100, the first prompt only
    assert shown[tab.right] == "50"
    seen = look(sampled[3], seen)
    assert (shown[tab.left], shown[tab.right]) == ("50", "100")
    shown[tab.right] = "50"
    look(sampled[5], seen)
    assert shown[tab.right] == "50"


# --- the tab itself ---


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    make_run(home / "output", "vixen", status="finished")
    make_run(home / "output", "fox", status="finished")
    return home


@needs_browser
def test_a_sample_is_enlarged_and_two_steps_are_compared(browser: Browser, served: Served) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(SLOW)
    open_page(page, served)
    open_tab(page, "Samples")
    pictures = page.locator("#sample-gallery img")
    expect(pictures).to_have_count(6)
    assert pictures.first.evaluate("async image => { await image.decode(); return image.naturalWidth }") == 64
    page.get_by_title("step 100: a red fox").focus()
    page.keyboard.press("Enter")
    lightbox = page.locator("#lightbox")
    expect(lightbox).to_contain_text("step 100 · a red fox · 00000100-1.png")
    whole = lightbox.locator("img")
    assert whole.evaluate("async image => { await image.decode(); return image.naturalWidth }") == 64
    for key, words in (
        ("ArrowLeft", "step 100 · a fox in"),
        ("ArrowUp", "step 150 · a fox in"),
        ("ArrowUp", "step 150"),
    ):
        page.keyboard.press(key)
        expect(lightbox).to_contain_text(words)
    page.keyboard.press("Escape")
    expect(lightbox).not_to_be_visible()
    expect(page.locator("#compare-caption")).to_contain_text("Left: step 50. Right: step 150. a fox in the snow")
    choose(page, "compare-left", "step 100")
    choose(page, "compare-prompt", "a red fox")
    expect(page.locator("#compare-caption")).to_contain_text("Left: step 100. Right: step 150. a red fox")
    expect(page.locator("#compare-slider img")).to_have_count(2)
    handle = page.locator("#compare-slider input")
    handle.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".comparison")).to_have_attribute("style", "--left: 51%;")
    choose(page, "compare-run", "vixen")
    expect(page.locator("#compare-caption")).to_contain_text("Right: step 150 of vixen.")
    page.close()
