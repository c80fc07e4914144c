"""The Tools tab in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from gui.places import CODE, Places
from gui.server import tool_runs
from tests.gui.test_gui_fake_run import make_run
from tests.gui.test_gui_train_page import WCAG_AA
from tests.support.browser import Served, fresh_page, needs_browser, open_tab, serving
from trainer.tools import TOOLS

LAYER = "lora_unet_down_blocks_0_attentions_0_proj_in"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    (home / "presets").mkdir()
    (home / "presets" / "demo").symlink_to(CODE / "presets" / "demo")
    make_run(home / "output", "fox", status="stopped")
    with serving(home) as server:
        yield server


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    with fresh_page(browser, served) as page:
        yield page


@needs_browser
def test_a_lora_is_resized_on_the_page(page: Page, served: Served) -> None:
    values = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))
    tensors = {f"{LAYER}.lora_down.weight": torch.eye(4), f"{LAYER}.lora_up.weight": values}
    safetensors.torch.save_file(tensors, served.home / "a.safetensors")
    open_tab(page, "Tools")
    page.get_by_role("tab", name="Resize").click()
    message = expect(page.locator("#tool-resize-message"))
    start = page.locator("#tool-resize-start")
    start.click()
    message.to_contain_text("Fill in first: file, output")
    page.locator("#tool-resize-file textarea, #tool-resize-file input").first.fill("a.safetensors")
    page.locator("#tool-resize-output textarea, #tool-resize-output input").first.fill("b.safetensors")
    rank = page.locator("#tool-resize-rank").locator("textarea, input").first
    rank.fill("0")
    start.click()
    message.to_contain_text("rank: 0 is below 1")
    rank.fill("2")
    start.click()
    message.to_contain_text("Done.")
    message.to_contain_text("retained: 95.5")  # the root of 13 / 14.25
    made = safetensors.torch.load_file(served.home / "b.safetensors")
    assert made[f"{LAYER}.lora_down.weight"].shape == (2, 4)
    page.reload()
    open_tab(page, "Tools")
    page.get_by_role("tab", name="Resize").click()
    message.to_contain_text("retained: 95.5")  # the last use, in a page that is opened anew
    found = Axe().run(page, context="#tab-tools", options=WCAG_AA)
    assert [item["id"] for item in found.response["violations"]] == []


def test_what_is_typed_becomes_the_command(tmp_path: Path) -> None:
    values = {"files": " a.safetensors \n\n--b\n", "output": "c", "ratios": "1,2", "rank": 4, "family": "auto"}
    assert tool_runs.words("merge", values) == ["--output=c", "--ratios=1,2", "--rank=4", "a.safetensors", "./--b"]
    assert tool_runs.words("metadata", {"file": "x", "set": "a=1\nb=2", "in_place": True}) == [
        "--set=a=1", "--set=b=2", "--in_place", "x",
    ]  # fmt: skip
    assert tool_runs.missing("merge", {"files": "", "output": "x"}) == ["files"]
    assert tool_runs.read(Places(tmp_path, tmp_path), "merge") is None
    assert all(tool.help and tool.title for tool in TOOLS.values())
