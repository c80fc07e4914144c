"""Training on paper: a run's real files, sessions, checkpoints and plan; its weights just name all that was trained.

All that decides what a resume does is the trainer's own: `examine`, `Session`, `branches`, `Plan`, the writing of
checkpoints. Only models, pictures and time are left out, so that thousands of sessions take minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from trainer import files
from trainer.checkpoints import checkpoint, preflight
from trainer.checkpoints.checkpoint import Contents, Save
from trainer.checkpoints.preflight import Inputs
from trainer.checkpoints.resume import ResumeRefused, Verdict
from trainer.data import buckets, dataset, epochs
from trainer.data.buckets import Size
from trainer.data.dataset import Entry, Scan
from trainer.data.epochs import Origin
from trainer.data.subsets import Subset
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.recipe import schedule
from trainer.recipe.early_stopping import Record
from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder
from trainer.training.loader import Plan
from trainer.training.session import Session

OPTIONS: dict[str, Any] = {
    "output_name": "run",
    "resolution": "64",
    "enable_bucket": True,
    "min_bucket_reso": 32,
    "max_bucket_reso": 128,
    "bucket_reso_steps": 16,
    "train_batch_size": 2,
    "learning_rate": 1.0,
    "lr_scheduler": "linear",
    "max_train_steps": 60,
    "network_train_unet_only": True,
    "keep_last_n_checkpoints": 0,
}


@dataclass(frozen=True)
class Picture:
    """What a dataset's record says of an image, before its bucket is chosen."""

    name: str
    size: Size = (64, 64)
    caption: str = ""
    repeats: int = 1
    mask: str = ""
    validation: bool = False


PICTURES = (
    Picture("a"),
    Picture("b", (96, 48)),
    Picture("c", (48, 96)),
    Picture("d", repeats=2),
    Picture("e", (80, 64)),
)


@dataclass(frozen=True)
class Trained:
    """One step: the rate it was trained at, and the address of every use of an image."""

    step: int
    rate: float
    uses: tuple[tuple[int, str, int, int], ...]  # seed, image, epoch, repeat
    session: str

    @property
    def content(self) -> tuple[Any, ...]:
        """All but which session trained it."""
        return self.step, self.rate, self.uses


History = tuple[Trained, ...]
HISTORIES: dict[str, History] = {}  # by digest; a checkpoint holds the digest


def digest_of(history: History) -> str:
    digest = hashlib.sha256(repr(history).encode()).hexdigest()
    HISTORIES[digest] = history
    return digest


def history_of(folder: Path) -> History:
    """Everything that was trained up to a checkpoint."""
    told = safetensors.torch.load_file(folder / "weights.safetensors")["trained"]
    return HISTORIES[bytes(told.tolist()).decode()]


def inputs_of(config: Config, pictures: tuple[Picture, ...]) -> Inputs:
    """What the trainer would find on the disk."""
    low, high, step = config.min_bucket_reso, config.max_bucket_reso, config.bucket_reso_steps
    folder = Path("images")
    train = Subset(folder, folder, config)
    held_out = dataclasses.replace(train, is_validation=True)
    entries = [
        Entry(
            id=hashlib.sha256(picture.name.encode()).hexdigest()[:32],
            file=f"images/{picture.name}.png",
            relative=f"{picture.name}.png",
            digest=hashlib.sha256(picture.name.encode()).hexdigest(),
            size=picture.size,
            bucket=buckets.bucket_for(picture.size, config.resolution_size, low, high, step, no_upscale=False)
            if config.enable_bucket
            else config.resolution_size,
            caption=picture.caption,
            repeats=1 if picture.validation else picture.repeats,
            subset=held_out if picture.validation else train,
            mask_digest=picture.mask,
        )
        for picture in pictures
    ]
    entries.sort(key=lambda entry: entry.id)
    found = Scan(
        entries=tuple(entry for entry in entries if not entry.subset.is_validation),
        findings=(),
        notices=(),
        validation=tuple(entry for entry in entries if entry.subset.is_validation),
    )
    steps_per_epoch = found.steps_per_epoch(config.gradient_accumulation_steps)
    return Inputs(
        config=config,
        scan=found,
        images=dataset.record(found, config, config.gradient_accumulation_steps),
        model_path=Path("model"),
        base_model={"pretrained_model_name_or_path": "0" * 64},
        batches_per_step=config.gradient_accumulation_steps,
        steps_per_epoch=steps_per_epoch,
        total_steps=epochs.last_step(config.max_train_steps, config.max_train_epochs, steps_per_epoch, Origin()),
    )


class Training:
    """One process's work on a run, to its end or its death. Raises ResumeRefused where it may not begin."""

    def __init__(self, config: Config, pictures: tuple[Picture, ...] = PICTURES) -> None:
        self.config = config
        self.run = RunFolder(config.run_dir)
        self._held = contextlib.ExitStack()
        self._inputs = inputs = inputs_of(config, pictures)
        self._environment = {"version": 1, "processes": 1}
        with contextlib.ExitStack() as beginning:
            beginning.enter_context(run_folder.locked(self.run))
            self.verdict = verdict = self._examine()
            self._inputs = inputs = inputs.resumed(verdict)
            self.session = Session(config, self.run, verdict, inputs.total_steps)
            self.origin = verdict.origin if verdict else Origin()
            self.plan = Plan(config, inputs.scan.entries, inputs.batches_per_step, self.origin, inputs.total_steps)
            self.curve = verdict.curve if verdict else schedule.new_curve(config, inputs.total_steps)
            self.history: History = history_of(verdict.path) if verdict else ()
            beginning.enter_context(self.session.recorded())
            if verdict:
                self.session.resumed(0.0, self.plan.place(verdict.step)[0])
            self._held = beginning.pop_all()

    def _examine(self) -> Verdict | None:
        verdict = preflight.examine_checkpoint(self._inputs, self._environment)
        if verdict and verdict.refusals:
            raise ResumeRefused(list(verdict.refusals))
        return verdict

    @property
    def step(self) -> int:
        return len(self.history)

    @property
    def over(self) -> bool:
        return self.step >= self._inputs.total_steps

    def train(self, steps: int) -> None:
        """So many steps, or as many as are left."""
        for step in range(self.step, min(self.step + steps, self._inputs.total_steps)):
            uses, _ = self.plan.samples(step)
            addresses = tuple((self.config.seed, use.entry.path.stem, use.epoch, use.repeat) for use in uses)
            rate = self.config.peak_learning_rates["unet"] * self.curve.factor(step)
            self.history = (*self.history, Trained(step + 1, rate, addresses, self.session.id))
        self.session.global_step = self.step

    def save(self) -> Path:
        """Write a checkpoint of now; returns its folder."""
        epoch, place = self.plan.place(self.step)
        trained = {"trained": torch.tensor(list(digest_of(self.history).encode()), dtype=torch.uint8)}
        state = {
            "version": 1,
            "global_step": self.step,
            "planned_steps": self._inputs.total_steps,
            "epoch_origin": dataclasses.asdict(self.origin),
            "validation": dataclasses.asdict(Record()),
            "epoch": epoch,
            "place": place,
            "lr_curve": self.curve.as_dict(),
            "base_model": dict(self._inputs.base_model),
            **self.session.for_checkpoints(),
        }
        documents = {
            "dataset.json": files.compact_json_bytes(dict(self._inputs.images)),
            "environment.json": files.json_bytes(self._environment),
        }
        contents = Contents(trained, trained, {}, state, documents, to_toml(self.session.config_to_keep()))
        return checkpoint.write(
            self.run.checkpoints, Save(self.run.checkpoints, self.step, epoch, None, self.session.run_id, contents)
        )

    def end(self) -> None:
        """As after a stop, without a save."""
        self.session.finish("stopped", "stopped")
        self._held.close()

    def kill(self) -> None:
        """As after SIGKILL: nothing more is written, and the lock goes with the process."""
        self._held.close()


def damage(folder: Path) -> None:
    """Change a byte of a checkpoint's weights."""
    path = folder / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
