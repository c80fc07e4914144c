"""Pictures dropped onto the Dataset tab become a dataset: dataset.js sends them one by one to gui/server/uploads.py."""

from __future__ import annotations

from typing import Any

import gradio as gr

from gui import look
from gui.places import Places
from gui.server import uploads
from gui.server.uploads import UploadRefused

ZONE = """<div class="drop" id="dataset-drop-zone">
<p><b>Drop pictures here</b>, with their caption files if there are any, or
<label class="small">choose them<input type="file" multiple accept="image/*,.txt,.caption"></label></p>
<p><label>Name of the dataset <input type="text" value="my-images" maxlength="80" id="dataset-drop-name"></label></p>
<p class="told" role="status"></p></div>"""
# For the js_on_load of the widget: dataset.js calls this when pictures have arrived.
ARRIVED = "window.rekindleArrived = name => trigger('click', { value: name });"


class DropPanel:
    def __init__(self, places: Places) -> None:
        self._places = places
        self.zone = gr.HTML(ZONE, elem_id="dataset-drop", js_on_load=ARRIVED)

    def arrived(self, name: Any) -> tuple[dict[str, Any], str]:
        """The options that name the dataset, and a message in HTML."""
        try:
            folder = uploads.folder_of(self._places, str(name))
        except UploadRefused as refusal:
            return {}, look.note(str(refusal), kind="bad")
        if not folder.is_dir():
            return {}, look.note(f"Nothing arrived in {folder}.", kind="warn")
        named = folder.relative_to(self._places.home).as_posix()
        return {"train_data_dir": named}, look.note(
            f"The form's training images are now those in {named}.", kind="good"
        )
