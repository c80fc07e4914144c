"""Captions written by a model beside many pictures: some at a time, so that an interruption loses little, each change
in a journal from which it can be undone."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.data import caption_edits, folder_scan
from trainer.data.caption_edits import Edit, EditRefused, Journal
from trainer.data.pictures import PictureError, open_picture
from trainer.refusal import Refused
from trainer.runs import queue
from trainer.tools import Arguments, Progress, Result
from trainer.tools.captioners import Captioner, load

AT_ONCE = 64  # captions between two entries of the journal: what an interruption can lose
MOST_SHOWN = 10  # pictures that a preview describes
KEPT = 1_000_000  # entries of one use's journal
OF_THE_CAPTIONS = ("folder", "model", "prompt", "prefix", "threshold", "character_threshold", "leave_out", "existing")


def caption(arguments: Arguments, progress: Progress) -> Result:
    """The tool; see tools.TOOLS. Raises Refused."""
    folder = Path(arguments["folder"])
    if not folder.is_dir():
        raise Refused(f"folder: there is no folder {folder}")
    uses = queue.usual_folder().parent / "captioning"
    if arguments["undo"]:
        return _undo(uses, folder, progress)
    if not arguments["model"]:
        raise Refused("model: name a folder or a Hugging Face id; WD taggers and transformers' models are understood")
    use = _Use(uses, arguments)
    wanted = [path for path in _pictures(folder) if _is_wanted(path, arguments, use.done)]
    if arguments["preview"]:
        return _preview(wanted[:MOST_SHOWN], arguments, len(wanted), progress)
    written, problems = 0, list[str]()
    if wanted:
        captioner = load(arguments)
        use.begin()
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            edits = list(_edits(captioner, some, arguments, problems))
            outcome = use.journal.apply(f"Captions by {arguments['model']}", edits)
            problems += [f"{path}: {reason}" for path, reason in outcome.refused]
            written += len(outcome.written)
            use.note(some)
            progress(start + len(some), len(wanted))
    use.end()
    return {"folder": str(folder), "written": written, "looked_at": len(wanted), "problems": problems}


def _pictures(folder: Path) -> Iterator[Path]:
    """Every picture in a folder and those below it, in order."""
    yield from folder_scan.list_pictures(folder)
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from _pictures(inner)


def _is_wanted(path: Path, arguments: Arguments, done: frozenset[str]) -> bool:
    if str(path.absolute()) in done:
        return False
    if arguments["existing"] != "skip":
        return True
    file = caption_edits.caption_file(path, [arguments["caption_extension"]])
    try:
        return not caption_edits.read_text(file).strip()
    except EditRefused:
        return False


def _captions(
    captioner: Captioner, paths: Sequence[Path], arguments: Arguments, problems: list[str]
) -> Iterator[tuple[Path, str]]:
    """(picture, what the model says with the prefix); those that cannot be read go to `problems`."""
    size = int(arguments["batch_size"])
    for start in range(0, len(paths), size):
        pictures = {}
        for path in paths[start : start + size]:
            try:
                pictures[path] = open_picture(path)
            except PictureError as error:
                problems.append(str(error))
        texts = captioner.captions(list(pictures.values())) if pictures else []
        yield from ((path, f"{arguments['prefix']}{text}") for path, text in zip(pictures, texts, strict=True))


def _edits(captioner: Captioner, paths: Sequence[Path], arguments: Arguments, problems: list[str]) -> Iterator[Edit]:
    for path, text in _captions(captioner, paths, arguments, problems):
        file = caption_edits.caption_file(path, [arguments["caption_extension"]])
        try:
            edit = caption_edits.edit(file, lambda before, text=text: _joined(before, text, arguments))  # type: ignore[misc]
        except EditRefused as error:
            problems.append(str(error))
            continue
        if edit:
            yield edit


def _joined(before: str, text: str, arguments: Arguments) -> str:
    """A caption file's text with what a model says."""
    kept = before.strip()
    if arguments["existing"] != "append" or not kept:
        return text
    separator = arguments["caption_separator"]
    there = set(caption_edits.tags_of(kept, separator))
    more = [tag for tag in caption_edits.tags_of(text, separator) if tag not in there]
    return caption_edits.joined([kept, *more], separator)


def _preview(paths: Sequence[Path], arguments: Arguments, total: int, progress: Progress) -> Result:
    """What would be written beside the first pictures; nothing is."""
    shown, problems = {}, list[str]()
    captioner = load(arguments) if paths else None
    for number, path in enumerate(paths):
        assert captioner
        for _, text in _captions(captioner, [path], arguments, problems):
            file = caption_edits.caption_file(path, [arguments["caption_extension"]])
            shown[str(path)] = _joined(caption_edits.read_text(file), text, arguments)
        progress(number + 1, len(paths))
    return {"would_be_captioned": total, "preview": shown, "problems": problems}


# --- one use, which can be continued and undone --------------------------------------------------------------------


@dataclass
class _Use:
    """What is kept of a captioning: its journal, and the pictures it has done, until all are."""

    folder: Path
    journal: Journal
    done: frozenset[str]
    begun: dict[str, object]

    def __init__(self, uses: Path, arguments: Arguments) -> None:
        described = {name: arguments[name] for name in OF_THE_CAPTIONS}
        described["folder"] = str(Path(arguments["folder"]).resolve())
        self.folder = uses / files.digest(described)[:16]
        self.journal = Journal(self.folder / "journal", KEPT)
        self.begun = described
        done: set[str] = set()
        with contextlib.suppress(OSError):
            for line in self._progress.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a line that was torn
                    done.add(json.loads(line))
        self.done = frozenset(done)

    @property
    def _progress(self) -> Path:
        return self.folder / "done.jsonl"

    def begin(self) -> None:
        files.write_bytes(self.folder / "use.json", files.json_bytes(self.begun | {"time": time.time()}))

    def note(self, paths: Sequence[Path]) -> None:
        """These are done."""
        with self._progress.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(str(path.absolute()))}\n" for path in paths)

    def end(self) -> None:
        """All are done: the next use begins anew."""
        self._progress.unlink(missing_ok=True)


def _undo(uses: Path, folder: Path, progress: Progress) -> Result:
    """Put back what the latest use in a folder replaced, where it is still what that wrote. Raises Refused."""
    result: list[tuple[float, Path]] = []
    for path in uses.glob("*/use.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            answer = json.loads(path.read_text(encoding="utf-8"))
            if answer["folder"] == str(folder.resolve()):
                result.append((float(answer["time"]), path.parent))
    for _, use in sorted(result, reverse=True):
        journal, put_back, problems = Journal(use / "journal", KEPT), 0, list[str]()
        if journal.latest() is None:
            continue
        while (outcome := journal.undo()) is not None:
            put_back += len(outcome.written)
            problems += [f"{path}: {reason}" for path, reason in outcome.refused]
            progress(put_back, put_back)
        (use / "done.jsonl").unlink(missing_ok=True)
        return {"folder": str(folder), "put_back": put_back, "problems": problems}
    raise Refused(f"undo: no captions in {folder} were written by a model, or all were put back already")
