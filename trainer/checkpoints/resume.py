"""Compares a checkpoint with the present and says whether, where and how exactly a run continues. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.data import dataset
from trainer.options.checks import read_config
from trainer.options.config import OPTIONS, Config
from trainer.options.declaration import OnResume
from trainer.options.problems import ConfigError
from trainer.recipe import early_stopping, schedule
from trainer.recipe.early_stopping import Record
from trainer.recipe.schedule import LrCurve
from trainer.refusal import Refused
from trainer.runs import manifest
from trainer.runs.manifest import CheckpointDamaged, CheckpointNewer, Manifest
from trainer.runs.run_folder import RunFolder, RunUnreadable, read_run

Grade = Literal["bit-exact", "trajectory-exact", "changed", "warm start"]
BUCKET_OPTIONS = (
    "resolution",
    "enable_bucket",
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_reso_steps",
    "bucket_no_upscale",
    "bucket_rules",
)

# Files of accelerate's save_state, which sd-scripts' --save_state calls.
OF_ACCELERATE = ("train_state.json", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "optimizer.pt")


class ResumeRefused(Refused):
    """The run cannot, or must not, continue from there. One reason a line, each with the way out."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = reasons
        super().__init__("\n".join(reasons))


@dataclass(frozen=True)
class Difference:
    """An option whose value is not the checkpoint's."""

    name: str
    on_resume: OnResume
    checkpoint: Any
    now: Any
    allowed: bool


@dataclass(frozen=True)
class Chosen:
    """The checkpoint that a resume starts from, verified, and those that were passed over because of damage."""

    path: Path
    manifest: Manifest
    rejected: tuple[tuple[Path, str], ...]


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

    stopped_early: bool = False  # by early_stopping_patience

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

    def lines(self) -> list[str]:
        """For people: the sentence, then whatever differs."""
        result = [self.sentence()]
        result += [f"Damaged, so passed over: {path.name}: {reason}" for path, reason in self.rejected]
        for item in self.differences:
            if item.on_resume != "free":
                note = "allowed" if item.allowed else item.on_resume
                same = item.checkpoint == item.now
                now = "other content now" if same else f"{item.now!r} now"
                result.append(f"{item.name}: {item.checkpoint!r} in the checkpoint, {now} ({note})")
        result += [f"Dataset: {line}" for line in self.dataset]
        result += [f"Environment: {line}" for line in self.environment]
        return result


# --- choosing ------------------------------------------------------------------------------------------------------


def choose(config: Config) -> Chosen:
    """The checkpoint that resume_from_checkpoint means, every byte verified. Raises ResumeRefused."""
    run = RunFolder(config.run_dir)
    wanted = config.resume_from_checkpoint.strip()
    if wanted == "latest":
        return _latest(run.checkpoints)
    try:
        path = _path(wanted, run)
        is_run = (path / "checkpoints").is_dir()
        foreign = foreign_state(path)
    except (OSError, RuntimeError) as error:  # too long a name, or no such user
        raise ResumeRefused([f"resume_from_checkpoint: {wanted[:200]!r} cannot be used: {error}"]) from error
    if is_run:
        return _latest(path / "checkpoints")
    if foreign:
        raise ResumeRefused([f"resume_from_checkpoint: {path} {foreign}"])
    if not manifest.is_checkpoint(path):
        steps = [str(found.step) for found in manifest.listing(run.checkpoints)]
        have = f"this run has {', '.join(steps)}" if steps else "this run has no checkpoints"
        raise ResumeRefused([f"resume_from_checkpoint: there is no checkpoint {path}; {have}"])
    try:
        return Chosen(path, manifest.verify(path), ())
    except CheckpointDamaged as error:
        good = next((found for found in manifest.listing(path.parent, thorough=True) if found.manifest), None)
        way_out = f"; the newest sound one is {good.path}" if good else ""
        raise ResumeRefused([f"resume_from_checkpoint: {path} cannot be used: {error}{way_out}"]) from error


def _path(wanted: str, run: RunFolder) -> Path:
    """The folder that a step number or a path means. Raises RuntimeError where ~ means no user."""
    if wanted.isdecimal() and len(wanted) < 20:
        return run.checkpoints / manifest.folder_name(int(wanted))
    return Path(wanted).expanduser()


def foreign_state(path: Path) -> str:
    """What another program's saved state, or a model file, is and what can be taken of it; empty where it is neither.

    Nothing of it is opened: such states hold pickles, which can run code.
    """
    if path.is_file() and path.suffix == ".safetensors":
        way_out = f'network_weights = "{path}" begins a new run with its weights'
        return f"is a model file, which has no optimizer and no steps: {way_out}"
    if (path / manifest.MANIFEST).exists() or not any((path / name).exists() for name in OF_ACCELERATE):
        return ""
    beside = path.with_name(path.name.removesuffix("-state") + ".safetensors")
    weights = next((file for file in (beside, path / "pytorch_lora_weights.safetensors") if file.is_file()), None)
    way_out = (
        f'network_weights = "{weights}" begins a new run with its weights'
        if weights
        else "name the LoRA file that was saved with it as network_weights, to begin a new run with its weights"
    )
    return (
        "is a state saved by sd-scripts or another program of accelerate. It does not say which images and which noise "
        f"come next, so it cannot be continued exactly; {way_out} (a warm start: optimizer and steps are new)"
    )


def _latest(checkpoints: Path) -> Chosen:
    rejected: list[tuple[Path, str]] = []
    for found in manifest.listing(checkpoints):
        try:
            return Chosen(found.path, manifest.verify(found.path), tuple(rejected))
        except CheckpointNewer as error:
            older = next((other.step for other in manifest.listing(checkpoints) if other.manifest), None)
            way_out = "" if older is None else f", or go on from an older one with resume_from_checkpoint = {older}"
            raise ResumeRefused([f"resume_from_checkpoint: {found.path}: {error}{way_out}"]) from error
        except CheckpointDamaged as error:
            if not found.path.is_dir():  # deleted by a trainer that goes on, because there is a newer one
                return _latest(checkpoints)
            rejected.append((found.path, str(error)))
    if rejected:
        reasons = [f"{path.name}: {reason}" for path, reason in rejected]
        raise ResumeRefused(
            [
                f"resume_from_checkpoint: every checkpoint in {checkpoints} is damaged; nothing was changed",
                *reasons,
                'to start afresh, set resume_from_checkpoint = "" and overwrite_run = true (the old run is kept)',
            ]
        )
    raise ResumeRefused(
        [
            f"resume_from_checkpoint: there is no checkpoint in {checkpoints}; "
            'set resume_from_checkpoint = "" to start afresh'
        ]
    )


# --- comparing -----------------------------------------------------------------------------------------------------


def global_batch(config: Config, processes: int) -> int:
    """Images a step trains: per device x processes x accumulation."""
    return config.train_batch_size * config.gradient_accumulation_steps * processes


def compare_options(then: Config, now: Config, processes_then: int, processes: int) -> list[Difference]:
    """Every option that differs, batch sizes as the global batch, paths left to the comparison of content."""
    differences = []
    allowed = set(now.resume_allow)
    same_batch = global_batch(then, processes_then) == global_batch(now, processes)
    batch_options = ("train_batch_size", "gradient_accumulation_steps")
    for name, known in OPTIONS.items():
        old, new = getattr(then, name), getattr(now, name)
        if known.by_content or old == new:
            continue
        on_resume = known.on_resume
        if name in batch_options and same_batch:
            on_resume = "free"
        permitted = on_resume == "trajectory" and ("all" in allowed or name in allowed)
        differences.append(Difference(name, on_resume, old, new, permitted))
    if not same_batch and processes_then != processes and all(item.name not in batch_options for item in differences):
        permitted = "all" in allowed or bool(allowed & set(batch_options))
        old_batch, new_batch = global_batch(then, processes_then), global_batch(now, processes)
        differences.append(Difference("train_batch_size", "trajectory", old_batch, new_batch, permitted))
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
    total_steps: int,
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
        base_model_then = state["base_model"]
    except (CheckpointDamaged, ConfigError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ResumeRefused([f"resume_from_checkpoint: {folder} cannot be read: {error}"]) from error

    environment = environment_then if environment is None else environment
    processes_then, processes = int(environment_then["processes"]), int(environment["processes"])
    differences = compare_options(config_then, config, processes_then, processes)
    refusals = _other_run(config, chosen)
    for name in sorted(base_model_then.keys() | base_model.keys()):
        if base_model_then.get(name) != base_model.get(name):
            old, new = getattr(config_then, name), getattr(config, name)
            differences.append(Difference(name, "locked", old, new, False))
            refusals.append(
                f"{name}: the files of {new!r} have changed since the checkpoint was saved: restore them"
                if old == new
                else f"{name}: the checkpoint was trained on another base model (content of {old!r}); "
                f"{new!r} does not match it: name the same model"
            )
    refusals += [
        f"{item.name}: {item.checkpoint!r} in the checkpoint, {item.now!r} now; a checkpoint fits only one value: "
        f"{_way_back(item)}, or train a new run under another output_name"
        for item in differences
        if item.on_resume == "locked" and not OPTIONS[item.name].by_content
    ]
    refusals += [
        f"{item.name}: {item.checkpoint!r} in the checkpoint, {item.now!r} now; the run would differ: "
        f'{_way_back(item)}, or allow it with resume_allow = ["{item.name}"]'
        for item in differences
        if item.on_resume == "trajectory" and not item.allowed
    ]

    drift = dataset.compare(images_then, images)
    if any(item.name in BUCKET_OPTIONS for item in differences):
        drift = dataclasses.replace(drift, treated=())  # follows from the option, which is listed
    drift_allowed = bool({"all", "dataset"} & set(config.resume_allow))
    if drift and not drift_allowed:
        refusals.append(
            "dataset: the images differ from the checkpoint's; restore them, or allow it with "
            'resume_allow = ["dataset"]:' + "".join(f"\n    {line}" for line in drift.lines())
        )

    curve = schedule.resumed_curve(config, curve_then, int(state["global_step"]), total_steps)
    step = int(state["global_step"])
    peaks = config.peak_learning_rates
    rates = {part: peak * curve.factor(step) for part, peak in peaks.items()}
    refusals += _dead_curve(curve, step, total_steps)

    surroundings = compare_environment(environment_then, environment)
    changed = bool(drift) or any(item.on_resume != "free" for item in differences) or curve != curve_then
    split = any(item.name in ("train_batch_size", "gradient_accumulation_steps") for item in differences)
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
        learning_rates=rates,
        last_learning_rates={part: peak * curve.factor(max(step, total_steps - 1)) for part, peak in peaks.items()},
        refusals=tuple(refusals),
        rejected=chosen.rejected,
        state=state,
        manifest=chosen.manifest,
        stopped_early=early_stopping.patience_is_over(config, Record(**state.get("validation", {}))),
    )


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
        image["caption"], image["bucket"], image["repeats"]
    unknown = manifest.of(dict, state["base_model"]).keys() - OPTIONS.keys()
    if unknown:
        raise ValueError(f"{sorted(unknown)} are no parts of a base model")
    kinds = {"str": str, "int": int, "float": float}
    for field in dataclasses.fields(LrCurve):
        if str(field.type) in kinds:
            manifest.of(kinds[str(field.type)], state["lr_curve"][field.name])
    manifest.of(dict, state["lr_curve"].get("own", {}))
    manifest.of(int, state.get("planned_steps", 0))
    manifest.of(int, Record(**state.get("validation", {})).not_better)
    curve = LrCurve(**state["lr_curve"])
    curve.factor(state["global_step"])
    return curve


def _other_run(config: Config, chosen: Chosen) -> list[str]:
    """A checkpoint of another run may begin a new run, not continue in the middle of a third."""
    run = RunFolder(config.run_dir)
    try:
        record = read_run(run)
    except RunUnreadable as error:
        return [str(error)]
    if record is None or record["run_id"] == chosen.manifest.run_id or not manifest.listing(run.checkpoints):
        return []
    return [
        f"resume_from_checkpoint: {chosen.path} belongs to another run, and {run.path} has checkpoints of its own; "
        "choose another output_name"
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
