"""What Start, Resume and Add to queue do with options: look whether they can begin, then begin or queue them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gui import look
from gui.forms import form as forms
from gui.places import Places, placed
from gui.server import runner
from gui.tabs import queue_tab
from trainer.checkpoints import choosing, preflight
from trainer.models import base_model
from trainer.options import checks
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError, Problem
from trainer.runs import launch, manifest, queue
from trainer.runs.queue import QueueRefused
from trainer.runs.run_folder import RunFolder

MOST_NAMED = 6


@dataclass(frozen=True)
class Checked:
    """Options as far as they can be judged without loading anything. `settings` is None where something is wrong.

    `exists`: the step up to which the run to begin is there already, where nothing else is wrong.
    """

    settings: Config | None
    problems: list[str]
    notices: list[str]
    exists: int | None = None


def check(places: Places, values: Mapping[str, Any]) -> Checked:
    """What is wrong with the form's options for a start; the trainer looks closer, at every image and every byte."""
    checked = forms.check_values(values)
    settings = checks.build(checked.values)
    problems = [*checked.problems, *preflight.missing(settings, places.home, known=checked.problems)]
    model = "pretrained_model_name_or_path"
    if model not in {problem.key for problem in problems}:
        wrong = base_model.unusable(places.home / settings.pretrained_model_name_or_path)
        problems += [Problem(model, wrong)] if wrong else []
        said = {(problem.key, problem.message) for problem in problems}
        unfit = preflight.with_settled_family(settings, places.home)[1]
        problems += [problem for problem in unfit if (problem.key, problem.message) not in said]
    exists = None
    if not {"output_dir", "output_name"} & {problem.key for problem in checked.problems}:
        in_the_way, exists = _in_the_way(RunFolder(places.home / settings.run_dir), settings)
        exists = None if problems else exists
        problems += in_the_way
    if not problems and (problem := preflight.too_small_disk(placed(places, settings))):
        problems = [problem]
    return Checked(None if problems else settings, forms.linked(problems), checked.notices, exists)


def _in_the_way(run: RunFolder, settings: Config) -> tuple[list[Problem], int | None]:
    """Checkpoints where there should be none, and the newest one's step; or none where there should be."""
    have = manifest.listing(run.checkpoints)
    named = choosing.wanted(settings.resume_from_checkpoint)
    if have and named == "nothing" and not settings.overwrite_run:
        text = (
            f"the run {run.path.name} already holds checkpoints, the newest of step {have[0].step:,}. Continue it "
            "(write latest here), choose another output_name, or turn on overwrite_run, which moves the old run "
            "aside and deletes nothing"
        )
        return [Problem("resume_from_checkpoint", text)], have[0].step
    if named == "latest" and not have and not settings.checkpoint_mirror:
        text = (
            f"the run {run.path.name} has no checkpoints yet, so there is nothing to continue. Leave this empty to "
            "start afresh, or give output_dir and output_name of the run you mean"
        )
        return [Problem("resume_from_checkpoint", text)], None
    return [], None


def why_not_resumed(places: Places, settings: Config) -> list[str]:
    """Why the trainer would refuse a resume, or find nothing to do; what only it can know is left out."""
    if choosing.starts_from_scratch(settings, places.home) or choosing.may_be_fetched(settings, places.home):
        return []
    try:
        looked = preflight.examine(placed(places, settings))
    except OSError as error:
        return [f"This could not be looked at: {error}"]
    if looked.refusals:
        return [line.strip() for refusal in looked.refusals for line in refusal.splitlines()]
    return [looked.verdict.sentence()] if looked.verdict and looked.verdict.finished else []


def not_started(problems: list[str]) -> str:
    count = "One thing" if len(problems) == 1 else f"{len(problems)} things"
    return look.note(f"Not started. {count} to change first:", problems, kind="bad")


def begin(places: Places, settings: Config, notices: list[str]) -> tuple[RunFolder | None, str]:
    """Start it, or queue it where something else trains; the run that was started, and a message in HTML."""
    run = RunFolder(places.home / settings.run_dir)
    if refusals := why_not_resumed(places, settings):
        lines = [*refusals, "The Resume tab shows what differs and what can be done about it."]
        return None, look.note("Not started; the trainer would refuse:", lines, kind="bad")
    try:
        if holds_device(places, run):
            return None, add_to_queue(places, settings)
        started = runner.start(settings, places)
    except (runner.StartRefused, QueueRefused) as error:
        return None, look.note(f"Not started. {error}", kind="bad")
    return started, look.note("Started. Note:", notices, kind="warn") if notices else ""


def holds_device(places: Places, run: RunFolder) -> bool:
    """Whether another run is at work on this machine, or waits for it. Raises QueueRefused."""
    if launch.worker(run) is not None:
        return False  # it is refused by name
    runs = [*places.known_runs(), *(other for _, other in launch.begun_runs(places.output_folders()))]
    if any(launch.worker(other) is not None for other in runs if other.path != run.path):
        return True
    return queue.read(places.queue).is_at_work


def add_to_queue(places: Places, settings: Config) -> str:
    """Raises QueueRefused."""
    return look.note(queue_tab.add(places, settings), kind="good")


# --- what the form would do ----------------------------------------------------------------------------------------


def form_line(places: Places, values: Mapping[str, Any]) -> str:
    """In a few words of HTML: which run the form is about, and what Start makes of it."""
    run = runner.run_of(places, values)
    if run is None:
        return ""
    wanted, name = str(values["resume_from_checkpoint"] or "").strip(), run.path.name
    have = manifest.listing(run.checkpoints)
    if wanted:
        what = f"continues {name}" + (f" from {wanted}" if wanted not in ("latest", "auto") else "")
    elif have and not values["overwrite_run"]:
        what = f"{name}, which exists up to step {have[0].step:,}; Start asks whether to resume it"
    else:
        what = f"the new run {name}"
    return look.line("The form:", [what])


def differences(places: Places, run: RunFolder, values: Mapping[str, Any]) -> list[str]:
    """The options in which the form differs from the run that it names; empty where it names another."""
    named = runner.run_of(places, values)
    if named is None or named.path != run.path:
        return []
    try:
        then = checks.read_config(run.config_file)
    except ConfigError:
        return []
    right = forms.check_values(values).values
    return [
        name
        for name, option in OPTIONS.items()
        if option.on_resume != "free" and name in right and right[name] != getattr(then, name)
    ]


def has_checkpoints(run: RunFolder) -> int | None:
    """The step of the run's newest checkpoint; None where it has none."""
    have = manifest.listing(run.checkpoints)
    return have[0].step if have else None
