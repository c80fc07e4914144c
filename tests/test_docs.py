"""README and docs: every link leads somewhere, and every command in them does what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.options.sources import read_toml
from trainer.options.writing import to_toml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r'(?:\]\(|src="|srcset=")([^)"#]+)')
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`python -m ([\w.]+)")
STEPS = 400  # of the demo; its last checkpoint is named in the docs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if not link.startswith(("http://", "https://"))]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_is_named_as_a_command_is_there(page: Path) -> None:
    modules = {module.rstrip(".") for module in INLINE.findall(page.read_text())}
    there = {module for module in modules if (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()}
    packages = {module for module in modules if (ROOT / module.replace(".", "/")).is_dir()}
    assert modules - there - packages == set()


def commands() -> Iterator[str]:
    """The trainer's commands in the shell blocks, each once; those that go on from others after them."""
    found = [
        line
        for page in PAGES
        for block in BLOCK.findall(page.read_text())
        for line in block.splitlines()
        if line.startswith("python -m trainer ")
    ]
    before = ("import", "train", "dataset", "cache", "list", "pin", "verify", "export")
    order = (*before, "resize", "merge", "extract", "convert", "metadata", "report", "drill")
    yield from sorted(dict.fromkeys(found), key=lambda line: order.index(line.split()[3]))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a user's: the shipped presets, and one of his own that trains the demo's pictures for a moment."""
    home = tmp_path_factory.mktemp("home")
    (home / "presets").mkdir()
    (home / "presets/demo").symlink_to(ROOT / "presets/demo")
    values = {name: given.value for name, given in read_toml(ROOT / "presets/demo.toml").items()}
    short = {"save_every_n_steps": 2, "sample_every_n_steps": 0, "sample_at_first": False, "sample_prompts": ""}
    demo = to_toml(values | short | {"max_train_steps": 4, "train_batch_size": 2}, complete=False)
    (home / "presets/demo.toml").write_text(demo)
    (home / "mine.toml").write_text(demo.replace('"zorb"', '"mine"'))
    (home / "theirs.json").write_text('{"LoRA_type": "Standard", "network_dim": 8, "epoch": 4}')
    return home


def test_every_command_of_the_docs_does_what_it_says(home: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    lines = list(commands())
    assert len(lines) >= 8
    for line in lines:
        # In the docs the run is called as runs are by default, and ends where the demo ends.
        line = line.replace("output/last", "output/zorb").replace(f"step-{STEPS:08d}", "step-00000004")
        arguments = [sys.executable, *shlex.split(line)[1:]]
        done = subprocess.run(arguments, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    assert (home / "output/zorb/checkpoints/step-00000004/manifest.json").is_file()
    shutil.rmtree(home / "output")
