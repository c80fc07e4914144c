"""What is said at the form's fields: what is wrong with a value, and what it was in the preset. form.js writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from gui.forms import form as forms
from gui.forms.draft import Draft
from gui.places import Places
from trainer.checkpoints import preflight
from trainer.options import checks

# For the js_on_load of the widget that carries the marks: form.js calls this to have a field as it was.
TAKEN_BACK_BY_THE_SCRIPT = "window.rekindleTakeBack = name => trigger('click', { value: name });"
LONGEST = 30  # letters of a value that is told


def marks(places: Places, draft: Draft, changes: Sequence[str]) -> str:
    """Problems by option, and the values that the `changes` had in the base, as HTML that nobody sees."""
    said = {"problems": problems(places, draft), "changed": {name: told(draft.base[name]) for name in changes}}
    return f'<i data-marks="{escape(json.dumps(said))}"></i>'


def problems(places: Places, draft: Draft) -> dict[str, str]:
    """What is wrong with what was written, by option; that something is yet to be written is not."""
    checked = forms.check_values(draft.values)
    found = list(checked.problems)
    settings = checks.build(checked.values).replace(checkpoint_mirror="")  # to look there takes too long
    found += preflight.missing(settings, places.home, known=checked.problems)
    written = {name for name, value in draft.values.items() if value not in ("", None, ())}
    said: dict[str, list[str]] = {}
    for problem in found:
        if problem.key in written or (problem.key in draft.values and problem in checked.problems):
            said.setdefault(problem.key, []).append(problem.message)
    return {name: "; ".join(dict.fromkeys(messages)) for name, messages in said.items()}


def told(value: Any) -> str:
    """A value for people, in a few words."""
    if value is None or value in ("", (), []):
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]}…"
