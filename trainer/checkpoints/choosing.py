"""What resume_from_checkpoint means: which checkpoint, if any, and whether it is sound. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.options.config import Config
from trainer.refusal import Refused
from trainer.runs import manifest, rollbacks
from trainer.runs.manifest import CheckpointDamaged, CheckpointNewer, Manifest
from trainer.runs.run_folder import RunFolder

Wanted = Literal["nothing", "latest", "auto", "step", "path"]
LATEST, AUTO = "latest", "auto"

# Files of accelerate's save_state, which sd-scripts' --save_state calls.
STATE_FILES = ("model.safetensors", "optimizer.bin")  # without both, nothing of such a state can be imported
OF_ACCELERATE = ("train_state.json", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "optimizer.pt")


class ResumeRefused(Refused):
    """The run cannot, or must not, continue from there. One reason a line, each with the way out."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = reasons
        super().__init__("\n".join(reasons))


@dataclass(frozen=True)
class Chosen:
    """The checkpoint that a resume starts from, verified, and those that were passed over because of damage."""

    path: Path
    manifest: Manifest
    rejected: tuple[tuple[Path, str], ...]


def wanted(text: str) -> Wanted:
    """What a value of resume_from_checkpoint names."""
    text = text.strip()
    if text == "":
        return "nothing"
    if text in (LATEST, AUTO):
        return "latest" if text == LATEST else "auto"
    return "step" if text.isdecimal() and len(text) < 20 else "path"


def starts_from_scratch(config: Config, home: Path = Path()) -> bool:
    """Whether nothing is resumed: nothing is wanted, or another program's state is imported, or `auto` is wanted and
    the run never saved a checkpoint.

    `home`: the folder that relative paths mean.
    """
    named = wanted(config.resume_from_checkpoint)
    if named == "path":
        return imported_state(config, home) is not None
    return named == "nothing" or (named == "auto" and not _ever_saved(RunFolder(home / config.run_dir)))


def begins_by_choice(config: Config) -> bool:
    """Whether a new run is asked for, and not only what there is to continue."""
    return wanted(config.resume_from_checkpoint) == "nothing" or imported_state(config) is not None


def imported_state(config: Config, home: Path = Path()) -> Path | None:
    """The folder of a state of sd-scripts with its weights, which a new run begins with; None where
    resume_from_checkpoint names something else."""
    if wanted(config.resume_from_checkpoint) != "path":
        return None
    try:
        path = home / Path(config.resume_from_checkpoint.strip()).expanduser()
        return path if all((path / name).is_file() for name in STATE_FILES) else None
    except (OSError, RuntimeError):  # too long a name, or no such user
        return None


def may_be_fetched(config: Config, home: Path = Path()) -> bool:
    """Whether what is to be continued is not here, but perhaps at the mirror, which only the start asks."""
    named = wanted(config.resume_from_checkpoint)
    here = manifest.listing(RunFolder(home / config.run_dir).checkpoints)
    return bool(config.checkpoint_mirror) and named in ("latest", "auto", "step") and not here


def _ever_saved(run: RunFolder) -> bool:
    """Whether the run has checkpoints, sound or not, or had some that were moved aside."""
    folders = (run.checkpoints, run.checkpoints / "rejected", *run.abandoned.glob("*/checkpoints"))
    return any(path.is_dir() for folder in folders for path in folder.glob("step-*"))


def choose(config: Config) -> Chosen:
    """The checkpoint that resume_from_checkpoint means, every byte verified. Raises ResumeRefused.

    Not for what starts from scratch.
    """
    run, text = RunFolder(config.run_dir), config.resume_from_checkpoint.strip()
    if wanted(text) in ("latest", "auto"):
        back = rollbacks.waiting(run)
        return _latest(run.checkpoints, up_to=back.step if back else None)
    try:
        path = _path(text, run)
        is_run = (path / "checkpoints").is_dir()
        foreign = foreign_state(path)
    except (OSError, RuntimeError) as error:  # too long a name, or no such user
        raise ResumeRefused([f"resume_from_checkpoint: {text[:200]!r} cannot be used: {error}"]) from error
    if is_run:
        return _latest(path / "checkpoints")
    if foreign:
        raise ResumeRefused([f"resume_from_checkpoint: {path} {foreign}"])
    if not manifest.is_checkpoint(path):
        steps = [str(item.step) for item in manifest.listing(run.checkpoints)]
        have = f"this run has {', '.join(steps)}" if steps else "this run has no checkpoints"
        raise ResumeRefused([f"resume_from_checkpoint: there is no checkpoint {path}; {have}"])
    try:
        return Chosen(path, manifest.verify(path), ())
    except CheckpointDamaged as error:
        good = next((item for item in manifest.listing(path.parent, thorough=True) if item.manifest), None)
        way_out = f"; the newest sound one is {good.path}" if good else ""
        raise ResumeRefused([f"resume_from_checkpoint: {path} cannot be used: {error}{way_out}"]) from error


def _path(text: str, run: RunFolder) -> Path:
    """The folder that a step number or a path means. Raises RuntimeError where ~ means no user."""
    if wanted(text) == "step":
        return run.checkpoints / manifest.folder_name(int(text))
    return Path(text).expanduser()


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


def _latest(checkpoints: Path, up_to: int | None = None) -> Chosen:
    """The newest that is sound, of those up to a step if one is given. Raises ResumeRefused."""
    rejected: list[tuple[Path, str]] = []
    for item in manifest.listing(checkpoints):
        if up_to is not None and item.step > up_to:
            continue
        try:
            return Chosen(item.path, manifest.verify(item.path), tuple(rejected))
        except CheckpointNewer as error:
            older = next((other.step for other in manifest.listing(checkpoints) if other.manifest), None)
            way_out = "" if older is None else f", or go on from an older one with resume_from_checkpoint = {older}"
            raise ResumeRefused([f"resume_from_checkpoint: {item.path}: {error}{way_out}"]) from error
        except CheckpointDamaged as error:
            if not item.path.is_dir():  # deleted by a trainer that goes on, because there is a newer one
                return _latest(checkpoints, up_to)
            rejected.append((item.path, str(error)))
    if rejected:
        reasons = [f"{path.name}: {reason}" for path, reason in rejected]
        raise ResumeRefused(
            [
                f"resume_from_checkpoint: every checkpoint in {checkpoints} is damaged; nothing was changed",
                *reasons,
                'to start afresh, set resume_from_checkpoint = "" and overwrite_run = true (the old run is kept)',
            ]
        )
    aside = [str(path) for path in (checkpoints.parent / "abandoned").glob("*/checkpoints")]
    others = f"name one of those that were moved aside, in {', '.join(aside)}, or " if aside else ""
    raise ResumeRefused(
        [
            f"resume_from_checkpoint: there is no checkpoint in {checkpoints}; {others}"
            'set resume_from_checkpoint = "" to start afresh'
        ]
    )
