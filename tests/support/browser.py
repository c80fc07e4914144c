"""A page served as `python app.py` serves it, and a browser to use it with."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, TimeoutError, expect, sync_playwright

from gui.places import CODE, Places

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SLOW = 120_000  # ms: for what takes the server a moment on a busy machine
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")


class Served:
    """`python app.py` with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.places = Places(home, home / "state" / "rekindle")
        self.process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> None:
        """Start it; where it was started before, under the same address."""
        port = str(urlsplit(self.address).port or 0)
        self.process = subprocess.Popen(
            [sys.executable, str(CODE / "app.py"), "--headless", "--server_port", port],
            env=os.environ | {"REKINDLE_HOME": str(self.home), "XDG_STATE_HOME": str(self.home / "state")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().partition("Rekindle: ")[2].strip()
        assert self.address

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.communicate(timeout=300)
            finally:
                self.process.kill()
                self.process = None

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()
        self.process = None


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium, headless."""
    expect.set_options(timeout=SLOW)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def serving(home: Path) -> Iterator[Served]:
    """A server of a home's page."""
    server = Served(home)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def fresh_page(browser: Browser, served: Served) -> Iterator[Page]:
    """The page of a server, with no draft left by another."""
    for file in (served.places.draft_file, served.places.put_aside_file):
        file.unlink(missing_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(SLOW)
    open_page(page, served)
    yield page
    page.close()


def open_page(page: Page, served: Served) -> None:
    page.goto(served.address)
    expect(page.locator("#run-status .badge")).to_be_visible()
    expect(page.locator("#run-picker input")).not_to_have_value("")
    settle(page)


def field(page: Page, name: str) -> Locator:
    return page.locator(f"#opt-{name}").locator("input, textarea").first


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def choose(page: Page, picker: str, words: str, *, exact: bool = False) -> None:
    """Choose from a dropdown's list. It moves while it opens, and is made anew when other choices arrive for it; so it
    is opened again where the click did not come through."""
    box = page.locator(f"#{picker} input").first
    option = page.locator(f"#{picker}").get_by_role("option", name=words, exact=exact).first
    deadline = time.monotonic() + 3 * SLOW / 1000
    while True:
        if not option.is_visible():
            box.blur()
            box.click()
        try:
            option.click(timeout=SLOW / 3)
            return
        except TimeoutError:
            if time.monotonic() > deadline:
                raise


def load_preset(page: Page, name: str, answer: str = "{name} was loaded") -> None:
    """Choose it, which loads it at once where nothing is unsaved, then press Load; what is typed after this comes after
    both answers."""
    stamp = page.locator("#form-stamp").locator("input, textarea").first
    before = stamp.input_value()
    is_another = page.locator("#preset-picker input").input_value().strip() != name
    loads = is_another and page.locator("#form-changes").inner_text().strip().startswith("Matches")
    choose(page, "preset-picker", name, exact=True)
    if loads:
        with contextlib.suppress(AssertionError):  # a list that was made anew at that moment forgets what was chosen
            expect(stamp).not_to_have_value(before, timeout=SLOW / 4)
        if page.locator("#preset-picker input").input_value().strip() != name:
            choose(page, "preset-picker", name, exact=True)
            settle(page)
        before = stamp.input_value()
    page.locator("#preset-load button, button#preset-load").click()
    expect(stamp).not_to_have_value(before)
    expect(page.locator("#form-message")).to_contain_text(answer.format(name=name))
    settle(page)


def settle(page: Page) -> None:
    """Wait until the page has nothing left to do: Gradio writes an answer's values into one widget after the other, and
    what is typed in between may be overwritten."""
    page.evaluate(
        """async () => {
          for (let times = 0; times < 3; times++) {
            await new Promise(done => setTimeout(done, 100));
            await new Promise(done => requestIdleCallback(done));
          }
        }"""
    )


def save_preset(page: Page, name: str) -> None:
    page.locator("#preset-name").locator("input, textarea").first.fill(name)
    page.locator("button#preset-save").click()
