"""What can be known of a training before its base model is loaded; the same for command line and browser.

No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import files
from trainer.checkpoints import budget, checkpoint_size, choosing, kohya_state, memory_size, resume
from trainer.checkpoints.budget import Budget
from trainer.checkpoints.checkpoint_size import SizeUnknown
from trainer.checkpoints.choosing import ResumeRefused, starts_from_scratch
from trainer.checkpoints.memory_size import Estimator, Memory
from trainer.checkpoints.resume import Verdict
from trainer.data import addresses, class_images, dataset, epochs, findings
from trainer.data.dataset import Scan
from trainer.data.epochs import Origin
from trainer.data.folder_scan import Progress, no_progress
from trainer.data.subsets import DatasetError
from trainer.models import base_model, distillation
from trainer.models.base_model import BaseModelMissing
from trainer.models.network_file import RanksUnknown
from trainer.options.checks import build, check
from trainer.options.config import OPTIONS, Config
from trainer.options.conflicts import combination_problems
from trainer.options.problems import ConfigError, Problem, Source
from trainer.options.sources import read_arguments, read_toml
from trainer.quantities import counted, size
from trainer.recipe import prompts
from trainer.refusal import Refused, both
from trainer.runs import manifest, resources
from trainer.runs.run_folder import RunFolder

SCAN_WORKERS = 4


@dataclass(frozen=True)
class Inputs:
    """The images, the base model's files and what follows from them. `config`: with its family as the files tell."""

    config: Config
    scan: Scan
    images: Mapping[str, Any]  # what dataset.json keeps
    model_path: Path
    base_model: Mapping[str, str]  # digests by option
    batches_per_step: int
    steps_per_epoch: int
    total_steps: int  # in all; after a resume that moved where epochs begin, as `resumed` tells
    class_images_to_make: int = 0  # before the training; until then it is without regularisation images

    def resumed(self, verdict: Verdict | None) -> Inputs:
        """These, with the length of the run as it is after the resume."""
        return self if verdict is None else dataclasses.replace(self, total_steps=verdict.total_steps)

    def lines(self) -> list[str]:
        """For people: how much there is, what it makes, and what was left out."""
        scan = self.scan
        regular = sum(entry.subset.is_reg for entry in scan.entries)
        lines = [
            f"{counted(len(scan.entries), 'image')}, {counted(scan.samples, 'sample')} an epoch in "
            f"{counted(len(scan.bucket_counts()), 'bucket')}: {counted(self.steps_per_epoch, 'step')} an epoch, "
            f"{counted(self.total_steps, 'step')} in all",
            *([f"{regular} of these images are regularisation images"] if regular else []),
            *(
                [f"{counted(self.class_images_to_make, 'class image')} to be drawn first, and not counted yet"]
                if self.class_images_to_make
                else []
            ),
            *([f"{counted(len(scan.validation), 'more image')} held out for validation"] if scan.validation else []),
            *scan.notices,
            *distillation.remarks(self.config, self.model_path),
        ]
        lines += findings.lines(scan.skipped)
        others = findings.by_kind(set(scan.findings) - set(scan.skipped))
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
        config, unfit = with_settled_family(config)
        said = {(problem.key, problem.message) for problem in problems}
        problems += [problem for problem in unfit if (problem.key, problem.message) not in said]
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
        Problem(name, f"there is no folder or file {home / path}")
        for name, known in OPTIONS.items()
        if known.must_exist and name != "pretrained_model_name_or_path"  # which may be on the hub
        if not (known.replaced_by and getattr(config, known.replaced_by))
        if name != "reg_data_dir" or not config.num_class_images  # which makes it
        if name not in ("network_weights", "weights")
        or starts_from_scratch(config, home)  # a resume has weights of its own
        for path in (getattr(config, name) if known.kind == "list" else [getattr(config, name)])
        if path and not (known.address and addresses.is_address(path)) and not files.exists(home / path)
    ]
    problems += [
        Problem(name, why)
        for name, known in OPTIONS.items()
        if known.address and addresses.is_address(path := getattr(config, name))
        if (why := _why_unusable(path))
    ]
    if config.num_class_images and addresses.is_address(config.reg_data_dir):
        problems.append(Problem("reg_data_dir", "class images are made there, so it has to be a folder here"))
    model = config.pretrained_model_name_or_path
    is_elsewhere = addresses.is_address(model) or base_model.HUB_ID.fullmatch(model)
    if model and not is_elsewhere and not files.exists(home / model):
        problems.append(
            Problem(
                "pretrained_model_name_or_path",
                f"there is no folder or file {home / model}, and it is no Hugging Face id like owner/name",
            )
        )
    if config.checkpoint_mirror:
        from trainer.checkpoints import mirror  # and with it fsspec, which takes a moment

        if why := mirror.why_unusable(config, home):
            problems.append(Problem("checkpoint_mirror", why))
    try:
        prompts.read(config)
    except ConfigError as error:
        problems += error.problems
    told = {problem.key for problem in known}
    return [problem for problem in problems if problem.key not in told]


def _why_unusable(address: str) -> str:
    from trainer.data import fetching  # and with it fsspec, which takes a moment

    return fetching.why_unusable(address)


def examine_inputs(
    config: Config, processes: int = 1, progress: Progress = no_progress, model_progress: Progress = no_progress
) -> Inputs:
    """Find images and base model. Raises Refused with everything that is missing or cannot be used.

    `progress` is told of the images, `model_progress` of the bytes of a base model that is read for its digest.
    """
    if problems := missing(config):
        raise ConfigError(problems)
    to_make = len(class_images.missing(config))
    left_out: dict[str, Any] = {"reg_data_dir": ""} if to_make and config.num_class_images else {}
    located: list[tuple[Config, Path]] = []
    _, scan = both(
        lambda: located.append(locate_model(config)),
        lambda: dataset.scan(
            (located[0][0] if located else config).replace(**left_out), progress=progress, workers=SCAN_WORKERS
        ),
    )
    config, model_path = located[0]
    require_controls(config, model_path, scan)
    batches = resume.batches_per_step(config, processes)
    steps_per_epoch = scan.steps_per_epoch(batches)
    return Inputs(
        config=config,
        scan=scan,
        images=dataset.record(scan, config, batches),
        model_path=model_path,
        base_model=base_model.digests(config, model_path, model_progress),
        class_images_to_make=to_make,
        batches_per_step=batches,
        steps_per_epoch=steps_per_epoch,
        total_steps=epochs.last_step(config.max_train_steps, config.max_train_epochs, steps_per_epoch, Origin()),
    )


def require_controls(config: Config, model_path: Path, scan: Scan) -> None:
    """Refuse control pictures where the base model takes none, and images and prompts without one where it cannot do
    without. Raises DatasetError, ConfigError."""
    entries = (*scan.entries, *scan.validation)
    without = [entry.file for entry in entries if not entry.control]
    facts = config.facts
    if not facts.edits:
        return
    if not base_model.edits_pictures(config, model_path):
        if len(without) < len(entries):
            raise DatasetError(
                f"conditioning_data_dir: {model_path} does not edit pictures; take a model that does, like "
                f"{facts.title}-Edit, or leave the control pictures out"
            )
        if any(prompt.control for prompt in prompts.read(config)):
            raise ConfigError([Problem("sample_prompts", f"{model_path} does not edit pictures; leave --cn out")])
        return
    problems = []
    if without:
        text = f"is missing: {model_path} edits pictures, and {len(without)} images have no control picture, first "
        problems.append(Problem("conditioning_data_dir", f"{text}{', '.join(without[:3])}; name their folder"))
    if any(prompt.control is None for prompt in prompts.read(config)):
        text = f"{model_path} edits pictures: each prompt needs one, after --cn"
        problems.append(Problem("sample_prompts", text))
    if not config.cache_text_encoder_outputs:
        text = "must be on: the text encoder looks at the control pictures, which is done once, before the training"
        problems.append(Problem("cache_text_encoder_outputs", text))
    if config.flip_aug or any(entry.subset.options.flip_aug for entry in entries):
        text = "must be off: the text encoder looks at the control pictures as they are"
        problems.append(Problem("flip_aug", text))
    if problems:
        raise ConfigError(problems)


def locate_model(config: Config) -> tuple[Config, Path]:
    """The config with its family as the base model's files tell, and where these are.

    Raises BaseModelMissing, and ConfigError with what does not apply to the family.
    """
    path = base_model.locate(config.pretrained_model_name_or_path, config.family)
    settled = base_model.settle(config, path)
    if problems := [Problem(key, text) for key, text in combination_problems(settled)]:
        raise ConfigError(problems)
    return settled, path


def with_settled_family(config: Config, home: Path = Path()) -> tuple[Config, list[Problem]]:
    """The config with its family as the files tell, and what is wrong with them or does not apply to it; as it is where
    there are no files on this machine. `home`: the folder that relative paths mean."""
    path = home / config.pretrained_model_name_or_path
    if not config.pretrained_model_name_or_path or not files.exists(path) or base_model.unusable(path):
        return config, []
    try:
        settled = base_model.settle(config, path)
    except (BaseModelMissing, RanksUnknown) as error:
        key, _, text = str(error).partition(": ")
        return config, [Problem(key, text)]
    return settled, [Problem(key, text) for key, text in combination_problems(settled)]


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


def examine_checkpoint(inputs: Inputs, environment: Mapping[str, Any] | None) -> Verdict | None:
    """What a resume would be; None for a fresh start. `environment`: None where it is not known; not compared then.

    Raises ResumeRefused when there is nothing to resume, or something to lose; other reasons are in the verdict.
    """
    config = inputs.config
    if starts_from_scratch(config):
        require_fresh(config)
        return None
    return resume.examine(
        config,
        choosing.choose(config),
        steps_per_epoch=inputs.steps_per_epoch,
        images=inputs.images,
        base_model=inputs.base_model,
        environment=environment,
    )


def bytes_of_save(config: Config, inputs: Inputs, verdict: Verdict | None) -> int:
    """How much a checkpoint takes: as the one resumed from, or else about. Raises SizeUnknown."""
    if verdict:
        return verdict.manifest.bytes
    shapes = checkpoint_size.trained(config, inputs.model_path)
    return checkpoint_size.estimate(config, shapes, len(inputs.scan.entries))


def write_budget(config: Config, inputs: Inputs, verdict: Verdict | None, bytes_of_save: int) -> Budget:
    """What the training is going to write in checkpoints of this size."""
    step, seconds = (verdict.step, budget.seconds_per_step(RunFolder(config.run_dir))) if verdict else (0, None)
    return budget.planned(
        config, step, inputs.total_steps, inputs.steps_per_epoch, bytes_of_save, seconds, about=verdict is None
    )


def at_stake(config: Config, inputs: Inputs, verdict: Verdict | None) -> str | None:
    """What to say when a crash could cost more than half an hour of training."""
    step, seconds = (verdict.step, budget.seconds_per_step(RunFolder(config.run_dir))) if verdict else (0, None)
    return budget.at_stake(config, step, inputs.total_steps, inputs.steps_per_epoch, seconds)


def require_disk_space(config: Config, bytes_of_save: int) -> None:
    """Refuse to begin what could not be saved. Raises ResumeRefused."""
    if problem := _too_small_disk(config, bytes_of_save):
        raise ResumeRefused([str(problem)])


def too_small_disk(config: Config) -> Problem | None:
    """What speaks against a start, as far as the base model's files tell and before images are looked at."""
    try:
        return _too_small_disk(config, checkpoint_size.of_fresh_start(config, images=0))
    except (SizeUnknown, BaseModelMissing):
        return None


def _too_small_disk(config: Config, bytes_of_save: int) -> Problem | None:
    """There has to be room for two: a checkpoint goes only when the one after it is written."""
    try:
        files.require_space(config.run_dir, 2 * bytes_of_save)
    except OSError as error:
        text = f"the disk is too small: {error.strerror}; free some space or choose another output_dir"
        return Problem("output_dir", text)
    return None


@dataclass(frozen=True)
class Preflight:
    """What a training would be. `refusals`: every reason why it may not begin; empty when it may.

    `bytes_of_save`: what a checkpoint takes; None where nothing would be written, or for a reason: `size_unknown`.
    `memory`: what the GPU would hold; None where the files do not tell. `memory_advice`: of what does not fit.
    """

    config: Config
    inputs: Inputs | None
    verdict: Verdict | None
    refusals: tuple[str, ...]
    disk_free: int  # bytes
    bytes_of_save: int | None = None
    size_unknown: str = ""
    memory: Memory | None = None
    memory_advice: str = ""

    @property
    def writes(self) -> Budget | None:
        """What is going to be written; None where the size of a checkpoint is not known."""
        if self.inputs is None or self.bytes_of_save is None:
            return None
        return write_budget(self.config, self.inputs, self.verdict, self.bytes_of_save)

    @property
    def at_stake(self) -> str | None:
        """What to say when a crash could cost more than half an hour of training."""
        return at_stake(self.config, self.inputs, self.verdict) if self.inputs else None

    @property
    def disk_needed(self) -> int | None:
        """About how many bytes the run's checkpoints take in the end; None where their size is not known."""
        if self.inputs is None or self.bytes_of_save is None:
            return None
        steps, epoch = self.inputs.total_steps, self.inputs.steps_per_epoch
        saves = budget.planned(self.config, 0, steps, epoch, self.bytes_of_save, None).saves
        return budget.kept(self.config, saves, steps, epoch) * self.bytes_of_save

    def lines(self) -> list[str]:
        """For people."""
        lines = self.inputs.lines() if self.inputs else []
        lines += self.verdict.lines() if self.verdict else []
        if not self.refusals and self.verdict is None:
            rates = ", ".join(f"{part} {peak:.3g}" for part, peak in self.config.peak_learning_rates.items())
            state = choosing.imported_state(self.config)
            how = f"Begins with sd-scripts' state {state} (imported, never exact)" if state else "Starts afresh"
            lines.append(f"{how}; learning rate {rates}, {self.config.lr_curve}")
        if writes := self.writes:
            lines += [writes.line(), *filter(None, [writes.warning()])]
        lines += filter(None, [self.at_stake])
        if self.memory:
            lines.append("; ".join(filter(None, [self.memory.line(), self.memory_advice])))
        lines.append(self._disk())
        return lines + [f"Refused: {line}" for refusal in self.refusals for line in refusal.splitlines()]

    def _disk(self) -> str:
        free = f"{size(self.disk_free)} are free for {self.config.output_dir}"
        if self.size_unknown:
            return f"{free}; how much a checkpoint takes is known when the model is loaded: {self.size_unknown}"
        needed = self.disk_needed
        if needed is None:
            return free
        text = f"The checkpoints that are kept take about {size(needed)} in the end; {free}"
        too_much = " - too little for them all: lower keep_last_n_checkpoints" if needed > self.disk_free else ""
        return text + too_much

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        inputs, verdict = self.inputs, self.verdict
        return {
            "version": 1,
            "refusals": list(self.refusals),
            "images": len(inputs.scan.entries) if inputs else None,
            "samples": inputs.scan.samples if inputs else None,
            "skipped": [[str(item.path), item.reason] for item in inputs.scan.skipped] if inputs else None,
            "notices": list(inputs.scan.notices) if inputs else None,
            "steps_per_epoch": inputs.steps_per_epoch if inputs else None,
            "total_steps": inputs.total_steps if inputs else None,
            "disk_free": self.disk_free,
            "disk_needed": self.disk_needed,
            "checkpoint_bytes": self.bytes_of_save,
            "checkpoint_bytes_unknown": self.size_unknown or None,
            "writes": self._writes_json(),
            "at_stake": self.at_stake,
            "memory": self.memory.as_json() if self.memory else None,
            "memory_advice": self.memory_advice or None,
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


def examine(
    config: Config,
    *,
    processes: int = 1,
    environment: Mapping[str, Any] | None = None,
    gpu_memory: int | None = None,
) -> Preflight:
    """Look at everything, change nothing, and report every reason against beginning at once.

    `gpu_memory`: bytes; None: of the smallest NVIDIA GPU, if there is one.
    """
    refusals: list[str] = []
    inputs, verdict, needed, unknown = None, None, None, ""
    try:
        inputs = examine_inputs(config, processes)
        config = inputs.config
        if not choosing.may_be_fetched(config):
            verdict = examine_checkpoint(inputs, environment)
            inputs = inputs.resumed(verdict)
        refusals += verdict.refusals if verdict else ()
        if verdict is None:
            kohya_state.examine(config, inputs.total_steps)
        if not (verdict and verdict.finished):
            needed = bytes_of_save(config, inputs, verdict)
            require_disk_space(config, needed)
    except SizeUnknown as error:
        unknown = str(error)
    except Refused as error:
        refusals.append(str(error))
    memory, memory_advice = memory_of(inputs, gpu_memory) if inputs else (None, "")
    free = files.free_bytes(config.run_dir)
    return Preflight(config, inputs, verdict, tuple(refusals), free, needed, unknown, memory, memory_advice)


def memory_of(inputs: Inputs, gpu_memory: int | None) -> tuple[Memory | None, str]:
    """What a GPU would hold, None where the files do not tell; and what to do where that is too much for this one."""
    largest = max(inputs.scan.bucket_counts(), key=lambda bucket: bucket[0] * bucket[1], default=None)
    controls = any(entry.control for entry in inputs.scan.entries)
    estimator = Estimator(inputs.model_path, largest, controls=controls)
    room = gpu_memory or smallest_gpu()
    try:
        return estimator.of(inputs.config), memory_size.advice(inputs.config, estimator, room) if room else ""
    except SizeUnknown:
        return None, ""


def smallest_gpu() -> int | None:
    """The memory of the smallest NVIDIA GPU here; None without one."""
    return min((gpu.memory_total for gpu in resources.gpus_here().read() if gpu.memory_total), default=None)
