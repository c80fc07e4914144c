"""Every option's widget, made from its declaration; values go to the browser and come back through here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import gradio as gr

from gui import look
from trainer.models import families
from trainer.options import checks, sources
from trainer.options.config import OPTIONS
from trainer.options.declaration import Option
from trainer.options.problems import Checked, Given, Problem
from trainer.options.values import items_of

LARGEST_EXACT = 2**53  # a browser's numbers are doubles: above this, whole numbers are typed as text
LINES = {"sample_prompts": 4, "training_comment": 2, "metadata_description": 2}
WORDS = {
    "lr": "LR",
    "vae": "VAE",
    "unet": "U-Net",
    "ema": "EMA",
    "snr": "SNR",
    "ip": "IP",
    "aug": "augmentation",
    "reso": "resolution",
    "dim": "dim (rank)",
    "pred": "prediction",
    "dir": "folder",
    "n": "n",
}


def label(option: Option) -> str:
    """The option's name in words: pretrained_model_name_or_path -> Pretrained model name or path."""
    return in_words(option.name)


def in_words(name: str) -> str:
    words = [WORDS.get(word, word) for word in name.split("_")]
    return words[0][:1].upper() + words[0][1:] + "".join(f" {word}" for word in words[1:])


def explanation(option: Option) -> str:
    """The option's help with its bounds."""
    low, high = option.low, option.high
    if low is not None and high is not None and high < LARGEST_EXACT:
        return f"{option.help} From {low:g} to {high:g}."
    if low:
        return f"{option.help} At least {low:g}."
    return option.help


# --- values to the browser and back --------------------------------------------------------------------------------


def to_browser(option: Option, value: Any) -> Any:
    """The value as its widget shows it; None leaves the widget empty."""
    if option.kind == "list":
        return "\n".join(value)
    if _is_typed(option):
        return "" if value is None else str(value)
    return value


def from_browser(option: Option, raw: Any) -> Any:
    """The value that a widget's raw content means; content that means none comes back as it is, for `check`."""
    if option.kind == "list":
        return items_of(option, raw) if isinstance(raw, str) else raw
    if option.kind in ("int", "float"):
        text = raw.strip() if isinstance(raw, str) else raw
        if text in ("", None):
            return None
        return sources.from_text(option, text) if isinstance(text, str) else text
    if option.kind == "choice":
        return raw
    return "" if option.kind == "str" and raw is None else raw


def check_values(values: Mapping[str, Any]) -> Checked:
    """Check the form's values; an empty field is right where the option may be left out."""
    given, empty = {}, []
    for name, value in values.items():
        option = OPTIONS[name]
        if value is not None:
            given[name] = Given(value, "")
        elif not option.optional:
            empty.append(Problem(name, f"is empty; the default is {option.default}"))
    checked = checks.check(given)
    return Checked(checked.values, empty + checked.problems, checked.notices)


def wrong_values(values: Mapping[str, Any], checked: Checked) -> set[str]:
    """The options whose own value is wrong, apart from those that only do not go together."""
    return {problem.key for problem in checked.problems if problem.key in values and problem.key not in checked.values}


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every option: the given value or the default."""
    return {name: values.get(name, option.default) for name, option in OPTIONS.items()}


def describe(problem: Problem) -> str:
    """A problem for people, with the section and the label as the form shows them."""
    option = OPTIONS.get(problem.key)
    if option is None:
        return str(problem)
    place = f" ({problem.where})" if problem.where else ""
    return f"{option.section} › {label(option)}: {problem.message}{place}"


def linked(problems: Iterable[Problem]) -> list[str]:
    """Problems for people, each leading to its option."""
    return [
        look.to_option(problem.key, describe(problem)) if problem.key in OPTIONS else describe(problem)
        for problem in problems
    ]


def hiding(family: str | None, training_kind: str) -> str:
    """A style that hides the options which a family or a kind of training does not have, and sections with no others
    together with the links to them; of a family that is not known, none."""
    facts = families.TABLE[family] if family else None
    served = {option for option in OPTIONS.values() if option.serves(training_kind)}
    shown = {option for option in served if facts is None or option.applies_to(facts)}
    hidden = [f"#opt-{option.name}" for option in OPTIONS.values() if option not in shown]
    sections = dict.fromkeys(option.section for option in OPTIONS.values())
    without = [section_id(name) for name in sections if not any(option.section == name for option in served)]
    hidden += [selector for name in without for selector in (f"#{name}", f'#sections a[href="#{name}"]')]
    return f"<style>{', '.join(hidden)} {{ display: none }}</style>" if hidden else ""


def section_id(section: str, *, advanced: bool = False) -> str:
    """The element id of a section's accordion."""
    return "section-" + section.lower().replace(" ", "-") + ("-advanced" if advanced else "")


def section_list() -> str:
    """Links to the sections, in HTML; form.js has them follow the scroll."""
    sections = dict.fromkeys(option.section for option in OPTIONS.values())
    links = "".join(f'<li><a href="#{section_id(name)}">{escape(name)}</a></li>' for name in sections)
    return f'<nav id="sections" aria-label="Sections of the form"><ul>{links}</ul></nav>'


def index() -> list[dict[str, Any]]:
    """What the search and the jumps of the page go by: every option with its words and its accordions."""
    return [
        {
            "name": option.name,
            "label": label(option),
            "help": option.help,
            "section": option.section,
            "inside": [section_id(option.section), section_id(option.section, advanced=True)][: 1 + option.advanced],
        }
        for option in OPTIONS.values()
    ]


# --- widgets -------------------------------------------------------------------------------------------------------


def _is_typed(option: Option) -> bool:
    """Whether a number is typed as text: a number field shows one that is not set as 0, and rounds large ones."""
    return option.kind in ("int", "float") and (option.optional or (option.high or 0) > LARGEST_EXACT)


def _is_long(option: Option) -> bool:
    """Whether the value is usually a path or a sentence."""
    return option.kind == "str" and (option.by_content or option.name.endswith("_dir") or option.default == "")


def _classes(option: Option) -> list[str]:
    """What the page's styles and scripts know the widget by."""
    classes = ["wide"] if _is_long(option) else []
    if option.path:
        classes.append(look.FOLDER_FIELD if option.name.endswith("_dir") else look.PATH_FIELD)
    return classes


def _step(option: Option) -> float:
    """What one press of an arrow key adds."""
    if option.kind == "int":
        return 1
    if option.default:  # a tenth of its leading digit
        return float(10.0 ** (math.floor(math.log10(abs(option.default))) - 1))
    return 0.01


def widget(option: Option) -> gr.components.Component:
    """The option's widget. It never refuses a value by itself: `check` does, and names the option."""
    common = {
        "value": to_browser(option, option.default),
        "label": label(option),
        "info": explanation(option),
        "elem_id": f"opt-{option.name}",
        "interactive": True,
        "elem_classes": _classes(option),
    }
    if option.kind == "bool":
        return gr.Checkbox(**common)
    if option.kind == "choice":
        return gr.Dropdown(choices=list(option.choices), allow_custom_value=bool(option.pattern), **common)
    if option.kind == "list":
        return gr.Textbox(lines=2, max_lines=8, placeholder="one a line", **common)
    if _is_typed(option):
        return gr.Textbox(max_lines=1, placeholder="not set", **common)
    if option.kind == "str":
        lines = LINES.get(option.name, 1)
        return gr.Textbox(lines=lines, max_lines=max(lines, 20), **common)
    return gr.Number(
        precision=0 if option.kind == "int" else None,
        minimum=option.low,
        maximum=option.high,
        step=_step(option),
        **common,
    )


class Form:
    """The widgets of all options, by name, built into the layout that is open when it is made."""

    def __init__(self) -> None:
        self.widgets: dict[str, gr.components.Component] = {}
        for section, members in itertools.groupby(OPTIONS.values(), key=lambda option: option.section):
            options = list(members)
            with gr.Accordion(section, open=True, elem_classes="option-section", elem_id=section_id(section)):
                self._add(option for option in options if not option.advanced)
                advanced = [option for option in options if option.advanced]
                if advanced:
                    with gr.Accordion(
                        f"{section}: advanced", open=False, elem_classes="option-advanced",
                        elem_id=section_id(section, advanced=True),
                    ):  # fmt: skip
                        self._add(advanced)

    def _add(self, options: Iterable[Option]) -> None:
        with gr.Row(elem_classes="option-grid"):
            for option in options:
                self.widgets[option.name] = widget(option)

    def inputs(self) -> set[gr.components.Component]:
        """What a handler needs among its inputs for `values`; its event must be wired with preprocess=False."""
        return set(self.widgets.values())

    def values(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        """Option -> value, from a handler's data. Right or wrong: `check_values` tells."""
        return {name: from_browser(OPTIONS[name], data[item]) for name, item in self.widgets.items()}

    def as_built(self) -> dict[Any, Any]:
        """What the widgets hold when a page is opened, before anything was put into them."""
        return {item: to_browser(OPTIONS[name], OPTIONS[name].default) for name, item in self.widgets.items()}

    def show(self, values: Mapping[str, Any], present: Mapping[Any, Any] | None = None) -> dict[Any, Any]:
        """Updates that put these values into the widgets they belong to. `present`: a handler's data with all options;
        what is there already is not sent again, which is most of a preset."""
        shown = {self.widgets[name]: to_browser(OPTIONS[name], value) for name, value in values.items()}
        return {item: value for item, value in shown.items() if present is None or present[item] != value}
