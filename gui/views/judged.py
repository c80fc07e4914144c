"""What watching a run has shown, for the Monitor tab: alarms, validation, samples, storage, drill. No widget here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gui import look
from gui.server import drills
from gui.server.side_process import Work
from trainer import quantities
from trainer.judging import curves as run_curves
from trainer.judging import report, watched
from trainer.judging.curves import Curves
from trainer.runs.run_folder import RunFolder

MOST_ALARMS = 12
STYLE = """<style>
.judged svg { width: 100%; height: auto; } .judged svg text { font-size: 11px; fill: currentColor; }
.judged .grid { stroke: #8884; stroke-width: .5; } .judged .mark { stroke: #d97706; stroke-dasharray: 4 3; }
.judged table { border-collapse: collapse; width: 100%; }
.judged td, .judged th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top; }
.judged .pictures { display: flex; flex-wrap: wrap; gap: .6rem; } .judged figure { margin: .6rem 0; }
.judged .pictures figure { width: 180px; margin: 0; } .judged .pictures img { width: 100%; }
</style>"""
NOTHING = (
    "Nothing of this run to judge yet. Alarms, validation by timesteps (Validation), samples before and after a resume "
    "(Samples), figures of python -m trainer evaluate, storage and memory appear here."
)


def page(run: RunFolder) -> str:
    """Everything about a run, in HTML: a card a subject. Reads all of its events, so it is made when asked for."""
    curves = run_curves.read(run)
    parts = {
        "Alarms": alarms(curves),
        "Try of a resume (drill)": drill_card(drills.read(run)),
        "Metrics": report.metrics(run, curves),
        **watched.sections(run, curves),
    }
    text = "".join(
        f'<section class="card"><h3>{title}</h3><div class="scroll" role="region" aria-label="{title}" tabindex="0">'
        f"{content}</div></section>"
        for title, content in parts.items()
        if content
    )
    return f'{STYLE}<div class="judged">{text}</div>' if text else look.note(NOTHING)


def alarms(curves: Curves) -> str:
    """The newest alarms: what was seen, why it may be, what helps."""
    newest = list(curves.warnings)[-MOST_ALARMS:]
    text = ""
    for event in reversed(newest):
        title = f"Step {event['global_step']:,}: {event.get('title') or str(event.get('kind', '')).replace('_', ' ')}"
        seen = str(event.get("seen") or event.get("message", ""))
        reasons = [f"It may be that {reason}." for reason in event.get("reasons", ())]
        text += look.note(f"{title}: {seen}", [*reasons, *map(str, event.get("ways_out", ()))], kind="warn")
    return text


def drill_card(drill: Work | None) -> str:
    """The verdict of the run's last drill and its figures; "" where there was none."""
    if drill is None:
        return ""
    verdict = drill.last("verdict")
    outcome: Mapping[str, Any] = (verdict or {}).get("outcome") or {}
    if not outcome:
        return drills.show(drill, time.time())
    difference = outcome.get("first_difference")
    exact = "bit-equal" if not difference and not outcome.get("different_files") else "NOT equal"
    pairs = [
        ("Resume", f"{exact}; {outcome['grade']}"),
        ("Steps", f"{outcome['steps']}, killed after {outcome['killed_after']}, resumed at {outcome['resumed_at']}"),
        ("A checkpoint", quantities.size(outcome["checkpoint_bytes"])),
        ("Saving holds up", f"{1000 * outcome['blocking_seconds']:.0f} ms"),
        ("Written in", f"{outcome['write_seconds']:.1f} s"),
        ("Start to first resumed step", f"{outcome['first_step_seconds']:.1f} s"),
        ("A step", f"{outcome['step_seconds']:.2f} s"),
    ]
    if outcome.get("peak_memory"):
        pairs.append(("Memory at the peak", quantities.size(outcome["peak_memory"])))
    return look.facts(pairs)
