"""The Resume tab: checkpoints, what continuing from one would mean, and what can be done with them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from gui import look
from gui.forms import form as forms
from gui.forms.draft import Draft
from gui.places import Places
from gui.server import drills, runner
from gui.tabs import train_tab
from gui.tabs.monitor_tab import FOR_THE_PAGE, chart
from gui.tabs.train_tab import TrainTab
from gui.views import checkpoints, resume_check, runs
from gui.views.checkpoints import AFRESH, Shelf, Verified
from gui.views.resume_check import Environments, Outcome
from gui.wiring import QUIET, TELL_CLICKS, Updates
from trainer.checkpoints import decisions, export
from trainer.options.checks import read_config
from trainer.options.config import OPTIONS
from trainer.options.problems import ConfigError
from trainer.refusal import Refused
from trainer.runs import manifest, run_folder
from trainer.runs.manifest import CheckpointDamaged, Found
from trainer.runs.run_folder import RunFolder

DRILL_SECONDS = 1.0
LR_OPTIONS = ("resume_lr_policy", "resume_lr_scale", "resume_warmup_steps")
# What a person may change here; each is the form's option of that name and stays in step with it.
MIRRORED = ("max_train_steps", *LR_OPTIONS)


EACH = QUIET | {"trigger_mode": "multiple"}  # a click counts also while an earlier check is still going on
COMPARING = "The versions and the device are being compared ..."


class Turns:
    """Which check of a page is its latest: an earlier one that takes longer must not be shown after it."""

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self._latest: dict[str, object] = {}

    def take(self, page: str) -> Callable[[], bool]:
        """A function that tells whether this is still the latest turn of the page."""
        turn = object()
        self._latest.pop(page, None)
        self._latest[page] = turn
        for stale in list(self._latest)[: -self._most]:
            self._latest.pop(stale, None)
        return lambda: self._latest.get(page) is turn


class ResumeTab:
    def __init__(self, places: Places, train: TrainTab, run_picker: gr.Dropdown, message: gr.HTML) -> None:
        self._places = places
        self._train = train
        self._form = train.form
        self._run_picker = run_picker
        self._message = message
        self._verified = Verified()
        self._environments = Environments()
        self._turns = Turns()
        with gr.Row(equal_height=False, elem_classes="beside"):
            gr.HTML(
                "<b>To continue the run shown at the top of the page,</b> press the button: it fills the form with "
                "that run's own options and chooses its latest checkpoint. Then press Start training."
            )
            self.adopt = gr.Button(
                "Continue this run", elem_id="resume-adopt", variant="primary", scale=0, min_width=190
            )
        self._lay_out_list()
        self._lay_out_verdict()
        self._lay_out_new_run_and_drill()

    def _lay_out_list(self) -> None:
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.picker = gr.Dropdown(
                choices=[AFRESH], value="", label="Continue from", elem_id="resume-picker", interactive=True, scale=3,
                info="A checkpoint of the run that the form names. It sets the option resume_from_checkpoint.",
            )  # fmt: skip
            self.folder = gr.Textbox(
                label="Look in another folder", elem_id="resume-folder", max_lines=1, scale=3,
                elem_classes=look.PATH_FIELD,
                info="A run's folder or a checkpoint, anywhere. Empty: the run that the form names.",
            )  # fmt: skip
            self.refresh = gr.Button("Refresh", elem_id="resume-refresh", scale=0, min_width=120)
        self.where = gr.HTML(elem_id="resume-where", js_on_load=TELL_CLICKS)
        self.table = gr.HTML(elem_id="resume-table", js_on_load=TELL_CLICKS)
        with gr.Row():
            self.verify = gr.Button("Verify all", elem_id="resume-verify", min_width=120)
            self.pin = gr.Button("Pin", elem_id="resume-pin", min_width=120)
            self.export = gr.Button("Export the model file", elem_id="resume-export", min_width=120)
            self.delete = gr.Button("Delete ...", elem_id="resume-delete", min_width=120)
        with gr.Row(visible=False, equal_height=False, elem_classes="beside") as self.question:
            self.asked = gr.HTML(elem_id="resume-delete-question")
            self.doomed = gr.State("")  # the folder that the question is about
            self.confirm = gr.Button("Delete it", elem_id="resume-delete-yes", variant="stop", scale=0, min_width=120)
            self.keep = gr.Button("Keep it", elem_id="resume-delete-no", scale=0, min_width=120)

    def _lay_out_verdict(self) -> None:
        self.verdict = gr.HTML(elem_id="resume-verdict")
        self.differences = gr.HTML(elem_id="resume-differences", js_on_load=TELL_CLICKS)
        with gr.Row():
            self.restore = gr.Button("Use the checkpoint's values", elem_id="resume-restore", visible=False)
            self.allow = gr.Button("Allow these differences", elem_id="resume-allow", visible=False)
        with gr.Row(visible=False, equal_height=False, elem_classes="beside") as self.controls:
            option = OPTIONS["max_train_steps"]
            self.mirrors: dict[str, gr.components.Component] = {
                "max_train_steps": gr.Number(
                    label="Train until step", precision=0, minimum=option.low, elem_id="resume-steps",
                    info="A finished run goes on when this is raised (max_train_steps).",
                ),
                "resume_lr_policy": gr.Dropdown(
                    choices=list(OPTIONS["resume_lr_policy"].choices), label="Learning rate", elem_id="resume-policy",
                    info="keep the checkpoint's curve, stretch it over the new length, or restart a new one here.",
                ),
                "resume_lr_scale": gr.Number(
                    label="LR multiplier", elem_id="resume-scale", minimum=0, step=0.1,
                    info="A factor on the curve (resume_lr_scale).",
                ),
                "resume_warmup_steps": gr.Number(
                    label="Warm-up steps", precision=0, minimum=0, elem_id="resume-warmup",
                    info="To come back to the curve gently (resume_warmup_steps).",
                ),
            }  # fmt: skip
        chart("Learning rate of the resume", "resume-curve", hidden=True)
        # What charts.js draws there, as text: of a value with parts, Gradio sends what differs between two answers of a
        # generator, and leaves other widgets empty then.
        self.figure = gr.Textbox("", visible="hidden")

    def _lay_out_new_run_and_drill(self) -> None:
        with (
            gr.Accordion("Continue as a new run", open=False),
            gr.Row(equal_height=False, elem_classes="beside"),
        ):
            self.branch_name = gr.Textbox(
                label="Name of the new run", elem_id="resume-branch-name", max_lines=1, scale=3,
                info="It begins at the chosen checkpoint and leaves this run as it is; its record says where it "
                "came from.",
            )  # fmt: skip
            self.branch = gr.Button("Use this name", elem_id="resume-branch", scale=0, min_width=160)
        with gr.Accordion("Try this resume (drill)", open=False):
            gr.HTML(
                "Trains a few steps with the form's options, kills the process, resumes, and compares everything bit "
                "for bit with a run that was left alone, on this machine. Your run is not touched."
            )
            with gr.Row():
                self.drill = gr.Button("Start the drill", elem_id="resume-drill", min_width=160)
                self.stop_drill = gr.Button("Stop the drill", elem_id="resume-drill-stop", min_width=160)
            self.drilled = gr.HTML(elem_id="resume-drill-verdict")
            self.drill_timer = gr.Timer(DRILL_SECONDS, active=False)

    def outputs(self) -> set[Any]:
        return {
            self.where, self.picker, self.table, self.verdict, self.controls, self.figure, self.differences,
            self.restore, self.allow, self.pin, self.question, self.drilled, self.drill_timer, *self.mirrors.values(),
        }  # fmt: skip

    # --- wiring -----------------------------------------------------------------------------------------------------

    def wire(self, item: gr.Tab) -> None:
        options = self._form.inputs()
        here, shown = options | {self.folder, self._train.base, self._train.stamp}, self.outputs()
        changed = shown | self._train.outputs() | {self._message}

        for event in (item.select, self.folder.submit, self.folder.blur, self.keep.click):
            event(self.show, here, shown, **EACH)
        self.refresh.click(self.look_again, here, shown, **EACH)
        self.where.click(self.open_folder, here, shown | {self.folder}, **EACH)
        self.picker.input(self.choose, here | {self.picker}, changed, **EACH)
        self.table.click(self.choose_row, here, changed, **EACH)
        self.adopt.click(self.adopt_run, here | {self._run_picker}, changed | {self.folder}, **EACH)

        self.verify.click(self.verify_all, here, shown, **EACH)
        self.pin.click(self.pin_chosen, here, shown | {self._message}, **EACH)
        self.export.click(self.export_chosen, here, {self._message}, **EACH)
        self.delete.click(self.ask_to_delete, here, {self.question, self.asked, self.doomed, self._message}, **EACH)
        self.confirm.click(self.delete_asked, here | {self.doomed}, changed, **EACH)

        for widget in self.mirrors.values():
            event = widget.input if isinstance(widget, gr.Dropdown) else widget.blur
            event(self.mirror, here | set(self.mirrors.values()), changed, **EACH)
        self.differences.click(self.settle_one, here, changed, **EACH)
        self.restore.click(self.restore_all, here, changed, **EACH)
        self.allow.click(self.allow_all, here, changed, **EACH)

        draw = "text => rekindleCharts.show('resume-curve', text ? JSON.parse(text) : null)"
        self.figure.change(None, self.figure, None, js=draw, **FOR_THE_PAGE)
        self.branch.click(self.branch_off, here | {self.branch_name}, changed | {self.folder}, **EACH)
        drilling = {self.drilled, self.drill_timer, self._message}
        named = {self._form.widgets[name] for name in ("output_dir", "output_name")}
        self.drill.click(self.start_drill, options, drilling, **EACH)
        self.stop_drill.click(self.end_drill, named, drilling, **EACH)
        self.drill_timer.tick(self.watch_drill, named, {self.drilled, self.drill_timer}, queue=False, **QUIET)

    # --- showing ----------------------------------------------------------------------------------------------------

    def show(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Everything on the tab, for the form's values: the list at once, the verdict when it is known."""
        yield from self._show(self._form.values(data), str(data[self.folder] or ""), request)

    def look_again(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Like `show`, with nothing remembered of the environment."""
        self._environments.forget()
        yield from self.show(data, request)

    def _show(self, values: Mapping[str, Any], typed: str, request: gr.Request) -> Iterator[Updates]:
        is_latest = self._turns.take(request.session_hash or "")
        listed = self._list(values, typed)
        settings, _ = resume_check.settings_of(values)
        environment, remark = None, ""
        if settings is not None and resume_check.resumes(self._places, settings):
            yield listed | {self.verdict: look.note("Checking the images, the base model and every byte ...")}
            listed = {}
            if not self._environments.knows(settings):
                outcome = resume_check.examine(self._places, values, None, COMPARING)
                if is_latest():
                    yield self._outcome(outcome)
            environment, remark = self._environments.describe(settings, self._places)
        outcome = resume_check.examine(self._places, values, environment, remark)
        if listed or is_latest():
            yield listed | self._outcome(outcome)

    def _list(self, values: Mapping[str, Any], typed: str) -> Updates:
        """The checkpoints, the controls and the drill; quick."""
        wanted = str(values["resume_from_checkpoint"]).strip()
        run = runner.run_of(self._places, values)
        shelf = checkpoints.shelf(self._places, run, typed)
        settings, _ = resume_check.settings_of(values)
        chosen = shelf.chosen(wanted) if shelf else None
        drill = drills.read(run) if run is not None else None
        mirrored = {self.mirrors[name]: gr.update(value=values[name]) for name in MIRRORED}
        return mirrored | {
            self.where: checkpoints.where(shelf, run, typed),
            self.picker: gr.update(choices=checkpoints.choices(shelf, wanted), value=wanted),
            self.table: checkpoints.table(shelf, wanted, settings, self._verified),
            self.controls: gr.update(visible=bool(wanted)),
            self.pin: "Unpin" if chosen is not None and chosen.pinned else "Pin",
            self.question: gr.update(visible=False),
            self.drilled: drills.show(drill, time.time()),
            self.drill_timer: gr.update(active=drill is not None and drill.alive),
        }

    def _outcome(self, outcome: Outcome) -> Updates:
        return {
            self.verdict: outcome.html,
            self.differences: outcome.table,
            self.figure: json.dumps(outcome.figure) if outcome.figure is not None else "",
            self.restore: gr.update(visible=bool(outcome.in_the_way)),
            self.allow: gr.update(visible=bool(outcome.allowable)),
        }

    def open_folder(self, data: Mapping[Any, Any], event: gr.EventData, request: gr.Request) -> Iterator[Updates]:
        """List a folder that was set aside."""
        for updates in self._show(self._form.values(data), _told(event), request):
            yield updates | {self.folder: _told(event)}

    # --- changing options -------------------------------------------------------------------------------------------

    def _change(
        self,
        data: Mapping[Any, Any],
        request: gr.Request,
        changes: Mapping[str, Any],
        typed: str | None = None,
        said: str = "",
    ) -> Iterator[Updates]:
        """Change options in the form and show what that means for the resume."""
        before = self._train.draft(data)
        values = {**before.values, **changes}
        draft = Draft(values, before.name, before.base)
        first = self._train.fill(draft, data, undo=None) | self._form.show(changes) | {self._message: said}
        for updates in self._show(values, str(data[self.folder] or "") if typed is None else typed, request):
            yield first | updates
            first = {}

    def choose(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        yield from self._change(data, request, {"resume_from_checkpoint": data[self.picker] or ""})

    def choose_row(self, data: Mapping[Any, Any], event: gr.EventData, request: gr.Request) -> Iterator[Updates]:
        yield from self._change(data, request, {"resume_from_checkpoint": _told(event)})

    def mirror(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Take over what was typed here; a number of steps takes the place of a number of epochs."""
        before = self._form.values(data)
        changes = {
            name: forms.from_browser(OPTIONS[name], data[widget])
            for name, widget in self.mirrors.items()
            if forms.from_browser(OPTIONS[name], data[widget]) != before[name]
        }
        if "max_train_steps" in changes:
            changes["max_train_epochs"] = None
        if changes:
            yield from self._change(data, request, changes)

    def settle_one(self, data: Mapping[Any, Any], event: gr.EventData, request: gr.Request) -> Iterator[Updates]:
        """Put one option back, or allow it to differ as it does now."""
        name = _told(event)
        values = self._form.values(data)
        if getattr(event, "action", "") == "allow":
            yield from self._change(data, request, _with_allowed(values, [name]))
        elif name in OPTIONS:
            then = self._checkpoint_options(values, data)
            yield from self._change(data, request, {name: then[name]} if name in then else {})

    def restore_all(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """The checkpoint's values of the options that are in the way."""
        values = self._form.values(data)
        outcome, then = self._examined(values), self._checkpoint_options(values, data)
        yield from self._change(
            data, request, {item.name: then[item.name] for item in outcome.in_the_way if item.name in then}
        )

    def allow_all(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        values = self._form.values(data)
        yield from self._change(data, request, _with_allowed(values, self._examined(values).allowable))

    def _examined(self, values: Mapping[str, Any]) -> Outcome:
        return resume_check.examine(self._places, values, None, "")

    def _checkpoint_options(self, values: Mapping[str, Any], data: Mapping[Any, Any]) -> Mapping[str, Any]:
        item = self._chosen(values, data)
        return checkpoints.checkpoint_options(item.path) if item is not None else {}

    def adopt_run(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        run = runs.chosen(self._places, data[self._run_picker])
        values, message = adopted(self._places, run)
        if run is None or values is None:
            yield {self._message: message}
            return
        can_undo = train_tab.put_aside(self._places, self._train.draft(data))
        draft = Draft(values, f"run {run.path.name}", values)
        first = self._train.fill(draft, data, undo=can_undo) | {self._message: message, self.folder: ""}
        for updates in self._show(values, "", request):
            yield first | updates
            first = {}

    def branch_off(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Let the form begin a new run at the chosen checkpoint."""
        values, name = self._form.values(data), str(data[self.branch_name] or "").strip()
        item = self._chosen(values, data)
        problems = forms.check_values({"output_name": name}).problems if name else ["Write a name for it first."]
        if item is None:
            yield {self._message: look.note("Choose a checkpoint to begin from first.", kind="bad")}
        elif problems:
            yield {self._message: look.note(f"{name!r} cannot be the name of a run: {problems[0]}", kind="bad")}
        else:
            run = RunFolder(self._places.home / values["output_dir"] / name)
            if run.run_file.exists():
                words = f"There is a run {name} already; choose another name."
                yield {self._message: look.note(words, kind="bad")}
                return
            changes = {"output_name": name, "resume_from_checkpoint": str(item.path), "overwrite_run": False}
            said = f"The form begins the new run {name} at step {item.step:,}. Press Start training."
            folder = str(item.path.parent)
            for updates in self._change(data, request, changes, folder, look.note(said, kind="good")):
                yield updates | {self.folder: folder}

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _shelf(self, values: Mapping[str, Any], data: Mapping[Any, Any]) -> Shelf | None:
        run = runner.run_of(self._places, values)
        return checkpoints.shelf(self._places, run, str(data[self.folder] or ""))

    def _chosen(self, values: Mapping[str, Any], data: Mapping[Any, Any]) -> Found | None:
        shelf = self._shelf(values, data)
        return shelf.chosen(str(values["resume_from_checkpoint"]).strip()) if shelf else None

    def verify_all(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Read every byte of each, and say so one by one."""
        values = self._form.values(data)
        shelf, settings = self._shelf(values, data), resume_check.settings_of(values)[0]
        wanted = str(values["resume_from_checkpoint"]).strip()
        for number, item in enumerate(shelf.found if shelf else ()):
            text = look.note(
                f"Reading every byte of step {item.step:,}: {number + 1} of {len(shelf.found) if shelf else 0}"
            )
            yield {self.where: text}
            self._verified.verify(item)
            yield {self.table: checkpoints.table(shelf, wanted, settings, self._verified)}
        yield from self.show(data, request)

    def pin_chosen(self, data: Mapping[Any, Any]) -> Iterator[Updates]:
        values = self._form.values(data)
        item = self._chosen(values, data)
        if item is None:
            yield {self._message: look.note("Choose a checkpoint first.", kind="bad")}
            return
        try:
            manifest.pin(item.path, not item.pinned)
        except OSError as error:
            yield {self._message: look.note(f"It could not be pinned: {error}", kind="bad")}
            return
        done = "is no longer pinned" if item.pinned else "is kept, whatever the rules for older ones say"
        yield self._list(values, str(data[self.folder] or "")) | {
            self._message: look.note(f"The checkpoint of step {item.step:,} {done}.")
        }

    def export_chosen(self, data: Mapping[Any, Any]) -> Iterator[Updates]:
        values = self._form.values(data)
        item = self._chosen(values, data)
        if item is None:
            yield {self._message: look.note("Choose a checkpoint first.", kind="bad")}
            return
        yield {self._message: look.note(f"Writing the model file of step {item.step:,} ...")}
        try:
            path = export.model_file(item.path)
        except (Refused, CheckpointDamaged, OSError) as error:
            yield {self._message: look.note(f"It could not be exported: {error}", kind="bad")}
            return
        yield {self._message: look.note(f"The model file of step {item.step:,} is {path}.", kind="good")}

    def ask_to_delete(self, data: Mapping[Any, Any]) -> Updates:
        values = self._form.values(data)
        item = self._chosen(values, data)
        if item is None:
            return {self._message: look.note("Choose a checkpoint first.", kind="bad")}
        if item.pinned:
            words = f"The checkpoint of step {item.step:,} is pinned. Unpin it first."
            return {self._message: look.note(words, kind="bad")}
        words = f"Delete the checkpoint of step {item.step:,} ({item.path})? It cannot be brought back."
        return {
            self._message: "",
            self.asked: look.note(words, kind="warn"),
            self.doomed: str(item.path),
            self.question: gr.update(visible=True),
        }

    def delete_asked(self, data: Mapping[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Delete the checkpoint that the question named, if it is still one of those listed."""
        values = self._form.values(data)
        shelf = self._shelf(values, data)
        item = next((one for one in shelf.found if str(one.path) == data[self.doomed]), None) if shelf else None
        if shelf is None or item is None or item.pinned:
            yield {self._message: look.note("It no longer exists, or it is pinned.", kind="bad")}
            return
        try:
            manifest.delete(item.path)
        except OSError as error:
            yield {self._message: look.note(f"It could not be deleted: {error}", kind="bad")}
            return
        said = look.note(f"The checkpoint of step {item.step:,} is deleted.")
        gone = values["resume_from_checkpoint"] in (shelf.value(item), str(item.path))
        yield from self._change(data, request, {"resume_from_checkpoint": ""} if gone else {}, said=said)

    # --- the drill --------------------------------------------------------------------------------------------------

    def start_drill(self, data: Mapping[Any, Any]) -> Updates:
        settings, problems = resume_check.settings_of(self._form.values(data))
        if settings is None:
            return {self._message: look.note("The drill was not started. Change this first:", problems, kind="bad")}
        try:
            run = drills.start(settings, self._places)
        except runner.StartRefused as error:
            return {self._message: look.note(str(error), kind="bad")}
        return {self._message: "", **self._drill_updates(run)}

    def end_drill(self, data: Mapping[Any, Any]) -> Updates:
        run = runner.run_of(self._places, self._names(data))
        if run is None or not drills.stop(run):
            return {self._message: look.note("There is no drill to stop.")}
        return {self._message: "", **self._drill_updates(run)}

    def watch_drill(self, data: Mapping[Any, Any]) -> Updates:
        return self._drill_updates(runner.run_of(self._places, self._names(data)))

    def _names(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        return {
            name: forms.from_browser(OPTIONS[name], data[self._form.widgets[name]])
            for name in ("output_dir", "output_name")
        }

    def _drill_updates(self, run: RunFolder | None) -> Updates:
        drill = drills.read(run) if run is not None else None
        return {
            self.drilled: drills.show(drill, time.time()),
            self.drill_timer: gr.update(active=drill is not None and drill.alive),
        }


def _told(event: gr.EventData) -> str:
    """The value of the button that was pressed."""
    value = getattr(event, "value", "")
    return value if isinstance(value, str) else ""


def _with_allowed(values: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """resume_allow with these words, in the place of earlier ones for the same options."""
    names = {word.partition(":")[0] for word in words}
    kept = [word for word in values["resume_allow"] or () if word.partition(":")[0] not in names]
    return {"resume_allow": (*kept, *words)}


def adopted(places: Places, run: RunFolder | None) -> tuple[dict[str, Any] | None, str]:
    """The options that continue a run from its latest checkpoint, or None; and a message in HTML."""
    if run is None:
        return None, look.note("Choose a run at the top of the page first.", kind="bad")
    try:
        then = read_config(run.config_file)
    except ConfigError as error:
        problems = [forms.describe(problem) for problem in error.problems]
        return None, look.note(f"The options of {run.path.name} cannot be read:", problems, kind="bad")
    now = decisions.to_continue(run, then)  # has the folder's own name: it may have been renamed or copied since
    values = {name: getattr(now, name) for name in OPTIONS} | {"overwrite_run": False}
    if (places.home / then.output_dir).resolve() == run.path.parent:  # trained from here
        values["output_dir"] = then.output_dir
    adopted = f"The form has the options of {run.path.name}, to continue from its latest checkpoint."
    if run_folder.status(run) == "finished":
        return values, look.note(f"{adopted} It is finished: raise Train until step below, then press Start training.")
    return values, look.note(f"{adopted} Press Start training.", kind="good")
