"""What the page's own script keeps up to date every second: lines, numbers and log of the run that is watched.

Gradio's own events take the browser a third of a second of work each, whatever they change: they are left to what
changes now and then, and are called for by `news`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from gui import look
from gui.places import Places
from gui.server import console_log
from gui.tabs import monitor_tab, run_bar
from gui.views import runs
from gui.views.monitor import View, Watch


def news(places: Places, view: View | None) -> int:
    """A number that changes when something does that Gradio's widgets show: buttons, notices, samples, messages."""
    if view is None:
        return zlib.crc32(json.dumps([str(path) for path in runs.paths(places)]).encode())
    history = view.history
    samples = (len(history.samples), history.samplings, len(history.abandoned), len(history.resumes))
    lines = [str(view.run.path), view.condition, samples, history.saves, history.stepped, run_bar.notice(view)]
    return zlib.crc32(json.dumps(lines).encode())


def update(places: Places, watch: Watch, path: str, have: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """The parts that are not as in `have`, which is what the answer before called so. `whole`: those of the Monitor tab
    too. Where "news" is not what Gradio showed last, its own event is due."""
    run = runs.chosen(places, path)
    view = watch.look(run) if run is not None else None
    now: dict[str, Any] = {}
    parts: dict[str, str] = {}

    def tell(part: str, html: str) -> None:
        now[part] = zlib.crc32(html.encode())
        if have.get(part) != now[part]:
            parts[part] = html

    tell("run-status", run_bar.status_line(view))
    tell("run-progress", run_bar.progress_bar(view))
    if whole:
        tell("run-facts", monitor_tab.facts(view))
        tell("run-hint", monitor_tab.hint(view))
        now["run-log"] = [path, *console_log.stamp(view.run.console_file)] if view is not None else []
        if have.get("run-log") != now["run-log"]:
            parts["run-log"] = look.log(console_log.tail(view.run.console_file) if view is not None else "")
    return {
        "parts": parts,
        "have": {**have, **now},
        "active": view is not None and view.active,
        "short": run_bar.in_short(view) if view is not None else {},
        "news": news(places, view),
    }
