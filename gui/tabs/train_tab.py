"""The Train tab: presets and every option. Starting is here too, since it needs the form's values."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import gradio as gr

from gui import look
from gui.forms import draft as drafts
from gui.forms import form as forms
from gui.forms import presets
from gui.forms.draft import Draft
from gui.forms.form import Form
from gui.forms.presets import NameRefused
from gui.places import Places, placed
from gui.server import runner
from gui.views import plan
from trainer import files
from trainer.checkpoints import choosing, preflight
from trainer.models import base_model, families
from trainer.models.base_model import BaseModelMissing
from trainer.options import checks
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import Checked, ConfigError, Problem
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder

DEMO = "demo"
DEFAULTS = ("Defaults of every option", "")
MOST_NAMED = 8  # changes that are told one by one
SEARCH = """<div class="option-search" role="search">
<label for="option-search">Find an option</label>
<input id="option-search" type="search" role="combobox" autocomplete="off" aria-autocomplete="list"
  aria-expanded="false" aria-controls="option-found" placeholder="rank, learning rate, memory … (press /)">
<ul id="option-found" role="listbox" aria-label="Options found" hidden></ul></div>"""


class TrainTab:
    def __init__(self, places: Places) -> None:
        self.places = places
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
                self.revert = gr.Button(
                    "Take the changes back", elem_id="form-revert", visible=False, scale=0, min_width=190
                )
                self.undo = gr.Button("Undo loading", elem_id="form-undo", visible=False, scale=0, min_width=140)
            self.plan = gr.HTML(elem_id="training-plan")
            self.hiding = gr.HTML(elem_id="hidden-options")  # a style that hides what the model does not have
        gr.HTML(SEARCH)
        self.form = Form()
        self.base = gr.State({"name": "", "values": forms.complete({})})  # what the form began with
        self.listed = gr.Number(0, visible="hidden")  # stands for the presets that the picker lists now,
        self.opened_with = gr.State(0)  # and this for those that it lists until that one changes
        self.uploaded = gr.State(("", b""))
        self.sent = gr.JSON(visible="hidden", elem_id="preset-text")  # a preset on its way to the browser's downloads

    # --- the form and what it began with ----------------------------------------------------------------------------

    def draft(self, data: Mapping[Any, Any]) -> Draft:
        """What is in the form, from a handler's data with all options and the base."""
        base = data.get(self.base) or {}
        return Draft(self.form.values(data), base.get("name", ""), base.get("values") or forms.complete({}))

    def outputs(self) -> set[Any]:
        """What `show_draft` changes."""
        return self.form.inputs() | self.about_outputs()

    def about_outputs(self) -> set[Any]:
        """What `show_changes` changes."""
        return {self.base, self.changes, self.revert, self.undo, self.plan, self.hiding}

    def show_draft(self, draft: Draft, *, undo: bool, present: Mapping[Any, Any] | None = None) -> dict[Any, Any]:
        return self.form.show(draft.values, present) | self.show_changes(draft, undo=undo)

    def show_changes(self, draft: Draft, *, undo: bool | None = None) -> dict[Any, Any]:
        """What differs from the base. `undo`: whether a draft was put aside that can come back; None: as before."""
        changes = draft.changes()
        shown: dict[Any, Any] = {
            self.base: {"name": draft.name, "values": dict(draft.base)},
            self.changes: changes_line(draft, changes),
            self.revert: gr.update(visible=bool(changes)),
            self.plan: look.line("", plan.told(self.places, draft.values)),
            self.hiding: forms.hiding(family_of(self.places, draft.values)),
        }
        return shown if undo is None else shown | {self.undo: gr.update(visible=undo)}


def changes_line(draft: Draft, changes: list[str]) -> str:
    """How many options are no longer as in the preset, and which, each leading to its field."""
    origin = draft.name or "the defaults"
    if not changes:
        return look.line(f"As in {origin}.")
    count = "1 unsaved change" if len(changes) == 1 else f"{len(changes)} unsaved changes"
    named = [
        look.to_option(name, f"{forms.label(OPTIONS[name])} {_short(draft.base[name])} → {_short(draft.values[name])}")
        for name in changes[:MOST_NAMED]
    ]
    more = [f"and {len(changes) - MOST_NAMED} more"] if len(changes) > MOST_NAMED else []
    return look.line(f"{count} since {origin}:", [*named, *more])


def _short(value: Any) -> str:
    if value is None or value in ("", (), []):
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 30 else f"{text[:28]}…"


# --- presets -------------------------------------------------------------------------------------------------------


def preset_choices(places: Places) -> list[tuple[str, str]]:
    return [DEFAULTS, *((name, name) for name in presets.listing(places))]


def first_preset(places: Places) -> str:
    """What the picker shows at first: the demo, since it needs nothing that is not there."""
    return DEMO if DEMO in presets.listing(places) else DEFAULTS[1]


def about(places: Places, name: Any) -> str:
    """What a preset is for, in its own words."""
    said = presets.about(places, str(name or ""))
    return look.paragraph(said) if said else ""


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


def checked_settings(places: Places, values: Mapping[str, Any]) -> tuple[Config | None, list[str], list[str]]:
    """The config to train with, or None; every problem that can be known without loading anything; notices."""
    checked = forms.check_values(values)
    settings = checks.build(checked.values)
    # The trainer looks closer, at every image and every byte.
    problems = [*checked.problems, *preflight.missing(settings, places.home, known=checked.problems)]
    model = "pretrained_model_name_or_path"
    if model not in {problem.key for problem in problems}:
        wrong = base_model.unusable(places.home / settings.pretrained_model_name_or_path)
        problems += [Problem(model, wrong)] if wrong else []
        said = {(problem.key, problem.message) for problem in problems}
        unfit = preflight.with_settled_family(settings, places.home)[1]
        problems += [problem for problem in unfit if (problem.key, problem.message) not in said]
    if not {"output_dir", "output_name"} & {problem.key for problem in checked.problems}:
        problems += _in_the_way(RunFolder(places.home / settings.run_dir), settings)
    if not problems and (problem := preflight.too_small_disk(placed(places, settings))):
        problems = [problem]
    return None if problems else settings, forms.linked(problems), checked.notices


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


def _in_the_way(run: RunFolder, settings: Config) -> list[Problem]:
    """Checkpoints where there should be none, or none where there should be."""
    have = manifest.listing(run.checkpoints)
    named = choosing.wanted(settings.resume_from_checkpoint)
    if have and named == "nothing" and not settings.overwrite_run:
        return [
            Problem(
                "resume_from_checkpoint",
                f"the run {run.path.name} already holds checkpoints, the newest of step {have[0].step:,}. Continue it "
                "(write latest here), choose another output_name, or turn on overwrite_run, which moves the old run "
                "aside and deletes nothing",
            )
        ]
    if named == "latest" and not have:
        return [
            Problem(
                "resume_from_checkpoint",
                f"the run {run.path.name} has no checkpoints yet, so there is nothing to continue. Leave this empty to "
                "start afresh, or give output_dir and output_name of the run you mean",
            )
        ]
    return []


def start_training(places: Places, values: Mapping[str, Any]) -> tuple[RunFolder | None, str]:
    """Start the run that the form describes; None when it was not started. And a message in HTML."""
    settings, problems, notices = checked_settings(places, values)
    if settings is None:
        count = "One thing" if len(problems) == 1 else f"{len(problems)} things"
        return None, look.note(f"Not started. {count} to change first:", problems, kind="bad")
    try:
        run = runner.start(settings, places)
    except runner.StartRefused as error:
        return None, look.note(f"Not started. {error}", kind="bad")
    others = [
        other.path.name for other in places.known_runs() if other != run and run_folder.status(other) == "running"
    ]
    remarks = [f"{name} is training too; the two share this machine's memory and speed." for name in others]
    return run, look.note("Started. Note:", notices + remarks, kind="warn") if notices or others else ""


def print_command(places: Places, values: Mapping[str, Any]) -> str:
    """The line for a shell that does what Start training does, in HTML."""
    settings, problems, _ = checked_settings(places, values)
    if settings is None:
        return look.note("Change this first; the command would not work yet:", problems, kind="bad")
    try:
        line = runner.shell_line(settings, places)
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
