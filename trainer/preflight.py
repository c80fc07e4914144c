"""What can be known of a training before its base model is loaded; the same for command line and browser.

No torch here.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import base_model, budget, dataset, files, findings, manifest, prompts, resume
from trainer.budget import Budget
from trainer.config import OPTIONS, Config, ConfigError, Problem, Source, build, check, read_arguments, read_toml
from trainer.dataset import REPLACED_BY_DATASET_CONFIG, Scan
from trainer.refusal import Refused, both
from trainer.resume import ResumeRefused, Verdict
from trainer.runs import RunFolder
from trainer.scan import Progress, nobody

logger = logging.getLogger(__name__)
SCAN_WORKERS = 4
NAMED_PATHS = (
    "train_data_dir", "dataset_config", "reg_data_dir", "validation_data_dir", "conditioning_data_dir", "in_json",
    "vae", "single_file_config", "network_weights",
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """The images, the base model's files and what follows from them."""

    found: Scan
    images: Mapping[str, Any]  # what dataset.json keeps
    model_path: Path
    base_model: Mapping[str, str]  # digests by option
    steps_per_epoch: int
    total_steps: int

    def lines(self) -> list[str]:
        """For people: how much there is, what it makes, and what was left out."""
        found = self.found
        regular = sum(entry.subset.is_reg for entry in found.entries)
        lines = [
            f"{_count(len(found.entries), 'image')}, {_count(found.samples, 'sample')} an epoch in "
            f"{_count(len(found.bucket_counts()), 'bucket')}: {_count(self.steps_per_epoch, 'step')} an epoch, "
            f"{_count(self.total_steps, 'step')} in all",
            *([f"{regular} of these images are regularisation images"] if regular else []),
            *([f"{len(found.validation)} more images are held out for validation"] if found.validation else []),
            *found.notices,
        ]
        lines += findings.lines(found.skipped)
        others = findings.by_kind(set(found.findings) - set(found.skipped))
        if others:
            counts = ", ".join(
                f"{findings.KINDS[kind].title.lower()} {len(members)}" for kind, members in others.items()
            )
            lines.append(f"Also: {counts}; python -m trainer dataset lists them")
        return lines


def read_options(preset: Path | str, arguments: Sequence[str], *, to_train: bool = True) -> tuple[Config, list[str]]:
    """The config of a preset file and arguments, and notices; what has to be there `to_train` is looked for.

    Raises ConfigError with every problem of both.
    """
    problems: list[Problem] = []
    sources: list[Source] = []
    for read in (lambda: read_toml(preset), lambda: read_arguments(arguments)):
        try:
            sources.append(read())
        except ConfigError as error:
            problems += error.problems
            sources.append(error.read)
    complete = not problems
    checked = check(*sources)
    problems += checked.problems
    config = build(checked.values)
    if to_train and complete:
        problems += missing(config, known=problems)
    if problems:
        raise ConfigError(problems)
    return config, checked.notices


def missing(config: Config, home: Path = Path(), known: Sequence[Problem] = ()) -> list[Problem]:
    """Every option that has to name something and does not, or names what is not there; nothing is read but prompts.

    `home`: the folder that relative paths mean. `known`: problems found before; of their options no more is said.
    """
    images = "dataset_config" if config.dataset_config else "train_data_dir"
    problems = [
        Problem(name, f"is empty. {OPTIONS[name].help}")
        for name in ("pretrained_model_name_or_path", images)
        if not getattr(config, name)
    ]
    problems += [
        Problem(name, f"there is no folder or file {home / getattr(config, name)}")
        for name in NAMED_PATHS
        if not (config.dataset_config and name in REPLACED_BY_DATASET_CONFIG)
        if getattr(config, name) and not files.exists(home / getattr(config, name))
    ]
    model = config.pretrained_model_name_or_path
    if model and not files.exists(home / model) and not base_model.HUB_ID.fullmatch(model):
        problems.append(
            Problem(
                "pretrained_model_name_or_path",
                f"there is no folder or file {home / model}, and it is no Hugging Face id like owner/name",
            )
        )
    try:
        prompts.read(config)
    except ConfigError as error:
        problems += error.problems
    told = {problem.key for problem in known}
    return [problem for problem in problems if problem.key not in told]


def look_at_inputs(config: Config, processes: int = 1, progress: Progress = nobody) -> Inputs:
    """Find images and base model. Raises Refused with everything that is missing or cannot be used."""
    if problems := missing(config):
        raise ConfigError(problems)
    components = base_model.COMPONENTS[config.family]
    found, model_path = both(
        lambda: dataset.scan(config, progress=progress, workers=SCAN_WORKERS),
        lambda: base_model.locate(config.pretrained_model_name_or_path, components),
    )
    batches = config.gradient_accumulation_steps * processes
    steps_per_epoch = found.steps_per_epoch(batches)
    epochs = config.max_train_epochs
    return Inputs(
        found=found,
        images=dataset.record(found, config, batches),
        model_path=model_path,
        base_model=base_model.digests(config, model_path, components),
        steps_per_epoch=steps_per_epoch,
        total_steps=config.max_train_steps if epochs is None else epochs * steps_per_epoch,
    )


def require_fresh(config: Config) -> None:
    """Refuse to start afresh where there is something to lose. Raises ResumeRefused."""
    run = RunFolder(config.run_dir)
    existing = manifest.listing(run.checkpoints)
    if existing and not config.overwrite_run:
        raise ResumeRefused(
            [
                f"{run.path} already holds checkpoints, the newest of step {existing[0].step}; continue it with "
                'resume_from_checkpoint = "latest", choose another output_name, or set overwrite_run = true '
                "(the old run is moved aside, not deleted)"
            ]
        )


def look_at_checkpoint(config: Config, inputs: Inputs, environment: Mapping[str, Any] | None) -> Verdict | None:
    """What a resume would be; None for a fresh start. `environment`: None where it is not known; not compared then.

    Raises ResumeRefused when there is nothing to resume, or something to lose; other reasons are in the verdict.
    """
    if not config.resume_from_checkpoint:
        require_fresh(config)
        return None
    return resume.examine(
        config,
        resume.choose(config),
        total_steps=inputs.total_steps,
        images=inputs.images,
        base_model=inputs.base_model,
        environment=environment,
    )


def write_budget(config: Config, inputs: Inputs, verdict: Verdict | None, bytes_of_save: int) -> Budget:
    """What the training is going to write in checkpoints of this size."""
    step, seconds = (verdict.step, budget.seconds_per_step(RunFolder(config.run_dir))) if verdict else (0, None)
    return budget.of(config, step, inputs.total_steps, inputs.steps_per_epoch, bytes_of_save, seconds)


@dataclass(frozen=True)
class Preflight:
    """What a training would be. `refusals`: every reason why it may not begin; empty when it may."""

    config: Config
    inputs: Inputs | None
    verdict: Verdict | None
    refusals: tuple[str, ...]
    disk_free: int  # bytes

    @property
    def writes(self) -> Budget | None:
        """What is going to be written; None where the size of a checkpoint is not known yet."""
        if self.inputs is None or self.verdict is None or self.verdict.finished:
            return None
        return write_budget(self.config, self.inputs, self.verdict, self.verdict.manifest.bytes)

    def lines(self) -> list[str]:
        """For people."""
        lines = self.inputs.lines() if self.inputs else []
        lines += self.verdict.lines() if self.verdict else []
        if not self.refusals and self.verdict is None:
            rates = ", ".join(f"{part} {peak:.3g}" for part, peak in self.config.peak_learning_rates.items())
            lines.append(f"Starts afresh; learning rate {rates}, {self.config.lr_scheduler}")
        lines.append(f"{self.disk_free / 1e9:.1f} GB free for {self.config.output_dir}")
        if writes := self.writes:
            lines += [writes.line(), *filter(None, [writes.warning()])]
        return lines + [f"Refused: {line}" for refusal in self.refusals for line in refusal.splitlines()]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        inputs, verdict = self.inputs, self.verdict
        return {
            "version": 1,
            "refusals": list(self.refusals),
            "images": len(inputs.found.entries) if inputs else None,
            "samples": inputs.found.samples if inputs else None,
            "skipped": [[str(item.path), item.reason] for item in inputs.found.skipped] if inputs else None,
            "notices": list(inputs.found.notices) if inputs else None,
            "steps_per_epoch": inputs.steps_per_epoch if inputs else None,
            "total_steps": inputs.total_steps if inputs else None,
            "disk_free": self.disk_free,
            "writes": self._writes_json(),
            "resume": self._resume_json(verdict) if verdict else None,
        }

    def _writes_json(self) -> dict[str, Any] | None:
        writes = self.writes
        if writes is None:
            return None
        return {
            **dataclasses.asdict(writes),
            "total": writes.total,
            "per_hour": writes.per_hour,
            "warning": writes.warning(),
        }

    def _resume_json(self, verdict: Verdict) -> dict[str, Any]:
        return {
            "sentence": verdict.sentence(),
            "path": str(verdict.path),
            "step": verdict.step,
            "grade": verdict.grade,
            "finished": verdict.finished,
            "disk_needed": verdict.manifest.bytes,
            "differences": [
                {**dataclasses.asdict(item), "checkpoint": _plain(item.checkpoint), "now": _plain(item.now)}
                for item in verdict.differences
            ],
            "dataset": list(verdict.dataset),
            "environment": list(verdict.environment),
            "lr_curve": verdict.curve.as_dict(),
            "learning_rates": verdict.learning_rates,
            "last_learning_rates": verdict.last_learning_rates,
            "rejected": [[str(path), reason] for path, reason in verdict.rejected],
        }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def look(config: Config, *, processes: int = 1, environment: Mapping[str, Any] | None = None) -> Preflight:
    """Look at everything, change nothing, and report every reason against beginning at once."""
    refusals: list[str] = []
    inputs, verdict = None, None
    try:
        inputs = look_at_inputs(config, processes)
        verdict = look_at_checkpoint(config, inputs, environment)
        refusals += verdict.refusals if verdict else ()
    except Refused as error:
        refusals.append(str(error))
    existing = config.run_dir.absolute()
    while not existing.exists():
        existing = existing.parent
    return Preflight(config, inputs, verdict, tuple(refusals), shutil.disk_usage(existing).free)
