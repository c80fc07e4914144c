"""Compares a checkpoint with the present and says whether, where and how exactly a run continues. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoints import decisions
from trainer.checkpoints.choosing import Chosen, ResumeRefused
from trainer.checkpoints.decisions import Allowed, Decisions, Permissions
from trainer.data import dataset, epochs
from trainer.data.epochs import Origin
from trainer.options.checks import read_config
from trainer.options.config import OPTIONS, Config
from trainer.options.declaration import OnResume
from trainer.options.problems import ConfigError
from trainer.recipe import early_stopping, schedule
from trainer.recipe.early_stopping import Record
from trainer.recipe.plateau import Plateau
from trainer.recipe.schedule import Decision, LrCurve
from trainer.runs import branches, lineage, manifest
from trainer.runs.manifest import CheckpointDamaged, Manifest
from trainer.runs.rollbacks import Rollback
from trainer.runs.run_folder import RunFolder, RunUnreadable, read_run

Grade = Literal["bit-exact", "trajectory-exact", "changed", "warm start"]
BATCH_OPTIONS = ("train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True)
class Difference:
    """An option whose value is not the checkpoint's."""

    name: str
    on_resume: OnResume
    checkpoint: Any
    now: Any
    allowed: bool
    digest: str = ""  # names it in resume_allow; empty where nothing could allow it


@dataclass(frozen=True)
class Verdict:
    """What a resume will be, known before the base model is loaded."""

    path: Path
    step: int
    total_steps: int
    grade: Grade
    differences: tuple[Difference, ...]
    dataset: tuple[str, ...]  # lines that name what changed
    environment: tuple[str, ...]  # lines that name what differs
    curve: LrCurve
    learning_rates: dict[str, float]  # at the first resumed step
    last_learning_rates: dict[str, float]  # at the run's last step
    refusals: tuple[str, ...]
    rejected: tuple[tuple[Path, str], ...]
    state: Mapping[str, Any]  # state.json
    manifest: Manifest

    origin: Origin  # of the epochs from here on
    decisions: Decisions  # with those of this resume
    decision: Decision | None  # the one about the learning rate that is taken now
    standing: Decision | None  # the one that the options ask for, and an earlier resume took
    permitted: tuple[Allowed, ...]  # by this resume
    dataset_word: str  # names the change of the images in resume_allow; empty where there is none
    own: bool  # whether the checkpoint is one of this run
    stopped_early: bool = False  # by early_stopping_patience
    rollback: Decision | None = None  # what the run's return to this checkpoint decides about the learning rate

    @property
    def finished(self) -> bool:
        """Whether the checkpoint is at or past the run's end, so that nothing is left to train."""
        return self.step >= self.total_steps or self.stopped_early

    def sentence(self) -> str:
        rates = ", ".join(f"{part} {rate:.3g}" for part, rate in self.learning_rates.items())
        last = ", ".join(f"{part} {rate:.3g}" for part, rate in self.last_learning_rates.items())
        if self.step < self.total_steps and self.stopped_early:
            return (
                f"The run is complete: early stopping ended it at step {self.step} of {self.total_steps}. "
                "Raise early_stopping_patience, or set it to 0, to go on."
            )
        if self.finished:
            return (
                f"The run is complete: step {self.step} of {self.total_steps}. "
                "Raise max_train_steps (or max_train_epochs) to go on."
            )
        return (
            f"Continues at step {self.step + 1} of {self.total_steps} ({self.grade}) from {self.path}; "
            f"learning rate {rates}{f', {last} in the last step' if last != rates else ''} ({self.curve.scheduler})."
        )

    def rate_lines(self) -> list[str]:
        """For people: what is decided about the learning rate, or was by an earlier resume and is not taken again."""
        lines = [f"Learning rate: the run has gone back to here: {self.rollback}"] if self.rollback else []
        if self.decision:
            return [*lines, f"Learning rate: decided now, at step {self.step}, and kept from here on: {self.decision}"]
        if self.standing:
            return [
                *lines,
                f"Learning rate: {self.standing} was decided at step {self.standing.step} and is not decided again; "
                "to do so, give it another resume_lr_decision",
            ]
        return lines

    def lines(self) -> list[str]:
        """For people: the sentence, then whatever differs."""
        result = [self.sentence()]
        result += [f"Damaged, so passed over: {path.name}: {reason}" for path, reason in self.rejected]
        result += self.rate_lines()
        for item in self.differences:
            if item.on_resume != "free":
                note = "allowed" if item.allowed else item.on_resume
                same = item.checkpoint == item.now
                now = "other content now" if same else f"{item.now!r} now"
                result.append(f"{item.name}: {item.checkpoint!r} in the checkpoint, {now} ({note})")
        result += [f"Dataset: {line}" for line in self.dataset]
        result += [f"Environment: {line}" for line in self.environment]
        return result


# --- comparing -----------------------------------------------------------------------------------------------------


def batches_per_step(config: Config, processes: int) -> int:
    """Batches a step trains, over all processes."""
    return config.gradient_accumulation_steps * processes


def global_batch(config: Config, processes: int) -> int:
    """Samples a step trains, of images without a batch size of their own."""
    return config.train_batch_size * batches_per_step(config, processes)


def compare_options(
    then: Config, now: Config, processes_then: int, processes: int, permissions: Permissions | None = None
) -> list[Difference]:
    """Every option that differs, batch sizes as the global batch, paths left to the comparison of content.

    `permissions`: by default resume_allow, as at the first resume that it is given at.
    """
    permissions = permissions or Permissions(now.resume_allow)

    def difference(name: str, on_resume: OnResume, old: Any, new: Any, *others: str) -> Difference:
        digest = permissions.digest(name, old, new) if on_resume == "trajectory" else ""
        allowed = bool(digest) and permissions.allow(name, digest, *others)
        return Difference(name, on_resume, old, new, allowed, digest)

    differences = []
    same_batch = global_batch(then, processes_then) == global_batch(now, processes)
    for name, option in OPTIONS.items():
        old, new = getattr(then, name), getattr(now, name)
        if not option.by_content and old != new:
            on_resume: OnResume = "free" if name in BATCH_OPTIONS and same_batch else option.on_resume
            differences.append(difference(name, on_resume, old, new))
    if not same_batch and processes_then != processes and all(item.name not in BATCH_OPTIONS for item in differences):
        batches = global_batch(then, processes_then), global_batch(now, processes)
        differences.append(difference("train_batch_size", "trajectory", *batches, *BATCH_OPTIONS))
    return differences


def compare_environment(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines that name what is not as it was."""
    names = sorted(then.keys() | now.keys())
    return [
        f"{name}: {then.get(name)!r} then, {now.get(name)!r} now" for name in names if then.get(name) != now.get(name)
    ]


def examine(
    config: Config,
    chosen: Chosen,
    *,
    steps_per_epoch: int,
    images: Mapping[str, Any],
    base_model: Mapping[str, str],
    environment: Mapping[str, Any] | None,
) -> Verdict:
    """Compare the checkpoint with the options, images, base model and environment of now; nothing is changed.

    `images`: `dataset.record` of now; `base_model`: digests by option; `environment`: None where it is not known and
    so is not compared. Raises ResumeRefused when the checkpoint
    cannot be read; all other reasons against the resume are in the verdict's `refusals`.
    """
    folder = chosen.path
    try:
        state = manifest.read_json(folder, "state.json")
        images_then = manifest.read_json(folder, "dataset.json")
        environment_then = manifest.read_json(folder, "environment.json")
        config_then = read_config(folder / "config.toml")
        curve_then = _checked_documents(state, images_then, environment_then)
        decisions_then = decisions.of_state(state, config_then, curve_then)
        base_model_then = state["base_model"]
    except (CheckpointDamaged, ConfigError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ResumeRefused([f"resume_from_checkpoint: {folder} cannot be read: {error}"]) from error

    step = int(state["global_step"])
    environment = environment_then if environment is None else environment
    processes_then, processes = int(environment_then["processes"]), int(environment["processes"])
    record, refusals = _record_of_run(config)
    refusals += _other_run(config, chosen, record)
    own = _is_own(config, chosen, record)
    decided = decisions_then if own else Decisions()  # another run's are that run's
    of_this_run = record if own or was_begun_with(chosen.manifest, record) else None
    permissions = decisions.permissions(config, decided, of_this_run)

    differences = compare_options(config_then, config, processes_then, processes, permissions)
    models, lines = _compare_base_models(config_then, config, base_model_then, base_model)
    differences += models
    refusals += lines + _refused_options(differences, permissions)

    follows = ("bucket", "control_bucket") if any(OPTIONS[item.name].decides_bucket for item in differences) else ()
    drift = dataset.compare(images_then, images, follows)
    digest = permissions.digest("dataset", *drift.content) if drift else ""
    drift_allowed = permissions.allow("dataset", digest)
    if drift and not drift_allowed:
        refusals.append(
            "dataset: the images differ from the checkpoint's; restore them, or "
            f"{permissions.way_out('dataset', digest)}:" + "".join(f"\n    {line}" for line in drift.lines())
        )
    permitted = [
        Allowed(item.name, item.digest, (f"{item.checkpoint!r} -> {item.now!r}",), step)
        for item in differences
        if item.allowed
    ] + ([Allowed("dataset", digest, tuple(drift.lines()), step)] if drift and drift_allowed else [])

    moved = epochs.order_changed(
        images_then,
        images,
        (config_then.seed, config.seed),
        (global_batch(config_then, processes_then), global_batch(config, processes)),
    )
    origin = epochs.origin_after(Origin(**state["epoch_origin"]), step, state["epoch"], state["place"], moved=moved)
    total_steps = epochs.last_step(config.max_train_steps, config.max_train_epochs, steps_per_epoch, origin)
    asked = schedule.asked(config, step, total_steps)
    decision = asked if decided.is_new(asked) else None
    curve = (
        schedule.resumed_curve(config, curve_then, step, total_steps)
        if decision
        else schedule.kept_curve(config, curve_then)
    )
    back = decided.of_rollback(Rollback.of(of_this_run), chosen.manifest, config.max_rollbacks > 0)
    if back:
        curve = dataclasses.replace(curve, scale=curve.scale * back.scale)
    reduced = Plateau(**state.get("plateau", {})).factor
    peaks = {part: peak * reduced for part, peak in config.peak_learning_rates.items()}
    refusals += _dead_curve(curve, step, total_steps)

    surroundings = compare_environment(environment_then, environment)
    changed = bool(drift) or any(item.on_resume != "free" for item in differences) or curve != curve_then
    split = any(item.name in BATCH_OPTIONS for item in differences)
    grade: Grade = "changed" if changed else "trajectory-exact" if surroundings or split else "bit-exact"
    return Verdict(
        path=folder,
        step=step,
        total_steps=total_steps,
        grade=grade,
        differences=tuple(differences),
        dataset=tuple(drift.lines()),
        environment=tuple(surroundings),
        curve=curve,
        learning_rates={part: peak * curve.factor(step) for part, peak in peaks.items()},
        last_learning_rates={part: peak * curve.factor(max(step, total_steps - 1)) for part, peak in peaks.items()},
        refusals=tuple(refusals),
        rejected=chosen.rejected,
        state=state,
        manifest=chosen.manifest,
        origin=origin,
        decisions=decided.after(decision, config.resume_allow, permitted).after(back, (), ()),
        decision=decision,
        standing=None if decision or asked is None else decided.asked[-1],
        rollback=back,
        permitted=tuple(permitted),
        dataset_word=f"dataset:{digest}" if drift and not drift_allowed else "",
        own=own,
        stopped_early=early_stopping.patience_is_over(config, Record(**state.get("validation", {}))),
    )


def _compare_base_models(
    then: Config, now: Config, digests_then: Mapping[str, str], digests: Mapping[str, str]
) -> tuple[list[Difference], list[str]]:
    """The base models' files that differ, and what to say of each."""
    differences, lines = [], []
    for name in sorted(digests_then.keys() | digests.keys()):
        if digests_then.get(name) != digests.get(name):
            old, new = getattr(then, name), getattr(now, name)
            differences.append(Difference(name, "locked", old, new, False))
            lines.append(
                f"{name}: the files of {new!r} have changed since the checkpoint was saved: restore them"
                if old == new
                else f"{name}: the checkpoint was trained on another base model (content of {old!r}); "
                f"{new!r} does not match it: name the same model"
            )
    return differences, lines


def _refused_options(differences: Sequence[Difference], permissions: Permissions) -> list[str]:
    """What to say of the options that keep the run from going on."""
    locked = [
        f"{item.name}: {item.checkpoint!r} in the checkpoint, {item.now!r} now; a checkpoint fits only one value: "
        f"{_way_back(item)}, or train a new run under another output_name"
        for item in differences
        if item.on_resume == "locked" and not OPTIONS[item.name].by_content
    ]
    return locked + [
        f"{item.name}: {item.checkpoint!r} in the checkpoint, {item.now!r} now; the run would differ: "
        f"{_way_back(item)}, or {permissions.way_out(item.name, item.digest)}"
        for item in differences
        if item.on_resume == "trajectory" and not item.allowed
    ]


def _checked_documents(state: Mapping[str, Any], images: Mapping[str, Any], environment: Mapping[str, Any]) -> LrCurve:
    """See that what is relied on is there, as another program's checkpoint may lack it; returns the curve.

    Raises KeyError, TypeError, ValueError or ArithmeticError where something is missing or of another kind.
    """
    for name in ("global_step", "epoch", "place"):
        manifest.of(int, state[name])
    for name in ("step", "epoch"):
        manifest.of(int, state["epoch_origin"][name])
    manifest.of(int, environment["processes"])
    manifest.of(str, images["digest"])
    manifest.of(dict, images.get("preprocessing", {}))
    for options in manifest.of(dict, images.get("subsets", {})).values():
        manifest.of(dict, options)
    for image in manifest.of(dict, images["images"]).values():
        manifest.of(str, image["path"])
        image["caption"], manifest.of(int, image["repeats"]), manifest.of(str, image.get("subset", ""))
        for side in manifest.of(list, image["bucket"]):
            manifest.of(int, side)
    unknown = manifest.of(dict, state["base_model"]).keys() - OPTIONS.keys()
    if unknown:
        raise ValueError(f"{sorted(unknown)} are no parts of a base model")
    kinds = {"str": str, "int": int, "float": float}
    for field in dataclasses.fields(LrCurve):
        if str(field.type) in kinds:
            manifest.of(kinds[str(field.type)], state["lr_curve"][field.name])
    manifest.of(dict, state["lr_curve"].get("own", {}))
    manifest.of(int, state.get("planned_steps", 0))
    lineage.sessions_of(state)
    manifest.of(int, Record(**state.get("validation", {})).not_better)
    manifest.of(float, Plateau(**state.get("plateau", {})).factor)
    curve = LrCurve(**state["lr_curve"])
    curve.factor(state["global_step"])
    return curve


def _record_of_run(config: Config) -> tuple[dict[str, Any] | None, list[str]]:
    """run.json, or None and why it cannot be read."""
    try:
        return read_run(RunFolder(config.run_dir)), []
    except RunUnreadable as error:
        return None, [str(error)]


def _is_own(config: Config, chosen: Chosen, record: Mapping[str, Any] | None) -> bool:
    """Whether the checkpoint was saved by this run; without a record that is told by its place."""
    if record is None:
        return branches.is_own(RunFolder(config.run_dir), chosen.path, chosen.manifest.step)
    return bool(record["run_id"] == chosen.manifest.run_id)


def was_begun_with(checkpoint: Manifest, record: Mapping[str, Any] | None) -> bool:
    """Whether a run began at this checkpoint of another one."""
    parent = (record or {}).get("parent")
    return isinstance(parent, dict) and parent.get("manifest") == checkpoint.digest


def _other_run(config: Config, chosen: Chosen, record: Mapping[str, Any] | None) -> list[str]:
    """A checkpoint of another run may begin a new run, not continue in the middle of a third."""
    run = RunFolder(config.run_dir)
    if record is None or record["run_id"] == chosen.manifest.run_id:
        return []
    began_with_it = was_begun_with(chosen.manifest, record)
    if began_with_it and branches.is_own(run, chosen.path, chosen.manifest.step):
        return []  # its own copy
    have = {item.manifest.digest if item.manifest else "" for item in manifest.listing(run.checkpoints)}
    if have <= ({chosen.manifest.digest, ""} if began_with_it else set()):
        return []  # it begins here, perhaps for the second time
    return [
        f"resume_from_checkpoint: {chosen.path} belongs to another run, and {run.path} has checkpoints of its own; "
        'continue it with resume_from_checkpoint = "latest", or choose another output_name'
    ]


def _dead_curve(curve: LrCurve, step: int, total_steps: int) -> list[str]:
    dead = schedule.dead_steps(curve, step, total_steps)
    if dead is None:
        return []
    return [
        f"learning rate: steps {dead[0]} to {dead[1]} would train at 0, because the checkpoint's {curve.scheduler} "
        f'curve ends at step {curve.end_step}; set resume_lr_policy = "stretch" (the curve over the new length) or '
        '"restart" (a new curve from here), or lower max_train_steps'
    ]


def _way_back(item: Difference) -> str:
    """What to write for the checkpoint's value."""
    if item.checkpoint is None:
        return f"leave {item.name} out"
    value = list(item.checkpoint) if isinstance(item.checkpoint, tuple) else item.checkpoint
    return f"set {item.name} = {json.dumps(value, ensure_ascii=False)}"
