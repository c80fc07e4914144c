"""What happens to the files of steps that a run goes back behind, or that a new run of the same name replaces.

No torch here.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from datetime import datetime
from pathlib import Path

from trainer import files
from trainer.options.config import Config
from trainer.runs import lineage, manifest, run_folder
from trainer.runs.manifest import CheckpointDamaged, Found, Manifest
from trainer.runs.run_folder import RunFolder

FOLDER = "-diffusers"  # what the name of a model file ends with that is a diffusers folder


def step_file(config: Config, step: int) -> Path:
    """kohya's name of the model file saved at a step."""
    return Path(config.output_dir) / f"{config.output_name}-step{step:08d}{_ending(config)}"


def epoch_file(config: Config, epoch: int) -> Path:
    """kohya's name of the model file saved after `epoch` epochs."""
    return Path(config.output_dir) / f"{config.output_name}-{epoch:06d}{_ending(config)}"


def last_file(config: Config) -> Path:
    """kohya's name of the run's result."""
    return Path(config.output_dir) / f"{config.output_name}{_ending(config)}"


def _ending(config: Config) -> str:
    """What the name of a model file ends with; of a whole model it may be a folder, beside the run's own."""
    return FOLDER if config.fine_tunes and config.save_model_as == "diffusers" else ".safetensors"


def _model_file_name(config: Config) -> str:
    return rf"{re.escape(config.output_name)}(?:-step(\d{{8,}})|-(\d{{6,}}))?(?:\.safetensors|{FOLDER})"


def remove_temporary(config: Config, run: RunFolder) -> None:
    """Remove what an interrupted session left of what it was writing. Only for the process that holds the run."""
    for folder in (run.path, run.checkpoints, run.samples):
        files.remove_temporary(folder)
    files.remove_temporary(Path(config.output_dir), _model_file_name(config))


def model_files(config: Config) -> list[tuple[Path, int | None, int | None]]:
    """Every model file of the run: (path, step, None), (path, None, epoch), and (path, None, None) for the result."""
    pattern = re.compile(_model_file_name(config))
    folder = Path(config.output_dir)
    result = []
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and (path.is_dir() if path.name.endswith(FOLDER) else path.is_file()):
                step, epoch = (int(group) if group else None for group in match.groups())
                result.append((path, step, epoch))
    return result


def is_own(run: RunFolder, checkpoint: Path, step: int) -> bool:
    """Whether a checkpoint lies where the run keeps its own."""
    return checkpoint.resolve() == (run.checkpoints / manifest.folder_name(step)).resolve()


def go_on_from(
    config: Config, run: RunFolder, resumed: Manifest, path: Path, epochs: int, session: int, *, differs: bool,
    passed_over: bool,
) -> list[Path]:  # fmt: skip
    """Make a checkpoint the newest state of the run: one from elsewhere is copied in, what does not lead to it is moved
    aside, into the run's `abandoned` folder, so that nothing of it is overwritten.

    `epochs`: epochs completed at its step. `differs`: what comes now is not what came then, so that model files are
    moved also where no checkpoint came after the step. `passed_over`: one did, and was damaged. Returns where the
    checkpoints that were moved are now. Raises OSError or CheckpointDamaged where a copy cannot be made.
    """
    step = resumed.step
    staged = None if _is_there(run, resumed, path) else _stage(run, path, resumed)
    others, fork = not_leading_to(run, resumed, path)
    if others or differs or staged:
        if fork < step:  # told by what stays, since epochs may have been counted otherwise then
            before = [
                checkpoint
                for checkpoint in manifest.listing(run.checkpoints)
                if checkpoint.step <= fork and checkpoint.manifest
            ]
            epochs = max((checkpoint.manifest.epoch for checkpoint in before if checkpoint.manifest), default=0)
        folder = run.abandoned / f"before-session-{session:03d}"
        # Model files first: if this is cut short, the checkpoints left are why the next resume here does the rest.
        for file, file_step, file_epoch in model_files(config):
            is_result = file_step is None and file_epoch is None and (others or passed_over or staged)
            if (file_step or 0) > fork or (file_epoch or 0) > epochs or is_result:
                manifest.move_aside(file, folder)
    moved = [_abandon(run, checkpoint, session) for checkpoint in others if checkpoint.step >= step]
    if staged:
        staged.rename(run.checkpoints / manifest.folder_name(step))
        files.fsync_folder(run.checkpoints)
    return moved + [_abandon(run, checkpoint, session) for checkpoint in others if checkpoint.step < step]


def not_leading_to(run: RunFolder, resumed: Manifest, path: Path) -> tuple[list[Found], int]:
    """The run's checkpoints that are no states on the way to one, newest first, and the step where they part from it.

    Of checkpoints that do not tell, which the first versions of this program wrote, the older ones are on the way to
    one of their own folder, and not to one from elsewhere.
    """
    step, there = resumed.step, _is_there(run, resumed, path)
    here = lineage.of_checkpoint(path, step)
    others, fork = [], step
    for item in manifest.listing(run.checkpoints):
        other = lineage.of_checkpoint(item.path, item.step)
        common = max(0, here.common_step(other)) if here and other else min(step, item.step) if there else 0
        if item.step > step or (item.step == step and not there) or common < item.step < step:
            others.append(item)
            fork = min(fork, common)
    return others, fork


def _abandon(run: RunFolder, item: Found, session: int) -> Path:
    return manifest.move_aside(item.path, run.abandoned / f"before-session-{session:03d}" / "checkpoints")


def _is_there(run: RunFolder, wanted: Manifest, path: Path) -> bool:
    """Whether a checkpoint is among the run's own: it lies there, or a sound copy of it does."""
    if is_own(run, path, wanted.step):
        return True
    try:
        return manifest.verify(run.checkpoints / manifest.folder_name(wanted.step)).digest == wanted.digest
    except CheckpointDamaged:
        return False


def _stage(run: RunFolder, path: Path, wanted: Manifest) -> Path:
    """A durable copy of a checkpoint beside the run's own, temporarily named. Raises OSError or CheckpointDamaged."""
    files.require_space(run.checkpoints, wanted.bytes)
    staged = run.checkpoints / f".tmp-{manifest.folder_name(wanted.step)}-{uuid.uuid4().hex[:8]}"
    staged.mkdir()
    try:
        for name in (*wanted.files, manifest.MANIFEST):
            shutil.copyfile(path / name, staged / name)
            files.fsync_file(staged / name)
        files.fsync_folder(staged)
        if manifest.verify(staged).digest != wanted.digest:
            raise CheckpointDamaged(f"{path} was replaced while it was being used")
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return staged


def replace_run(config: Config, run: RunFolder) -> Path:
    """Move a whole run folder and its model files aside, for overwrite_run; returns where the folder is now.

    Raises RunInUse when a process works on it.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    with run_folder.locked(run):
        for path, _, _ in model_files(config):  # first, so that a run cut short here is still found, and moved whole
            manifest.move_aside(path, run.path / "model-files")
        aside = run.path.with_name(f"{run.path.name}-replaced-{stamp}")
        if os.name == "nt":
            move_contents(run.path, aside)
        else:
            run.path.rename(aside)
        return aside


def move_contents(folder: Path, aside: Path) -> None:
    """Move what is in a run folder into a new one, where the folder itself cannot be renamed: Windows refuses that
    while a file in it is open, as the lock is, and the log that this process writes to, which is copied.

    What says that there is a run comes last, so that a move that was cut short is done again. Raises OSError.
    """
    run = RunFolder(folder)
    aside.mkdir()
    last = (run.checkpoints, run.run_file)
    for path in sorted(folder.iterdir(), key=lambda path: (path in last, path)):
        if path == run.console_file:
            shutil.copy2(path, aside / path.name)
        elif path not in (run.lock_file, run.held_file):
            files.rename(path, aside / path.name)
