"""What the Train tab does with presets: loaded, uploaded, saved, deleted, taken back; and every edit of the form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from gui import look
from gui.forms import draft as drafts
from gui.forms import form as forms
from gui.forms import presets
from gui.forms.draft import Draft
from gui.places import Places
from gui.tabs import train_tab
from gui.tabs.question import Question
from gui.tabs.train_tab import TrainTab
from gui.wiring import IN_TURN, QUIET, Updates, fresh_list, stamp_of_list


class PresetHandlers:
    def __init__(self, places: Places, train: TrainTab, message: gr.HTML, question: Question) -> None:
        self._places = places
        self._train = train
        self._message = message
        self._question = question

    def wire(self) -> None:
        tab, message = self._train, self._message
        options = tab.form.inputs()
        draft = options | {tab.base, tab.stamp}
        filled = tab.outputs() | {message}
        tab.picker.focus(self.look_for, {tab.listed, tab.opened_with}, {tab.listed}, queue=False, **QUIET)
        tab.listed.change(self.list_them, {tab.picker}, {tab.picker}, queue=False, **QUIET)
        tab.picker.input(self.choose, draft | {tab.picker}, filled, **IN_TURN)
        tab.load.click(self.load, draft | {tab.picker}, filled, **IN_TURN)
        tab.upload.upload(self.read_upload, tab.upload, tab.uploaded, **(QUIET | {"preprocess": True})).then(
            self.load_upload, draft | {tab.uploaded, tab.picker}, filled, **IN_TURN
        )
        tab.save.click(
            self.save, draft | {tab.name},
            {message, tab.picker, tab.about, tab.name} | tab.about_outputs() | self._question.outputs(),
            queue=False, **QUIET,
        )  # fmt: skip
        tab.download.click(self.send, options | {tab.name}, {tab.sent, message}, **QUIET).then(
            None, tab.sent, None, js="rekindleDownload", api_visibility="private"
        )
        tab.delete.click(self.ask_delete, {tab.picker}, {message} | self._question.outputs(), **QUIET)
        tab.revert.click(self.revert, draft, tab.outputs() | {message}, **IN_TURN)
        tab.marks.click(self.take_back, draft, tab.outputs(), **IN_TURN)
        tab.undo.click(self.undo_loading, {tab.stamp}, filled, **IN_TURN)
        edits = [item.blur if hasattr(item, "blur") else item.input for item in tab.form.widgets.values()]
        gr.on(edits, self.edited, draft, tab.about_outputs(), **(QUIET | {"trigger_mode": "always_last"}))

    def edited(self, data: Mapping[Any, Any]) -> Updates:
        draft = self._train.keep(data)
        return {self._train.base: gr.skip()} if draft is None else self._train.show_changes(draft)

    def fill(self, data: Mapping[Any, Any], values: Mapping[str, Any], name: str) -> Updates:
        """Put other values into the form; what was in it and not saved can be had back."""
        can_undo = train_tab.put_aside(self._places, self._train.draft(data))
        return self._train.fill(Draft(values, name, values), data, undo=can_undo)

    def choose(self, data: Mapping[Any, Any]) -> Updates:
        """Load it at once where nothing can be lost by that; otherwise only say what it is."""
        name = str(data[self._train.picker] or "")
        values, message = (None, "") if self._train.draft(data).changes() else train_tab.load_preset(self._places, name)
        if values is None or (name and name not in presets.listing(self._places)):
            return self.tell_about(data)
        filled = self.fill(data, values, name)
        del filled[self._train.picker]  # a list that is sent again would undo what is chosen in it meanwhile
        return filled | {self._message: message}

    def load(self, data: Mapping[Any, Any]) -> Updates:
        name = str(data[self._train.picker] or "")
        draft = self._train.draft(data)
        if name and name == draft.name and name not in presets.listing(self._places):  # of a run or a file
            return self.revert(data)
        values, message = train_tab.load_preset(self._places, name)
        if values is None:
            return self.list_them(data) | {self._message: message}
        return self.fill(data, values, name) | {self._message: message}

    def read_upload(self, path: str | None) -> tuple[str, bytes]:
        """Name and content of an uploaded file, which does not stay."""
        if path is None:
            return "", b""
        file = Path(path)
        with file.open("rb") as opened:
            content = opened.read(presets.LARGEST + 1)
        file.unlink()
        return file.name, content

    def load_upload(self, data: Mapping[Any, Any]) -> Updates:
        name, content = data[self._train.uploaded]
        values, message = train_tab.load_upload(content, name)
        if values is None:
            return {self._message: message}
        return self.fill(data, values, f"file {name}") | {self._message: message}

    def save(self, data: Mapping[Any, Any]) -> Updates:
        draft = self._train.draft(data)
        other = train_tab.would_replace(self._places, data[self._train.name], draft.name)
        if other:
            plain = presets.own_name(other)
            text = f"There is another preset {plain} already. Replace it?"
            return self._question.ask(text, "replace", plain, yes="Replace it", no="Keep it")
        return self.replace(data, str(data[self._train.name] or ""))

    def replace(self, data: Mapping[Any, Any], name: str) -> Updates:
        draft = self._train.draft(data)
        saved, message = train_tab.save_preset(self._places, name, draft.values)
        if saved is None:
            return {self._message: message}
        values = forms.complete(forms.check_values(draft.values).values)
        draft = Draft(values, saved, values)
        drafts.keep(self._places.draft_file, draft)
        return self._train.show_changes(draft) | self._train.show_name(draft) | {self._message: message}

    def send(self, data: Mapping[Any, Any]) -> Updates:
        """What is in the form, as a file for the browser to keep."""
        values = self._train.form.values(data)
        checked = forms.check_values(values)
        wrong = forms.wrong_values(values, checked)
        if wrong:
            listed = forms.linked(problem for problem in checked.problems if problem.key in wrong)
            return {self._train.sent: None, self._message: look.note("Change this first:", listed, kind="bad")}
        try:
            name = presets.plain(str(data[self._train.name] or "preset"))
        except presets.NameRefused as error:
            return {self._train.sent: None, self._message: look.note(str(error), kind="bad")}
        return {self._train.sent: {"name": f"{name}.toml", "text": presets.text(checked.values)}, self._message: ""}

    def ask_delete(self, data: Mapping[Any, Any]) -> Updates:
        name = str(data[self._train.picker] or "")
        if not name.startswith(presets.USER):
            text = "Only your own presets can be deleted; choose one that begins with user/."
            return {self._message: look.note(text)} | self._question.close()
        return {self._message: ""} | self._question.ask(
            f"Delete the preset {name}? The form stays as it is.", "delete", name, yes="Delete it", no="Keep it"
        )

    def delete(self, data: Mapping[Any, Any], name: str) -> Updates:
        try:
            presets.delete(self._places, name)
            message = look.note(f"The preset {name} was deleted.")
        except (presets.NameRefused, OSError) as error:
            message = look.note(f"Not deleted. {error}", kind="bad")
        return self.list_them(data) | {self._message: message}

    def look_for(self, data: Mapping[Any, Any]) -> Updates:
        """A new number when there are other presets to choose from."""
        now = stamp_of_list(train_tab.preset_choices(self._places))
        shown = data[self._train.listed] or data[self._train.opened_with]
        return {self._train.listed: gr.skip() if now == shown else now}

    def list_them(self, data: Mapping[Any, Any]) -> Updates:
        names = train_tab.preset_choices(self._places, data[self._train.picker])
        return {self._train.picker: fresh_list(names, data[self._train.picker], names[0][1])}

    def tell_about(self, data: Mapping[Any, Any]) -> Updates:
        return {self._train.about: train_tab.about(self._places, data[self._train.picker])}

    def revert(self, data: Mapping[Any, Any]) -> Updates:
        """The form as it began; what was changed can be had back."""
        draft = self._train.draft(data)
        shown = self.fill(data, draft.base, draft.name)
        return shown | {self._message: look.note("The changes were reverted.")}

    def take_back(self, data: Mapping[Any, Any], event: gr.EventData) -> Updates:
        """One option as the form began with it."""
        draft, name = self._train.draft(data), getattr(event, "value", "")
        if name not in draft.base:
            return {self._train.stamp: gr.skip()}
        values = {**draft.values, name: draft.base[name]}
        return self._train.fill(Draft(values, draft.name, draft.base), data, undo=None)

    def undo_loading(self, data: Mapping[Any, Any]) -> Updates:
        draft = drafts.read(self._places.put_aside_file)
        if draft is None:
            return {self._train.undo: gr.update(visible=False)}
        self._places.put_aside_file.unlink(missing_ok=True)
        filled = self._train.fill(draft, data, undo=False, present=False)
        return filled | {self._message: look.note("The form is as it was before.", kind="good")}
