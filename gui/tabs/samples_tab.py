"""The Samples tab: the previews of the run that is watched, by step and prompt; two steps can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import gradio as gr

from gui import look
from gui.places import Places
from gui.tabs.blind_panel import BlindPanel
from gui.views import runs, thumbnails
from gui.views.history import Sample
from gui.views.monitor import View, Watch
from gui.wiring import QUIET, TELL_CLICKS, Updates
from trainer.file_memory import stamp_of
from trainer.runs.run_folder import RunFolder

MOST_SHOWN = 120  # pictures of a page
NONE_YET = (
    "No samples yet. They are made during training when the options sample_prompts and sample_every_n_steps (Samples) "
    "are set, or with Sample now."
)
THIS_RUN = ("The run shown above", "")


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
        gr.HTML(
            "<b>Samples of the run shown above,</b> the newest step first. Click one to see it in full size; the arrow "
            "keys go on to other prompts and steps."
        )
        self.gallery = gr.HTML(elem_id="sample-gallery", js_on_load=TELL_CLICKS)
        self.page = gr.State(0)  # of the gallery
        with gr.Accordion("Compare two samples", open=True):
            with gr.Row():
                self.prompt = gr.Dropdown(
                    choices=[], label="Prompt", elem_id="compare-prompt", interactive=True, scale=3
                )  # fmt: skip
                self.left = gr.Dropdown(choices=[], label="Left: step", elem_id="compare-left", interactive=True)
                self.right = gr.Dropdown(choices=[], label="Right: step", elem_id="compare-right", interactive=True)
                self.other = gr.Dropdown(
                    choices=[THIS_RUN], value="", label="Right: run", elem_id="compare-run", interactive=True, scale=2
                )  # fmt: skip
            self.slider = gr.HTML(elem_id="compare-slider", js_on_load=FOLLOW_THE_HANDLE)
            self.compared = gr.HTML(elem_id="compare-caption")
        with gr.Accordion("Choose blindly between two", open=False):
            self.blind = BlindPanel(places)

    def outputs(self) -> set[Any]:
        return {self.gallery, self.page, self.other, *self._comparison()}

    def _comparison(self) -> set[Any]:
        return {self.prompt, self.left, self.right, self.slider, self.compared}

    def wire(self, picker: gr.Dropdown, watch: Watch) -> None:
        def view(value: Any) -> View | None:
            run = runs.chosen(self._places, value)
            return watch.look(run) if run is not None else None

        def turn(data: Mapping[Any, Any], event: gr.EventData) -> Updates:
            value, watched = str(getattr(event, "value", "")), view(data[picker])
            page = int(value) if value.isdecimal() else 0
            return {self.page: page, self.gallery: gallery(watched, page)}

        def compare(data: Mapping[Any, Any]) -> Updates:
            watched, beside = view(data[picker]), view(data[self.other])
            return self._compare(watched, beside, data[self.prompt], data[self.left], data[self.right])

        def list_runs(data: Mapping[Any, Any]) -> Updates:
            listed = [entry for entry in runs.choices(self._places) if entry[1] != data[picker]]
            return {self.other: gr.update(choices=[THIS_RUN, *listed])}

        def choose_run(data: Mapping[Any, Any]) -> Updates:
            """The steps to choose from on the right are the other run's then, its newest to begin with."""
            beside = view(data[self.other]) or view(data[picker])
            samples = list(beside.history.samples.values()) if beside is not None else []
            steps = [(row_label(row), _key(row)) for row in rows(samples)]
            newest = steps[0][1] if steps else None
            shown = compare({**data, self.right: newest})
            return shown | {self.right: gr.update(choices=steps, value=newest)}

        self.gallery.click(turn, {picker}, {self.page, self.gallery}, **QUIET)
        chosen = {picker, self.prompt, self.left, self.right, self.other}
        for widget in (self.prompt, self.left, self.right):
            widget.input(compare, chosen, {self.slider, self.compared}, **QUIET)
        self.other.focus(list_runs, {picker}, {self.other}, queue=False, **QUIET)
        self.other.input(choose_run, chosen, {self.right, self.slider, self.compared}, **QUIET)
        self.blind.wire(picker, watch)

    def inputs(self) -> set[Any]:
        """What `show` needs of a handler's data."""
        return {self.prompt, self.left, self.right, self.other, self.page}

    def show(self, view: View | None, seen: Any, data: Mapping[Any, Any]) -> tuple[Updates, Any]:
        """What differs from what `seen` says was shown; and what is shown now."""
        run = str(view.run.path) if view is not None else ""
        samples = list(view.history.samples.values()) if view is not None else []
        another = not seen or seen[0] != run
        page = data[self.page] if isinstance(data[self.page], int) and not another else 0
        shown = gallery(view, page)
        newest = newest_steps(samples)
        now = (run, hashlib.sha256(shown.encode()).hexdigest(), len(samples), newest)
        if seen and tuple(seen) == now:
            return {}, now
        updates: Updates = {self.gallery: shown}
        if another:
            updates |= {self.page: 0, self.other: gr.update(choices=[THIS_RUN], value="")}
        if another or seen[2] != len(samples):
            chosen = self._chosen(samples, data, None if another or seen[2] == 0 else seen[3])
            updates |= self._choices(samples, chosen, right=another or not data[self.other])
            if chosen and (another or not data[self.other]):
                compared = [chosen.get(widget, data[widget]) for widget in (self.prompt, self.left, self.right)]
                updates |= self._compare(view, None, *compared)
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

    def _choices(self, samples: Sequence[Sample], chosen: Mapping[Any, Any], *, right: bool) -> Updates:
        """What can be compared, and what of it is chosen now. `right`: whether the right side is of this run too."""
        prompts = [(column.label, place) for place, column in enumerate(columns(samples))]
        steps = [(row_label(row), _key(row)) for row in rows(samples)]
        listed = [(self.prompt, prompts), (self.left, steps), *([(self.right, steps)] if right else [])]
        return {
            widget: gr.update(choices=choices, **({"value": chosen[widget]} if widget in chosen else {}))
            for widget, choices in listed
        }

    def _compare(self, view: View | None, beside: View | None, prompt: Any, left: Any, right: Any) -> Updates:
        """The prompt's samples of two steps over one another, the right one perhaps of another run."""
        nothing = {self.slider: "", self.compared: ""}
        if view is None:
            return nothing
        prompts = columns(list(view.history.samples.values()))
        if not isinstance(prompt, int) or not 0 <= prompt < len(prompts):
            return nothing
        pairs = [
            (view, _sample(view, prompts[prompt], left)),
            (beside or view, _sample(beside or view, prompts[prompt], right)),
        ]
        there = [(whose, sample) for whose, sample in pairs if sample is not None]
        if len(there) < 2:
            text = "This prompt was not sampled at one of these steps."
            return nothing | {self.compared: look.note(text)}
        files = [thumbnails.confined(whose.run, sample.path) for whose, sample in there]
        if None in files:
            return nothing | {self.compared: look.note("One of these pictures no longer exists.", kind="warn")}
        labels = [row_label(_row(sample)) for _, sample in there]
        of_other = f" of {beside.name}" if beside is not None else ""
        caption = f"Left: {labels[0]}. Right: {labels[1]}{of_other}. {prompts[prompt].label}"
        left_address, right_address = (_address(whose.run, sample) for whose, sample in there)
        shown = slider(left_address, right_address, labels[0], f"{labels[1]}{of_other}")
        return {self.slider: shown, self.compared: look.paragraph(caption)}


# For the js_on_load of the comparison: the right picture is shown from where the handle is.
FOLLOW_THE_HANDLE = """
element.addEventListener("input", event => {
  const shown = event.target.closest(".comparison");
  if (shown) shown.style.setProperty("--left", event.target.value + "%");
});
"""


def _sample(view: View, column: Column, key: Any) -> Sample | None:
    """The sample of a prompt at a step; with another seed where there is none with this one, as in another run."""
    at = [sample for sample in view.history.samples.values() if _key(_row(sample)) == key]
    same = [sample for sample in at if _column(sample) == column]
    return next(iter(same or [sample for sample in at if sample.prompt == column.prompt]), None)


def slider(left: str, right: str, left_words: str, right_words: str) -> str:
    """Two pictures over one another, and a handle for where one begins; it is a range, so that keys move it too."""
    return (
        '<div class="comparison">'
        f'<img src="{escape(left)}" alt="{escape(left_words)}">'
        f'<img class="over" src="{escape(right)}" alt="{escape(right_words)}">'
        '<input type="range" min="0" max="100" value="50" aria-label="How much of the left picture is shown"></div>'
    )


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
        newest_sample = newest.get(_column(sample))
        if not sample.abandoned and (newest_sample is None or newest_sample.step < sample.step):
            newest[_column(sample)] = sample
    return [_key(_row(newest[column])) if column in newest else None for column in columns(samples)]


# --- the grid ------------------------------------------------------------------------------------------------------


def gallery(view: View | None, page: int) -> str:
    """A page of the run's samples in HTML, with buttons for the others."""
    samples = list(view.history.samples.values()) if view is not None else []
    if view is None or not samples:
        return look.note(NONE_YET)
    across, down = columns(samples), rows(samples)
    length = max(1, MOST_SHOWN // len(across))
    pages = -(-len(down) // length)
    page = min(max(0, page), pages - 1)
    shown = grid(view, samples, down[page * length : (page + 1) * length])
    if pages == 1:
        return shown
    turns = [look.button("Newer steps", "page", str(page - 1))] if page else []
    turns += [look.Html(f"page {page + 1} of {pages} ")]
    turns += [look.button("Older steps", "page", str(page + 1))] if page + 1 < pages else []
    return f'{shown}<p class="aside">{"".join(turns)}</p>'


def grid(view: View, samples: Sequence[Sample], down: Sequence[Row]) -> str:
    """A table in HTML, a row for each of the steps `down` and a column for each prompt."""
    across = columns(samples)
    table = {(_row(sample), _column(sample)): sample for sample in samples}
    body, above = [], None
    for row in down:
        body += [_resumed(step, len(across)) for step in _resumes_between(view, row, above)]
        cells = "".join(_cell(view.run, table.get((row, column))) for column in across)
        body.append(f'<tr><th scope="row">{escape(row_label(row))}</th>{cells}</tr>')
        above = row
    head = "".join(f'<th scope="col">{escape(column.label)}</th>' for column in across)
    return (
        '<div class="scroll samples-scroll" role="region" aria-label="Samples by step and prompt" tabindex="0">'
        f'<table class="samples"><thead><tr><th scope="col">Step</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _resumes_between(view: View, row: Row, above: Row | None) -> list[int]:
    """The steps of resumes that lie between a row and the newer one above it."""
    if row.abandoned:
        return []
    newer = above.step if above is not None else float("inf")
    return [step for step in reversed(view.history.resumes) if row.step <= step < newer]


def _resumed(step: int, width: int) -> str:
    return f'<tr class="resumed"><td colspan="{width + 1}">resumed after step {step:,}</td></tr>'


def _cell(run: RunFolder, sample: Sample | None) -> str:
    if sample is None or thumbnails.confined(run, sample.path) is None:
        return "<td></td>"
    words = f"step {sample.step}: {sample.prompt}"
    caption = f"{row_label(_row(sample))} · {_column(sample).label} · {Path(sample.path).name}"
    whole, small = _address(run, sample), _address(run, sample, small=True)
    return (
        f'<td><button type="button" class="picture" data-whole="{escape(whole)}" data-caption="{escape(caption)}" '
        f'title="{escape(words)}"><img src="{escape(small)}" alt="{escape(words)}" loading="lazy"></button></td>'
    )


def _address(run: RunFolder, sample: Sample, *, small: bool = False) -> str:
    """Where the page finds a sample; relative, so that it works behind a proxy. It changes when the picture does."""
    stamp = stamp_of(run.path / sample.path) or ""
    query = {"run": str(run.path), "path": sample.path, "stamp": stamp, **({"small": "true"} if small else {})}
    return f"live/sample?{urlencode(query)}"
