"""A run as one HTML file that needs nothing else: no script, no network, no other file. No torch here."""

from __future__ import annotations

import contextlib
import html
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer import files, quantities
from trainer.data import addresses
from trainer.judging import curves as run_curves
from trainer.judging import watched
from trainer.judging.curves import Curves, Event
from trainer.judging.drawing import Line, chart, smoothed
from trainer.judging.parts import number, picture, points, shown, table
from trainer.options.checks import read_config
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError
from trainer.runs import manifest, run_folder
from trainer.runs.manifest import CheckpointDamaged
from trainer.runs.run_folder import RunFolder

MOST_SAMPLES, MOST_IMAGES = 80, 24
BLUE, GREY, AMBER, GREEN, VIOLET = "#2563eb", "#9ca3af", "#d97706", "#16a34a", "#9333ea"
# The browser itself is told to fetch nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .15rem .8rem .15rem 0;
vertical-align: top; border-bottom: 1px solid var(--soft); overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figcaption { font-weight: 600; } figcaption small { font-weight: 400; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: currentColor; }
.grid { stroke: var(--line); stroke-width: .5; } .mark { stroke: #d97706; stroke-dasharray: 4 3; }
.pictures { display: flex; flex-wrap: wrap; gap: .6rem; } .pictures figure { margin: 0; width: 150px; }
.pictures img { width: 100%; } .pictures figcaption { font: 12px/1.3 system-ui, sans-serif; overflow-wrap: anywhere; }
.warning { border-left: 3px solid #d97706; padding-left: .8rem; margin: .8rem 0; }
small, .soft { opacity: .75; }
"""


def write(run: RunFolder) -> str:
    """The report of a run, as HTML. Raises RunUnreadable where there is no run, or none that can be read."""
    record = run_folder.read_run(run)
    if record is None:
        raise run_folder.RunUnreadable(f"{run.path} is no run: it has no run.json")
    curves = run_curves.read(run)
    newest = newest_checkpoint(run)
    sections = {
        "Curves": charts(curves),
        "Metrics": metrics(run, curves),
        "Samples": samples(run, curves),
        **watched.sections(run, curves),
        "Warnings": warnings(curves),
        "Sessions and resumes": sessions(record, curves),
        "Images": images(run, newest),
        "Options": options(run),
        "Environment": environment(newest),
    }
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections.items() if content)
    name = html.escape(str(record.get("output_name") or run.path.name))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body><h1>{name}</h1>{summary(run, record, curves)}{body}</body></html>\n"
    )


def newest_checkpoint(run: RunFolder) -> Path | None:
    """The newest checkpoint whose manifest can be read."""
    return next((item.path for item in manifest.listing(run.checkpoints) if item.manifest), None)


def document(checkpoint: Path | None, name: str) -> dict[str, Any]:
    """A JSON document of the checkpoint; empty where there is none."""
    if checkpoint:
        with contextlib.suppress(CheckpointDamaged, OSError):
            return manifest.read_json(checkpoint, name)
    return {}


# --- parts ---------------------------------------------------------------------------------------------------------


def summary(run: RunFolder, record: Mapping[str, Any], curves: Curves) -> str:
    rows: list[tuple[str, str]] = [("State", run_folder.status(run))]
    if curves.steps:
        last = curves.steps[max(curves.steps)]
        total = curves.sessions[-1].get("total_steps") if curves.sessions else None
        rows.append(("Step", f"{max(curves.steps):,}" + (f" of {total:,}" if isinstance(total, int) else "")))
        seconds = sum(number(event, "step_seconds") or 0 for event in curves.steps.values())
        rows.append(("Time in steps", f"{seconds / 3600:.2f} hours"))
        rows.append(("Learning rate at the end", f"{last.get('lr')}"))
    if energy := energies(curves):
        kwh = sum(number(event, "energy_kwh") or 0 for event in energy)
        cost = sum(number(event, "cost") or 0 for event in energy)
        rows.append(("Energy of the GPU", f"{kwh:.3f} kWh" + (f", cost {cost:.2f}" if cost else "")))
    began = record.get("created")
    if isinstance(began, float):
        rows.append(("Began", time.strftime("%Y-%m-%d %H:%M", time.localtime(began))))
    return table(rows)


def energies(curves: Curves) -> list[Event]:
    """The last sample of the machine of each session, as far as the energy is known."""
    starts = [number(event, "time") or 0.0 for event in curves.sessions[1:]] + [math.inf]
    last: dict[int, Event] = {}
    for event in curves.resources:
        moment = number(event, "time") or 0.0
        if event.get("energy_kwh") is not None:
            last[next(place for place, start in enumerate(starts) if moment < start)] = event
    return list(last.values())


def charts(curves: Curves) -> str:
    marks = watched.marks(curves)
    losses = points(curves.steps, "loss")
    lines = [Line("loss", losses, BLUE, faint=True), Line("smoothed", smoothed(losses), BLUE)]
    lines += [Line("abandoned", points(branch, "loss"), GREY, faint=True) for branch in curves.abandoned[-5:]]
    lines.append(Line("validation", points(curves.validations, "loss"), VIOLET, dots=True))
    parts = list(dict.fromkeys(part for event in curves.steps.values() for part in event.get("lrs", {})))
    rates = [
        Line(
            part,
            [
                (step, event["lrs"][part])
                for step, event in sorted(curves.steps.items())
                if part in event.get("lrs", {})
            ],
            colour,
        )
        for part, colour in zip(parts, (BLUE, GREEN, VIOLET, AMBER), strict=False)
    ] or [Line("first part", points(curves.steps, "lr"), BLUE)]
    gradients = points(curves.steps, "grad_norm")
    figures = [
        chart("Loss", lines, marks),
        chart("Learning rate", rates, marks),
        chart(
            "Gradient norm",
            [Line("each step", gradients, GREEN, faint=True), Line("smoothed", smoothed(gradients), GREEN)],
            marks,
        ),
        chart("Seconds per step", [Line("seconds", points(curves.steps, "step_seconds"), AMBER)], marks),
        *machine(curves),
    ]
    return "".join(figures)


def machine(curves: Curves) -> Iterator[str]:
    """Charts of what the GPUs did."""
    titles = {"temperature": "GPU temperature, °C", "watts": "GPU power, W", "load": "GPU load"}
    count = max((len(event.get("gpus", ())) for event in curves.resources), default=0)
    for name, title in titles.items():
        lines = [
            Line(
                f"GPU {place}",
                [
                    (event["global_step"], value)
                    for event in curves.resources
                    if place < len(event.get("gpus", ())) and (value := number(event["gpus"][place], name)) is not None
                ],
                colour,
            )
            for place, colour in zip(range(count), (BLUE, GREEN, VIOLET, AMBER), strict=False)
        ]
        yield chart(title, lines)


def metrics(run: RunFolder, curves: Curves) -> str:
    """The figures of each evaluation, with their warnings, and a curve for each figure."""
    results = []
    for path in curves.evaluations:
        file = (run.path / path).resolve()
        with contextlib.suppress(OSError, ValueError):
            if file.is_relative_to(run.path.resolve()):
                results.append((file.parent.name, json.loads(file.read_text(encoding="utf-8"))))
    if not results:
        return ""
    names = list(dict.fromkeys(name for _, result in results for name in result["figures"]))
    rows = [[name, *(shown(result["figures"].get(name)) for _, result in results)] for name in names]
    text = table(rows, ["", *(name for name, _ in results)])
    notes = dict.fromkeys(warning for _, result in results for warning in result["warnings"])
    text += "".join(f"<p class=soft>{html.escape(note)}</p>" for note in notes)
    marks = watched.marks(curves)
    stepped = sorted((result["step"], result["figures"]) for _, result in results if result.get("step") is not None)
    if len({step for step, _ in stepped}) > 1:
        for name in names:
            along = [(step, figures[name]) for step, figures in stepped if name in figures]
            text += chart(name, [Line(name, along, BLUE, dots=True)], marks)
    return text


def samples(run: RunFolder, curves: Curves) -> str:
    """The newest samples, in rows by prompt."""
    chosen = sorted(curves.samples.values(), key=lambda event: event["global_step"])[-MOST_SAMPLES:]
    rows: dict[str, list[str]] = {}
    for event in chosen:
        if figure := picture(run.path / event["path"], f"step {event['global_step']}", within=run.path):
            rows.setdefault(str(event.get("prompt", "")), []).append(figure)
    return "".join(
        f"<h3>{html.escape(prompt)}</h3><div class=pictures>{''.join(figures)}</div>"
        for prompt, figures in rows.items()
    )


def warnings(curves: Curves) -> str:
    """Every warning with its reasons and ways out."""
    text = []
    for event in curves.warnings:
        head = html.escape(f"Step {event['global_step']}: {event.get('title') or event.get('kind', '')}")
        words = html.escape(str(event.get("seen") or event.get("message", "")))
        lists = "".join(
            f"<p class=soft>{title}</p><ul>{''.join(f'<li>{html.escape(str(item))}</li>' for item in event[name])}</ul>"
            for name, title in (("reasons", "It may be that"), ("ways_out", "What helps"))
            if event.get(name)
        )
        text.append(f"<div class=warning><strong>{head}</strong><p>{words}</p>{lists}</div>")
    return "".join(text)


def sessions(record: Mapping[str, Any], curves: Curves) -> str:
    """The sessions of the run, and what each resume found."""
    rows = [
        (
            entry.get("session", ""),
            entry.get("from_step", ""),
            entry.get("to_step", ""),
            entry.get("grade") or "from the start",
            entry.get("reason", ""),
        )
        for entry in record["sessions"]
    ]
    text = table(rows, ["Session", "From step", "To step", "Verdict", "Ended"])
    for event in curves.resumes:
        lines = [f"{name}: {then} → {now}" for name, (then, now) in event.get("differences", {}).items()]
        lines += [str(line) for name in ("dataset", "environment") for line in event.get(name, ())]
        title = f"Resume at step {event['global_step']}: {event.get('grade', '')}, probe loss {event.get('probe_loss')}"
        listed = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        text += f"<p>{html.escape(title)}</p>" + (f"<ul>{listed}</ul>" if listed else "")
    return text


def images(run: RunFolder, newest: Path | None) -> str:
    """What was trained: counts, shapes, and the first pictures that are still where they were."""
    images_then = document(newest, "dataset.json").get("images", {})
    if not images_then:
        return ""
    held = sum(bool(image.get("validation")) for image in images_then.values())
    shapes = Counter("x".join(str(edge) for edge in image["bucket"]) for image in images_then.values())
    rows = [("Images", f"{len(images_then) - held:,}"), ("Held out for validation", f"{held:,}")]
    rows += [(shape, quantities.counted(count, "image")) for shape, count in shapes.most_common(20)]
    text = table(rows)
    config = config_of(run)
    if config and config.train_data_dir:
        folder = addresses.local(config.train_data_dir)
        paths = sorted(image["path"] for image in images_then.values())[:MOST_IMAGES]
        text += f"<div class=pictures>{''.join(picture(folder / path, path, within=folder) for path in paths)}</div>"
    return text


def config_of(run: RunFolder) -> Config | None:
    try:
        return read_config(run.config_file)
    except (ConfigError, OSError):
        return None


def options(run: RunFolder) -> str:
    """What differs from the defaults, and behind a click all the rest; the file as it is where it cannot be read."""
    config = config_of(run)
    if config is None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return f"<pre>{html.escape(files.read_text(run.config_file))}</pre>"
        return ""
    values = {name: getattr(config, name) for name in OPTIONS}
    changed = [(name, value) for name, value in values.items() if value != OPTIONS[name].default]
    usual = [(name, value) for name, value in values.items() if value == OPTIONS[name].default]
    return f"{table(changed)}<details><summary>At their defaults</summary>{table(usual)}</details>"


def environment(newest: Path | None) -> str:
    """What a result depends on besides options and images."""
    said = document(newest, "environment.json")
    rows = []
    for name, value in said.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}: {part}", inner) for part, inner in value.items()]
        else:
            rows.append((name, value))
    return table(rows)
