"""What watching a long run costs the server: a tick with new steps, and one with nothing new.

    python -m tests.benchmarks.gui_monitor [--steps 1000000] [--rounds 15]

Targets with 1,000,000 step events in the run: all points of the charts within 300 ms, what is new of them within
100 ms, a look with nothing new within 15 ms of CPU. The answers to the page's script are made in this process, then a
page is left open on a served one.
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

from gui.places import Places
from gui.tabs import live
from gui.views import charts, runs
from gui.views.charts import Asked
from gui.views.monitor import Watch
from tests.gui.test_gui_fake_run import make_run
from tests.support.browser import Served, chromium, open_page, open_tab
from trainer.runs.run_folder import RunFolder

TICK_SECONDS, IDLE_SECONDS = 1.0, 3.0  # as charts.js has them: between two looks at a run that goes on, and at another


def write_steps(run: RunFolder, first: int, count: int) -> None:
    with run.events_file.open("a", encoding="utf-8") as file:
        for step in range(first, first + count):
            line = {
                "event": "step", "time": 1.7e9 + step * 0.1, "global_step": step, "epoch": step // 1000, "lr": 1e-4,
                "loss": 0.1 + (step * 7919 % 1000) / 1e4, "grad_norm": 0.5, "step_seconds": 0.1, "data_seconds": 0.001,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")


def ticks(
    places: Places, run: RunFolder, steps: int, rounds: int
) -> tuple[float, list[float], list[float], list[float]]:
    """Seconds until all was read, of charts whole, of what is new of them, and CPU seconds of looks with nothing new.

    A look reads a bounded part of a long run, so that the page is never held up; the first ones come one after another.
    """
    watch, asked = Watch(), Asked()
    have: dict[str, Any] = {}

    def look() -> None:
        have.update(live.update(places, watch, str(run.path), have, whole=True)["have"])

    started = time.perf_counter()
    while watch.look(run).history.step < steps - 1:
        look()
    first = time.perf_counter() - started
    whole, new, idle = [], [], []
    cursor = ""
    for number in range(rounds):
        started = time.perf_counter()
        cursor = charts.news(runs.curves(places, watch, run, []), asked, "")["have"]
        whole.append(time.perf_counter() - started)
        write_steps(run, steps + number, 1)
        look()
        started = time.perf_counter()
        told = charts.news(runs.curves(places, watch, run, []), asked, cursor)
        new.append(time.perf_counter() - started)
        assert "whole" not in told, "what is new is sent, and no more"
        begun = time.process_time()
        look()
        idle.append(time.process_time() - begun)
    return first, whole, new, idle


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
        first, whole, new, idle = ticks(places, run, 151 + known.steps, known.rounds)
        served = Served(places.home)
        active = watched(served, TICK_SECONDS, 30)
        make_run(places.home / "output", "done", status="finished")
        resting = watched(served, IDLE_SECONDS, 30)
    print(f"load of the machine: {psutil.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians of {known.rounds}")
    print(f"{known.steps:,} step events read       {first:8.2f} s, a part each look")
    print(f"all points of the charts           {1000 * statistics.median(whole):8.1f} ms (target 300)")
    print(f"what is new of them                {1000 * statistics.median(new):8.1f} ms (target 100)")
    print(f"look with nothing new              {1000 * statistics.median(idle):8.1f} ms of CPU (target 15)")
    for name, (alone, tick), every in (("active", active, TICK_SECONDS), ("at rest", resting, IDLE_SECONDS)):
        print(
            f"the same served, run {name:13} {1000 * tick:8.1f} ms of CPU each {every:g} s (target 15), "
            f"beside {1000 * alone:.1f} ms of a server without a page"
        )


if __name__ == "__main__":
    main()
