"""Options as text: TOML files and the reference for people. No torch here."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

import toml

from trainer.options.config import OPTIONS, Config


def reference() -> str:
    """Every option by section, for people: its kind, default and meaning, and what a change means on resume."""
    lines = []
    section = ""
    for option in OPTIONS.values():
        if option.section != section:
            section = option.section
            lines += ["", f"{section}:"]
        kind = "|".join(option.choices) or option.kind
        default = "" if option.default in (None, "", ()) else f", default {option.default}"
        switch = (
            f"--{option.name} / --no-{option.name}" if option.kind == "bool" else f"--{option.name} ({kind}{default})"
        )
        lines += textwrap.wrap(
            f"{switch}  {option.help} [{option.on_resume}]", 110, initial_indent="  ", subsequent_indent="      "
        )
    return "\n".join(lines)


def to_toml(values: Config | Mapping[str, Any], *, complete: bool = True) -> str:
    """TOML in sections. `complete`: every option; otherwise only what differs from its default (a preset)."""
    if isinstance(values, Config):
        values = {name: getattr(values, name) for name in OPTIONS}
    document: dict[str, dict[str, Any]] = {}
    for name, option in OPTIONS.items():
        value = values.get(name, option.default)
        if value is None or (not complete and value == option.default):
            continue
        section = option.section.lower().replace(" ", "_")
        document.setdefault(section, {})[name] = list(value) if isinstance(value, tuple) else value
    return toml.dumps(document, _Encoder())


class _Encoder(toml.TomlEncoder):
    """toml, but for its way to write texts, which fails for backslashes before some characters."""

    def __init__(self) -> None:
        super().__init__()
        self.dump_funcs[str] = _quoted


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's, which also wants one for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
