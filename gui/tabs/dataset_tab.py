"""The Dataset tab: what the images are, what is wrong with them, and every picture with its caption, page by page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from gui import look
from gui.forms import form as forms
from gui.forms.form import Form
from gui.places import Places
from gui.tabs.caption_panel import CaptionPanel
from gui.tabs.preparation_panel import PreparationPanel
from gui.views import dataset_view as view
from gui.views.dataset_view import Filter, Item, Job, Looked, Looker
from gui.wiring import Data, Updates
from trainer.options import checks
from trainer.options.config import OPTIONS, Config

PAGE_ITEMS = 24
LOOK_SECONDS = 0.5  # between two messages of how far a look is
# The options that decide what the dataset is; others do not make a new look necessary.
SECTIONS = ("Folders", "Dataset", "Validation")
BATCH = ("train_batch_size", "gradient_accumulation_steps", "seed")


class DatasetTab:
    def __init__(self, places: Places) -> None:
        self._places = places
        self._looker = Looker()
        with gr.Row(equal_height=False, elem_classes="beside"):
            gr.HTML(
                "<b>The images that the form names</b> (Train, Folders): what there is, what is wrong with it, and "
                "every caption.",
                elem_id="dataset-about",
            )
            self.refresh = gr.Button("Rescan", elem_id="dataset-refresh", scale=0, min_width=130)
            self.deeper = gr.Button("Decode every file", elem_id="dataset-deeper", scale=0, min_width=130)
        self.summary = gr.HTML(elem_id="dataset-summary")
        with gr.Accordion("Problems", open=True):
            self.problems = gr.HTML(
                look.note("Open this tab or press Rescan. Decode every file opens every picture: it finds hidden "
                          "damage and near copies, and takes minutes for thousands of images."),
                elem_id="dataset-problems",
            )  # fmt: skip
        with gr.Accordion("Images and captions", open=True):
            with gr.Row(equal_height=False, elem_classes="beside"):
                self.folder = gr.Dropdown([("All folders", "")], value="", label="Folder", elem_id="dataset-folder",
                                          interactive=True)  # fmt: skip
                self.kind = gr.Dropdown([("All images", "")], value="", label="Problem",
                                        elem_id="dataset-kind", interactive=True)  # fmt: skip
                self.tag = gr.Textbox(label="With the tag", elem_id="dataset-tag", max_lines=1)
                self.text = gr.Textbox(label="With the text", elem_id="dataset-text", max_lines=1)
            self.gallery = gr.Gallery(
                label="Images", show_label=False, elem_id="dataset-gallery", columns=6, object_fit="contain",
                height="auto", interactive=False, allow_preview=False, buttons=[],
            )  # fmt: skip
            with gr.Row(equal_height=False, elem_classes="beside"):
                self.back = gr.Button("Previous page", elem_id="dataset-back", scale=0, min_width=130)
                self.where = gr.HTML(elem_id="dataset-where")
                self.on = gr.Button("Next page", elem_id="dataset-on", scale=0, min_width=130)
            self.captions = CaptionPanel(places)
        with gr.Accordion("Dataset Preparation", open=False):
            self.preparation = PreparationPanel(places)
        self.page = gr.State(0)
        self.shown = gr.State([])  # the paths of the pictures on the page

    # --- events -----------------------------------------------------------------------------------------------------

    def wire(self, form: Form, tab: gr.Tab, quiet: Mapping[str, Any]) -> None:
        """Connect the widgets. `quiet`: how events are made on this page."""
        self._options = {
            name: widget for name, widget in form.widgets.items() if OPTIONS[name].section in SECTIONS or name in BATCH
        }
        options = set(self._options.values())
        filters = {self.folder, self.kind, self.tag, self.text}
        pictures = {self.gallery, self.where, self.page, self.shown}
        everything = pictures | {self.summary, self.problems, self.folder, self.kind} | self.captions.outputs()
        inputs = options | filters | {self.page, self.captions.chosen}  # `chosen` says what to highlight
        for trigger in (tab.select, self.refresh.click):
            trigger(self.look_at_images, inputs, everything, **quiet)
        self.deeper.click(self.look_deeper, inputs, everything, **quiet)
        gr.on(
            [self.folder.input, self.kind.input, self.tag.submit, self.tag.blur, self.text.submit, self.text.blur],
            self.first_page, inputs, pictures, **quiet,
        )  # fmt: skip
        self.back.click(self.previous_page, inputs, pictures, **quiet)
        self.on.click(self.next_page, inputs, pictures, **quiet)
        self.gallery.select(self.choose, inputs | self.captions.inputs() | {self.shown}, everything, **quiet)

        panel = self.captions
        chosen = inputs | panel.inputs()
        panel.save.click(self.save_caption, chosen, everything, **quiet)
        panel.onward.click(self.save_and_go_on, chosen | {self.shown}, everything, **quiet)
        panel.preview.click(self.preview_change, chosen, panel.outputs(), **quiet)
        panel.apply.click(self.apply_change, chosen, everything, **quiet)
        panel.undo.click(self.undo_change, chosen, everything, **quiet)
        self.preparation.wire(quiet)
        self._form = form
        named = {form.widgets[name] for name in ("train_data_dir", "reg_data_dir")}
        self.preparation.adopt.click(
            self.adopt_prepared, inputs | {self.preparation.target}, everything | named | {self.preparation.message},
            **quiet,
        )  # fmt: skip

    def _config(self, data: Data) -> Config:
        """The options that the form has now; what is wrong among them is at its default."""
        values = {name: forms.from_browser(OPTIONS[name], data[widget]) for name, widget in self._options.items()}
        return checks.build(forms.check_values(values).values)

    # --- looking ----------------------------------------------------------------------------------------------------

    def look_at_images(self, data: Data) -> Iterator[Updates]:
        yield from self._look(data, deep=False)

    def look_deeper(self, data: Data) -> Iterator[Updates]:
        yield from self._look(data, deep=True)

    def _look(self, data: Data, *, deep: bool) -> Iterator[Updates]:
        job = self._looker.look(self._config(data), deep=deep)
        while not job.wait(LOOK_SECONDS):
            yield {self.summary: view.counting(job)}
        yield self._all(job, data) | self.captions.show_undo()

    def adopt_prepared(self, data: Data) -> Iterator[Updates]:
        """Put the prepared folders into the form and look at them."""
        values, told = self.preparation.prepared(data)
        yield {self.preparation.message: told} | self._form.show(values)
        if values:
            chosen = dict(data) | {self._options[name]: value for name, value in values.items()}
            yield from self._look(chosen, deep=False)

    def _all(self, job: Job, data: Data) -> Updates:
        """The whole tab, after a look."""
        looked = job.looked
        if looked is None:
            nothing = {self.problems: "", self.gallery: gr.update(value=[]), self.where: "", self.shown: []}
            return nothing | {self.summary: look.note(job.refusal, kind="bad")} | self.captions.after_a_look(None, data)
        folders, kinds = view.folder_choices(looked), view.kind_choices(looked)
        folder = data[self.folder] if data[self.folder] in [value for _, value in folders] else ""
        kind = data[self.kind] if data[self.kind] in [value for _, value in kinds] else ""
        chosen = dict(data) | {self.folder: folder, self.kind: kind}
        return {
            self.summary: view.summary(looked),
            self.problems: view.problems(looked),
            self.folder: gr.update(choices=folders, value=folder),
            self.kind: gr.update(choices=kinds, value=kind),
            **self._page(looked, chosen, int(data[self.page] or 0)),
            **self.captions.after_a_look(looked, data),
        }

    def _looked(self, data: Data) -> Looked | None:
        """The dataset as it was seen last."""
        job = self._looker.latest(self._config(data))
        job.wait()
        return job.looked

    # --- pages ------------------------------------------------------------------------------------------------------

    def _matching(self, looked: Looked, data: Data) -> list[Item]:
        wanted = Filter(*(str(data[widget] or "") for widget in (self.folder, self.kind, self.tag, self.text)))
        return view.matching(looked.items, wanted, looked.report.config.caption_separator)

    def _page(self, looked: Looked | None, data: Data, page: int) -> Updates:
        items = self._matching(looked, data) if looked else []
        pages = max(1, -(-len(items) // PAGE_ITEMS))
        page = min(max(page, 0), pages - 1)
        shown = items[page * PAGE_ITEMS : (page + 1) * PAGE_ITEMS]
        first = page * PAGE_ITEMS + 1
        paths, chosen = [str(item.path) for item in shown], self.captions.chosen
        where = f"{first:,} to {first + len(shown) - 1:,} of {len(items):,} images" if shown else "No image matches"
        return {
            self.gallery: gr.update(
                value=view.small_pictures(shown, self._places.thumbnails),
                selected_index=next((place for place, path in enumerate(paths) if path == data[chosen]), None),
            ),
            self.where: f"<p>{where}</p>",
            self.page: page,
            self.shown: paths,
        }

    def first_page(self, data: Data) -> Updates:
        return self._page(self._looked(data), data, 0)

    def previous_page(self, data: Data) -> Updates:
        return self._page(self._looked(data), data, int(data[self.page] or 0) - 1)

    def next_page(self, data: Data) -> Updates:
        return self._page(self._looked(data), data, int(data[self.page] or 0) + 1)

    # --- captions ---------------------------------------------------------------------------------------------------

    def choose(self, data: Data, event: gr.SelectData) -> Updates:
        """A picture was clicked; what was typed for the one before is saved first, which can be undone.

        The page's pictures are remembered here, so that no path comes from a browser.
        """
        paths = list(data[self.shown] or [])
        looked = self._looked(data)
        place = event.index if isinstance(event.index, int) else -1
        if looked is None or not 0 <= place < len(paths):
            return {}
        return self._save_and_show(looked, data, paths[place])

    def save_and_go_on(self, data: Data) -> Updates:
        """Save the caption and show the picture after this one on the page."""
        looked, paths = self._looked(data), list(data[self.shown] or [])
        if looked is None:
            return {}
        here = paths.index(data[self.captions.chosen]) if data[self.captions.chosen] in paths else len(paths)
        if here + 1 < len(paths):
            return self._save_and_show(looked, data, paths[here + 1])
        told = self.captions.save_one(looked, data)
        return self._again(data, told)

    def _save_and_show(self, looked: Looked, data: Data, path: str) -> Updates:
        """Show another picture; what was typed for the one before is saved."""
        if not self.captions.has_unsaved(data):
            return self.captions.show(looked, Path(path))
        saved = self.captions.save_one(looked, data)
        if self.captions.unchanged not in saved:  # it could not be: what was typed stays in sight
            return saved
        told = self._again(dict(data) | {self.captions.chosen: path}, {})
        fresh = self._looked(data)
        shown = self.captions.show(fresh, Path(path)) if fresh else {}
        return told | shown | {self.captions.message: saved[self.captions.message]}

    def save_caption(self, data: Data) -> Updates:
        looked = self._looked(data)
        return self._again(data, self.captions.save_one(looked, data)) if looked else {}

    def preview_change(self, data: Data) -> Updates:
        looked = self._looked(data)
        return self.captions.show_preview(looked, self._matching(looked, data), data) if looked else {}

    def apply_change(self, data: Data) -> Updates:
        looked = self._looked(data)
        return self._again(data, self.captions.apply_many(looked, self._matching(looked, data), data)) if looked else {}

    def undo_change(self, data: Data) -> Updates:
        return self._again(data, self.captions.undo_latest(data, self._looked(data)))

    def _again(self, data: Data, told: Updates) -> Updates:
        """Captions may have changed: the whole tab once more, with what is to be said of it."""
        job = self._looker.look(self._config(data))
        job.wait()
        return self._all(job, data) | told | self.captions.show_undo()
