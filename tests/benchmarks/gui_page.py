"""How fast the page is there, takes and gives all options, and is live again after a reload; and what its server holds.

    python -m tests.benchmarks.gui_page [--rounds 7]

Targets: first field visible, nothing cached, within 1.5 s; all options saved or loaded within 0.4 s; chart and log live
1.5 s after a reload; the server's resident memory at most 250 MB, and no torch in it. Medians, from a click or an
address to what a person sees, in Chromium.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, expect

from gui.forms import presets
from tests.gui.test_gui_fake_run import make_run
from tests.support.browser import Served, choose, chromium, field, open_page, open_tab


def seconds(act: Callable[[], object], see: Callable[[], None]) -> float:
    started = time.perf_counter()
    act()
    see()
    return time.perf_counter() - started


def first_field(browser: Browser, served: Served) -> float:
    page = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    page.goto("about:blank")
    taken = seconds(
        lambda: page.goto(served.address, wait_until="commit"),
        lambda: field(page, "pretrained_model_name_or_path").wait_for(state="visible"),
    )
    page.context.close()
    return taken


def saved(page: Page, name: str) -> float:
    page.locator("#preset-name").locator("input, textarea").first.fill(name)
    return seconds(
        lambda: page.locator("#preset-save").click(),
        lambda: expect(page.locator("#form-message")).to_contain_text(f"Saved as presets/user/{name}.toml"),
    )


def loaded(page: Page, name: str) -> float:
    choose(page, "preset-picker", f"user/{name}")
    return seconds(
        lambda: page.locator("#preset-load").click(),
        lambda: expect(page.locator("#form-message")).to_contain_text(f"user/{name} was loaded"),
    )


def live_again(page: Page) -> float:
    def look() -> None:
        open_tab(page, "Monitor")
        expect(page.locator("#loss-chart .js-plotly-plot .scatterlayer .trace").first).to_be_attached()
        expect(page.locator("#run-log pre")).to_contain_text("step 150/200")

    return seconds(lambda: page.reload(wait_until="commit"), look)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        served = Served(Path(folder))
        make_run(served.home / "output", "fox", status="running", alive=True)
        presets.save(served.places, "one", {"network_dim": 8})
        presets.save(served.places, "two", {"network_dim": 9})
        served.start()
        try:
            cold = [first_field(browser, served) for _ in range(rounds)]
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            open_page(page, served)
            save = [saved(page, f"saved-{number}") for number in range(rounds)]
            load = [loaded(page, ("one", "two")[number % 2]) for number in range(rounds)]
            again = [live_again(page) for _ in range(rounds)]
            assert served.process is not None
            memory = psutil.Process(served.process.pid).memory_info().rss
            torch = "libtorch" in Path(f"/proc/{served.process.pid}/maps").read_text()
        finally:
            served.stop()
    print(f"load of the machine: {psutil.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians of {rounds}")
    for name, times, most in (
        ("first field visible, cold", cold, 1.5),
        ("all options saved", save, 0.4),
        ("all options loaded", load, 0.4),
        ("reload to live chart and log", again, 1.5),
    ):
        print(f"{name:30} {statistics.median(times):6.3f} s  (best {min(times):.3f}, target {most})")
    print(f"{'resident memory of the server':30} {memory / 1e6:6.0f} MB (target 250); torch in it: {torch}")


if __name__ == "__main__":
    main()
