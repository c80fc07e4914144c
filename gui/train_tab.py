"""The Train tab: presets and every option. Starting is here too, since it needs the form's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from gui import form as forms
from gui import look, presets, runner
from gui.form import Form
from gui.places import Places
from trainer import config, runs
from trainer.config import ConfigError
from trainer.runs import RunFolder

DEMO = "demo"
DEFAULTS = ("Defaults of every option", "")


class TrainTab:
    def __init__(self, places: Places) -> None:
        with gr.Row(equal_height=False, elem_id="preset-row"):
            self.picker = gr.Dropdown(
                choices=preset_choices(places), value=first_preset(places), label="Preset", elem_id="preset-picker",
                info="Loading sets every option; what the preset does not name gets its default.",
                interactive=True, scale=3,
            )  # fmt: skip
            self.load = gr.Button("Load preset", elem_id="preset-load", scale=1, min_width=120)
            self.name = gr.Textbox(
                label="Save as", placeholder="my-preset", elem_id="preset-name", max_lines=1, scale=2,
                info="A name; the file goes to presets/user/.",
            )  # fmt: skip
            self.save = gr.Button("Save preset", elem_id="preset-save", scale=1, min_width=120)
        self.form = Form()


def preset_choices(places: Places) -> list[tuple[str, str]]:
    return [DEFAULTS, *((name, name) for name in presets.listing(places))]


def first_preset(places: Places) -> str:
    """What the picker shows at first: the demo, since it needs nothing that is not there."""
    return DEMO if DEMO in presets.listing(places) else DEFAULTS[1]


def load_preset(places: Places, name: Any) -> tuple[dict[str, Any] | None, str]:
    """Every option's value, or None when the preset cannot be used at all; and a message in HTML."""
    if not name:
        return forms.complete({}), look.note("Every option is at its default.")
    try:
        checked = presets.read(places, str(name))
    except presets.NameRefused as error:
        return None, look.note(f"{error} It may have been deleted; the list is fresh now.", kind="bad")
    except ConfigError as error:
        return None, look.note(
            f"The preset {name} was not loaded.", [forms.describe(item) for item in error.problems], kind="bad"
        )
    values = forms.complete(checked.values)
    problems = [forms.describe(problem) for problem in checked.problems]
    if problems:
        return values, look.note(
            f"The preset {name} was loaded, except for this:", problems + checked.notices, kind="bad"
        )
    return values, look.note(f"The preset {name} was loaded.", checked.notices, kind="good")


def save_preset(places: Places, name: Any, values: Mapping[str, Any]) -> tuple[str | None, str]:
    """The saved preset's name in the picker, or None; and a message in HTML."""
    checked = forms.check_values(values)
    wrong = forms.wrong_values(values, checked)
    if wrong:
        listed = [forms.describe(problem) for problem in checked.problems if problem.key in wrong]
        return None, look.note("Not saved; change this first:", listed, kind="bad")
    try:
        plain = presets.plain(str(name or ""))
        replaced = presets.USER + plain in presets.listing(places)
        path = presets.save(places, plain, checked.values)
    except presets.NameRefused as error:
        return None, look.note(f"Not saved. {error}", kind="bad")
    except OSError as error:
        return None, look.note(f"Not saved: {error}", kind="bad")
    remarks = [forms.describe(problem) for problem in checked.problems]
    shown = path.relative_to(places.home)
    done = f"Saved as {shown}" + (", replacing what it held." if replaced else ".")
    if remarks:
        return presets.USER + plain, look.note(f"{done} Before it can start:", remarks, kind="warn")
    return presets.USER + plain, look.note(done, kind="good")


def start_training(places: Places, values: Mapping[str, Any]) -> tuple[RunFolder | None, str]:
    """Start the run that the form describes; None when it was not started. And a message in HTML."""
    checked = forms.check_values(values)
    problems = [forms.describe(problem) for problem in checked.problems]
    for name in ("pretrained_model_name_or_path", "train_data_dir"):
        if not checked.problems and not checked.values.get(name):
            known = forms.OPTIONS[name]
            problems.append(f"{known.section} › {forms.label(known)}: is empty. {known.help}")
    if problems:
        count = "One thing" if len(problems) == 1 else f"{len(problems)} things"
        return None, look.note(f"Not started. {count} to change first:", problems, kind="bad")
    try:
        run = runner.start(config.build(checked.values), places)
    except runner.StartRefused as error:
        return None, look.note(f"Not started. {error}", kind="bad")
    others = [other.path.name for other in places.known_runs() if other != run and runs.status(other) == "running"]
    remarks = [f"{name} is training too; the two share this machine's memory and speed." for name in others]
    return run, look.note("Started. Mind:", checked.notices + remarks, kind="warn") if checked.notices or others else ""


def run_of(places: Places, values: Mapping[str, Any]) -> RunFolder | None:
    """The run folder that the form names; None while it names none."""
    checked = forms.check_values({name: values[name] for name in ("output_dir", "output_name")})
    if checked.problems:
        return None
    settings = config.build(checked.values)
    return RunFolder(places.home / settings.run_dir)
