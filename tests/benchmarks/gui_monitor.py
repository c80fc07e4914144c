"""What watching a long run costs the server: a tick with new steps, and one with nothing new.

    python -m tests.benchmarks.gui_monitor [--steps 1000000] [--rounds 15]

Targets with 1,000,000 step events in the run: a tick that draws the charts anew within 300 ms, a tick with nothing new
within 15 ms of CPU. The page's own handler is called in this process, then a page is left open on a served one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from gui.app import IDLE_SECONDS, TICK_SECONDS, Page
from gui.places import Places
from gui.tabs import monitor_tab
from tests.gui.test_gui_fake_run import make_run
from tests.support.browser import Served, chromium, open_page, open_tab
from trainer.runs.run_folder import RunFolder


def write_steps(run: RunFolder, first: int, count: int) -> None:
    with run.events_file.open("a", encoding="utf-8") as file:
        for step in range(first, first + count):
            line = {
                "event": "step", "time": 1.7e9 + step * 0.1, "global_step": step, "epoch": step // 1000, "lr": 1e-4,
                "loss": 0.1 + (step * 7919 % 1000) / 1e4, "grad_norm": 0.5, "step_seconds": 0.1, "data_seconds": 0.001,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")


def ticks(page: Page, run: RunFolder, steps: int, rounds: int) -> tuple[float, list[float], list[float]]:
    """Seconds until all was read, of ticks with a new step, and CPU seconds of ticks with nothing new.

    A tick reads a bounded part of a long run, so that the page is never held up; the first ones come one after another.
    """
    data: dict[Any, Any] = {item: getattr(item, "value", None) for item in page.blocks.blocks.values()}
    data |= {page.bar.picker: str(run.path), page.seen: {}}

    def tick() -> None:
        data.update({key: value for key, value in page.refresh(data).items() if key is page.seen})

    started = time.perf_counter()
    while page.watch.look(run).history.step < steps - 1:
        tick()
    first = time.perf_counter() - started
    drawn, idle = [], []
    for number in range(rounds):
        time.sleep(monitor_tab.CHART_SECONDS)
        write_steps(run, steps + number, 1)
        started = time.perf_counter()
        tick()
        drawn.append(time.perf_counter() - started)
        begun = time.process_time()
        tick()
        idle.append(time.process_time() - begun)
    return first, drawn, idle


def watched(served: Served, tick_seconds: float, seconds: float) -> tuple[float, float]:
    """CPU seconds of the server in the time of a tick: without a page, and what a page open at the Monitor tab adds."""
    served.start()
    assert served.process is not None
    try:
        time.sleep(5)
        alone = _cpu(served.process.pid, lambda: time.sleep(seconds))
        with chromium() as browser:
            page = browser.new_page()
            open_page(page, served)
            open_tab(page, "Monitor")
            page.wait_for_timeout(20_000)  # in which all of it is read
            open_to_it = _cpu(served.process.pid, lambda: page.wait_for_timeout(seconds * 1000))
    finally:
        served.stop()
    return alone / seconds * tick_seconds, (open_to_it - alone) / seconds * tick_seconds


def _cpu(pid: int, meanwhile: Callable[[], object]) -> float:
    """CPU seconds of a process meanwhile."""
    before = sum(psutil.Process(pid).cpu_times()[:2])
    meanwhile()
    return sum(psutil.Process(pid).cpu_times()[:2]) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000, help="step events in the run")
    parser.add_argument("--rounds", type=int, default=15, help="how often each is measured")
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = Places(Path(folder), Path(folder) / "state" / "rekindle")
        run = make_run(places.home / "output", "long", status="running", alive=True, max_train_steps=2 * known.steps)
        write_steps(run, 151, known.steps)
        first, drawn, idle = ticks(Page(places), run, 151 + known.steps, known.rounds)
        served = Served(places.home)
        active = watched(served, TICK_SECONDS, 30)
        make_run(places.home / "output", "done", status="finished")
        resting = watched(served, IDLE_SECONDS, 30)
    print(f"load of the machine: {psutil.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians of {known.rounds}")
    print(f"{known.steps:,} step events read       {first:8.2f} s, a part each tick")
    print(f"tick that draws the charts anew    {1000 * statistics.median(drawn):8.1f} ms (target 300)")
    print(f"tick with nothing new, handler     {1000 * statistics.median(idle):8.1f} ms of CPU (target 15)")
    for name, (alone, tick), every in (("active", active, TICK_SECONDS), ("at rest", resting, IDLE_SECONDS)):
        print(
            f"the same served, run {name:13} {1000 * tick:8.1f} ms of CPU each {every:g} s (target 15), "
            f"beside {1000 * alone:.1f} ms of a server without a page"
        )


if __name__ == "__main__":
    main()
