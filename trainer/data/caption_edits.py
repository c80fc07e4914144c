"""Captions changed on disk, one or many at a time, with a journal from which every change can be undone. No torch.

A change is written to the journal before it is made, with the bytes that it replaces. So whatever interrupts it, the
old captions are there: undoing puts back every file that holds what the change wrote, and touches no other.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.data.folder_scan import read_caption

MOST_KEPT = 200  # changes that can be undone
_NAME = re.compile(r"(\d{8})\.json")


# --- what becomes of a caption: pure functions ----------------------------------------------------------------------

Change = Callable[[str], str]


def in_every_line(change: Change) -> Change:
    """The change made to each line of a caption file that holds text, since every line is a caption of its own.

    Where there is none, to the empty caption.
    """

    def changed(text: str) -> str:
        if not text.strip():
            return change("") or text
        return "".join(
            change(line.rstrip("\r\n")) + line[len(line.rstrip("\r\n")) :] if line.strip() else line
            for line in text.splitlines(keepends=True)
        )

    return changed


def tags_of(caption: str, separator: str) -> list[str]:
    """The parts of a caption between separators, in order."""
    return [tag for part in caption.split(separator) if (tag := part.strip())]


def joined(tags: Iterable[str], separator: str) -> str:
    return f"{separator} ".join(tags)


def add_tag(tag: str, separator: str, *, first: bool) -> Change:
    """Add a tag at the start or the end of captions that do not have it."""

    def change(caption: str) -> str:
        tags = tags_of(caption, separator)
        if tag in tags:
            return caption
        return joined([tag, *tags] if first else [*tags, tag], separator)

    return change


def remove_tag(tag: str, separator: str) -> Change:
    """Remove a tag wherever it is a whole part of a caption."""

    def change(caption: str) -> str:
        tags = tags_of(caption, separator)
        return joined([other for other in tags if other != tag], separator) if tag in tags else caption

    return change


def replace_tag(old: str, new: str, separator: str) -> Change:
    """Put one tag in the place of another; a tag that is there already does not come twice."""

    def change(caption: str) -> str:
        tags = tags_of(caption, separator)
        if old not in tags:
            return caption
        return joined(dict.fromkeys(new if tag == old else tag for tag in tags), separator)

    return change


def replace_text(old: str, new: str) -> Change:
    """Replace a text wherever it is."""
    return lambda caption: caption.replace(old, new)


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """One caption file before and after. `before`: its bytes, None when there is no file."""

    path: Path
    before: bytes | None
    after: bytes
    caption: str  # before; also where none of the bytes told it


@dataclass(frozen=True)
class Outcome:
    """What became of a change, or of undoing one: files written, and those left alone with the reason."""

    written: tuple[Path, ...]
    refused: tuple[tuple[Path, str], ...]


class EditRefused(Exception):
    """A caption cannot be edited; the message says why and what to do."""


def caption_file(picture: Path, extensions: Sequence[str]) -> Path:
    """The caption file that counts for a picture: the first there is, otherwise where one would be."""
    candidates = [picture.with_name(picture.stem + extension) for extension in extensions]
    return next((path for path in candidates if path.exists()), candidates[0])


def read_text(path: Path, otherwise: str = "") -> str:
    """The caption file's text; `otherwise` where there is no file. Raises EditRefused where it cannot be read."""
    if not path.exists() and not path.is_symlink():
        return otherwise
    caption = read_caption(str(path))
    if caption.problem == "caption_unreadable":
        raise EditRefused(f"{path} cannot be read: {caption.detail}")
    return caption.text


def edit(path: Path, change: Change, otherwise: str = "") -> Edit | None:
    """What a change would do to a caption file; None when nothing. Raises EditRefused.

    `otherwise`: the caption where there is no file, of the folder or a metadata file; the new file counts before it.
    """
    text = read_text(path, otherwise)
    after = change(text)
    if after == text:
        return None
    return Edit(path, _bytes_of(path), after.encode(), text)


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


class Journal:
    """Changes in a folder, one file each, so that they can be undone: the latest first."""

    def __init__(self, folder: Path, kept: int = MOST_KEPT) -> None:
        """`kept`: how many changes can be undone; the oldest go."""
        self._folder = folder
        self._kept = kept
        self._lock = threading.Lock()

    def _entries(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))
        return []

    def latest(self) -> tuple[str, int, float] | None:
        """(title, files, time) of the change that `undo` would undo; None when there is none."""
        for path in self._entries()[-1:]:
            with contextlib.suppress(OSError, ValueError, KeyError):
                content = json.loads(path.read_text(encoding="utf-8"))
                return str(content["title"]), len(content["edits"]), float(content["time"])
        return None

    def apply(self, title: str, edits: Sequence[Edit]) -> Outcome:
        """Make a change. A file that is no longer as `before` says is left alone. Raises OSError without a journal."""
        with self._lock:
            entries = self._entries()
            number = int(entries[-1].stem) + 1 if entries else 1
            rows = [[str(item.path.absolute()), _encoded(item.before), _encoded(item.after)] for item in edits]
            content = {"version": 1, "title": title, "time": time.time(), "edits": rows}
            files.write_text(self._folder / f"{number:08d}.json", json.dumps(content))
            for path in entries[: max(0, len(entries) + 1 - self._kept)]:
                path.unlink(missing_ok=True)
            return _write_all([(item.path, item.before, item.after) for item in edits])

    def undo(self) -> Outcome | None:
        """Put back what the latest change replaced, where it is still what that change wrote; None: nothing to undo.

        The journal keeps an undone change under another name.
        """
        with self._lock:
            entries = self._entries()
            if not entries:
                return None
            content = json.loads(entries[-1].read_text(encoding="utf-8"))
            outcome = _write_all(
                [(Path(path), _decoded(after), _decoded(before)) for path, before, after in content["edits"]]
            )
            files.rename(entries[-1], entries[-1].with_suffix(f".undone-{time.time_ns()}"))
            return outcome


def _encoded(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _write_all(changes: Iterable[tuple[Path, bytes | None, bytes | None]]) -> Outcome:
    """Write (path, expected content, new content), None being no file; each whole or not at all."""
    written, refused = [], []
    for path, expected, new in changes:
        try:
            now = _bytes_of(path)
            if now == new:
                continue
            if path.is_symlink():
                refused.append((path, "it is a link; edit the file that it leads to"))
            elif now != expected:
                refused.append((path, "it was changed by someone else meanwhile, and is left as it is"))
            else:
                if new is None:
                    path.unlink()
                else:
                    files.write_bytes(path, new, durable=False)  # the journal is durable, and holds both contents
                written.append(path)
        except OSError as error:
            refused.append((path, error.strerror or str(error)))
    return Outcome(tuple(written), tuple(refused))
