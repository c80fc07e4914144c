"""Where the browser interface finds and keeps its own files. It knows nothing of a run's content."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoints import choosing
from trainer.options.config import OPTIONS, Config
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)
CODE = Path(__file__).resolve().parent.parent
MOST_FOLDERS = 30


@dataclass(frozen=True)
class Places:
    """`home`: where relative paths begin and the user's presets are; `state`: what the interface itself remembers;
    `browse`: folders inside which the page may show what there is, to choose from."""

    home: Path
    state: Path
    browse: tuple[Path, ...] = ()

    def browsable(self) -> tuple[Path, ...]:
        """The folders that the owner named, or the home where none is; those that are there, links resolved."""
        there = [path.resolve() for path in self.browse if path.is_dir()]
        return tuple(dict.fromkeys(there)) or (self.home.resolve(),)

    @property
    def shipped_presets(self) -> Path:
        return CODE / "presets"

    @property
    def user_presets(self) -> Path:
        return self.home / "presets" / "user"

    @property
    def thumbnails(self) -> Path:
        return self.state / "thumbnails"

    @property
    def uploads(self) -> Path:
        return self.state / "uploads"

    @property
    def queue(self) -> Path:
        """What `python -m trainer queue` works on too: see trainer.runs.queue.usual_folder."""
        return self.state / "queue"

    @property
    def token_file(self) -> Path:
        return self.state / "token"

    @property
    def draft_file(self) -> Path:
        return self.state / "draft.json"

    @property
    def put_aside_file(self) -> Path:
        """The draft that loading a preset has replaced."""
        return self.state / "put-aside.json"

    @property
    def _folders_file(self) -> Path:
        return self.state / "output_folders.json"

    def output_folders(self) -> list[Path]:
        """Every output folder in which runs are looked for: the usual one and those that were used before."""
        remembered: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self._folders_file.read_text(encoding="utf-8"))
            remembered = [entry for entry in content if isinstance(entry, str)] if isinstance(content, list) else []
        folders = [self.home / OPTIONS["output_dir"].default, *(Path(entry) for entry in remembered)]
        return list(dict.fromkeys(folder.resolve() for folder in folders))

    def remember_output_folder(self, folder: Path) -> None:
        """Look for runs there from now on."""
        folder = (self.home / folder).resolve()
        folders = self.output_folders()
        if folder in folders:
            return
        names = [str(folder), *(str(entry) for entry in folders)][:MOST_FOLDERS]
        try:
            files.write_text(self._folders_file, json.dumps(names, indent=1) + "\n")
        except OSError as error:
            logger.warning("the output folder %s cannot be remembered: %s", folder, error)

    def known_runs(self) -> list[RunFolder]:
        """Every run in the output folders, the one that was active last first."""
        return run_folder.find_runs(self.output_folders())


def usual_places(environment: Mapping[str, str] = os.environ) -> Places:
    """Home is the folder of the source checkout, or the current folder when installed; REKINDLE_HOME names another.

    State is kept in $XDG_STATE_HOME/rekindle, usually ~/.local/state/rekindle. REKINDLE_BROWSE names the folders that
    may be browsed, between the signs that PATH has.
    """
    checkout = CODE if (CODE / "pyproject.toml").is_file() else Path.cwd()
    home = Path(environment.get("REKINDLE_HOME") or checkout).expanduser().resolve()
    state = Path(environment.get("XDG_STATE_HOME") or "~/.local/state").expanduser().resolve() / "rekindle"
    named = [path for path in environment.get("REKINDLE_BROWSE", "").split(os.pathsep) if path]
    return Places(home, state, tuple((home / Path(path).expanduser()).resolve() for path in named))


def placed(places: Places, settings: Config) -> Config:
    """The config with its paths as the trainer will find them: it runs in the home of the page."""
    changes: dict[str, Any] = {"output_dir": str(places.home / settings.output_dir)}
    for name, option in OPTIONS.items():
        value = getattr(settings, name)
        if not option.path:
            continue
        if isinstance(value, tuple):
            changes[name] = tuple(_found(places, path) for path in value)
        elif value:
            changes.setdefault(name, _found(places, value))
    if choosing.wanted(settings.resume_from_checkpoint) != "path":
        changes.pop("resume_from_checkpoint", None)
    return settings.replace(**changes)


def _found(places: Places, path: str) -> str:
    """A path in the home of the page, where there is something; otherwise as it is written."""
    return str(places.home / path) if files.exists(places.home / path) else path
