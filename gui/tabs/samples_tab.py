"""The Samples tab: the previews of the run that is watched, by step and prompt; two steps can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from gui import look
from gui.places import Places
from gui.views import runs, thumbnails
from gui.views.history import Sample
from gui.views.monitor import View, Watch
from gui.wiring import QUIET, TELL_CLICKS, Updates
from trainer.runs.run_folder import RunFolder

MOST_SHOWN = 120
MADE_AT_ONCE = 8  # thumbnails a look at the run makes at most; the next looks make the others
NONE_YET = (
    "No samples yet. They are made during training when the options sample_prompts and sample_every_n_steps (Samples) "
    "are set, or with Sample now."
)


class Column(NamedTuple):
    """What makes samples comparable: the same prompt from the same seed."""

    prompt: str
    seed: int | None

    @property
    def label(self) -> str:
        return self.prompt if self.seed is None else f"{self.prompt} · seed {self.seed}"


class Row(NamedTuple):
    step: int
    abandoned: bool


class SamplesTab:
    def __init__(self, places: Places) -> None:
        self._places = places
        self._folder = places.thumbnails
        gr.HTML("<b>Samples of the run shown above,</b> the newest step first. Click one to see it in full size.")
        self.picture = gr.HTML(elem_id="sample-picture")
        self.gallery = gr.HTML(elem_id="sample-gallery", js_on_load=TELL_CLICKS)
        with gr.Accordion("Compare two steps", open=True):
            with gr.Row():
                self.prompt = gr.Dropdown(
                    choices=[], label="Prompt", elem_id="compare-prompt", interactive=True, scale=3
                )  # fmt: skip
                self.left = gr.Dropdown(choices=[], label="Left: step", elem_id="compare-left", interactive=True)
                self.right = gr.Dropdown(choices=[], label="Right: step", elem_id="compare-right", interactive=True)
            self.slider = gr.ImageSlider(
                label="Comparison", show_label=False, elem_id="compare-slider", interactive=False, max_height=560,
                buttons=["fullscreen"],
            )  # fmt: skip
            self.compared = gr.HTML(elem_id="compare-caption")

    def outputs(self) -> set[Any]:
        return {self.gallery, self.picture, *self._comparison()}

    def _comparison(self) -> set[Any]:
        return {self.prompt, self.left, self.right, self.slider, self.compared}

    def wire(self, picker: gr.Dropdown, watch: Watch) -> None:
        def view(data: Mapping[Any, Any]) -> View | None:
            run = runs.chosen(self._places, data[picker])
            return watch.look(run) if run is not None else None

        def enlarge(data: Mapping[Any, Any], event: gr.EventData) -> Updates:
            return {self.picture: picture(view(data), str(getattr(event, "value", "")), self._folder)}

        def compare(data: Mapping[Any, Any]) -> Updates:
            return self._compare(view(data), data[self.prompt], data[self.left], data[self.right])

        self.gallery.click(enlarge, {picker}, {self.picture}, js=TO_THE_PICTURE, **QUIET)
        chosen = {picker, self.prompt, self.left, self.right}
        for widget in (self.prompt, self.left, self.right):
            widget.input(compare, chosen, {self.slider, self.compared}, **QUIET)

    def inputs(self) -> set[Any]:
        """What `show` needs of a handler's data."""
        return {self.prompt, self.left, self.right}

    def show(self, view: View | None, seen: Any, data: Mapping[Any, Any]) -> tuple[Updates, Any]:
        """What differs from what `seen` says was shown; and what is shown now."""
        stamp = view.stamp if view is not None else None
        if seen and seen[0] == (stamp, True):
            return {}, seen
        samples = list(view.history.samples.values()) if view is not None else []
        shown, complete = grid(view, samples, self._folder) if view is not None and samples else ("", True)
        run = stamp[0] if stamp else ""
        newest = newest_steps(samples)
        now = ((stamp, complete), run, hashlib.sha256(shown.encode()).hexdigest(), len(samples), newest)
        if seen and seen[1:] == now[1:]:
            return {}, now
        updates: Updates = {self.gallery: shown or look.note(NONE_YET)}
        another = not seen or seen[1] != run
        if another:
            updates[self.picture] = ""
        if another or seen[3] != len(samples):
            chosen = self._chosen(samples, data, None if another or seen[3] == 0 else seen[4])
            updates |= self._choices(samples, chosen)
            if chosen:
                compared = [chosen.get(widget, data[widget]) for widget in (self.prompt, self.left, self.right)]
                updates |= self._compare(view, *compared)
        return updates, now

    def _chosen(
        self, samples: Sequence[Sample], data: Mapping[Any, Any], before: Sequence[str | None] | None
    ) -> dict[Any, Any]:
        """What is chosen for the person: at first the first prompt at its first and its newest step, and the newest
        again whenever there is a newer one, until another step is chosen. `before`: the newest steps shown last."""
        newest = newest_steps(samples)
        if before is None:
            current = [_key(row) for row in rows(samples) if not row.abandoned]
            first = current[-1] if current else None
            return {self.prompt: 0 if samples else None, self.left: first, self.right: newest[0] if newest else None}
        place = data[self.prompt]
        if not isinstance(place, int) or not 0 <= place < min(len(newest), len(before)):
            return {}
        return {self.right: newest[place]} if data[self.right] == before[place] != newest[place] else {}

    def _choices(self, samples: Sequence[Sample], chosen: Mapping[Any, Any]) -> Updates:
        """What can be compared, and what of it is chosen now."""
        prompts = [(column.label, place) for place, column in enumerate(columns(samples))]
        steps = [(row_label(row), _key(row)) for row in rows(samples)]
        return {
            widget: gr.update(choices=choices, **({"value": chosen[widget]} if widget in chosen else {}))
            for widget, choices in ((self.prompt, prompts), (self.left, steps), (self.right, steps))
        }

    def _compare(self, view: View | None, prompt: Any, left: Any, right: Any) -> Updates:
        """The prompt's samples of two steps over one another."""
        nothing = {self.slider: gr.update(value=None), self.compared: ""}
        if view is None:
            return nothing
        samples = list(view.history.samples.values())
        known = columns(samples)
        if not isinstance(prompt, int) or not 0 <= prompt < len(known):
            return nothing
        table = {(_key(_row(sample)), _column(sample)): sample for sample in samples}
        found = [table.get((key, known[prompt])) for key in (left, right)]
        missing = [str(key) for key, sample in zip((left, right), found, strict=True) if sample is None]
        if missing:
            return nothing | {self.compared: look.note("This prompt was not sampled at one of these steps.")}
        files = [_whole(view.run, sample, self._folder) for sample in found if sample is not None]
        if None in files:
            return nothing | {self.compared: look.note("One of these pictures no longer exists.", kind="warn")}
        labels = [row_label(_row(sample)) for sample in found if sample is not None]
        caption = f"Left: {labels[0]}. Right: {labels[1]}. {known[prompt].label}"
        return {
            self.slider: gr.update(value=tuple(str(file) for file in files)),
            self.compared: look.paragraph(caption),
        }


TO_THE_PICTURE = """(...data) => {
  setTimeout(() => document.getElementById("sample-picture")?.scrollIntoView({ block: "nearest" }), 600);
  return data;
}"""


# --- order ---------------------------------------------------------------------------------------------------------


def _column(sample: Sample) -> Column:
    return Column(sample.prompt, sample.seed)


def _row(sample: Sample) -> Row:
    return Row(sample.step, sample.abandoned)


def _key(row: Row) -> str:
    return f"{row.step}{' abandoned' if row.abandoned else ''}"


def row_label(row: Row) -> str:
    return f"step {row.step:,}{' (abandoned branch)' if row.abandoned else ''}"


def columns(samples: Sequence[Sample]) -> list[Column]:
    """The prompts, those of the newest step first, in the order in which they were given."""
    ordered = sorted(samples, key=lambda sample: (sample.abandoned, -sample.step, sample.index))
    return list(dict.fromkeys(_column(sample) for sample in ordered))


def rows(samples: Sequence[Sample]) -> list[Row]:
    """The steps, newest first; those of abandoned branches after the others."""
    return sorted({_row(sample) for sample in samples}, key=lambda row: (row.abandoned, -row.step))


def newest_steps(samples: Sequence[Sample]) -> list[str | None]:
    """For each column, the newest step at which it was sampled; None where it was on abandoned branches only."""
    newest: dict[Column, Sample] = {}
    for sample in samples:
        known = newest.get(_column(sample))
        if not sample.abandoned and (known is None or known.step < sample.step):
            newest[_column(sample)] = sample
    return [_key(_row(newest[column])) if column in newest else None for column in columns(samples)]


# --- the grid ------------------------------------------------------------------------------------------------------


def grid(view: View, samples: Sequence[Sample], folder: Path) -> tuple[str, bool]:
    """A table in HTML, a row for each step and a column for each prompt; and whether every thumbnail is there."""
    across = columns(samples)
    down = rows(samples)[: max(1, MOST_SHOWN // len(across))]
    table = {(_row(sample), _column(sample)): sample for sample in samples}
    made, body, above = 0, [], None
    for row in down:
        body += [_resumed(step, len(across)) for step in _resumes_between(view, row, above)]
        cells = []
        for column in across:
            sample = table.get((row, column))
            small, fresh = (None, 0) if sample is None else _small(view.run, sample, folder, made < MADE_AT_ONCE)
            made += fresh
            cells.append(_cell(sample, small))
        body.append(f'<tr><th scope="row">{escape(row_label(row))}</th>{"".join(cells)}</tr>')
        above = row
    head = "".join(f'<th scope="col">{escape(column.label)}</th>' for column in across)
    html = (
        '<div class="scroll" role="region" aria-label="Samples by step and prompt" tabindex="0">'
        f'<table class="samples"><thead><tr><th scope="col">Step</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    return html, made < MADE_AT_ONCE


def _resumes_between(view: View, row: Row, above: Row | None) -> list[int]:
    """The steps of resumes that lie between a row and the newer one above it."""
    if row.abandoned:
        return []
    newer = above.step if above is not None else float("inf")
    return [step for step in reversed(view.history.resumes) if row.step <= step < newer]


def _resumed(step: int, width: int) -> str:
    return f'<tr class="resumed"><td colspan="{width + 1}">resumed after step {step:,}</td></tr>'


def _small(run: RunFolder, sample: Sample, folder: Path, may_make: bool) -> tuple[Path | None, int]:
    """The sample's thumbnail, if it is there or may be made; and how many were made for it."""
    file = thumbnails.confined(run, sample.path)
    target = thumbnails.path_of(file, folder) if file is not None else None
    if file is None or target is None:
        return None, 0
    if target.is_file():
        return target, 0
    if not may_make:
        return None, 0
    return (target if thumbnails.make(file, target) else None), 1


def _cell(sample: Sample | None, small: Path | None) -> str:
    if sample is None or small is None:
        return "<td></td>"
    words = f"step {sample.step}: {sample.prompt}"
    return (
        f'<td><button type="button" class="picture" data-action="enlarge" data-value="{escape(sample.path)}" '
        f'title="{escape(words)}"><img src="{_address(small)}" alt="{escape(words)}" loading="lazy"></button></td>'
    )


def _address(file: Path) -> str:
    """Where the page finds a file of the thumbnails' folder; relative, so that it works behind a proxy too."""
    return escape(f"gradio_api/file={file}")


def _whole(run: RunFolder, sample: Sample, folder: Path) -> Path | None:
    file = thumbnails.confined(run, sample.path)
    return thumbnails.whole(file, folder) if file is not None else None


def picture(view: View | None, path: str, folder: Path) -> str:
    """A sample in full size, with what it is."""
    sample = view.history.samples.get(path) if view is not None else None
    file = _whole(view.run, sample, folder) if view is not None and sample is not None else None
    if sample is None or file is None:
        return look.note("This picture no longer exists.", kind="warn")
    caption = f"{row_label(_row(sample))} · {_column(sample).label} · {Path(sample.path).name}"
    return (
        f'<figure class="whole"><img src="{_address(file)}" alt="{escape(sample.prompt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
