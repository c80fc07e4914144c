"""What an open Monitor tab costs the browser, over a run of 5 steps a second.

    python -m tests.benchmarks.gui_browser [--minutes 6] [--early 1]

Between the minute `--early` and the last: the heap grows by at most 10 MB and the document by at most 500 nodes (both
after garbage collection), the renderer takes at most 5 % of a core, a zoomed chart stays as it was zoomed. Then the
page shows another tab for a while, and is hidden for a while: no chart is drawn and none asked for. `--minutes 30` is
the form that the targets are meant for. The growth that is told is that of the time measured; the targets are scaled.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import CDPSession, Page

from tests.gui.test_gui_fake_run import loss_at, make_run
from tests.support.browser import Served, chromium, open_page, open_tab
from trainer.runs.events import EventWriter
from trainer.runs.run_folder import RunFolder

STEPS_A_SECOND = 5
MOST_BYTES, MOST_NODES, MOST_SHARE = 10_000_000, 500, 0.05  # for 30 minutes; the share at any time
HIDDEN_SECONDS = 15.0
DRAWN = "() => rekindleCharts.drawn"
ASKED = "() => rekindleCharts.asked"
ZOOM = "() => document.querySelector('#loss-chart .js-plotly-plot')._fullLayout.xaxis.range.map(Math.round).join()"


@dataclass(frozen=True)
class Held:
    """What the page holds once its garbage is collected."""

    heap: float  # bytes
    nodes: float
    listeners: float


def train(run: RunFolder, first: int, until: threading.Event) -> None:
    """Write what a trainer of 5 steps a second would, a second's steps at once."""
    writer, step = EventWriter(run.events_file), first
    while not until.wait(1.0):
        for _ in range(STEPS_A_SECOND):
            numbers: dict[str, Any] = {"epoch": step // 1000, "loss": loss_at(step), "lr": 1e-4, "memory": 3e9 + step}
            writer.write("step", step, **numbers, grad_norm=0.5, step_seconds=0.2, data_seconds=0.001)
            step += 1
        if step % 50 == 0:
            with run.console_file.open("a", encoding="utf-8") as file:
                file.write(f"12:00:00 step {step}/100000  epoch {step // 1000 + 1}  loss 0.1\n")


def held(session: CDPSession) -> Held:
    session.send("HeapProfiler.enable")
    for _ in range(2):
        session.send("HeapProfiler.collectGarbage")
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return Held(metrics["JSHeapUsedSize"], metrics["Nodes"], metrics["JSEventListeners"])


def renderer_seconds(browser_process: psutil.Process) -> float:
    """CPU seconds that the processes which draw pages have taken."""
    total = 0.0
    for process in browser_process.children(recursive=True):
        if "--type=renderer" in process.cmdline():
            total += sum(process.cpu_times()[:2])
    return total


def during(page: Page, seconds: float) -> tuple[int, int]:
    """How often charts were drawn, and asked for, in that time."""
    drawn, asked = page.evaluate(DRAWN), page.evaluate(ASKED)
    page.wait_for_timeout(seconds * 1000)
    return page.evaluate(DRAWN) - drawn, page.evaluate(ASKED) - asked


def hide(page: Page, *, hidden: bool) -> None:
    """What the page notices when its window is covered: a headless browser never hides one by itself."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        "const state = hidden ? 'hidden' : 'visible';"
        "Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def measure(served: Served, minutes: float, early: float) -> dict[str, Any]:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        open_page(page, served)
        open_tab(page, "Monitor")
        page.locator("#loss-chart .js-plotly-plot .scatterlayer .trace").first.wait_for(state="attached")
        page.evaluate(
            "() => Plotly.relayout(document.querySelector('#loss-chart .js-plotly-plot'), {'xaxis.range': [20, 120]})"
        )
        zoomed = page.evaluate(ZOOM)
        page.wait_for_timeout(early * 60_000)
        parent = psutil.Process()
        before, cpu, started = held(session), renderer_seconds(parent), time.monotonic()
        drawn = page.evaluate(DRAWN)
        page.wait_for_timeout((minutes - early) * 60_000)
        seconds = time.monotonic() - started
        share = (renderer_seconds(parent) - cpu) / seconds
        drawn = page.evaluate(DRAWN) - drawn
        after, still = held(session), page.evaluate(ZOOM)
        open_tab(page, "Train")
        page.wait_for_timeout(3000)
        other_tab = during(page, HIDDEN_SECONDS)
        open_tab(page, "Monitor")
        page.wait_for_timeout(3000)
        hide(page, hidden=True)
        page.wait_for_timeout(1000)
        covered = during(page, HIDDEN_SECONDS)
        hide(page, hidden=False)
        again = during(page, HIDDEN_SECONDS)
    return {
        "minutes": seconds / 60, "before": before, "after": after, "share": share, "drawn": drawn,
        "zoomed": zoomed, "still": still, "other tab": other_tab, "covered": covered, "again": again,
    }  # fmt: skip


def report(found: dict[str, Any], line: Callable[[str], None]) -> None:
    before, after = found["before"], found["after"]
    scale = found["minutes"] / 30
    line(f"load of the machine: {psutil.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    line(f"measured over {found['minutes']:.1f} minutes, charts drawn {found['drawn']} times")
    growth, nodes, heard = after.heap - before.heap, after.nodes - before.nodes, after.listeners - before.listeners
    line(f"heap       {after.heap / 1e6:8.1f} MB, {growth / 1e6:+.2f} MB (target {MOST_BYTES / 1e6 * scale:+.1f})")
    line(f"nodes      {after.nodes:8.0f}   , {nodes:+.0f} (target {MOST_NODES * scale:+.0f})")
    line(f"listeners  {after.listeners:8.0f}   , {heard:+.0f}")
    line(f"renderer   {100 * found['share']:8.1f} % of a core (target {100 * MOST_SHARE:.0f})")
    line(f"zoom       {'kept' if found['zoomed'] == found['still'] else 'LOST'}: {found['zoomed']} -> {found['still']}")
    for name in ("other tab", "covered", "again"):
        drawn, asked = found[name]
        line(f"{name:10} {drawn} drawn, {asked} asked for in {HIDDEN_SECONDS:g} s")
    line(json.dumps({"growth_bytes_30min": growth / scale, "growth_nodes_30min": nodes / scale}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6, help="how long the page is open")
    parser.add_argument("--early", type=float, default=1, help="the minute of the first measurement")
    known = parser.parse_args()
    until = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        served = Served(Path(folder))
        run = make_run(served.home / "output", "fox", status="running", alive=True, max_train_steps=100_000)
        writer = threading.Thread(target=train, args=(run, 151, until))
        writer.start()
        try:
            served.start()
            report(measure(served, known.minutes, known.early), print)
        finally:
            until.set()
            writer.join()
            served.stop()


if __name__ == "__main__":
    main()
