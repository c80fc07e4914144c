"""One thread for everything: the tests' tensors are tiny, and threads would only wait for one another."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.support.forked_trainer import Server

for module in ("runs_at_tiny_size", "kills", "damages", "failing_disk", "exactness"):  # they assert
    pytest.register_assert_rewrite(f"tests.{module}")

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported anywhere
    os.environ[variable] = "1"

# Under nohup SIGHUP is ignored, which processes inherit and the trainer respects; the tests send it.
if sys.platform != "win32":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("untimed", deadline=None, database=None, print_blob=True)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser that waited too long on a busy machine gets a second try; the report names what needed one."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(
                pytest.mark.flaky(reruns=1, only_rerun=["TimeoutError", "Locator expected", "Page.*Timeout"])
            )


# The model takes seconds of imports, which tests that need none do not wait for.


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion in diffusers' folder format."""
    from tests.support import tiny

    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures of four sizes, each used twice an epoch."""
    from tests.support import tiny

    sizes = ((64, 64), (96, 48), (48, 96), (80, 64))
    return tiny.make_images(tmp_path_factory.mktemp("images"), count=7, repeats=2, sizes=sizes)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, headless. Not for a session: other tests in this process run event loops of their own."""
    from tests.support.browser import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def trainers() -> Iterator[Server]:
    """Starts trainer processes without the seconds that their imports take."""
    from tests.support.forked_trainer import Server

    with Server() as server:
        yield server
