"""The Train tab: presets and every option. Starting is here too, since it needs the form's values."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from gui import look
from gui.forms import draft as drafts
from gui.forms import form as forms
from gui.forms import marks, presets
from gui.forms.draft import Draft
from gui.forms.form import Form
from gui.forms.presets import NameRefused
from gui.places import Places
from gui.server import runner
from gui.tabs import launching
from gui.views import plan
from trainer import files
from trainer.models import base_model, families
from trainer.models.base_model import BaseModelMissing
from trainer.options.config import OPTIONS
from trainer.options.problems import Checked, ConfigError

DEMO = "demo"
DEFAULTS = ("Defaults of every option", "")
MOST_NAMED = 8  # changes that are told one by one
SEARCH = """<div class="option-search" role="search">
<label for="option-search">Find an option</label>
<input id="option-search" type="search" role="combobox" autocomplete="off" aria-autocomplete="list"
  aria-expanded="false" aria-controls="option-found" placeholder="rank, learning rate, memory … (press /)">
<ul id="option-found" role="listbox" aria-label="Options found" hidden></ul>
<div class="option-mode" role="group" aria-label="Options shown">
<button type="button" class="small" data-mode="simple" aria-pressed="false">Common options</button>
<button type="button" class="small" data-mode="all" aria-pressed="true">All options</button></div></div>"""


class TrainTab:
    def __init__(self, places: Places, form_run: gr.HTML) -> None:
        self.places = places
        self.form_run = form_run  # says beside Start what it would start
        with gr.Column(elem_id="presets"):
            with gr.Row(equal_height=False, elem_classes="beside"):
                self.picker = gr.Dropdown(
                    choices=preset_choices(places), value=first_preset(places), label="Preset", interactive=True,
                    elem_id="preset-picker", scale=5, min_width=240,
                )  # fmt: skip
                self.load = gr.Button("Load", elem_id="preset-load", variant="primary", scale=1, min_width=90)
                self.upload = gr.UploadButton(
                    "Upload",
                    elem_id="preset-upload",
                    file_types=[".toml", ".json"],
                    type="filepath",
                    scale=1,
                    min_width=130,
                )
                self.name = gr.Textbox(
                    label="Save as", placeholder="my-preset", elem_id="preset-name", scale=4, min_width=200
                )
                self.save = gr.Button("Save", elem_id="preset-save", scale=1, min_width=90)
                self.download = gr.Button("Download", elem_id="preset-download", scale=1, min_width=110)
                self.delete = gr.Button("Delete", elem_id="preset-delete", scale=1, min_width=90)
            self.about = gr.HTML(elem_id="preset-about")
            with gr.Row(equal_height=False, elem_classes="beside"):
                self.changes = gr.HTML(elem_id="form-changes")
                self.revert = gr.Button("Revert changes", elem_id="form-revert", visible=False, scale=0, min_width=190)
                self.undo = gr.Button("Undo loading", elem_id="form-undo", visible=False, scale=0, min_width=140)
            self.plan = gr.HTML(elem_id="training-plan")
            self.hiding = gr.HTML(elem_id="hidden-options")  # a style that hides what the model does not have
            self.marks = gr.HTML(
                visible="hidden", elem_id="form-marks", js_on_load=marks.TAKEN_BACK_BY_THE_SCRIPT
            )  # what form.js says at the fields
            with gr.Row(visible=False, equal_height=False, elem_id="queue-editing") as self.edit_row:
                self.edit_text = gr.HTML(elem_id="queue-editing-text")
                self.edit_save = gr.Button("Save to the queue", elem_id="queue-edit-save", scale=0, min_width=170)
                self.edit_leave = gr.Button("Leave it as it was", elem_id="queue-edit-leave", scale=0, min_width=170)
        gr.HTML(SEARCH)
        with gr.Row(equal_height=False, elem_id="form-beside"):
            gr.HTML(forms.section_list(), elem_id="sections-place")
            with gr.Column():
                self.form = Form()
        self.fillings = drafts.Fillings()
        self.stamp = gr.Textbox("", visible="hidden", elem_id="form-stamp")  # see Fillings
        self.base = gr.State({"name": "", "values": forms.complete({})})  # what the form began with
        self.listed = gr.Number(0, visible="hidden")  # stands for the presets that the picker lists now,
        self.opened_with = gr.State(0)  # and this for those that it lists until that one changes
        self.uploaded = gr.State(("", b""))
        self.editing = gr.State(0)  # the queue's entry that the form has the options of; 0: of none
        self.sent = gr.JSON(visible="hidden", elem_id="preset-text")  # a preset on its way to the browser's downloads

    # --- the form and what it began with ----------------------------------------------------------------------------

    def draft(self, data: Mapping[Any, Any]) -> Draft:
        """What is in the form, from a handler's data with all options and the base."""
        base = data.get(self.base) or {}
        return Draft(self.form.values(data), base.get("name", ""), base.get("values") or forms.complete({}))

    def outputs(self) -> set[Any]:
        """What `show_draft` changes."""
        return self.form.inputs() | self.about_outputs() | {self.stamp, self.picker, self.name, self.about}

    def about_outputs(self) -> set[Any]:
        """What `show_changes` changes."""
        return {self.base, self.changes, self.revert, self.undo, self.plan, self.form_run, self.hiding, self.marks}

    def fill(self, draft: Draft, data: Mapping[Any, Any], *, undo: bool | None, present: bool = True) -> dict[Any, Any]:
        """Put a draft into the form and keep it; edits that were made before and arrive later are dropped.

        `present`: the data has every option, and what is there already is not sent again.
        """
        with self.fillings.lock:
            stamp = self.fillings.filled(data.get(self.stamp))
            drafts.keep(self.places.draft_file, draft)
        return self.show_draft(draft, undo=undo, present=data if present else None) | {self.stamp: stamp}

    def keep(self, data: Mapping[Any, Any], draft: Draft | None = None) -> Draft | None:
        """Keep what was edited; None where the form was filled anew since."""
        with self.fillings.lock:
            if self.fillings.is_late(data.get(self.stamp)):
                return None
            draft = draft or self.draft(data)
            drafts.keep(self.places.draft_file, draft)
            return draft

    def show_draft(
        self, draft: Draft, *, undo: bool | None, present: Mapping[Any, Any] | None = None
    ) -> dict[Any, Any]:
        shown = self.form.show(draft.values, present) | self.show_changes(draft, undo=undo)
        return shown | self.show_name(draft)

    def show_name(self, draft: Draft) -> dict[Any, Any]:
        """Picker, description and the name to save under, which all speak of what the form began with."""
        return {
            self.picker: gr.update(choices=preset_choices(self.places, draft.name), value=draft.name),
            self.about: about(self.places, draft.name),
            self.name: suggested_name(draft.name),
        }

    def show_changes(self, draft: Draft, *, undo: bool | None = None) -> dict[Any, Any]:
        """What differs from the base. `undo`: whether a draft was put aside that can come back; None: as before."""
        changes = draft.changes()
        shown: dict[Any, Any] = {
            self.base: {"name": draft.name, "values": dict(draft.base)},
            self.changes: changes_line(draft, changes),
            self.revert: gr.update(visible=bool(changes)),
            self.plan: plan.shown(self.places, draft.values),
            self.form_run: launching.form_line(self.places, draft.values),
            self.hiding: forms.hiding(family_of(self.places, draft.values), str(draft.values.get("training_kind", ""))),
            self.marks: marks.marks(self.places, draft, changes),
        }
        return shown if undo is None else shown | {self.undo: gr.update(visible=undo)}


def changes_line(draft: Draft, changes: list[str]) -> str:
    """How many options are no longer as in the preset, and which, each leading to its field."""
    origin = draft.name or "the defaults"
    if not changes:
        return look.line(f"Matches {origin}.")
    count = "1 unsaved change" if len(changes) == 1 else f"{len(changes)} unsaved changes"
    named = [
        look.to_option(
            name, f"{forms.label(OPTIONS[name])} {marks.told(draft.base[name])} → {marks.told(draft.values[name])}"
        )
        for name in changes[:MOST_NAMED]
    ]
    more = [f"and {len(changes) - MOST_NAMED} more"] if len(changes) > MOST_NAMED else []
    return look.line(f"{count} since {origin}:", [*named, *more])


# --- presets -------------------------------------------------------------------------------------------------------


def preset_choices(places: Places, present: Any = "") -> list[tuple[str, str]]:
    """(label, value) of the picker. `present`: what the form began with, which may be no preset."""
    listed = [DEFAULTS, *((name, name) for names in presets.grouped(places).values() for name in names)]
    if present and str(present) not in [value for _, value in listed]:
        listed.insert(1, (f"{present} (not a preset)", str(present)))
    return listed


def suggested_name(name: str) -> str:
    """The name to save under what began with a preset, a run, a file or an entry of the queue."""
    if name.startswith("file "):
        return Path(name.removeprefix("file ")).stem
    return presets.own_name(re.sub(r"^(run |queue \d+: )", "", name))


def first_preset(places: Places) -> str:
    """What the picker shows at first: the demo, since it needs nothing that is not there."""
    return DEMO if DEMO in presets.listing(places) else DEFAULTS[1]


def about(places: Places, name: Any) -> str:
    """What a preset is for, in its own words."""
    said = presets.about(places, str(name or ""))
    if name and str(name) not in presets.listing(places):
        said = f"The options of {name}, which is no preset yet; Save keeps them as one."
    return look.paragraph(said) if said else ""


def first_draft(places: Places) -> Draft:
    """What the form begins with where nothing was left in it: the preset that the picker shows then."""
    name = first_preset(places)
    values = load_preset(places, name)[0]
    return Draft(values, name, values) if values is not None else drafts.afresh()


def load_preset(places: Places, name: Any) -> tuple[dict[str, Any] | None, str]:
    """Every option's value, or None when the preset cannot be used at all; and a message in HTML."""
    if not name:
        return forms.complete({}), look.note("Every option is at its default.")
    try:
        checked = presets.read(places, str(name))
    except NameRefused as error:
        return None, look.note(f"{error} It may have been deleted; the list was refreshed.", kind="bad")
    except ConfigError as error:
        return None, look.note(f"The preset {name} was not loaded.", forms.linked(error.problems), kind="bad")
    return loaded(checked, f"The preset {name}")


def load_upload(content: bytes, name: str) -> tuple[dict[str, Any] | None, str]:
    """The same for a file from the browser; nothing is saved."""
    try:
        checked = presets.parse(content, name)
    except ConfigError as error:
        return None, look.note(f"{name} was not loaded.", forms.linked(error.problems), kind="bad")
    return loaded(checked, f"The file {name}")


def loaded(checked: Checked, what: str) -> tuple[dict[str, Any], str]:
    values = forms.complete(checked.values)
    if checked.problems:
        listed = forms.linked(checked.problems) + checked.notices
        return values, look.note(f"{what} was loaded, except for this:", listed, kind="bad")
    return values, look.note(f"{what} was loaded.", checked.notices, kind="good")


def save_preset(places: Places, name: Any, values: Mapping[str, Any]) -> tuple[str | None, str]:
    """The saved preset's name in the picker, or None; and a message in HTML."""
    checked = forms.check_values(values)
    wrong = forms.wrong_values(values, checked)
    if wrong:
        listed = forms.linked(problem for problem in checked.problems if problem.key in wrong)
        return None, look.note("Not saved; change this first:", listed, kind="bad")
    try:
        plain = presets.plain(str(name or ""))
        replaced = presets.USER + plain in presets.listing(places)
        path = presets.save(places, plain, checked.values)
    except NameRefused as error:
        return None, look.note(f"Not saved. {error}", kind="bad")
    except OSError as error:
        return None, look.note(f"Not saved: {error}", kind="bad")
    shown = path.relative_to(places.home)
    done = f"Saved as {shown}" + (", replacing what it held." if replaced else ".")
    if checked.problems:
        remarks = forms.linked(checked.problems)
        return presets.USER + plain, look.note(f"{done} Before it can start:", remarks, kind="warn")
    return presets.USER + plain, look.note(done, kind="good")


def would_replace(places: Places, name: Any, begun_with: str) -> str:
    """The other preset that saving under this name would replace; empty when there is none."""
    try:
        entry = presets.USER + presets.plain(str(name or ""))
    except NameRefused:
        return ""
    return entry if entry != begun_with and entry in presets.listing(places) else ""


# --- launch --------------------------------------------------------------------------------------------------------


def family_of(places: Places, values: Mapping[str, Any]) -> str | None:
    """The family that the form names or whose files it names; None where neither tells."""
    family, model = values.get("family"), values.get("pretrained_model_name_or_path")
    if family in families.TABLE:
        return str(family)
    if not isinstance(model, str) or not model or not files.exists(path := places.home / model):
        return None
    with contextlib.suppress(BaseModelMissing):
        return None if base_model.unusable(path) else base_model.detect(path)
    return None


def print_command(places: Places, values: Mapping[str, Any]) -> str:
    """The line for a shell that does what Start training does, in HTML."""
    checked = launching.check(places, values)
    if checked.settings is None:
        return look.note("Change this first; the command would not work yet:", checked.problems, kind="bad")
    try:
        line = runner.shell_line(checked.settings, places)
    except OSError as error:
        return look.note(f"The config file cannot be written: {error}", kind="bad")
    return look.note("Start training runs this, in a process of its own. It works in a shell as well:", log=line)


def put_aside(places: Places, draft: Draft) -> bool:
    """Keep a draft that something else takes the place of, when anything in it is unsaved."""
    if not draft.changes():
        places.put_aside_file.unlink(missing_ok=True)
        return False
    drafts.keep(places.put_aside_file, draft)
    return True
