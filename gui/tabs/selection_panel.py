"""Several pictures of the Dataset tab at once: selected, excluded from the training, put into a bin, put back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from gui import look
from gui.views import dataset_view as view
from gui.views.dataset_view import Looked
from gui.wiring import Data, Updates
from trainer.data import put_aside
from trainer.data.put_aside import BIN, EXCLUDED, Outcome
from trainer.options.config import Config

WORDS = {EXCLUDED: "excluded", BIN: "in the bin"}
MOST_NAMED = 20


class SelectionPanel:
    def __init__(self) -> None:
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.select = gr.Checkbox(label="A click selects", elem_id="dataset-select", min_width=150, scale=0)
            self.page = gr.Button("Select this page", elem_id="dataset-select-page", scale=0, min_width=140)
            self.matching = gr.Button("Select all that match", elem_id="dataset-select-all", scale=0, min_width=170)
            self.clear = gr.Button("Select none", elem_id="dataset-select-none", scale=0, min_width=120)
            self.count = gr.HTML(elem_id="dataset-selected")
            self.exclude = gr.Button("Exclude", elem_id="dataset-exclude", scale=0, min_width=110)
            self.delete = gr.Button("Delete to the bin", elem_id="dataset-delete", scale=0, min_width=150)
        self.marked = gr.State([])  # the paths of the selected pictures

    def lay_out_taken(self) -> None:
        """What was taken out, where the tab has its place for it."""
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.taken = gr.Dropdown(
                choices=[], value=[], multiselect=True, label="Pictures that were taken out", elem_id="dataset-taken",
                interactive=True, scale=4, info="They lie in hidden folders beside the others: .excluded and .bin.",
            )  # fmt: skip
            self.put_back = gr.Button("Put back", elem_id="dataset-put-back", scale=0, min_width=110)
            self.empty = gr.Button("Empty the bin ...", elem_id="dataset-empty-bin", scale=0, min_width=150)
        with gr.Row(visible=False, equal_height=False, elem_classes="beside") as self.question:
            self.asked = gr.HTML(elem_id="dataset-bin-question")
            self.confirm = gr.Button("Delete them", variant="stop", elem_id="dataset-bin-yes", scale=0, min_width=130)
            self.keep = gr.Button("Keep them", elem_id="dataset-bin-no", scale=0, min_width=120)

    def outputs(self) -> set[Any]:
        return {self.marked, self.count, self.taken, self.question, self.asked}

    # --- selecting --------------------------------------------------------------------------------------------------

    def selected(self, data: Data) -> list[str]:
        return list(data[self.marked] or [])

    def mark(self, paths: Iterable[str]) -> Updates:
        kept = list(dict.fromkeys(paths))
        words = f"{len(kept):,} selected" if kept else "None selected: buttons act on the one that is shown below."
        return {self.marked: kept, self.count: f"<p>{words}</p>"}

    def toggle(self, data: Data, path: str) -> list[str]:
        marked = self.selected(data)
        return [other for other in marked if other != path] if path in marked else [*marked, path]

    def targets(self, looked: Looked, data: Data, shown: str) -> list[Path]:
        """What the buttons act on: the selected pictures that are still there, or the one that is shown."""
        there = {str(item.path) for item in looked.items}
        return [Path(path) for path in self.selected(data) or [shown] if path in there]

    def after_a_look(self, looked: Looked | None, config: Config, data: Data) -> Updates:
        """Nothing selected that is not there any more, and what was taken out as it is now."""
        there = {str(item.path) for item in looked.items} if looked else set()
        listed = [
            (f"{view.printable(path.name)} ({WORDS[place]})", str(path))
            for place in (EXCLUDED, BIN)
            for path in put_aside.listing(_folders(config, looked), place)
        ]
        return self.mark(path for path in self.selected(data) if path in there) | {
            self.taken: gr.update(choices=listed, value=[]),
            self.question: gr.update(visible=False),
        }

    # --- taking out and putting back --------------------------------------------------------------------------------

    def take_out(self, pictures: Sequence[Path], place: str) -> str:
        """Do it; a message in HTML."""
        if not pictures:
            return look.note("Select pictures first, or click one.", kind="warn")
        return told(put_aside.put(pictures, place), WORDS[place])

    def bring_back(self, config: Config, looked: Looked | None, data: Data) -> str:
        """Put the chosen ones back; a message in HTML."""
        put_aside_paths = [path for place in WORDS for path in put_aside.listing(_folders(config, looked), place)]
        chosen = [path for path in put_aside_paths if str(path) in (data[self.taken] or [])]
        return told(put_aside.put_back(chosen), "put back") if chosen else look.note("Choose pictures first.")

    def ask(self, config: Config, looked: Looked | None) -> Updates:
        count = len(put_aside.listing(_folders(config, looked), BIN))
        words = f"Delete {_pictures(count)} in the bin for good, with the captions? It cannot be undone."
        return {self.question: gr.update(visible=count > 0), self.asked: look.note(words, kind="warn")}

    def empty_bin(self, config: Config, looked: Looked | None) -> str:
        return told(put_aside.empty_bins(_folders(config, looked)), "deleted for good")


def _folders(config: Config, looked: Looked | None) -> list[Path]:
    """The folders that hold the dataset's pictures, also those of which all were taken out."""
    roots = [Path(name) for name in (config.train_data_dir, config.reg_data_dir, config.validation_data_dir) if name]
    result = [item.path.parent for item in looked.items] if looked else []
    for root in roots:
        result.append(root)
        try:
            result += [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        except OSError:  # it is not there
            continue
    return sorted({folder.absolute() for folder in result})


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count:,} pictures"


def told(outcome: Outcome, done: str) -> str:
    """What became of pictures, in HTML."""
    refused = [f"{view.printable(str(path))}: {reason}" for path, reason in outcome.refused]
    words = f"{_pictures(len(outcome.moved))} {done}."
    if refused:
        more = ["and more"] if len(refused) > MOST_NAMED else []
        return look.note(f"{words} Left alone:", [*refused[:MOST_NAMED], *more], kind="warn")
    return look.note(words, kind="good")
