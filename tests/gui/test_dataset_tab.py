"""The Dataset tab: what it shows of a report, and a person's way through it in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from gui.forms import presets
from gui.places import Places
from gui.views import dataset_view as view
from gui.views.dataset_view import Filter, Looked, Looker
from tests.support import nasty
from tests.support.browser import SLOW, Served, choose, load_preset, needs_browser, open_tab
from trainer.data import dataset_report
from trainer.options.config import Config

WCAG_AA = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}


def look_at(folder: Path, output: Path) -> Looked:
    made = dataset_report.make(Config(train_data_dir=str(folder), output_dir=str(output), resolution="64"))
    return Looked(made, tuple(view.items_of(made)))


def make_images(folder: Path) -> None:
    """Two folders of thirty pictures; one is without a caption, one is empty."""
    for number in range(30):
        inner = folder / ("3_cat" if number % 2 else "1_dog")
        inner.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 128 if number % 3 else 64), (number * 8, 0, 0)).save(inner / f"{number:02d}.png")
        (inner / f"{number:02d}.txt").write_text(f"pet, number {number}" + (", odd" if number % 2 else ""))
    (folder / "1_dog" / "00.txt").unlink()
    (folder / "1_dog" / "02.png").write_bytes(b"")


# --- without a browser ----------------------------------------------------------------------------------------------


def test_filters_go_together(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    items = look_at(tmp_path / "images", tmp_path).items
    cats = str(tmp_path / "images" / "3_cat")

    def names(wanted: Filter) -> list[str]:
        return [item.path.stem for item in view.matching(items, wanted, ",")]

    assert len(names(Filter())) == 30
    assert len(names(Filter(folder=cats))) == 15
    assert names(Filter(kind="no_caption")) == ["00"]
    assert names(Filter(kind="empty_file")) == ["02"]
    assert names(Filter(tag="number 1")) == ["01"]
    assert names(Filter(text="NUMBER 1", folder=cats)) == ["01", "11", "13", "15", "17", "19"]
    assert names(Filter(tag="odd", text="29.png")) == ["29"]


def test_every_nasty_file_has_something_to_show(tmp_path: Path) -> None:
    trouble = nasty.make(tmp_path / "images")
    looked = look_at(tmp_path / "images", tmp_path / "output")
    shown = view.small_pictures(looked.items, tmp_path / "thumbnails")
    assert len(shown) == len(looked.items) > 150
    assert all(Path(file).stat().st_size > 0 and words.encode() for file, words in shown)
    assert all(max(Image.open(file).size) <= view.SMALL_SIDE for file, _ in shown)
    html = view.summary(looked) + view.problems(looked)
    assert html.encode() and "<b>html" not in html
    bad = [item.path.name for item in looked.items if item.entry is None]
    assert len(bad) == sum(bool(kinds & nasty.SKIPPED) for name, kinds in trouble.expected.items()
                           if "foreign" not in kinds)  # fmt: skip


def test_thumbnails_are_made_once_and_anew_when_the_picture_changes(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    looked = look_at(tmp_path / "images", tmp_path / "output")
    first = view.small_picture(looked.items[0], tmp_path / "thumbnails")
    assert view.small_picture(looked.items[0], tmp_path / "thumbnails") == first
    Image.new("RGB", (64, 64), "white").save(looked.items[0].path)
    assert view.small_picture(looked.items[0], tmp_path / "thumbnails") != first


def test_what_was_looked_at_deeper_stays_so(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    config = Config(train_data_dir=str(tmp_path / "images"), output_dir=str(tmp_path / "output"), resolution="64")
    looker = Looker()
    for deep, expected in ((False, False), (True, True), (False, True)):
        job = looker.look(config, deep=deep)
        assert job.wait() and job.looked is not None
        assert bool(job.looked.report.deeper) == expected  # pictures of one colour, which are near copies


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    make_images(home / "images")
    options = {"train_data_dir": "images", "resolution": "64", "enable_bucket": True}
    options |= {"min_bucket_reso": 32, "bucket_reso_steps": 16}
    presets.save(Places(home, home), "pets", options)
    return home


@pytest.fixture(scope="module")
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The Dataset tab of a form that names the images."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(SLOW)
    page.goto(served.address)
    expect(page.locator("#run-status .badge")).to_be_visible()
    load_preset(page, "user/pets")
    open_tab(page, "Dataset")
    expect(page.locator("#dataset-summary .facts")).to_be_visible()
    yield page
    page.close()


def fill(page: Page, widget: str, text: str) -> None:
    box = page.locator(f"#{widget}").locator("input, textarea").first
    box.fill(text)
    box.blur()


def message(page: Page) -> Locator:
    return page.locator("#dataset-message")


@needs_browser
def test_the_tab_shows_what_there_is_and_what_is_wrong(page: Page) -> None:
    facts = page.locator("#dataset-summary .facts")
    expect(facts).to_contain_text("Images29")
    expect(facts).to_contain_text("Samples an epoch59")  # 14 dogs and 15 cats thrice
    expect(page.locator("#dataset-summary .buckets tbody tr")).to_have_count(2)
    expect(page.locator("#dataset-summary .tags")).to_contain_text("pet 28")
    problems = page.locator("#dataset-problems")
    expect(problems.get_by_role("row", name=re.compile("Empty file 1 skipped .*02.png"))).to_be_visible()
    expect(problems.get_by_role("row", name=re.compile("No caption file 1 trained .*00.png"))).to_be_visible()


@needs_browser
def test_pictures_are_paged_and_filtered(page: Page) -> None:
    pictures = page.locator("#dataset-gallery img")
    expect(page.locator("#dataset-where")).to_have_text("1 to 24 of 30 images")
    expect(pictures).to_have_count(24)
    page.locator("button#dataset-on").click()
    expect(page.locator("#dataset-where")).to_have_text("25 to 30 of 30 images")
    expect(pictures).to_have_count(6)
    fill(page, "dataset-tag", "odd")
    expect(page.locator("#dataset-where")).to_have_text("1 to 15 of 15 images")
    choose(page, "dataset-kind", "No caption file")
    expect(page.locator("#dataset-where")).to_have_text("No image matches")
    fill(page, "dataset-tag", "")
    expect(page.locator("#dataset-where")).to_have_text("1 to 1 of 1 images")
    choose(page, "dataset-kind", "All images")
    expect(page.locator("#dataset-where")).to_have_text("1 to 24 of 30 images")


@needs_browser
def test_one_caption_is_written_and_undone(page: Page, served: Served) -> None:
    fill(page, "dataset-text", "00.png")
    expect(page.locator("#dataset-where")).to_have_text("1 to 1 of 1 images")
    page.locator("#dataset-gallery img").click()
    expect(page.locator("#dataset-caption textarea")).to_be_editable()
    expect(page.locator("#dataset-caption textarea")).to_have_value("dog")  # what is trained: the folder's class
    page.locator("#dataset-caption textarea").fill("a black dog")
    page.locator("button#dataset-save").click()
    expect(message(page)).to_contain_text("caption of 00.png. 1 caption saved.")
    written = served.home / "images" / "1_dog" / "00.txt"
    assert written.read_text() == "a black dog"
    expect(page.locator("#dataset-problems")).not_to_contain_text("No caption file")
    page.locator("button#dataset-undo").click()
    expect(message(page)).to_contain_text("Undone: caption of 00.png. 1 caption put back.")
    assert not written.exists()
    fill(page, "dataset-text", "")


@needs_browser
def test_a_tag_is_replaced_in_many_captions_after_a_preview_and_undone_after_a_restart(
    page: Page, served: Served
) -> None:
    before = {path: path.read_bytes() for path in (served.home / "images").rglob("*.txt")}
    choose(page, "dataset-action", "Replace a tag")
    fill(page, "dataset-old", "odd")
    fill(page, "dataset-new", "strange <b>")
    page.locator("button#dataset-preview-change").click()
    expect(page.locator("#dataset-preview")).to_contain_text("changes 15 captions of 30 images")
    expect(page.locator("#dataset-preview tbody tr").first).to_contain_text("pet, number 1, strange <b>")
    assert {path: path.read_bytes() for path in before} == before
    page.get_by_role("button", name="Apply to 15 captions").click()
    expect(message(page)).to_contain_text("15 captions saved")
    assert (served.home / "images" / "3_cat" / "01.txt").read_text() == "pet, number 1, strange <b>"

    page.goto("about:blank")  # a server waits for its open pages
    served.stop()
    served.start()
    page.goto(served.address)
    expect(page.locator("#run-status .badge")).to_be_visible()
    open_tab(page, "Dataset")
    page.get_by_role("button", name=re.compile("Undo: Replace a tag: odd → strange <b>")).click()
    expect(message(page)).to_contain_text("15 captions put back")
    assert {path: path.read_bytes() for path in before} == before


@needs_browser
def test_tags_and_problems_lead_to_pictures_and_keys_from_one_to_the_next(page: Page, served: Served) -> None:
    where, caption = page.locator("#dataset-where"), page.locator("#dataset-caption textarea")
    page.locator("#dataset-problems").get_by_role("button", name="Empty file", exact=True).click()
    expect(where).to_have_text("1 to 1 of 1 images")
    page.locator("#dataset-summary").get_by_role("button", name="pet 28").click()
    expect(where).to_have_text("1 to 24 of 28 images")
    page.locator("#dataset-gallery button.thumbnail-item").nth(22).click()
    expect(caption).to_have_value("pet, number 19, odd")
    page.locator("#dataset-gallery button.thumbnail-item").nth(22).press("ArrowRight")
    expect(caption).to_have_value("pet, number 21, odd")
    caption.focus()
    page.keyboard.press("Control+End")
    page.keyboard.type(", numb")
    expect(page.locator("#tags-offered li").first).to_have_text("number 4")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(caption).to_have_value("pet, number 21, odd, number 4")
    page.keyboard.press("Control+Enter")
    expect(caption).to_have_value("pet, number 23, odd")
    expect(where).to_have_text("25 to 28 of 28 images")  # the next one is on the next page
    assert (served.home / "images" / "3_cat" / "21.txt").read_text() == "pet, number 21, odd, number 4"
    page.locator("button#dataset-undo").click()
    expect(message(page)).to_contain_text("1 caption put back")


@needs_browser
def test_selected_pictures_are_excluded_and_put_back(page: Page, served: Served) -> None:
    fill(page, "dataset-tag", "odd")
    expect(page.locator("#dataset-where")).to_have_text("1 to 15 of 15 images")
    page.locator("#dataset-select input").check()
    pictures = page.locator("#dataset-gallery button.thumbnail-item")
    for number, count in ((3, 1), (5, 2), (6, 3), (6, 2)):
        pictures.nth(number).click()
        expect(page.locator("#dataset-selected")).to_contain_text(f"{count} selected")
    page.locator("button#dataset-exclude").click()
    expect(message(page)).to_contain_text("2 pictures excluded.")
    expect(page.locator("#dataset-where")).to_have_text("1 to 13 of 13 images")
    expect(page.locator("#dataset-summary .facts")).to_contain_text("Images27")
    folder = served.home / "images" / "3_cat"
    assert not (folder / "07.txt").exists()
    page.get_by_role("button", name="Excluded and deleted").click()
    for name in ("07.png", "11.png"):
        choose(page, "dataset-taken", name)
    page.locator("button#dataset-put-back").click()
    expect(message(page)).to_contain_text("2 pictures put back.")
    assert (folder / "07.txt").read_text() == "pet, number 7, odd"
    page.locator("#dataset-select input").uncheck()
    fill(page, "dataset-tag", "")


@needs_browser
def test_pictures_from_the_browser_become_the_forms_dataset(page: Page, served: Served, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "fox.png")
    (tmp_path / "fox.txt").write_text("a fox")
    (tmp_path / "notes.pdf").write_bytes(b"")
    page.locator("#dataset-drop-name").fill("foxes")
    with page.expect_file_chooser() as chooser:
        page.locator("#dataset-drop label.small").click()
    chooser.value.set_files([tmp_path / name for name in ("fox.png", "fox.txt", "notes.pdf")])
    expect(page.locator("#dataset-drop .told")).to_contain_text("2 of 3 files arrived. Left out: notes.pdf is neither")
    expect(message(page)).to_contain_text("training images are now those in datasets/foxes")
    expect(page.locator("#dataset-summary .facts")).to_contain_text("Images1")
    assert (served.home / "datasets" / "foxes" / "fox.txt").read_text() == "a fox"
    assert '"train_data_dir": "datasets/foxes"' in served.places.draft_file.read_text()


@needs_browser
def test_a_plain_folder_is_prepared_and_put_into_the_form(page: Page, served: Served) -> None:
    page.get_by_role("button", name="Dataset Preparation").click()
    fill(page, "prepare-class", "dog")
    fill(page, "prepare-images", "images/3_cat")
    fill(page, "prepare-target", "prepared")
    page.locator("button#prepare-check").click()
    expect(page.locator("#prepare-message")).to_contain_text("Fill in first: Instance prompt")
    fill(page, "prepare-instance", "zkz")
    page.locator("button#prepare-start").click()
    expect(page.locator("#prepare-message")).to_contain_text("30 files copied")
    assert len(list((served.home / "prepared" / "img" / "40_zkz dog").glob("*.png"))) == 15
    page.locator("button#prepare-adopt").click()
    expect(page.locator("#prepare-message")).to_contain_text("prepared/img")
    expect(page.locator("#dataset-summary")).to_contain_text("40_zkz dog")
    expect(page.locator("#dataset-picture")).to_be_empty()  # what was chosen is not in this dataset
    expect(page.locator("button#dataset-save")).to_be_disabled()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_tab_passes_wcag_aa_and_fits_a_narrow_screen(
    scheme: Literal["light", "dark"], browser: Browser, served: Served
) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000}, color_scheme=scheme)
    page.set_default_timeout(SLOW)
    page.goto(served.address)
    expect(page.locator("#run-status .badge")).to_be_visible()
    load_preset(page, "user/pets")
    open_tab(page, "Dataset")
    expect(page.locator("#dataset-gallery img")).to_have_count(24)
    page.locator("#dataset-gallery img").nth(3).click()
    expect(page.locator("#dataset-caption textarea")).to_be_editable()
    fill(page, "dataset-old", "fox")
    page.locator("button#dataset-preview-change").click()
    expect(page.locator("#dataset-preview table")).to_be_visible()
    page.get_by_role("button", name="Dataset Preparation").click()
    expect(page.locator("#prepare-target")).to_be_visible()
    violations = Axe().run(page, options=WCAG_AA).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in violations] == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
