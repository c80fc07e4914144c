"""What the server keeps of opened pages stays within bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio.state_holder import SessionState, StateHolder
from starlette.testclient import TestClient

from gui import app
from gui.places import Places
from gui.server import sessions


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateHolder]:
    """Where the running server keeps what belongs to a page."""
    monkeypatch.setattr(sessions, "SECONDS", 0.01)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # put back afterwards
    application: Any = app.make_application(Places(tmp_path, tmp_path / "state"))
    inner = application
    while not hasattr(inner, "routes"):  # what is around the page
        inner = inner._app
    apps = [route.app for route in inner.routes if hasattr(route, "app")]
    [found] = [inside.state_holder for inside in apps if hasattr(inside, "state_holder")]
    with TestClient(application):
        yield found


def numbers(session: SessionState) -> tuple[set[int], set[int]]:
    return set(session.blocks_config.blocks), set(session.config_values)


def test_copies_of_components_are_forgotten_while_the_server_runs(holder: StateHolder) -> None:
    page = holder["a page"]
    before = numbers(page)
    page[10_000_000] = next(iter(page.blocks_config.blocks.values()))
    page._update_value_in_config(10_000_000, "a value")
    deadline = time.monotonic() + 300
    while numbers(page) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert numbers(page) == before


def test_only_the_pages_used_last_are_remembered(holder: StateHolder) -> None:
    pages = [str(number) for number in range(sessions.MOST)]
    for page in [*pages, "0", "one more"]:
        holder[page]
    assert list(holder.session_data) == [*pages[2:], "0", "one more"]
