"""The checkpoints that the Resume tab lists: where they are, whether they are sound, what can be done with them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gui import look
from gui.places import Places
from trainer import quantities
from trainer.checkpoints import resume
from trainer.checkpoints.choosing import AUTO, LATEST
from trainer.file_memory import stamp_of
from trainer.models import families
from trainer.options.checks import read_config
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError
from trainer.runs import manifest
from trainer.runs.manifest import CheckpointDamaged, Found
from trainer.runs.run_folder import RunFolder

AFRESH = ("Start afresh", "")
HEADINGS = ("", "Step", "Epochs done", "Loss", "Size", "Saved", "State", "With this form")


@dataclass(frozen=True)
class Shelf:
    """A folder of checkpoints. `run`: the form's run when it is that run's own, None for any other folder."""

    folder: Path
    run: RunFolder | None
    found: tuple[Found, ...]  # newest first

    def value(self, item: Found) -> str:
        """What resume_from_checkpoint has to be for a checkpoint of it."""
        return str(item.step) if self.run is not None else str(item.path)

    def chosen(self, wanted: str) -> Found | None:
        """The checkpoint that resume_from_checkpoint means, if it is one of these."""
        if wanted in (LATEST, AUTO):
            return next((item for item in self.found if item.manifest), None)
        return next((item for item in self.found if wanted in (self.value(item), str(item.path))), None)


def shelf(places: Places, run: RunFolder | None, typed: str) -> Shelf | None:
    """The checkpoints of the form's run, or of a folder that was typed: a run's, or one of checkpoints, or one itself.

    None where there is no such folder.
    """
    if not typed.strip():
        return None if run is None else Shelf(run.checkpoints, run, tuple(manifest.listing(run.checkpoints)))
    try:
        path = (places.home / Path(typed.strip()).expanduser()).resolve()
        if (path / manifest.MANIFEST).is_file():
            path = path.parent
        elif (path / "checkpoints").is_dir():
            path = path / "checkpoints"
        if not path.is_dir():
            return None
        own = run is not None and path == run.checkpoints.resolve()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a NUL in it
        return None
    return Shelf(path, run if own else None, tuple(manifest.listing(path)))


def choices(found: Shelf | None, wanted: str) -> list[tuple[str, str]]:
    """(label, resume_from_checkpoint): afresh, the latest, each checkpoint, and whatever else the form has."""
    listed = [AFRESH]
    if found is not None and found.run is not None:
        sound = next((item for item in found.found if item.manifest), None)
        listed.append((f"Latest (step {sound.step:,})" if sound else "Latest (there is none yet)", LATEST))
        listed.append(("Latest, or afresh if there is none (auto)", AUTO))
    if found is not None:
        listed += [(label(item), found.value(item)) for item in found.found]
    if wanted not in [value for _, value in listed]:
        listed.append((wanted, wanted))
    return listed


def label(item: Found) -> str:
    """Step, epoch, loss, size and date of a checkpoint, and whether it is complete."""
    if item.manifest is None:
        return f"Step {item.step:,} · damaged: {item.problem}"
    parts = [f"Step {item.step:,}", f"epoch {epoch_of(item)}"]
    if item.manifest.loss is not None:
        parts.append(f"loss {item.manifest.loss:.4f}")
    parts += [quantities.size(item.manifest.bytes), _date(item.manifest.created)]
    return " · ".join([*parts, "complete", *(["pinned"] if item.pinned else [])])


def _date(seconds: float) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(seconds))


# --- verification --------------------------------------------------------------------------------------------------


class Verified:
    """What reading every byte of a checkpoint found, for as long as its files stay as they were then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[tuple[str | None, ...], float, str]] = {}

    def verify(self, item: Found) -> None:
        before = _stamps(item.path)
        try:
            manifest.verify(item.path)
            problem = ""
        except CheckpointDamaged as error:
            problem = str(error)
        with self._lock:
            self._known[item.path] = (before, time.time(), problem)

    def state(self, item: Found) -> tuple[str, str]:
        """The state of a checkpoint in words, and its kind: good, bad, or nothing in particular."""
        with self._lock:
            verified = self._known.get(item.path)
        if item.manifest is None:
            return f"damaged: {item.problem}", "bad"
        if verified is not None and verified[0] == _stamps(item.path):
            if verified[2]:
                return f"damaged: {verified[2]}", "bad"
            return f"verified at {time.strftime('%H:%M', time.localtime(verified[1]))}", "good"
        return "complete", ""


def _stamps(folder: Path) -> tuple[str | None, ...]:
    try:
        return tuple(stamp_of(path) for path in sorted(folder.iterdir()))
    except OSError:
        return ()


# --- compatibility -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _config_of(folder: Path, stamp: str | None) -> Config | None:
    try:
        return read_config(folder / "config.toml")
    except ConfigError:
        return None


def config_of(folder: Path) -> Config | None:
    """The options a checkpoint was trained with; None where they cannot be read."""
    return _config_of(folder, stamp_of(folder / "config.toml"))


def processes_of(folder: Path) -> int:
    """The processes that trained it. Raises CheckpointDamaged."""
    processes = manifest.read_json(folder, "environment.json").get("processes")
    return processes if isinstance(processes, int) and processes > 0 else 1


@functools.lru_cache(maxsize=1024)
def _completed(folder: Path, stamp: str | None) -> tuple[int, int] | None:
    """Epochs completed, and steps of the next one; None where they cannot be read."""
    try:
        state = manifest.read_json(folder, "state.json")
        return manifest.of(int, state.get("epoch")), manifest.of(int, state.get("place"))
    except (CheckpointDamaged, ValueError):
        return None


def epoch_of(item: Found) -> int:
    """The epoch that a checkpoint's last step belongs to, counted from 1 as in the bar and in the log."""
    done = _completed(item.path, stamp_of(item.path / "state.json"))
    if done is None:
        return item.manifest.epoch if item.manifest is not None else 0
    return done[0] + (done[1] > 0)


def fit(item: Found, now: Config | None) -> str:
    """Whether the form could continue a checkpoint, by the options alone."""
    then = config_of(item.path) if item.manifest else None
    if now is None or then is None:
        return "–"
    left = {name: getattr(then, name) for name in OPTIONS if getattr(now, name) == families.AUTO}
    now = now.replace(**left)  # what the form leaves to the base model's files, which are compared by content
    try:
        differences = resume.compare_options(then, now, processes_of(item.path), 1)
    except CheckpointDamaged:
        return "–"
    locked = [difference.name for difference in differences if difference.on_resume == "locked"]
    if locked:
        return f"does not fit: {_names(locked)}"
    asking = [difference.name for difference in differences if difference.on_resume == "trajectory"]
    return f"differs: {_names(asking)}" if asking else "fits"


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- the table -----------------------------------------------------------------------------------------------------


def table(found: Shelf | None, wanted: str, now: Config | None, verified: Verified) -> str:
    """All of them in HTML, each with a button that chooses it."""
    if found is None or not found.found:
        return ""
    chosen = found.chosen(wanted)
    rows = [_row(found, item, item is chosen, now, verified) for item in found.found]
    return look.table(HEADINGS, rows, name="Checkpoints")


def _row(found: Shelf, item: Found, chosen: bool, now: Config | None, verified: Verified) -> list[str]:
    words = "chosen" if chosen else "Choose"
    choose = look.button(words, "choose", found.value(item), title=f"Continue from step {item.step}", pressed=chosen)
    state, kind = verified.state(item)
    shown = look.Html(f"{look.mark(state, kind)}{' ' + look.mark('pinned') if item.pinned else ''}")
    if item.manifest is None:
        return [choose, f"{item.step:,}", "–", "–", "–", "–", shown, "–"]
    listed = item.manifest
    loss = "–" if listed.loss is None else f"{listed.loss:.4f}"
    size, date = quantities.size(listed.bytes), _date(listed.created)
    return [choose, f"{item.step:,}", str(epoch_of(item)), loss, size, date, shown, fit(item, now)]


def abandoned(run: RunFolder | None) -> list[tuple[str, Path]]:
    """(name, folder) of the checkpoints that were moved aside when the run went back behind them."""
    if run is None or not run.abandoned.is_dir():
        return []
    return [(path.parent.name, path) for path in sorted(run.abandoned.glob("*/checkpoints")) if path.is_dir()]


def where(found: Shelf | None, run: RunFolder | None, typed: str) -> str:
    """In a sentence: which folder is listed, and what else there is."""
    if found is None:
        words = f"There is no folder {typed.strip()}." if typed.strip() else "The form names no run yet."
        return look.note(words, kind="warn")
    count = len(found.found)
    have = "no checkpoints" if count == 0 else "1 checkpoint" if count == 1 else f"{count} checkpoints"
    if found.run is None:
        return look.note(f"{found.folder} has {have}. To list the form's own run, clear the field above.")
    note = look.note(f"The form's run is {found.run.path}; it has {have}.")
    aside = "".join(
        look.button(f"{name}: {len(manifest.listing(folder))} kept", "folder", str(folder))
        for name, folder in abandoned(run)
    )
    return note + (f'<p class="aside">Left behind by going back, and kept: {aside}</p>' if aside else "")


def checkpoint_options(folder: Path) -> Mapping[str, Any]:
    """Every option as the checkpoint has it; empty where they cannot be read."""
    then = config_of(folder)
    return {} if then is None else {name: getattr(then, name) for name in OPTIONS}
