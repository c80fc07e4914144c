"""How events are wired: a handler gets the data of its inputs by widget and returns updates by widget."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

QUIET = {"preprocess": False, "api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
# Of events that put other values into the form: their answers come in the order of the clicks. In another order the
# page would be left with the stamp of an earlier filling, and all that is typed from then on would count as late.
IN_TURN = QUIET | {"concurrency_limit": 1, "concurrency_id": "fill"}
Updates = dict[Any, Any]
Data = Mapping[Any, Any]


def stamp_of_list(choices: Sequence[tuple[str, str]]) -> int:
    """A number that changes when the choices do."""
    return zlib.crc32(repr(choices).encode())


def fresh_list(choices: Sequence[tuple[str, str]], value: Any, otherwise: str | None) -> Any:
    """The update of a dropdown that gives it these choices, and another value only where its own is not among them."""
    kept = value in [choice for _, choice in choices]
    return gr.update(choices=choices) if kept else gr.update(choices=choices, value=otherwise)


# For the js_on_load of a gr.HTML: a click on one of its buttons (look.button) is a click event with action and value.
TELL_CLICKS = """
element.addEventListener("click", event => {
  const button = event.target.closest("button[data-action]");
  if (button) trigger("click", { action: button.dataset.action, value: button.dataset.value });
});
"""
