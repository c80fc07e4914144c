"""In the Monitor tab: what watching the run has shown, looked up when it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from gui.places import Places
from gui.views import judged, runs
from gui.wiring import QUIET, Updates


class JudgedPanel:
    def __init__(self) -> None:
        with gr.Accordion("What was seen: alarms, validation, samples, storage, memory", open=False) as self.accordion:
            self.refresh = gr.Button("Look again", elem_id="judged-refresh", scale=0, min_width=130)
            self.shown = gr.HTML(elem_id="judged")

    def wire(self, places: Places, picker: gr.Dropdown) -> None:
        def look_again(data: Mapping[Any, Any]) -> Updates:
            run = runs.chosen(places, data[picker])
            return {self.shown: judged.page(run) if run is not None else ""}

        for trigger in (self.accordion.expand, self.refresh.click):
            trigger(look_again, {picker}, {self.shown}, **QUIET)
        picker.input(lambda data: {self.shown: ""}, {picker}, {self.shown}, queue=False, **QUIET)
