"""The program on Windows' Python, under Wine: a training killed and resumed, the page driven from outside, the suite.

    python -m tests.long.windows FOLDER [--only setup|drill|page|suite] [PYTEST ARGUMENTS]

Needs root on Debian; `windows-setup` makes the folder at the first time (ten minutes, 4 GB). The browser is the one of
this machine. What Wine cannot show: NTFS itself (its folding of case, long paths, what a power cut leaves), virus
scanners that hold files open, a real console and its Ctrl-C, and GPUs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.browser import chromium, field, load_preset, open_tab
from tests.support.forked_trainer import REPOSITORY, free_port
from trainer.runs import detached, manifest
from trainer.runs.events import read_events
from trainer.runs.run_folder import RunFolder

HERE = Path(__file__).parent
SLOW = 1800.0  # seconds: Wine starts a process that imports torch in minutes on a busy machine
SUITE = (
    "tests/test_files.py",
    "tests/test_locks.py",
    "tests/runs",
    "tests/options",
    "tests/caching/test_packs.py",
    "tests/data/test_buckets.py",
    "tests/data/test_caption_edits.py",
    "tests/data/test_preparation.py",
    "tests/checkpoints/test_golden.py",
    "tests/checkpoints/test_export.py",
    "tests/faults/test_two_at_once.py",
)


def windows(folder: Path, *arguments: str) -> list[str]:
    """The command that runs Windows' Python with these arguments in its copy of the project."""
    return [str(HERE / "windows-run"), str(folder), *arguments]


def setup(folder: Path) -> None:
    subprocess.run([str(HERE / "windows-setup"), str(folder), str(REPOSITORY)], check=True)


def drill(folder: Path) -> None:
    """Train, kill, resume, and compare bit for bit."""
    command = windows(folder, "-m", "trainer", "drill", "--config", "presets/demo.toml", "--steps", "6")
    subprocess.run(command, check=True)


@contextmanager
def page_under_wine(folder: Path, home: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page's address, served by Windows' Python with a home of its own."""
    code = f"import os, runpy, sys; os.environ['REKINDLE_HOME'] = r'Z:\\w\\{home}'; "
    code += f"os.environ['XDG_STATE_HOME'] = r'Z:\\w\\{home}\\state'; "
    code += "sys.argv[1:] = ['--headless', '--server_port', sys.argv[1]]; runpy.run_path('app.py', run_name='__main__')"
    command = windows(folder, "-c", code, str(free_port()))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    address = ""
    while not address:
        line = process.stdout.readline()
        assert line, "the page ended before it said where it is"
        address = line.partition("Rekindle: ")[2].strip()
    try:
        yield address, process
    finally:
        detached.kill(detached.family_of(process.pid))


def when(fact: Callable[[], bool], what: str) -> None:
    """Wait for it, and say so."""
    began = time.monotonic()
    while not fact():
        assert time.monotonic() - began < SLOW, f"not within {SLOW:.0f} s: {what}"
        time.sleep(0.5)
    print(f"  {what} ({time.monotonic() - began:.0f} s)", flush=True)


def status_of(run: RunFolder) -> str:
    """What the run's record says; whether its process lives only Windows knows."""
    try:
        return str(json.loads(run.run_file.read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError):
        return ""


def steps_of(run: RunFolder) -> list[int]:
    return [event["global_step"] for event in read_events(run.events_file)[0] if event["event"] == "step"]


def served(folder: Path) -> None:
    """From the form to a run that is stopped, resumed, killed, and resumed to its end, by a browser outside of Wine."""
    home = f"home-{time.time_ns():x}"
    run = RunFolder(folder / "w" / home / "output" / "journey")
    run.path.parent.mkdir(parents=True)
    with page_under_wine(folder, home) as (address, _), chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(SLOW * 1000)
        expect.set_options(timeout=SLOW * 1000)
        page.goto(address)
        status = page.locator("#run-status")
        expect(status).to_contain_text("no run yet")
        print(f"  served at {address}", flush=True)
        load_preset(page, "demo")
        for name, value in {
            "pretrained_model_name_or_path": r"Z:\w\project\presets\demo\model",
            "train_data_dir": r"Z:\w\project\presets\demo\dataset",
            "output_dir": "output",
            "output_name": "journey",
            "max_train_steps": "600",
            "sample_every_n_steps": "0",
        }.items():
            field(page, name).fill(value)
        page.locator("#start-training").click()
        when(lambda: len(steps_of(run)) > 3, "the run trains")
        expect(status).to_contain_text(re.compile(r"running.*step [1-9]", re.DOTALL))
        open_tab(page, "Monitor")
        expect(page.locator("#loss-chart .js-plotly-plot")).to_be_visible()
        page.locator("#stop-training").click()
        when(lambda: status_of(run) == "stopped", "stopped on request, and saved")
        stopped_at = manifest.listing(run.checkpoints)[0].step
        resume(page)
        when(lambda: max(steps_of(run)) > stopped_at + 3, f"resumed at step {stopped_at}")
        page.locator("#kill-training").click()
        page.get_by_role("button", name="Kill it").click()
        expect(status).to_contain_text("interrupted")
        print(f"  killed after step {max(steps_of(run))}", flush=True)
        open_tab(page, "Train")
        field(page, "max_train_steps").fill(str(stopped_at + 8))
        resume(page)
        when(lambda: status_of(run) == "finished", f"resumed again and finished at step {stopped_at + 8}")
        assert (run.path.parent / "journey.safetensors").is_file()
    print(f"  {steps_done_twice(run)} steps were done twice, with equal losses, rates, gradients and batches")


def steps_done_twice(run: RunFolder) -> int:
    """How many steps were lost by the kill and done again; each has to be what it was."""
    done: dict[int, list[list[object]]] = {}
    for event in read_events(run.events_file)[0]:
        if event["event"] == "step":
            compared = [event[name] for name in ("loss", "lr", "grad_norm", "batch")]
            done.setdefault(event["global_step"], []).append(compared)
    twice = [outcomes for outcomes in done.values() if len(outcomes) > 1]
    assert twice and all(first == again for first, *others in twice for again in others)
    return len(twice)


def resume(page: Page) -> None:
    open_tab(page, "Train")
    field(page, "resume_from_checkpoint").fill("latest")
    page.locator("#start-training").click()


def suite(folder: Path, arguments: list[str]) -> None:
    """Those files of the suite that can run there, or what is named."""
    chosen = arguments or [*SUITE, "-q", "-n", "0"]
    print("pytest ended with", subprocess.run(windows(folder, "-m", "pytest", *chosen), check=False).returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("setup", "drill", "page", "suite"))
    known, rest = parser.parse_known_args()
    parts: dict[str, Callable[[], None]] = {
        "setup": lambda: setup(known.folder),
        "drill": lambda: drill(known.folder),
        "page": lambda: served(known.folder),
        "suite": lambda: suite(known.folder, rest),
    }
    for name, part in parts.items():
        if known.only in (None, name):
            print(f"--- {name}", flush=True)
            part()


if __name__ == "__main__":
    main()
