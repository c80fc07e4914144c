"""The model files of a run: each with its step, loss, size and date. No widget here."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import safetensors

from gui import look
from gui.views import runs
from gui.views.monitor import View
from trainer import quantities
from trainer.file_memory import stamp_of
from trainer.runs import shelf
from trainer.runs.run_folder import RunFolder

HEADINGS = ("File", "Step", "Loss", "Size", "Date", "")


@dataclass(frozen=True)
class Result:
    """A model file. `step`: None where its header does not tell it."""

    path: Path
    step: int | None
    bytes: int
    time: float


def listing(run: RunFolder) -> list[Result]:
    """The run's model files, the newest step first."""
    found = []
    for path in filter(Path.is_file, shelf.model_files(run)):
        with contextlib.suppress(OSError):  # deleted meanwhile
            status, header = path.stat(), _header(path, stamp_of(path))
            step = _whole(header.get("ss_steps", ""))
            found.append(Result(path, step, status.st_size, status.st_mtime))
    return sorted(found, key=lambda result: (result.step or 0, result.time), reverse=True)


def model_file(run: RunFolder, name: str) -> Path | None:
    """The run's model file of that name; None when it has none, so that no other file can be named."""
    return next((path for path in shelf.model_files(run) if path.name == name and path.is_file()), None)


@functools.lru_cache(maxsize=512)
def _header(path: Path, stamp: str | None) -> Mapping[str, str]:
    """The metadata of a file; empty where it cannot be read. `stamp`: of its content."""
    try:
        with safetensors.safe_open(str(path), framework="numpy") as opened:
            return opened.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return {}


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def table(view: View | None) -> str:
    """All of them in HTML, with what can be done with each."""
    results = listing(view.run) if view is not None else []
    if view is None or not results:
        return look.note(
            "No model file of this run yet. One is written at its end, and at every save before it. The Resume tab "
            "writes that of a checkpoint: Export the model file."
        )
    return look.table(HEADINGS, [_row(view, result) for result in results], name=f"Model files of {view.name}")


def _row(view: View, result: Result) -> Sequence[str]:
    loss = view.history.loss_at(result.step) if result.step is not None else None
    name = result.path.name
    query = urlencode({"run": str(view.run.path), "name": name})
    download = look.link("Download", f"results/file?{query}", download=name, title=f"Download {name}")
    buttons = [
        download,
        look.button("Copy path", "copy", str(result.path), title=f"Copy the path of {name}"),
        look.button("Sample", "sample", name, title=f"Make sample images with {name}"),
        look.button("Delete ...", "delete", name, title=f"Delete {name}"),
    ]
    return [
        name,
        "–" if result.step is None else f"{result.step:,}",
        "–" if loss is None else f"{loss:.4f}",
        quantities.size(result.bytes),
        runs.moment(result.time),
        look.Html("".join(buttons)),
    ]
