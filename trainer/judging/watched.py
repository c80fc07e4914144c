"""What watching a run has shown, as parts of a page: for the report and for the Monitor tab. No torch here."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trainer import quantities
from trainer.data import likeness, portrait
from trainer.data.pictures import PictureError, open_picture
from trainer.judging.curves import Curves, Event
from trainer.judging.drawing import Line, chart
from trainer.judging.parts import number, picture, shown, table
from trainer.runs import blind
from trainer.runs.run_folder import RunFolder

COLOURS = ("#2563eb", "#16a34a", "#d97706", "#9333ea", "#db2777", "#0891b2")
MOST_COMPARED, MOST_SEEDS = 12, 8


def sections(run: RunFolder, curves: Curves) -> dict[str, str]:
    """Titles and HTML; "" where a run has nothing of the kind."""
    return {
        "Validation by timesteps": bands(curves),
        "Returns to earlier checkpoints": rollbacks(curves),
        "Samples before and after resumes": resumed_samples(run, curves),
        "Stability of samples": stability(curves),
        "Consistency over seeds": consistency(run, curves),
        "Choices between hidden samples": choices(run),
        "Images that changed": shifts(curves),
        "Storage": storage(curves),
        "Memory, estimated and measured": memory(curves),
    }


def marks(curves: Curves) -> list[tuple[int, str]]:
    """Where charts mark a resume."""
    return [(event["global_step"], f"resumed ({event.get('grade', '')})") for event in curves.resumes]


def bands(curves: Curves) -> str:
    """The validation loss of each band of timesteps, and what resumes measured."""
    losses = {step: event["bands"] for step, event in sorted(curves.validations.items()) if event.get("bands")}
    lines = []
    if losses:
        names = [_band(band) for band in losses[max(losses)]]
        lines = [
            Line(
                name,
                [(step, own[place]["loss"]) for step, own in losses.items() if place < len(own)],
                colour,
                dots=True,
            )
            for place, (name, colour) in enumerate(zip(names, itertools.cycle(COLOURS), strict=False))
        ]
    text = chart("Validation loss by timesteps (0: picture, 1000: noise)", lines, marks(curves)) if lines else ""
    rows = []
    for event in curves.resume_validations:
        before, equal = event.get("before_loss"), event.get("equal")
        verdict = {True: "equal to the bit", False: "NOT equal", None: "of another step"}[equal]
        parts = ", ".join(f"{_band(band)}: {shown(band['loss'])}" for band in event.get("bands", ()))
        then = f"{shown(before)} at step {event['before_step']}" if before is not None else "not measured"
        rows.append((event["global_step"], then, shown(event["loss"]), verdict, parts))
    return text + table(rows, ["Resumed at", "Before", "After", "", "After, by timesteps"])


def _band(band: Mapping[str, float]) -> str:
    return f"{band['from']:.0f}-{band['to']:.0f}"


def rollbacks(curves: Curves) -> str:
    rows = [(event["global_step"], event["to_step"], f"x {shown(event['scale'])}") for event in curves.rollbacks]
    return table(rows, ["Seen at step", "Gone back to", "Learning rate"])


def resumed_samples(run: RunFolder, curves: Curves) -> str:
    """Pairs of pictures, where they differ, and by how much."""
    text = ""
    for event in curves.comparisons[-MOST_COMPARED:]:
        same = event.get("before_step") == event["global_step"]
        verdict = (
            "equal to the pixel"
            if event.get("equal")
            else f"largest difference {event.get('largest_difference')} of 255"
        )
        words = (f"before, step {event['before_step']}", f"after the resume at {event['global_step']}", "difference")
        pictures = "".join(
            picture(run.path / str(event[name]), caption, within=run.path)
            for name, caption in zip(("before", "path", "difference"), words, strict=True)
            if event.get(name)
        )
        sentence = f"{verdict}; SSIM {shown(event.get('ssim'))}" + (
            "" if same else " (of another step, so they may differ)"
        )
        text += f"<p>{sentence}</p><div class=pictures>{pictures}</div>"
    return text


def stability(curves: Curves) -> str:
    """How alike each sample is to the one before, over the steps."""
    result: dict[tuple[str, Any], list[tuple[float, float]]] = {}
    for event in curves.samples.values():
        if (ssim := number(event, "ssim")) is not None and not event.get("resumed"):
            name = str(event.get("prompt", ""))[:40] + (", raw weights" if event.get("weights") else "")
            result.setdefault((name, event.get("seed")), []).append((event["global_step"], ssim))
    lines = [
        Line(f"{name} ({seed})", sorted(points), colour, dots=True)
        for ((name, seed), points), colour in zip(result.items(), itertools.cycle(COLOURS), strict=False)
    ]
    drawn = chart("SSIM of a sample with the one before it, 1: equal", lines[: len(COLOURS)], marks(curves))
    return f"{drawn}<p class=soft>{likeness.NAME}: {likeness.SOURCE}</p>" if lines else ""


def consistency(run: RunFolder, curves: Curves) -> str:
    """How alike the newest samples of one prompt from several seeds are."""
    newest: dict[str, dict[Any, Event]] = {}
    for event in sorted(curves.samples.values(), key=lambda event: event["global_step"]):
        if not event.get("weights"):
            newest.setdefault(str(event.get("prompt", "")), {})[event.get("seed")] = event
    rows = []
    for prompt, by_seed in newest.items():
        last = max(event["global_step"] for event in by_seed.values())
        of_step = [event for event in by_seed.values() if event["global_step"] == last][:MOST_SEEDS]
        pictures = _opened(run, [run.path / str(event["path"]) for event in of_step])
        pairs = [likeness.structural_similarity(*pair) for pair in itertools.combinations(pictures, 2)]
        values = [value for value in pairs if value is not None]
        if values:
            rows.append((prompt[:80], last, len(pictures), shown(statistics.mean(values))))
    note = f"<p class=soft>Mean {likeness.NAME} of all pairs: near 1, the seed hardly matters any more.</p>"
    return table(rows, ["Prompt", "Step", "Seeds", likeness.NAME]) + (note if rows else "")


def _opened(run: RunFolder, paths: Iterable[Path]) -> list[Image.Image]:
    result = []
    for path in paths:
        if path.resolve().is_relative_to(run.path.resolve()):
            try:
                result.append(open_picture(path))
            except PictureError:
                continue
    return result


def choices(run: RunFolder) -> str:
    rows = [(tally.sentence(),) for tally in blind.tallies(run)]
    return table(rows) + (f"<p class=soft>Interval: {blind.SOURCE}</p>" if rows else "")


def shifts(curves: Curves) -> str:
    """How far the images had moved at each resume with others."""
    text = ""
    for event in curves.shifts:
        then, now = event["images"]
        text += f"<p>Resume at step {event['global_step']}: {then} images before, {now} now</p>"
        text += shift_table(event["shifts"])
    return text


def shift_table(moved: Sequence[Mapping[str, Any]]) -> str:
    """Shifts as a table, with a bar for each distance."""
    rows = []
    for item in moved:
        changes = [f"{label} {100 * then:.0f} → {100 * now:.0f} %" for label, then, now in item["changes"][:4]]
        title = portrait.KINDS[item["kind"]][0] if item["kind"] in portrait.KINDS else str(item["kind"])
        bar = "█" * round(10 * float(item["distance"]))
        rows.append((title, f"{float(item['distance']):.2f} {bar}", item["meaning"], ", ".join(changes)))
    return table(rows, ["", "Distance (Jensen-Shannon), 0 to 1", "What that usually does", "Largest changes"])


def storage(curves: Curves) -> str:
    """How fast checkpoints are written and read back, and images read."""
    rows = []
    for title, name in (
        ("Checkpoints written and read back", "write_seconds"),
        ("of that, read back", "verify_seconds"),
    ):
        speeds = [event["bytes"] / event[name] for event in curves.saves if event.get("bytes") and event.get(name)]
        rows += [_speeds(title, speeds)] if speeds else []
    reading = [event for event in curves.resources if event.get("read_seconds")]
    speeds = [event["read_bytes"] / event["read_seconds"] for event in reading]
    rows += [_speeds("Images and caches read, by one thread", speeds)] if speeds else []
    return table(rows, ["", "Median, a second", "Slowest, a second", "Times"])


def _speeds(title: str, speeds: Sequence[float]) -> tuple[str, str, str, int]:
    return title, quantities.size(statistics.median(speeds)), quantities.size(min(speeds)), len(speeds)


def memory(curves: Curves) -> str:
    rows = [
        (
            event["global_step"],
            quantities.size(event["estimated"]),
            quantities.size(event["measured"]),
            shown(event["ratio"]),
        )
        for event in curves.memory
    ]
    return table(rows, ["Until step", "Estimated", "Measured at the most", "Estimated / measured"])
