"""Pictures of every tab, light and dark, of a real run of the demo that was stopped and resumed, for README.

    python -m tests.support.pictures [--home FOLDER] [--to docs/pictures]

Trains the demo first, two minutes or more; --home keeps that run, so that pictures can be taken of it again.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from gui.places import CODE
from gui.views.monitor import Watch
from tests.support.browser import SLOW, Served, chromium, load_preset, open_page, open_tab
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder

STOP_AT = 170
LARGEST = 150_000  # bytes of a picture
TABS = ("Train", "Dataset", "Resume", "Monitor", "Samples")


def train(home: Path) -> None:
    """The demo in a home of its own: stopped in the middle, resumed, finished. Nothing where that was done before."""
    (home / "presets").mkdir(parents=True, exist_ok=True)
    demo = home / "presets" / "demo"
    if not demo.exists():
        demo.symlink_to(CODE / "presets" / "demo")
    run = RunFolder(home / "output" / "zorb")
    if run_folder.status(run) == "finished":
        return
    command = [sys.executable, "-m", "trainer", "train", "--config", str(CODE / "presets" / "demo.toml")]
    environment = os.environ | {"PYTHONPATH": str(CODE)}
    first = subprocess.Popen(command, cwd=home, env=environment)
    watch = Watch()
    while first.poll() is None and watch.look(run).history.step < STOP_AT:
        time.sleep(0.2)
    run_folder.ask(run, "stop")
    first.wait()
    subprocess.run([*command, "--resume_from_checkpoint", "latest"], cwd=home, env=environment, check=True)


def prepare(page: Page, tab: str) -> None:
    """What there is to see on a tab."""
    open_tab(page, tab)
    if tab == "Train":
        load_preset(page, "demo")
    elif tab == "Resume":
        page.locator("#resume-adopt").click()
        expect(page.locator("#resume-verdict .note").first).to_be_visible()
    elif tab == "Monitor":
        expect(page.locator("#loss-chart")).to_contain_text("resumed")
    elif tab == "Samples":
        expect(page.locator("#sample-gallery img").first).to_be_visible()
    page.wait_for_timeout(3000)  # for pictures and charts to be drawn to their end


def take(browser: Browser, served: Served, folder: Path, scheme: Literal["light", "dark"]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 960}, color_scheme=scheme)
    page.set_default_timeout(SLOW)
    open_page(page, served)
    for tab in TABS:
        prepare(page, tab)
        small(page.screenshot(), folder / f"{tab.lower()}-{scheme}.png")
    page.close()


def small(content: bytes, path: Path) -> None:
    """Write a picture with as many colours as fit."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    for colours in (256, 128, 64, 32):
        picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="where to train; an empty folder, or one of an earlier call")
    parser.add_argument("--to", type=Path, default=CODE / "docs" / "pictures", help="where the pictures go")
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        home = known.home or Path(folder)
        train(home.resolve())
        served = Served(home.resolve())
        served.start()
        try:
            for scheme in ("light", "dark"):
                take(browser, served, known.to, scheme)
        finally:
            served.stop()


if __name__ == "__main__":
    main()
