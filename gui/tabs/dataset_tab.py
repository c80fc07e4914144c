"""The Dataset tab: what the images are, what is wrong with them, and every picture with its caption, page by page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from gui import look
from gui.forms import form as forms
from gui.forms.draft import Draft
from gui.places import Places
from gui.tabs.caption_panel import CaptionPanel
from gui.tabs.drop_panel import DropPanel
from gui.tabs.preparation_panel import PreparationPanel
from gui.tabs.selection_panel import SelectionPanel
from gui.tabs.shift_panel import ShiftPanel
from gui.tabs.train_tab import TrainTab
from gui.views import dataset_view as view
from gui.views.dataset_view import Filter, Item, Job, Looked, Looker
from gui.wiring import TELL_CLICKS, Data, Updates
from trainer.data.put_aside import BIN, EXCLUDED
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
        self.drop = DropPanel(places)
        self.summary = gr.HTML(elem_id="dataset-summary", js_on_load=TELL_CLICKS)
        with gr.Accordion("Problems", open=True):
            self.problems = gr.HTML(
                look.note("Open this tab or press Rescan. Decode every file opens every picture: it finds hidden "
                          "damage and near copies, and takes minutes for thousands of images."),
                elem_id="dataset-problems", js_on_load=TELL_CLICKS,
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
            self.selection = SelectionPanel()
            self.captions = CaptionPanel(places)
            with gr.Accordion("Excluded and deleted", open=False, elem_id="dataset-taken-out"):
                self.selection.lay_out_taken()
        with gr.Accordion("How far the images have moved from those of a run", open=False):
            self.shift = ShiftPanel(places)
        with gr.Accordion("Dataset Preparation", open=False):
            self.preparation = PreparationPanel(places)
        self.page = gr.State(0)
        self.shown = gr.State([])  # the paths of the pictures on the page

    # --- events -----------------------------------------------------------------------------------------------------

    def wire(self, train: TrainTab, tab: gr.Tab, quiet: Mapping[str, Any]) -> None:
        """Connect the widgets. `quiet`: how events are made on this page."""
        self._train, form = train, train.form
        self._options = {
            name: widget for name, widget in form.widgets.items() if OPTIONS[name].section in SECTIONS or name in BATCH
        }
        options = set(self._options.values())
        filters = {self.folder, self.kind, self.tag, self.text}
        pictures = {self.gallery, self.where, self.page, self.shown}
        picking = self.selection
        everything = pictures | filters | {self.summary, self.problems} | self.captions.outputs() | picking.outputs()
        inputs = options | filters | {self.page, self.captions.chosen, picking.marked}  # the last say what is marked
        for trigger in (tab.select, self.refresh.click):
            trigger(self.look_at_images, inputs, everything, **quiet)
        self.deeper.click(self.look_deeper, inputs, everything, **quiet)
        gr.on(
            [self.folder.input, self.kind.input, self.tag.submit, self.tag.blur, self.text.submit, self.text.blur],
            self.first_page, inputs, pictures, **quiet,
        )  # fmt: skip
        self.back.click(self.previous_page, inputs, pictures, **quiet)
        self.on.click(self.next_page, inputs, pictures, **quiet)
        choosing = inputs | self.captions.inputs() | {self.shown, picking.select}
        self.gallery.select(self.choose, choosing, everything, **quiet)
        for html in (self.summary, self.problems):
            html.click(self.follow, choosing, everything, **quiet)
        marked = pictures | picking.outputs()
        picking.page.click(self.select_page, inputs | {self.shown}, marked, **quiet)
        picking.matching.click(self.select_matching, inputs, marked, **quiet)
        picking.clear.click(self.select_none, inputs, marked, **quiet)
        picking.exclude.click(self.exclude, choosing, everything, **quiet)
        picking.delete.click(self.delete, choosing, everything, **quiet)
        picking.put_back.click(self.put_back, choosing | {picking.taken}, everything, **quiet)
        picking.empty.click(self.ask_to_empty, inputs, {picking.question, picking.asked}, **quiet)
        picking.confirm.click(self.empty_bin, choosing, everything, **quiet)
        picking.keep.click(lambda: {picking.question: gr.update(visible=False)}, None, {picking.question}, **quiet)

        panel = self.captions
        chosen = inputs | panel.inputs()
        panel.save.click(self.save_caption, chosen, everything, **quiet)
        panel.onward.click(self.save_and_go_on, chosen | {self.shown}, everything, **quiet)
        panel.preview.click(self.preview_change, chosen, panel.outputs(), **quiet)
        panel.apply.click(self.apply_change, chosen, everything, **quiet)
        panel.undo.click(self.undo_change, chosen, everything, **quiet)
        self.preparation.wire(quiet)
        self.shift.wire(self._looked, inputs, quiet)
        whole = form.inputs() | {train.base, train.stamp} | inputs
        filled = everything | train.outputs()
        self.preparation.adopt.click(
            self.adopt_prepared, whole | {self.preparation.target}, filled | {self.preparation.message}, **quiet
        )
        self.drop.zone.click(self.adopt_dropped, whole, filled, **quiet)

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
        values, message = self.preparation.prepared(data)
        yield {self.preparation.message: message}
        yield from self._adopt(data, values)

    def adopt_dropped(self, data: Data, event: gr.EventData) -> Iterator[Updates]:
        """Put the dataset of the pictures that were dropped into the form and look at it."""
        values, message = self.drop.arrived(getattr(event, "value", ""))
        yield {self.captions.message: message}
        for updates in self._adopt(data, values):
            yield updates | {self.captions.message: message}

    def _adopt(self, data: Data, values: Mapping[str, Any]) -> Iterator[Updates]:
        """Change options of the form, and look at the images that they name."""
        if not values:
            return
        before = self._train.draft(data)
        draft = Draft({**before.values, **values}, before.name, before.base)
        yield self._train.fill(draft, data, undo=None)
        chosen = dict(data) | {self._options[name]: value for name, value in values.items()}
        yield from self._look(chosen, deep=False)

    def _all(self, job: Job, data: Data) -> Updates:
        """The whole tab, after a look."""
        looked = job.looked
        taken = self.selection.after_a_look(looked, job.config, data)
        if looked is None:
            nothing = {self.problems: "", self.gallery: gr.update(value=[]), self.where: "", self.shown: []}
            nothing |= {self.summary: look.note(job.refusal, kind="bad")}
            return nothing | taken | self.captions.after_a_look(None, data)
        folders, kinds = view.folder_choices(looked), view.kind_choices(looked)
        folder = data[self.folder] if data[self.folder] in [value for _, value in folders] else ""
        kind = data[self.kind] if data[self.kind] in [value for _, value in kinds] else ""
        chosen = dict(data) | {
            self.folder: folder,
            self.kind: kind,
            self.selection.marked: taken[self.selection.marked],
        }
        return taken | {
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
        marked = set(self.selection.selected(data))
        small = view.small_pictures(shown, self._places.thumbnails)
        where = f"{first:,} to {first + len(shown) - 1:,} of {len(items):,} images" if shown else "No image matches"
        return {
            self.gallery: gr.update(
                value=[
                    (file, f"✓ {words}" if path in marked else words)
                    for path, (file, words) in zip(paths, small, strict=True)
                ],
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
        """A picture was clicked, to be selected or shown; what was typed for the one shown before is saved first, which
        can be undone.

        The page's pictures are remembered here, so that no path comes from a browser.
        """
        paths = list(data[self.shown] or [])
        looked = self._looked(data)
        place = event.index if isinstance(event.index, int) else -1
        if looked is None or not 0 <= place < len(paths):
            return {}
        if data[self.selection.select] is True:
            return self._mark(data, self.selection.toggle(data, paths[place]))
        return self._save_and_show(looked, data, paths[place])

    def save_and_go_on(self, data: Data) -> Updates:
        """Save the caption and show the picture after this one, on the next page where it is there."""
        looked, chosen = self._looked(data), data[self.captions.chosen]
        if looked is None:
            return {}
        paths = [str(item.path) for item in self._matching(looked, data)]
        here = paths.index(chosen) if chosen in paths else -1
        if not 0 <= here < len(paths) - 1:
            return self._again(data, self.captions.save_one(looked, data))
        following = paths[here + 1]
        updates = self._save_and_show(looked, data, following)
        if following in data[self.shown] or self.captions.chosen not in updates:
            return updates
        return updates | self._page(
            self._looked(data), {**data, self.captions.chosen: following}, (here + 1) // PAGE_ITEMS
        )

    def follow(self, data: Data, event: gr.EventData) -> Updates:
        """A tag, a kind of problem or a file of one was clicked."""
        action, value = getattr(event, "action", ""), str(getattr(event, "value", ""))
        looked = self._looked(data)
        if looked is None or action not in ("tag", "kind", "picture"):
            return {}
        if action == "picture":
            path = next((item.path for item in looked.items if view.printable(str(item.path)) == value), None)
            return self._save_and_show(looked, data, str(path)) if path else {}
        only = {self.folder: "", self.kind: "", self.tag: "", self.text: ""}
        only |= {self.tag if action == "tag" else self.kind: value}
        return self._page(looked, {**data, **only}, 0) | only

    def _save_and_show(self, looked: Looked, data: Data, path: str) -> Updates:
        """Show another picture; what was typed for the one before is saved."""
        if not self.captions.has_unsaved(data):
            return self.captions.show(looked, Path(path))
        saved = self.captions.save_one(looked, data)
        if self.captions.unchanged not in saved:  # it could not be: what was typed stays in sight
            return saved
        updates = self._again(dict(data) | {self.captions.chosen: path}, {})
        fresh = self._looked(data)
        shown = self.captions.show(fresh, Path(path)) if fresh else {}
        return updates | shown | {self.captions.message: saved[self.captions.message]}

    def save_caption(self, data: Data) -> Updates:
        looked = self._looked(data)
        return self._again(data, self.captions.save_one(looked, data)) if looked else {}

    def _to_change(self, looked: Looked, data: Data) -> list[Item]:
        """The images whose captions are changed at once: the selected ones, or all that match."""
        marked = set(self.selection.selected(data))
        return [item for item in looked.items if str(item.path) in marked] or self._matching(looked, data)

    def preview_change(self, data: Data) -> Updates:
        looked = self._looked(data)
        return self.captions.show_preview(looked, self._to_change(looked, data), data) if looked else {}

    def apply_change(self, data: Data) -> Updates:
        looked = self._looked(data)
        if looked is None:
            return {}
        return self._again(data, self.captions.apply_many(looked, self._to_change(looked, data), data))

    def undo_change(self, data: Data) -> Updates:
        return self._again(data, self.captions.undo_latest(data, self._looked(data)))

    def _again(self, data: Data, updates: Updates) -> Updates:
        """Captions may have changed: the whole tab once more, with what is to be said of it."""
        job = self._looker.look(self._config(data))
        job.wait()
        return self._all(job, data) | updates | self.captions.show_undo()

    # --- several pictures -------------------------------------------------------------------------------------------

    def _mark(self, data: Data, paths: list[str]) -> Updates:
        shown = self.selection.mark(paths)
        marked = {**data, self.selection.marked: shown[self.selection.marked]}
        return self._page(self._looked(data), marked, int(data[self.page] or 0)) | shown

    def select_page(self, data: Data) -> Updates:
        return self._mark(data, [*self.selection.selected(data), *(data[self.shown] or [])])

    def select_matching(self, data: Data) -> Updates:
        looked = self._looked(data)
        matching = [str(item.path) for item in self._matching(looked, data)] if looked else []
        return self._mark(data, [*self.selection.selected(data), *matching])

    def select_none(self, data: Data) -> Updates:
        return self._mark(data, [])

    def exclude(self, data: Data) -> Updates:
        return self._take_out(data, EXCLUDED)

    def delete(self, data: Data) -> Updates:
        return self._take_out(data, BIN)

    def _take_out(self, data: Data, place: str) -> Updates:
        looked = self._looked(data)
        if looked is None:
            return {}
        chosen = str(data[self.captions.chosen] or "")
        saved = self.captions.save_one(looked, data) if self.captions.has_unsaved(data) else {}  # it goes with it
        if saved and self.captions.unchanged not in saved:  # it could not be: what was typed stays in sight
            return saved
        pictures = self.selection.targets(looked, data, chosen)
        return self._again(data, {self.captions.message: self.selection.take_out(pictures, place)})

    def put_back(self, data: Data) -> Updates:
        message = self.selection.bring_back(self._config(data), self._looked(data), data)
        return self._again(data, {self.captions.message: message})

    def ask_to_empty(self, data: Data) -> Updates:
        return self.selection.ask(self._config(data), self._looked(data))

    def empty_bin(self, data: Data) -> Updates:
        message = self.selection.empty_bin(self._config(data), self._looked(data))
        return self._again(data, {self.captions.message: message})
