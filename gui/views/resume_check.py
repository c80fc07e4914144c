"""What continuing from a checkpoint would mean: the trainer's own preflight, in words, tables and a curve. No model is
loaded and no widget is here."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np

from gui import look
from gui.forms import form as forms
from gui.places import Places, placed
from gui.server import runner
from gui.views import charts, comparison, monitor
from trainer import files, quantities
from trainer.checkpoints import choosing, preflight, resume
from trainer.checkpoints.preflight import Preflight
from trainer.checkpoints.resume import Difference, Verdict
from trainer.options import checks, writing
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError
from trainer.recipe.schedule import LrCurve
from trainer.runs import branches, detached, manifest
from trainer.runs.run_folder import RunFolder

# The page asks no other machine for anything: a base model that is not here yet is the trainer's to fetch.
huggingface_hub.constants.HF_HUB_OFFLINE = True

OF_THE_SESSION = (  # differ at every resume
    "resume_from_checkpoint", "resume_allow", "resume_lr_policy", "resume_lr_scale", "resume_warmup_steps",
    "resume_lr_decision", "overwrite_run",
)  # fmt: skip
ENVIRONMENT_SECONDS = 180.0
GRADES = {
    "bit-exact": "It continues exactly: the same bits as if it had never stopped (bit-exact).",
    "trajectory-exact": "It continues with the same images, noise and learning rate, but on other hardware or "
    "versions, so that the last digits may differ (trajectory-exact).",
    "changed": "The run will differ, as you allowed.",
    "warm start": "Only the weights are taken over (warm start).",
}
ENVIRONMENT_UNKNOWN = (
    "The environment could not be compared here ({problem}); the trainer compares it before it loads anything."
)


@dataclass(frozen=True)
class Outcome:
    """What continuing would mean. `in_the_way`: the options that keep it from starting; `allowable`: what resume_allow
    calls these differences and no others, the images' among them."""

    html: str
    table: str = ""
    figure: Mapping[str, Any] | None = None
    in_the_way: tuple[Difference, ...] = ()
    allowable: tuple[str, ...] = ()
    resumes: bool = False


# --- the environment ------------------------------------------------------------------------------------------------


class Environments:
    """What environment.json would say here, asked of the trainer once and remembered: it takes torch to tell."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[Any, ...], tuple[dict[str, Any] | None, str]] = {}

    def forget(self) -> None:
        """Ask anew: packages may have been installed meanwhile."""
        with self._lock:
            self._known.clear()

    def knows(self, settings: Config) -> bool:
        return _key(settings) in self._known

    def describe(self, settings: Config, places: Places) -> tuple[dict[str, Any] | None, str]:
        """The description and nothing to remark, or None and a sentence that says why there is none."""
        with self._lock:
            key = _key(settings)
            if key not in self._known:
                described, problem = _ask_environment(settings, places)
                self._known[key] = described, ENVIRONMENT_UNKNOWN.format(problem=problem) if described is None else ""
            return self._known[key]


def _key(settings: Config) -> tuple[Any, ...]:
    """The options that decide what the environment is."""
    return settings.mixed_precision, settings.deterministic, settings.optimizer_type


def _ask_environment(settings: Config, places: Places) -> tuple[dict[str, Any] | None, str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.toml"
        files.write_text(file, writing.to_toml(settings))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "trainer", "environment", "--config", str(file)],
                cwd=places.home,
                env=detached.environment(),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=ENVIRONMENT_SECONDS,
                check=False,
            )
            answer = json.loads(done.stdout) if done.returncode == 0 else None
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return None, str(error)
    if isinstance(answer, dict):
        return answer, ""
    return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


# --- examining -----------------------------------------------------------------------------------------------------


def settings_of(values: Mapping[str, Any]) -> tuple[Config | None, list[str]]:
    """The form's values as a config; None and what is wrong with them."""
    checked = forms.check_values(values)
    if checked.problems:
        return None, [forms.describe(problem) for problem in checked.problems]
    return checks.build(checked.values), []


def resumes(places: Places, settings: Config) -> bool:
    """Whether a training with these options would continue something."""
    return not choosing.starts_from_scratch(settings, places.home)


def examine(places: Places, values: Mapping[str, Any], environment: Mapping[str, Any] | None, remark: str) -> Outcome:
    """Look at the checkpoint that the form names and at everything it would meet. Every byte of it is read.

    `environment`: None where it is not known; `remark` then says why.
    """
    if choosing.wanted(str(values["resume_from_checkpoint"])) == "nothing":
        return Outcome(_afresh(places, values))
    now, problems = settings_of(values)
    if now is None:
        return Outcome(look.note("Change this first; then the form can be compared:", problems, kind="bad"))
    if not resumes(places, now):
        return Outcome(_afresh(places, values))
    try:
        looked = preflight.examine(placed(places, now), environment=environment)
    except OSError as error:
        return Outcome(look.note(f"This could not be looked at: {error}", kind="bad"))
    if looked.verdict is None:
        return Outcome(look.note("This cannot be continued.", _lines(looked.refusals), kind="bad"))
    verdict = replace(looked.verdict, differences=tuple(_as_written(looked.verdict.differences, now)))
    blocked = tuple(item for item in verdict.differences if _in_the_way(item))
    allowable = [_word(item) for item in blocked if item.on_resume == "trajectory"]
    allowable += [verdict.dataset_word] if verdict.dataset_word else []
    return Outcome(
        html=_sentence(now, looked, verdict, blocked, remark),
        table=_table(verdict),
        figure=_figure(now, verdict),
        in_the_way=blocked,
        allowable=tuple(allowable),
        resumes=True,
    )


def _word(item: Difference) -> str:
    """What allows this difference, and no other of the same option."""
    return f"{item.name}:{item.digest}"


def _in_the_way(item: Difference) -> bool:
    return item.on_resume != "free" and not item.allowed


def _as_written(differences: Iterable[Difference], now: Config) -> Iterable[Difference]:
    """The differences with the form's own spelling of paths; those of spelling alone are none."""
    for item in differences:
        written = item if item.on_resume == "trajectory" else replace(item, now=getattr(now, item.name, item.now))
        if item.name not in OF_THE_SESSION and (OPTIONS[item.name].by_content or written.checkpoint != written.now):
            yield written


def _lines(refusals: Iterable[str]) -> list[str]:
    return [line.strip() for refusal in refusals for line in refusal.splitlines()]


# --- words ---------------------------------------------------------------------------------------------------------


def _afresh(places: Places, values: Mapping[str, Any]) -> str:
    run = runner.run_of(places, values)
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


def _sentence(
    now: Config,
    looked: Preflight,
    verdict: Verdict,
    blocked: tuple[Difference, ...],
    remark: str,
) -> str:
    aside = [f"set aside because of damage: {path.name}: {reason}" for path, reason in verdict.rejected]
    if verdict.finished:
        complete = f"The run is complete: step {verdict.step:,} of {verdict.total_steps:,}."
        return look.note(
            verdict.sentence() if verdict.stopped_early else f"{complete} To go on, raise the steps below.",
            aside,
            kind="warn",
        )
    where = (
        f"Continues at step {verdict.step + 1:,} of {verdict.total_steps:,} with {now.optimizer_type}'s state, "
        f"{verdict.curve.scheduler} schedule at {_rates(verdict)}, "
        f"{_place(now, verdict)}, from {verdict.path.name}, every byte of which is as it was saved."
    )
    names = {item.name for item in blocked}
    others = [line for line in looked.refusals if line.partition(":")[0] not in names]
    if blocked:
        words = "1 option differs" if len(blocked) == 1 else f"{len(blocked)} options differ"
        return look.note(f"{where} But {words}, and the trainer will refuse:", _lines(others) + aside, kind="bad")
    if looked.refusals:
        words = "But the images are not the checkpoint's:" if verdict.dataset_word else "But the trainer will refuse:"
        return look.note(f"{where} {words}", _lines(looked.refusals) + aside, kind="bad")
    facts = [
        *verdict.rate_lines(),
        *(f"Environment: {line}" for line in verdict.environment),
        *_later(now, looked, verdict),
        _disk(looked, verdict),
        *([remark] if remark else []),
        *aside,
    ]
    kind = "good" if verdict.grade == "bit-exact" and not remark else "warn"
    grade = GRADES[verdict.grade]
    if remark:
        grade = f"As far as options and images go, {grade[:1].lower()}{grade[1:]}"
    return look.note(f"{where} {grade}", facts, kind=kind)


def _rates(verdict: Verdict) -> str:
    """The learning rate of the first resumed step, by trained part where there are several."""
    rates = dict(verdict.learning_rates)
    return monitor.rates(rates if len(rates) > 1 else next(iter(rates.values()), None))


def _place(now: Config, verdict: Verdict) -> str:
    """Where in its images the run is: epoch and image, counted from 1."""
    epoch, place = int(verdict.state["epoch"]), int(verdict.state["place"])
    processes = int(manifest.read_json(verdict.path, "environment.json")["processes"])
    return f"epoch {epoch + 1} image {place * resume.global_batch(now, processes) + 1:,}"


def _later(now: Config, looked: Preflight, verdict: Verdict) -> list[str]:
    """What the run did beyond the step it goes back to."""
    if not verdict.own:
        return [f"It begins a new run, {now.output_name}, whose record names the checkpoint it came from."]
    others, fork = branches.not_leading_to(RunFolder(looked.config.run_dir), verdict.manifest, verdict.path)
    if not others:
        return []
    kind = "later" if fork == verdict.step else "other"
    count = f"1 {kind} checkpoint" if len(others) == 1 else f"{len(others)} {kind} checkpoints"
    newest = others[0].step
    return [f"{count}, up to step {newest:,}, will be moved to the run's folder abandoned with their model files."]


def _disk(looked: Preflight, verdict: Verdict) -> str:
    needed, free = verdict.manifest.bytes, looked.disk_free
    return f"A checkpoint takes {quantities.size(needed)}; {quantities.size(free)} are free."


def _table(verdict: Verdict) -> str:
    order = {"locked": 0, "trajectory": 1, "free": 2}
    rows = [_row(item) for item in sorted(verdict.differences, key=lambda item: order[item.on_resume])]
    for number, line in enumerate(verdict.dataset):
        allow = look.button("Allow", "allow", verdict.dataset_word, title="Allow the images to differ")
        first = bool(verdict.dataset_word) and number == 0
        meaning = "the run would differ: refused unless allowed" if verdict.dataset_word else "allowed"
        rows.append(["Images", line, "", "", meaning, allow if first else ""])
    if not rows:
        return look.note("Every option and every image is as it was in the checkpoint.")
    headings = ("Section", "Option", "In the checkpoint", "In the form", "What it means", "")
    return look.table(headings, rows, name="Differences from the checkpoint")


def _row(item: Difference) -> list[str]:
    buttons = ""
    if not OPTIONS[item.name].by_content:
        buttons = look.button("Use the checkpoint's value", "use", item.name, title=f"Set {item.name} back")
    if item.on_resume == "trajectory" and not item.allowed:
        buttons = look.Html(buttons + look.button("Allow", "allow", _word(item), title=f"Allow {item.name} to differ"))
    return [
        OPTIONS[item.name].section,
        item.name,
        comparison.shown(item.checkpoint),
        comparison.shown(item.now),
        _meaning(item),
        look.Html(buttons),
    ]


def _meaning(item: Difference) -> str:
    if item.on_resume == "locked":
        return "locked: the checkpoint fits its own value only; refused"
    if item.on_resume == "trajectory":
        return "the run will differ: allowed" if item.allowed else "the run would differ: refused unless allowed"
    return "free: does not change the training"


def _figure(now: Config, verdict: Verdict) -> Mapping[str, Any] | None:
    """The rates of the part that is trained first: the checkpoint's own as it was trained, and those from here on."""
    curve = LrCurve(**verdict.state["lr_curve"])
    total = verdict.total_steps
    end = max(total, curve.end_step, verdict.step + 1)
    then = charts.RateCurve("the checkpoint's curve", _rate_at(curve, _peak_then(now, verdict), 0, end))
    after = charts.RateCurve(
        "from here on", _rate_at(verdict.curve, _peak(now), verdict.step, max(total, verdict.step + 1))
    )
    return charts.rate_figure(then, after, verdict.step, total)


def _peak(settings: Config) -> float:
    return next(iter(settings.peak_learning_rates.values()), 0.0)


def _peak_then(now: Config, verdict: Verdict) -> float:
    """As the checkpoint was trained; where its options cannot be read, as now."""
    try:
        return _peak(checks.read_config(verdict.path / "config.toml"))
    except ConfigError:
        return _peak(now)


def _rate_at(curve: LrCurve, peak: float, first: int, last: int) -> dict[int, float]:
    """The rate at some of the steps between two, both included."""
    return {int(step): peak * curve.factor(int(step)) for step in np.unique(np.linspace(first, last, 400).astype(int))}
