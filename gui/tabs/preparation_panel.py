"""Dataset Preparation as in kohya_ss: plain folders of images become kohya's folder layout, by copying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from gui import look
from gui.forms import form as forms
from gui.places import Places
from gui.views import dataset_view as view
from gui.wiring import Data, Updates
from trainer.data import preparation
from trainer.data.preparation import Part, Plan, PreparationRefused
from trainer.options.config import OPTIONS

CAPTION_EXTENSIONS = (".txt", ".caption")


class PreparationPanel:
    def __init__(self, places: Places) -> None:
        self._places = places
        gr.HTML(
            "<p>Copies images and captions into the folders that training reads: "
            "<code>img/&lt;repeats&gt;_&lt;instance&gt; &lt;class&gt;</code> and <code>"
            "reg/&lt;repeats&gt;_&lt;class&gt;</code>. Nothing is moved, overwritten or removed.</p>"
        )
        with gr.Row(equal_height=False):
            self.instance = gr.Textbox(label="Instance prompt", placeholder="zkz", elem_id="prepare-instance")
            self.class_prompt = gr.Textbox(label="Class prompt", placeholder="cat", elem_id="prepare-class")
        with gr.Row(equal_height=False):
            self.images = gr.Textbox(
                label="Training images", elem_id="prepare-images", scale=4, elem_classes=look.FOLDER_FIELD
            )
            self.repeats = gr.Number(label="Repeats", value=40, precision=0, minimum=1, elem_id="prepare-repeats",
                                     scale=1, min_width=120)  # fmt: skip
        with gr.Row(equal_height=False):
            self.regularisation = gr.Textbox(
                label="Regularisation images (optional)", elem_id="prepare-reg", scale=4, elem_classes=look.FOLDER_FIELD
            )
            self.reg_repeats = gr.Number(label="Regularisation repeats", value=1, precision=0, minimum=1,
                                         elem_id="prepare-reg-repeats", scale=1, min_width=120)  # fmt: skip
        self.target = gr.Textbox(
            label="Destination training directory", elem_id="prepare-target", elem_classes=look.FOLDER_FIELD
        )
        with gr.Row(equal_height=False):
            self.check = gr.Button("Show what would be copied", elem_id="prepare-check")
            self.start = gr.Button("Prepare training data", elem_id="prepare-start", variant="primary")
            self.adopt = gr.Button("Copy info to respective fields", elem_id="prepare-adopt")
        self.message = gr.HTML(elem_id="prepare-message")

    def wire(self, quiet: Mapping[str, Any]) -> None:
        inputs = {
            self.instance, self.class_prompt, self.images, self.repeats, self.regularisation, self.reg_repeats,
            self.target,
        }  # fmt: skip
        self.check.click(self.say, inputs, {self.message}, **quiet)
        self.start.click(self.prepare, inputs, {self.message}, **quiet)

    def _plan(self, data: Data) -> Plan:
        """What the fields describe. Raises PreparationRefused."""
        texts = {
            widget.label: str(data[widget] or "").strip()
            for widget in (self.instance, self.class_prompt, self.images, self.target)
        }
        if empty := [label for label, text in texts.items() if not text]:
            raise PreparationRefused(f"Fill in first: {', '.join(empty)}")
        images = Part(
            self._path(data[self.images]),
            _whole(data[self.repeats]),
            f"{data[self.instance]} {data[self.class_prompt]}",
        )
        regularisation = None
        if str(data[self.regularisation] or "").strip():
            regularisation = Part(
                self._path(data[self.regularisation]), _whole(data[self.reg_repeats]), str(data[self.class_prompt])
            )
        return preparation.plan(self._path(data[self.target]), images, regularisation, CAPTION_EXTENSIONS)

    def _path(self, text: Any) -> Path:
        if "\0" in str(text):
            raise PreparationRefused("A path cannot hold the character NUL")
        return self._places.home / Path(str(text).strip()).expanduser()

    def say(self, data: Data) -> Updates:
        try:
            planned = self._plan(data)
        except (PreparationRefused, OSError) as error:
            return {self.message: _refused(error)}
        folders = [view.printable(str(folder)) for folder in planned.folders]
        there = f"; {planned.there:,} are there already" if planned.there else ""
        text = f"{len(planned.copies):,} files ({planned.size / 1e6:.1f} MB) would be copied{there}, into:"
        return {self.message: look.note(text, folders)}

    def prepare(self, data: Data) -> Iterator[Updates]:
        try:
            planned = self._plan(data)
            yield {self.message: look.note(f"Copying {len(planned.copies):,} files…")}
            preparation.carry_out(planned)
        except (PreparationRefused, OSError) as error:
            yield {self.message: _refused(error)}
            return
        folders = [view.printable(str(folder)) for folder in planned.folders]
        yield {
            self.message: look.note(
                f"{len(planned.copies):,} files copied. These folders now exist:", folders, kind="good"
            )
        }

    def prepared(self, data: Data) -> tuple[dict[str, Any], str]:
        """The options that name the prepared folders, as far as they are there, and a message."""
        target = str(data[self.target] or "").strip()
        folders = {"train_data_dir": "img", "reg_data_dir": "reg"}
        result = {
            name: str(Path(target) / below)
            for name, below in folders.items()
            if target and (self._path(target) / below).is_dir()
        }
        if "train_data_dir" not in result:
            return {}, look.note("Prepare the training data first.", kind="warn")
        lines = [f"{forms.label(OPTIONS[name])}: {value}" for name, value in result.items()]
        return result, look.note("The form now has:", lines, kind="good")


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0


def _refused(error: Exception) -> str:
    lines = view.printable(str(error)).splitlines()
    return look.note("Not prepared. Change this first:", lines, kind="bad")
