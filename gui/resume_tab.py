"""The Resume tab: the checkpoints of the form's run, and what continuing from one would mean. No model is loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from gui import form as forms
from gui import look, monitor, train_tab
from gui.places import Places
from trainer import config, manifest, resume, schedule
from trainer.config import OPTIONS, Config, ConfigError, read_config
from trainer.manifest import CheckpointDamaged, Found
from trainer.resume import Chosen, Difference, ResumeRefused
from trainer.runs import RunFolder
from trainer.schedule import LrCurve

AFRESH = ("Start afresh", "")
OF_THE_SESSION = ("resume_from_checkpoint", "resume_allow", "overwrite_run")  # differ at every resume
IN_THE_TRAINER = (
    "The images, the base model and the environment are compared by the trainer itself, before it loads anything; "
    "its verdict is at the top of the log."
)


class ResumeTab:
    def __init__(self) -> None:
        with gr.Row(equal_height=False, elem_classes="beside"):
            gr.HTML(
                "<b>To continue the run shown at the top of the page,</b> press the button: it fills the form with "
                "that run's own options and chooses its latest checkpoint. Then press Start training."
            )
            self.adopt = gr.Button(
                "Continue this run", elem_id="resume-adopt", variant="primary", scale=0, min_width=190
            )
        self.where = gr.HTML(elem_id="resume-where")
        with gr.Row(equal_height=False, elem_classes="beside"):
            self.picker = gr.Dropdown(
                choices=[AFRESH], value="", label="Continue from", elem_id="resume-picker", interactive=True, scale=4,
                info="A checkpoint of the run that the form names. It sets the option resume_from_checkpoint.",
            )  # fmt: skip
            self.refresh = gr.Button("Refresh", elem_id="resume-refresh", scale=0, min_width=120)
        self.verdict = gr.HTML(elem_id="resume-verdict")
        with gr.Row():
            self.restore = gr.Button("Use the checkpoint's values", elem_id="resume-restore", visible=False)
            self.allow = gr.Button("Allow these differences", elem_id="resume-allow", visible=False)

    def outputs(self) -> set[Any]:
        return {self.where, self.picker, self.verdict, self.restore, self.allow}

    def show(self, places: Places, values: Mapping[str, Any]) -> dict[Any, Any]:
        """Everything on the tab, for the form's values."""
        wanted = str(values["resume_from_checkpoint"]).strip()
        run = train_tab.run_of(places, values)
        outcome = examine(places, values)
        return {
            self.where: _where(run),
            self.picker: gr.update(choices=picker_choices(run, wanted), value=wanted),
            self.verdict: outcome.html,
            self.restore: gr.update(visible=bool(outcome.differences)),
            self.allow: gr.update(visible=any(_in_the_way(item) for item in outcome.differences if _allowable(item))),
        }


# --- the list ------------------------------------------------------------------------------------------------------


def _where(run: RunFolder | None) -> str:
    if run is None:
        return look.note("The form's output_dir and output_name name no run yet.", kind="warn")
    count = len(manifest.listing(run.checkpoints))
    have = "no checkpoints" if count == 0 else "1 checkpoint" if count == 1 else f"{count} checkpoints"
    return look.note(f"The form's run is {run.path}; it has {have}.")


def picker_choices(run: RunFolder | None, wanted: str) -> list[tuple[str, str]]:
    """(label, resume_from_checkpoint): afresh, the latest, each checkpoint, and whatever else the form has."""
    found = manifest.listing(run.checkpoints) if run is not None else []
    sound = next((item for item in found if item.manifest), None)
    latest = f"Latest (step {sound.step:,})" if sound else "Latest (there is none yet)"
    listed = [AFRESH, (latest, "latest"), *((checkpoint_label(item), str(item.step)) for item in found)]
    if wanted not in [value for _, value in listed]:
        listed.append((wanted, wanted))
    return listed


def checkpoint_label(item: Found) -> str:
    """Step, epoch, loss, size and date of a checkpoint, and whether it is complete."""
    if item.manifest is None:
        return f"Step {item.step:,} · damaged: {item.problem}"
    parts = [f"Step {item.step:,}", f"epoch {item.manifest.epoch}"]
    if isinstance(item.manifest.loss, int | float):
        parts.append(f"loss {item.manifest.loss:.4f}")
    parts += [monitor.size(item.manifest.bytes), time.strftime("%d %b %H:%M", time.localtime(item.manifest.created))]
    return " · ".join([*parts, "complete", *(["pinned"] if item.pinned else [])])


# --- the verdict ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What continuing would mean: HTML for people, and the differences that matter to the training."""

    html: str
    differences: tuple[Difference, ...] = ()


def _in_the_way(item: Difference) -> bool:
    return item.on_resume != "free" and not item.allowed


def _allowable(item: Difference) -> bool:
    return item.on_resume == "trajectory"


def examine(places: Places, values: Mapping[str, Any]) -> Outcome:
    """Compare the form with the checkpoint that it names. Every byte of that checkpoint is read and verified."""
    wanted = str(values["resume_from_checkpoint"]).strip()
    if not wanted:
        return Outcome(_afresh(places, values))
    checked = forms.check_values(values)
    if checked.problems:
        listed = [forms.describe(problem) for problem in checked.problems]
        return Outcome(look.note("The form has to be right before it can be compared:", listed, kind="bad"))
    now = config.build(checked.values)
    try:
        chosen = resume.choose(_placed(places, now))
        then = read_config(chosen.path / "config.toml")
        state = manifest.read_json(chosen.path, "state.json")
        processes = int(manifest.read_json(chosen.path, "environment.json").get("processes", 1))
    except ResumeRefused as error:
        return Outcome(look.note("This cannot be continued.", error.reasons, kind="bad"))
    except (CheckpointDamaged, ConfigError, ValueError, OSError) as error:
        return Outcome(look.note(f"The checkpoint cannot be read: {error}", kind="bad"))
    differences = resume.compare_options(then, now, processes, 1)
    matter = tuple(item for item in differences if item.on_resume != "free")
    html = _sentence(now, chosen, state, differences) + _table(differences)
    return Outcome(html, tuple(item for item in matter if _in_the_way(item)))


def _placed(places: Places, settings: Config) -> Config:
    """The config with its paths as the trainer will find them."""
    output = places.home / settings.output_dir
    wanted = settings.resume_from_checkpoint.strip()
    if wanted != "latest" and not wanted.isdigit():
        wanted = str(places.home / Path(wanted).expanduser())
    return settings.replace(output_dir=str(output), resume_from_checkpoint=wanted)


def _afresh(places: Places, values: Mapping[str, Any]) -> str:
    run = train_tab.run_of(places, values)
    have = manifest.listing(run.checkpoints) if run is not None else []
    if run is None or not have:
        return look.note("A new run starts at step 1.")
    if values["overwrite_run"] is True:
        return look.note(
            f"A new run starts at step 1. overwrite_run is on: the present {run.path.name} is moved aside, "
            "not deleted.",
            kind="warn",
        )
    return look.note(
        f"The run {run.path.name} has checkpoints up to step {have[0].step:,}, so the trainer will refuse to start it "
        "afresh. Choose Latest to continue it, give another output_name, or turn overwrite_run on (Folders), which "
        "moves the old run aside.",
        kind="warn",
    )


def _sentence(now: Config, chosen: Chosen, state: Mapping[str, Any], differences: list[Difference]) -> str:
    step = chosen.manifest.step
    rejected = [f"passed over because of damage: {path.name}: {reason}" for path, reason in chosen.rejected]
    if now.max_train_epochs is None and step >= now.max_train_steps:
        return look.note(
            f"The run is complete: step {step:,} of {now.max_train_steps:,}. "
            "Raise max_train_steps (Training) to go on.",
            rejected,
            kind="warn",
        )
    end = f" of {now.max_train_steps:,}"
    if now.max_train_epochs is not None:
        end = f"; it ends after {now.max_train_epochs} epochs"
    where = (
        f"Continues at step {step + 1:,}{end}, from {chosen.path.name} ({_epochs(chosen.manifest.epoch)}), "
        "every byte of which is as it was saved."
    )
    rate, dead = _learning_rate(now, state, step)
    blocked = sum(_in_the_way(item) for item in differences)
    if dead:
        return look.note(f"{where} {rate}", [dead, *rejected], kind="bad")
    if blocked:
        count = "1 option differs" if blocked == 1 else f"{blocked} options differ"
        return look.note(f"{where} But {count}, and the trainer will refuse:", rejected, kind="bad")
    if any(item.on_resume == "trajectory" for item in differences):
        rest, kind = "The run will differ, as you allowed.", "warn"
    else:
        rest, kind = "As far as the options go, it continues exactly.", "good"
    return look.note(f"{where} {rate} {rest}", [IN_THE_TRAINER, *rejected], kind=kind)


def _epochs(count: int) -> str:
    return "in the first epoch" if count == 0 else "1 epoch done" if count == 1 else f"{count} epochs done"


def _learning_rate(now: Config, state: Mapping[str, Any], step: int) -> tuple[str, str]:
    """The learning rate of the first resumed step, and what is wrong with the curve from there on."""
    try:
        then = LrCurve(**state["lr_curve"])
    except (KeyError, TypeError):
        return "", ""
    if now.max_train_epochs is not None and now.resume_lr_policy != "keep":
        return f"Learning rate: {now.lr_scheduler}.", ""  # its length is known once the images are counted
    total = now.max_train_steps if now.max_train_epochs is None else then.end_step
    curve = schedule.resumed_curve(now, then, step, total)
    parts = schedule.peaks(now)
    shown = ", ".join(f"{part.replace('_', ' ')} {peak * curve.factor(step):.3g}" for part, peak in parts.items())
    dead = schedule.dead_steps(curve, step, total)
    if dead is None:
        return f"Learning rate {shown} ({curve.scheduler}).", ""
    return f"Learning rate {shown} ({curve.scheduler}).", (
        f"steps {dead[0]:,} to {dead[1]:,} would train at a learning rate of 0, because the checkpoint's curve ends at "
        f"step {curve.end_step:,}; set resume_lr_policy to stretch or restart (Resume), or lower max_train_steps"
    )


def _table(differences: list[Difference]) -> str:
    differences = [item for item in differences if item.name not in OF_THE_SESSION]
    if not differences:
        return look.note("Every option is as it was in the checkpoint.")
    order = {"locked": 0, "trajectory": 1, "free": 2}
    rows = [
        (OPTIONS[item.name].section, item.name, _shown(item.checkpoint), _shown(item.now), _meaning(item))
        for item in sorted(differences, key=lambda item: order[item.on_resume])
    ]
    return look.table(("Section", "Option", "In the checkpoint", "In the form", "What it means"), rows)


def _shown(value: Any) -> str:
    if value is None or value in ("", ()):
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _meaning(item: Difference) -> str:
    if item.on_resume == "locked":
        return "locked: the checkpoint fits its own value only; refused"
    if item.on_resume == "trajectory":
        return "the run will differ: allowed" if item.allowed else "the run would differ: refused unless allowed"
    return "free: does not change the training"


# --- what the buttons do -------------------------------------------------------------------------------------------


def restored(places: Places, values: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's values of the options that are in the way."""
    return {item.name: item.checkpoint for item in examine(places, values).differences}


def allowed(places: Places, values: Mapping[str, Any]) -> dict[str, Any]:
    """resume_allow with the differences that can be allowed added to it."""
    names = [item.name for item in examine(places, values).differences if _allowable(item)]
    return {"resume_allow": tuple(dict.fromkeys([*values["resume_allow"], *names]))}


def adopted(run: RunFolder | None) -> tuple[dict[str, Any] | None, str]:
    """The options that continue a run from its latest checkpoint, or None; and a message in HTML."""
    if run is None:
        return None, look.note("Choose a run at the top of the page first.", kind="bad")
    try:
        then = read_config(run.config_file)
    except ConfigError as error:
        problems = [forms.describe(problem) for problem in error.problems]
        return None, look.note(f"The options of {run.path.name} cannot be read:", problems, kind="bad")
    values = {name: getattr(then, name) for name in OPTIONS}
    values |= {"resume_from_checkpoint": "latest", "overwrite_run": False}
    return values, look.note(
        f"The form has the options of {run.path.name}, to continue from its latest checkpoint. Press Start training.",
        kind="good",
    )
