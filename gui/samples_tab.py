"""The Samples tab: the previews of the run that is watched, as thumbnails made into a cache of our own."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from gui.history import Sample
from gui.monitor import View
from gui.places import Places
from trainer.memory import stamp_of
from trainer.runs import RunFolder

logger = logging.getLogger(__name__)
LARGEST_SIDE = 512
MOST_SHOWN = 120
MADE_AT_ONCE = 8  # thumbnails a look at the run makes at most; the next looks make the others
MOST_KEPT = 2000


class SamplesTab:
    def __init__(self, places: Places) -> None:
        self._folder = places.thumbnails
        gr.HTML("<b>Samples of the run shown above,</b> the newest step first. Click one to enlarge it.")
        self.gallery = gr.Gallery(
            label="Samples", show_label=False, elem_id="sample-gallery", columns=4, object_fit="contain", height=640,
            interactive=False, allow_preview=True, buttons=["fullscreen"],
        )  # fmt: skip

    def outputs(self) -> set[Any]:
        return {self.gallery}

    def show(self, view: View | None, seen: Any) -> tuple[dict[Any, Any], Any]:
        """The gallery, when it differs from what `seen` says was shown; and what is shown now."""
        stamp = view.stamp if view is not None else None
        if seen and seen[0] == (stamp, True):
            return {}, seen
        samples = newest_first(view) if view is not None else []
        shown, complete = gallery_items(view.run, samples, self._folder) if view is not None else ([], True)
        now = ((stamp, complete), stamp[0] if stamp else "", shown)
        if seen and seen[1:] == now[1:]:
            return {}, now
        return {self.gallery: gr.update(value=shown, columns=columns(samples))}, now


def newest_first(view: View) -> list[Sample]:
    """The latest samples, by step from the newest on, within a step by prompt."""
    return sorted(view.history.samples.values(), key=lambda sample: (-sample.step, sample.index))[:MOST_SHOWN]


def columns(samples: list[Sample]) -> int:
    """So many that a row holds whole steps: a multiple of the samples a step has, four to eight of them."""
    most = max(Counter(sample.step for sample in samples).values(), default=4)
    return next((count for count in range(4, 9) if count % most == 0), 6)


def gallery_items(run: RunFolder, samples: list[Sample], folder: Path) -> tuple[list[tuple[str, str]], bool]:
    """(thumbnail, caption) of each sample that can be read, and whether that is all of them."""
    items, made = [], 0
    for sample in samples:
        picture = confined(run, sample.path)
        target = thumbnail_path(picture, folder) if picture is not None else None
        if picture is None or target is None:
            continue
        if not target.is_file():
            if made == MADE_AT_ONCE:
                continue
            made += 1
            if not make_thumbnail(picture, target):
                continue
        items.append((str(target), f"step {sample.step:,} · {sample.prompt}"))
    return items, made < MADE_AT_ONCE


def confined(run: RunFolder, relative: str) -> Path | None:
    """The sample's file, when it is one inside the run's samples folder."""
    try:
        folder, path = run.samples.resolve(), (run.path / relative).resolve()
        return path if path.is_relative_to(folder) and path.is_file() else None
    except (OSError, ValueError):
        return None


def thumbnail_path(picture: Path, folder: Path) -> Path | None:
    """Where the picture's thumbnail is or will be, by its content's stamp; None when the picture is gone."""
    stamp = stamp_of(picture)
    if stamp is None:
        return None
    return folder / f"{hashlib.sha256(f'{picture} {stamp}'.encode()).hexdigest()[:40]}.webp"


def make_thumbnail(picture: Path, target: Path) -> bool:
    """Write a small copy; whether that went well (a picture may still be in the middle of being written)."""
    temporary = target.with_suffix(".tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(picture) as opened:
            opened.draft("RGB", (LARGEST_SIDE, LARGEST_SIDE))
            opened.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            opened.convert("RGB").save(temporary, "WEBP", quality=85)
        temporary.replace(target)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        logger.debug("no thumbnail of %s: %s", picture, error)
        return False
    return True


def prune_thumbnails(folder: Path, most: int = MOST_KEPT) -> None:
    """Keep the newest thumbnails; the others are made again when they are needed."""
    with contextlib.suppress(OSError):
        files = sorted(folder.glob("*.webp"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[most:]:
            path.unlink(missing_ok=True)
