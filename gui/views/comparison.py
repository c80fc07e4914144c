"""How the options of several runs differ, as a table. No widget here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gui import look
from trainer.options import checks
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError
from trainer.runs.run_folder import RunFolder

# What belongs to a run and not to how it trains: it always differs.
OF_THE_RUN = ("output_name", "output_dir", "resume_from_checkpoint", "resume_allow", "overwrite_run")


def table(runs: Sequence[RunFolder]) -> str:
    """The options that are not the same in all of the runs, a column for each run; in HTML."""
    configs = [_config(run) for run in runs]
    unread = [run.path.name for run, config in zip(runs, configs, strict=True) if config is None]
    text = look.note(f"The options of {', '.join(unread)} cannot be read.", kind="warn") if unread else ""
    readable = [(run, config) for run, config in zip(runs, configs, strict=True) if config is not None]
    if len(readable) < 2:
        return text
    rows = []
    for name, option in OPTIONS.items():
        values = [getattr(config, name) for _, config in readable]
        if name not in OF_THE_RUN and any(value != values[0] for value in values):
            rows.append([option.section, name, *(shown(value) for value in values)])
    if not rows:
        return text + look.note("Their options are the same.")
    headings = ["Section", "Option", *(run.path.name for run, _ in readable)]
    return text + look.table(headings, rows, name="How the options of these runs differ")


def _config(run: RunFolder) -> Config | None:
    try:
        return checks.read_config(run.config_file)
    except ConfigError:
        return None


def shown(value: Any) -> str:
    """An option's value as people read it."""
    if value is None or value in ("", ()):
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
