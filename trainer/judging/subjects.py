"""What is judged: checkpoints and model files, and the model that makes their pictures."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from trainer import files
from trainer.checkpoints import checkpoint, preflight
from trainer.models import adapters
from trainer.models import model as models
from trainer.models.model import Model
from trainer.options.checks import read_config
from trainer.options.config import OPTIONS, Config
from trainer.options.problems import ConfigError
from trainer.recipe.prompts import Prompt
from trainer.refusal import Refused
from trainer.runs import branches, manifest
from trainer.runs.manifest import CheckpointDamaged
from trainer.runs.run_folder import RunFolder

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    """A checkpoint or a model file, the options it was trained with, and where its results go."""

    path: Path
    config: Config
    step: int | None  # None where the name of a model file does not tell it
    digest: str  # of its weights
    results: Path  # the folder
    run: RunFolder | None  # whose it is; None for a model file from elsewhere

    @property
    def name(self) -> str:
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def is_checkpoint(self) -> bool:
        return self.path.is_dir()


def find(paths: Sequence[Path], config: Config | None) -> list[Subject]:
    """What the paths mean: checkpoints, model files, or run folders with all their checkpoints, in order of the step.

    `config`: for model files without a run beside them. Raises Refused, naming every path that is none of them.
    """
    result: list[Subject] = []
    problems: list[str] = []
    for path in paths:
        try:
            if path.is_file():
                result.append(_model_file(path, config))
            elif (path / "checkpoints").is_dir():
                items = manifest.listing(path / "checkpoints")
                if not items:
                    raise Refused(f"the run {path} has no checkpoint")
                result += sorted((_checkpoint(item.path) for item in items), key=lambda subject: subject.step or 0)
            elif manifest.is_checkpoint(path):
                result.append(_checkpoint(path))
            else:
                raise Refused(f"{path} is no checkpoint, no run and no model file")
        except (Refused, CheckpointDamaged) as problem:
            problems.append(str(problem))
    if problems:
        raise Refused("\n".join(problems))
    return result


def _checkpoint(path: Path) -> Subject:
    verified = manifest.verify(path)
    try:
        config = read_config(path / "config.toml")
    except ConfigError as error:
        raise CheckpointDamaged(f"config.toml of {path} cannot be read: {error}") from error
    run = RunFolder(path.resolve().parent.parent)
    return Subject(path, config, verified.step, verified.digest, run.path / "evaluation" / path.name, run)


def _model_file(path: Path, config: Config | None) -> Subject:
    if path.suffix != ".safetensors":
        raise Refused(f"{path} is not a .safetensors file")
    run = None
    step = None
    for folder in sorted(entry for entry in path.resolve().parent.iterdir() if (entry / "run.json").is_file()):
        if not (folder / "config.toml").is_file():
            continue
        try:
            its = read_config(folder / "config.toml").replace(output_dir=str(folder.parent))
        except ConfigError:
            continue
        steps = {file.resolve(): step for file, step, _ in branches.model_files(its)}
        if path.resolve() in steps:
            run, step, config = RunFolder(folder), steps[path.resolve()], config or its
    if config is None:
        raise Refused(
            f"{path}: there is no run beside it that says which base model it is for; give a preset with --config"
        )
    results = (run.path if run else path.resolve().with_suffix("")) / "evaluation" / path.stem
    return Subject(path, config, step, files.sha256_file(path), results, run)


# --- pictures ------------------------------------------------------------------------------------------------------


class Painter:
    """Makes pictures with the weights of one subject after another; a base model stays loaded as long as it fits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loaded: tuple[object, Model] | None = None
        self._with: Subject | None = None

    def paint(self, subject: Subject, prompts: Sequence[Prompt]) -> list[Image.Image]:
        """The prompts' pictures with the subject's weights, the moving average of a checkpoint that has one. Each
        depends on its own prompt and seed alone. Raises Refused."""
        return list(self.pictures(subject, prompts))

    def pictures(self, subject: Subject, prompts: Sequence[Prompt]) -> Generator[Image.Image, None, None]:
        """The same, each picture when it is made."""
        model = self._model(subject.config)
        if self._with is not subject:
            put_weights(model, subject)
            self._with = subject
        yield from model.samples(prompts, subject.config.sample_sampler, self._device)

    def _model(self, config: Config) -> Model:
        key = {name: getattr(config, name) for name, option in OPTIONS.items() if option.on_resume != "free"}
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = self._with = None  # the old one leaves the memory first
            settled, path = preflight.locate_model(config)
            model = models.load(settled, path, DTYPES[config.mixed_precision], self._device)
            model.module().to(self._device)
            model.prepare(self._device, latents_cached=False, text_cached=False)
            self._loaded = key, model
        return self._loaded[1]


def put_weights(model: Model, subject: Subject) -> None:
    """Give the model the trained weights of a subject. Raises Refused."""
    adapter = adapters.load(model.config)
    if not subject.is_checkpoint:
        adapter.from_file(model.targets, adapters.naming_of(model.config), subject.path)
        return
    weights = {name: value for target in model.targets for name, value in adapter.parameters(target).items()}
    try:
        loaded = checkpoint.load(subject.path, manifest.verify(subject.path), weights, with_ema=subject.config.use_ema)
    except CheckpointDamaged as error:
        raise Refused(f"{subject.path} does not fit the model that its options describe: {error}") from error
    tensors = loaded.ema or loaded.weights
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(tensors[name])
