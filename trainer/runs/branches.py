"""What happens to the files of steps that a run goes back behind, or that a new run of the same name replaces.

No torch here.
"""

from __future__ import annotations

import os
import re
import shutil
from datetime import datetime
from pathlib import Path

from trainer import files
from trainer.options.config import Config
from trainer.runs import manifest, run_folder
from trainer.runs.run_folder import RunFolder


def step_file(config: Config, step: int) -> Path:
    """kohya's name of the model file saved at a step."""
    return Path(config.output_dir) / f"{config.output_name}-step{step:08d}.safetensors"


def epoch_file(config: Config, epoch: int) -> Path:
    """kohya's name of the model file saved after `epoch` epochs."""
    return Path(config.output_dir) / f"{config.output_name}-{epoch:06d}.safetensors"


def last_file(config: Config) -> Path:
    """kohya's name of the run's result."""
    return Path(config.output_dir) / f"{config.output_name}.safetensors"


def _model_file_name(config: Config) -> str:
    return rf"{re.escape(config.output_name)}(?:-step(\d{{8,}})|-(\d{{6,}}))?\.safetensors"


def remove_temporary(config: Config, run: RunFolder) -> None:
    """Remove what an interrupted session left of what it was writing. Only for the process that holds the run."""
    for folder in (run.path, run.checkpoints, run.samples):
        files.remove_temporary(folder)
    files.remove_temporary(Path(config.output_dir), _model_file_name(config))


def model_files(config: Config) -> list[tuple[Path, int | None, int | None]]:
    """Every model file of the run: (path, step, None), (path, None, epoch), and (path, None, None) for the result."""
    pattern = re.compile(_model_file_name(config))
    folder = Path(config.output_dir)
    found = []
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and path.is_file():
                step, epoch = (int(group) if group else None for group in match.groups())
                found.append((path, step, epoch))
    return found


def abandon(
    config: Config, run: RunFolder, step: int, epochs: int, session: int, *, differs: bool, passed_over: bool
) -> list[Path]:
    """Move what came after a step aside, into the run's `abandoned` folder, so that nothing of it is overwritten.

    `epochs`: epochs completed at the step. `differs`: what comes now is not what came then, so that model files are
    moved also where no checkpoint came after the step. `passed_over`: one did, and was damaged. Returns where the
    checkpoints are now.
    """
    later = [found for found in manifest.listing(run.checkpoints) if found.step > step]
    if not later and not differs:
        return []
    folder = run.abandoned / f"before-session-{session:03d}"
    # Model files first: if this is cut short, the checkpoints left are why the next resume at this step does the rest.
    for path, file_step, file_epoch in model_files(config):
        is_result = file_step is None and file_epoch is None and (later or passed_over)
        if (file_step or 0) > step or (file_epoch or 0) > epochs or is_result:
            manifest.move_aside(path, folder)
    return [manifest.move_aside(found.path, folder / "checkpoints") for found in later]  # newest first


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
