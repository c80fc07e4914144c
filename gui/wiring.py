"""How events are wired: a handler gets the data of its inputs by widget and returns updates by widget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUIET = {"preprocess": False, "api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
Updates = dict[Any, Any]
Data = Mapping[Any, Any]

# For the js_on_load of a gr.HTML: a click on one of its buttons (look.button) is a click event with action and value.
TELL_CLICKS = """
element.addEventListener("click", event => {
  const button = event.target.closest("button[data-action]");
  if (button) trigger("click", { action: button.dataset.action, value: button.dataset.value });
});
"""
