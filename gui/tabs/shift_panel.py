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
            return {self.shown: self.compared(data[self.run], looked(data))}

        self.run.focus(self._list, {self.run}, {self.run}, queue=False, **quiet)
        self.look.click(compare, inputs | {self.run}, {self.shown}, **quiet)

    def _list(self, data: Data) -> Updates:
        return {self.run: gr.update(choices=runs.choices(self._places))}

    def compared(self, value: Any, seen: Looked | None) -> str:
        """The images as they were seen against those of the run that the dropdown's value names; in HTML."""
        run = runs.chosen(self._places, value)
        if run is None or seen is None:
            return look.note("Choose a run, and images that can be read.")
        then = kept_portraits.newest(run)
        if then is None:
            return look.note(NO_PORTRAIT, kind="warn")
        entries, separator = seen.report.found.entries, seen.report.config.caption_separator
        now = portrait.portrait(entries, "", separator)
        shifts = portrait.compare(then, now) if now else []
        text = f"<p>{then['images']:,} images then, {len(entries):,} now</p>"
        table = watched.shift_table([shift.as_json() for shift in shifts])
        return f'{judged.STYLE}<div class="judged">{text}{table}</div>'
