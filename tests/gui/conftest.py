"""A page that is served, and a browser that has it open: a module says with a fixture `home` what is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.support.browser import Served


@pytest.fixture(scope="module")
def served(home: Path) -> Iterator[Served]:
    """The page of the module's home, as `python app.py` serves it."""
    from tests.support.browser import serving

    with serving(home) as server:
        yield server


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """That page in a browser, with no draft left by another test."""
    from tests.support.browser import fresh_page

    with fresh_page(browser, served) as page:
        yield page
