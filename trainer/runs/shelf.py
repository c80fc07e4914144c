"""What a person does with a run that is over: give it another name, put it out of sight, delete it. No torch here.

Each holds the run's lock, so that a run that a process works on is refused (RunInUse) and none begins meanwhile.
"""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path

from trainer import files
from trainer.options import writing
from trainer.options.checks import read_config
from trainer.options.config import Config
from trainer.options.problems import ConfigError
from trainer.refusal import Refused
from trainer.runs import branches, run_folder
from trainer.runs.run_folder import RunFolder

NAME = re.compile(r"[^\W_][\w .+-]{0,119}")


def model_files(run: RunFolder) -> list[Path]:
    """The run's model files, which lie beside its folder."""
    return [path for path, _, _ in branches.model_files(_named(run))]


def _named(run: RunFolder) -> Config:
    """A config of the run's name and place, whatever its own says."""
    return Config(output_name=run.path.name, output_dir=str(run.path.parent))


def rename(run: RunFolder, name: str) -> RunFolder:
    """Give a run, its model files and its records another name; returns the run under it.

    Raises Refused when there is such a run or model file already, when the name is none or the disk refuses.
    """
    if not NAME.fullmatch(name) or name.endswith((" ", ".")):
        raise Refused(
            f"{name[:80]!r} cannot be a run's name: begin with a letter or digit, then spaces and . _ - + too"
        )
    there = RunFolder(run.path.with_name(name))
    moves = {path: path.with_name(name + path.name.removeprefix(run.path.name)) for path in model_files(run)}
    taken = [path for path in (there.path, *moves.values()) if path.exists()]
    if taken or branches.model_files(_named(there)):
        raise Refused(f"{(taken or [there.path])[0]} is there already; choose another name")
    with run_folder.locked(run):
        try:
            record = run_folder.read_run(run)
            if record is not None:
                run_folder.write_run(run, record | {"output_name": name})
            _write_name(run, name)
            for path, target in moves.items():
                path.rename(target)
            run.path.rename(there.path)
            files.fsync_folder(there.path.parent)
        except OSError as error:
            raise Refused(f"{run.path} cannot be renamed: {error.strerror}") from error
    return there


def _write_name(run: RunFolder, name: str) -> None:
    """The name in the run's own config.toml, from which it is continued."""
    try:
        config = read_config(run.config_file)
    except ConfigError:  # a run that never began, or one of a newer program: it has no name there that we know
        return
    files.write_text(run.config_file, writing.to_toml(config.replace(output_name=name)))


def archive(run: RunFolder, *, archived: bool = True) -> None:
    """Leave a run out of lists, or bring it back; nothing is moved. Raises Refused."""
    try:
        if not archived:
            run.archived_file.unlink(missing_ok=True)
            return
        with run_folder.locked(run):
            run.archived_file.touch()
    except OSError as error:
        raise Refused(f"{run.archived_file} cannot be written: {error.strerror}") from error


def delete(run: RunFolder) -> None:
    """Delete a run's folder: checkpoints, samples, events, log. Its model files stay. Raises Refused.

    It is gone from every list at once, also where deleting gigabytes takes a while or is cut short.
    """
    doomed = run.path.with_name(f".deleted-{uuid.uuid4().hex[:8]}-{run.path.name}")
    with run_folder.locked(run):
        try:
            run.path.rename(doomed)
        except OSError as error:
            raise Refused(f"{run.path} cannot be deleted: {error.strerror}") from error
    shutil.rmtree(doomed, ignore_errors=True)
    if doomed.exists():
        raise Refused(f"not all of {run.path.name} could be deleted; what is left is in {doomed}")
