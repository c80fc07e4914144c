"""A question before something that cannot be undone. It appears in the run bar, with the answer's own words on it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from gui import look


class Question:
    def __init__(self) -> None:
        with gr.Row(visible=False, elem_id="question", equal_height=False) as self.row:
            self.text = gr.HTML(elem_id="question-text")
            self.yes = gr.Button("Yes", variant="stop", elem_id="question-yes", scale=0, min_width=150)
            self.other = gr.Button("Other", visible=False, elem_id="question-other", scale=0, min_width=150)
            self.no = gr.Button("No", elem_id="question-no", scale=0, min_width=110)
        self.pending = gr.State(("", "", ""))  # what is asked about: the actions of both answers and their subject

    def outputs(self) -> set[Any]:
        return {self.row, self.text, self.yes, self.no, self.other, self.pending}

    def ask(
        self, text: str, action: str, subject: str, *, yes: str, no: str, other: tuple[str, str] = ("", ""),
        grave: bool = True,
    ) -> dict[Any, Any]:  # fmt: skip
        """Show the question; `action` and `subject` come back when it is answered with yes.

        `other`: words and action of a second answer. `grave`: whether yes does what cannot be undone.
        """
        return {
            self.row: gr.update(visible=True),
            self.text: look.note(text, kind="warn"),
            self.yes: gr.update(value=yes, variant="stop" if grave else "primary"),
            self.other: gr.update(value=other[0], visible=bool(other[0])),
            self.no: gr.update(value=no),
            self.pending: (action, other[1], subject),
        }

    def close(self) -> dict[Any, Any]:
        return {self.row: gr.update(visible=False), self.pending: ("", "", "")}
