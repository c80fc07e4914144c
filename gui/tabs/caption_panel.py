"""Captions edited in the Dataset tab: one, or many at once with a preview; every change can be undone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from gui import look
from gui.places import Places
from gui.views import dataset_view as view
from gui.views.dataset_view import Item, Looked
from gui.wiring import Data, Updates
from trainer.data import caption_edits
from trainer.data.caption_edits import Change, Edit, EditRefused, Journal, Outcome
from trainer.options.config import Config

ACTIONS = {
    "add at the start": "Add a tag at the start",
    "add at the end": "Add a tag at the end",
    "remove": "Remove a tag",
    "replace tag": "Replace a tag",
    "replace text": "Search and replace a text",
}
CLICK = "Click an image above to see and edit its caption."
NO_CHANGE = "There is no change to undo."
MOST_PREVIEWED = 20


class CaptionPanel:
    def __init__(self, places: Places) -> None:
        self._places = places
        self._journal = Journal(places.state / "caption-edits")
        self.message = gr.HTML(elem_id="dataset-message")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=260):
                self.picture = gr.HTML(elem_id="dataset-picture")
            with gr.Column(scale=2, min_width=260):
                self.about = gr.HTML(look.note(CLICK))
                self.caption = gr.Textbox(label="Caption", lines=4, elem_id="dataset-caption", interactive=False)
                with gr.Row():
                    self.save = gr.Button("Save caption", elem_id="dataset-save", interactive=False)
                    self.onward = gr.Button("Save and next", elem_id="dataset-save-next", interactive=False)
        gr.HTML("<b>Change the captions of the selected images, or else of all that the filters above let through:</b>")
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.action = gr.Dropdown(
                [(words, action) for action, words in ACTIONS.items()], value="add at the start", label="Change",
                elem_id="dataset-action", interactive=True,
            )  # fmt: skip
            self.old = gr.Textbox(label="Tag or text", elem_id="dataset-old", max_lines=1)
            self.new = gr.Textbox(label="Replace with", elem_id="dataset-new", max_lines=1)
        with gr.Row(equal_height=False):
            self.preview = gr.Button("Preview", elem_id="dataset-preview-change")
            self.apply = gr.Button("Apply", elem_id="dataset-apply", variant="primary", interactive=False)
            self.undo = gr.Button("Undo the last change", elem_id="dataset-undo", interactive=False)
        self.previewed = gr.HTML(elem_id="dataset-preview")
        self.chosen = gr.State("")  # the path of the chosen picture
        self.unchanged = gr.State("")  # its caption as it was shown, to know what was typed since
        self.planned = gr.State("")  # a digest of the change that was previewed

    def inputs(self) -> set[Any]:
        return {self.caption, self.action, self.old, self.new, self.chosen, self.unchanged, self.planned}

    def outputs(self) -> set[Any]:
        return {
            self.message, self.picture, self.about, self.caption, self.save, self.onward, self.apply, self.undo,
            self.previewed, self.chosen, self.unchanged, self.planned,
        }  # fmt: skip

    # --- one caption ------------------------------------------------------------------------------------------------

    def show(self, looked: Looked, path: Path) -> Updates:
        """A picture and its caption file."""
        item = _item(looked, path)
        if item is None:
            return {self.message: look.note("That image is no longer there; look again.", kind="warn")}
        text, problem = "", ""
        try:
            text = caption_edits.read_text(_file_of(item, looked.report.config), item.caption)
        except EditRefused as error:
            problem = str(error)
        editable = item.entry is not None and not problem
        return {
            self.message: look.note(view.printable(problem), kind="bad") if problem else "",
            self.picture: view.large_picture(item, self._places.thumbnails),
            self.about: view.about(item),
            self.caption: gr.update(value=text, interactive=editable),
            self.save: gr.update(interactive=editable),
            self.onward: gr.update(interactive=editable),
            self.chosen: str(path),
            self.unchanged: text,
        }

    def has_unsaved(self, data: Data) -> bool:
        """Whether something was typed for the chosen picture that its file does not have."""
        return bool(data[self.chosen]) and str(data[self.caption] or "") != str(data[self.unchanged] or "")

    def after_a_look(self, looked: Looked | None, data: Data) -> Updates:
        """Nothing of a picture or a preview that is not in the dataset any more."""
        path = str(data[self.chosen] or "")
        item = _item(looked, Path(path)) if looked and path else None
        if item is not None:
            return {self.about: view.about(item)}
        if not path:
            return {}
        return {
            self.message: "",
            self.picture: "",
            self.about: look.note(CLICK),
            self.caption: gr.update(value="", interactive=False),
            self.save: gr.update(interactive=False),
            self.onward: gr.update(interactive=False),
            self.chosen: "",
            self.unchanged: "",
        }

    def save_one(self, looked: Looked, data: Data) -> Updates:
        """Write the caption of the chosen picture."""
        item = _item(looked, Path(str(data[self.chosen] or "")))
        if item is None:
            return {self.message: look.note("Click an image first.", kind="warn")}
        text = str(data[self.caption] or "")
        try:
            edit = caption_edits.edit(_file_of(item, looked.report.config), lambda _: text, item.caption)
        except EditRefused as error:
            return {self.message: look.note(view.printable(str(error)), kind="bad")}
        if edit is None:
            return {self.message: look.note("The caption is as it was.")}
        return {self.message: self._make(f"caption of {view.printable(item.path.name)}", [edit]), self.unchanged: text}

    # --- many captions ----------------------------------------------------------------------------------------------

    def _plan(self, looked: Looked, items: Sequence[Item], data: Data) -> tuple[str, list[Edit], list[str]]:
        """The title of the change that the widgets describe, its edits, and what stands in the way."""
        config = looked.report.config
        action, old, new = (str(data[widget] or "") for widget in (self.action, self.old, self.new))
        if action != "replace text":
            old, new = old.strip(), new.strip()
        if not old:
            return "", [], ["Write the tag or text first."]
        if action != "replace text" and any(config.caption_separator in word for word in (old, new)):
            return "", [], [f"A tag cannot hold {config.caption_separator!r}, which stands between tags."]
        if action == "replace tag" and not new:
            return "", [], ["Write what the tag is replaced with, or choose Remove a tag."]
        title = f"{ACTIONS.get(action, action)}: {old}" + (f" → {new}" if action.startswith("replace") else "")
        edits, problems = [], []
        for item in items:
            if item.entry is not None:
                separator = item.entry.subset.options.caption_separator
                change = caption_edits.in_every_line(_change(action, old, new, separator))
                try:
                    edits.append(caption_edits.edit(_file_of(item, config), change, item.caption))
                except EditRefused as error:
                    problems.append(view.printable(str(error)))
        return title, [edit for edit in edits if edit is not None], problems

    def show_preview(self, looked: Looked, items: Sequence[Item], data: Data) -> Updates:
        """What the change would do, and the button that does it."""
        title, edits, problems = self._plan(looked, items, data)
        nothing = {self.apply: gr.update(interactive=False), self.planned: ""}
        if not title:
            return nothing | {self.previewed: "", self.message: look.note(problems[0], kind="warn")}
        if not edits:
            text = look.note(f"{title}: changes no caption of {len(items):,} images.", problems)
            return nothing | {self.previewed: text, self.message: ""}
        return {
            self.previewed: look.note(f"{title}: changes {_captions(len(edits))} of {len(items):,} images.", problems)
            + _table(edits),
            self.apply: gr.update(interactive=True, value=f"Apply to {_captions(len(edits))}"),
            self.planned: _digest(edits),
            self.message: "",
        }

    def apply_many(self, looked: Looked, items: Sequence[Item], data: Data) -> Updates:
        """Make the change that was previewed, and no other."""
        title, edits, _ = self._plan(looked, items, data)
        if not edits or _digest(edits) != data[self.planned]:
            text = look.note("The captions or the change are no longer those of the preview; look at it again.",
                             kind="warn")  # fmt: skip
            return self.show_preview(looked, items, data) | {self.message: text}
        return {
            self.message: self._make(title, edits),
            self.previewed: "",
            self.planned: "",
            self.apply: gr.update(interactive=False, value="Apply"),
        }

    def undo_latest(self, data: Data, looked: Looked | None) -> Updates:
        """Put the captions of the latest change back."""
        latest = self._journal.latest()
        try:
            outcome = self._journal.undo()
        except (OSError, ValueError) as error:
            return {self.message: look.note(f"The change cannot be undone: {error}", kind="bad")}
        if outcome is None or latest is None:
            return {self.message: look.note(NO_CHANGE)}
        path = str(data[self.chosen] or "")
        chosen = self.show(looked, Path(path)) if looked and path else {}
        return chosen | {self.message: _told(f"Undone: {latest[0]}.", outcome, "put back")}

    def show_undo(self) -> Updates:
        """The undo button, naming what it would undo."""
        latest = self._journal.latest()
        if latest is None:
            return {self.undo: gr.update(value="Undo the last change", interactive=False)}
        title, count, when = latest
        day = time.strftime("%d %b %H:%M", time.localtime(when))
        return {self.undo: gr.update(value=f"Undo: {title[:60]} ({_captions(count)}, {day})", interactive=True)}

    def _make(self, title: str, edits: Sequence[Edit]) -> str:
        try:
            outcome = self._journal.apply(title, edits)
        except OSError as error:
            return look.note(
                f"Nothing was changed, since the journal for undoing cannot be written: {error}", kind="bad"
            )
        return _told(f"{title}.", outcome, "saved")


def _change(action: str, old: str, new: str, separator: str) -> Change:
    changes: dict[str, Change] = {
        "add at the start": caption_edits.add_tag(old, separator, first=True),
        "add at the end": caption_edits.add_tag(old, separator, first=False),
        "remove": caption_edits.remove_tag(old, separator),
        "replace tag": caption_edits.replace_tag(old, new, separator),
        "replace text": caption_edits.replace_text(old, new),
    }
    return changes[action]


def _item(looked: Looked, path: Path) -> Item | None:
    return next((item for item in looked.items if item.path == path), None)


def _file_of(item: Item, config: Config) -> Path:
    options = item.entry.subset.options if item.entry is not None else config
    return caption_edits.caption_file(item.path, options.caption_extensions)


def _digest(edits: Sequence[Edit]) -> str:
    digest = hashlib.sha256()
    for edit in edits:
        for part in (str(edit.path).encode(errors="surrogateescape"), edit.before or b"", edit.after):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _captions(count: int) -> str:
    return "1 caption" if count == 1 else f"{count:,} captions"


def _told(what: str, outcome: Outcome, done: str) -> str:
    refused = [f"{view.printable(str(path))}: {reason}" for path, reason in outcome.refused]
    if refused:
        text = f"{what} {_captions(len(outcome.written))} {done}; left alone:"
        return look.note(text, [*refused[:20], *(["and more"] if len(refused) > 20 else [])], kind="warn")
    return look.note(f"{what} {_captions(len(outcome.written))} {done}.", kind="good")


def _table(edits: Sequence[Edit]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(view.printable(edit.path.name))}</code></td>"
        f"<td>{escape(edit.caption[:300]) or '<em>no caption</em>'}</td>"
        f"<td><ins>{escape(edit.after.decode()[:300])}</ins></td></tr>"
        for edit in edits[:MOST_PREVIEWED]
    )
    more = f"<p>and {len(edits) - MOST_PREVIEWED:,} more</p>" if len(edits) > MOST_PREVIEWED else ""
    head = "<thead><tr><th>File</th><th>Now</th><th>Then</th></tr></thead>"
    return f'<table class="plain">{head}<tbody>{rows}</tbody></table>{more}'
