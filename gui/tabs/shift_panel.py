"""In the Dataset tab: how far the images have moved from those that a run was trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from gui import look
from gui.places import Places
from gui.views import judged, runs
from gui.views.dataset_view import Looked
from gui.wiring import Data, Updates
from trainer.data import portrait
from trainer.judging import watched
from trainer.runs import kept_portraits

NO_PORTRAIT = "This run keeps no portrait of its images: one is made when a run begins (dataset_portrait)."


class ShiftPanel:
    def __init__(self, places: Places) -> None:
        self._places = places
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.run = gr.Dropdown([], label="Against the images of", elem_id="shift-run", interactive=True)
            self.look = gr.Button("Compare", elem_id="shift-look", scale=0, min_width=130)
        self.shown = gr.HTML(elem_id="shift-shown")

    def wire(self, looked: Callable[[Data], Looked | None], inputs: set[Any], quiet: Mapping[str, Any]) -> None:
        """`looked`: the dataset as it was seen last, by the data of these `inputs`."""

        def compare(data: Data) -> Updates:
            run, seen = runs.chosen(self._places, data[self.run]), looked(data)
            if run is None or seen is None:
                return {self.shown: look.note("Choose a run, and images that can be read.")}
            then = kept_portraits.newest(run)
            if then is None:
                return {self.shown: look.note(NO_PORTRAIT, kind="warn")}
            now = portrait.portrait(seen.report.found.entries, "", seen.report.config.caption_separator)
            shifts = portrait.compare(then, now) if now else []
            told = f"<p>{then['images']:,} images then, {len(seen.report.found.entries):,} now</p>"
            table = watched.shift_table([shift.as_json() for shift in shifts])
            return {self.shown: f'{judged.STYLE}<div class="judged">{told}{table}</div>'}

        self.run.focus(self._list, {self.run}, {self.run}, queue=False, **quiet)
        self.look.click(compare, inputs | {self.run}, {self.shown}, **quiet)

    def _list(self, data: Data) -> Updates:
        return {self.run: gr.update(choices=runs.choices(self._places))}
