"""Keeps what a run's images are like as a whole, and tells a resume with other images how far they have moved.

On a thread of its own, at low priority, once for each set of images; the training neither waits for it nor sees it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from trainer.checkpoints.resume import Verdict
from trainer.data import portrait
from trainer.runs import kept_portraits, manifest
from trainer.runs.manifest import CheckpointDamaged
from trainer.runs.run_folder import RunFolder
from trainer.training.beginning import Beginning

logger = logging.getLogger(__name__)
NICE = 15


@contextlib.contextmanager
def kept(begun: Beginning) -> Iterator[None]:
    """Within, a thread looks at the images, unless that was done before. What it has not ended at the end is left."""
    if not begun.session.writes or not begun.config.dataset_portrait:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_work, args=(begun, over), name="portrait", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _work(begun: Beginning, over: threading.Event) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    digest, separator = begun.inputs.images["digest"], begun.config.caption_separator
    now = kept_portraits.read(begun.run, digest)
    if now is None:
        now = portrait.portrait(begun.inputs.scan.entries, digest, separator, over.is_set)
        if now is None:
            return
        try:
            kept_portraits.write(begun.run, now)
        except OSError as error:
            logger.info("What the images are like cannot be kept: %s", error)
    then = before(begun.verdict) if begun.verdict else None
    if then is None or then["digest"] == digest:
        return
    shifts = portrait.compare(then, now)
    begun.session.events.write(
        "dataset_shift",
        begun.session.global_step,
        images=[then["images"], now["images"]],
        shifts=[shift.as_json() for shift in shifts],
    )
    logger.info("The images against those before:\n%s", "\n".join(portrait.lines(shifts)))


def before(verdict: Verdict) -> dict[str, Any] | None:
    """The portrait of the images that a checkpoint was trained with, where its run kept one."""
    try:
        digest = str(manifest.read_json(verdict.path, "dataset.json")["digest"])
    except (CheckpointDamaged, KeyError):
        return None
    return kept_portraits.read(RunFolder(verdict.path.resolve().parent.parent), digest)
