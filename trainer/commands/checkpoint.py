"""python -m trainer verify | list | pin | export: what is done with a run's checkpoints from a shell. No torch here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoints import export
from trainer.commands import tools
from trainer.options.checks import read_config
from trainer.options.problems import ConfigError
from trainer.options.sections.saving import VALIDATION_LOSS
from trainer.refusal import Refused
from trainer.runs import evaluations, manifest, run_folder
from trainer.runs.manifest import CheckpointDamaged, CheckpointNewer, Found
from trainer.runs.run_folder import RunFolder
from trainer.tools import TOOLS

DONE, DAMAGED, REFUSED = 0, 1, 3


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What one of the commands takes."""
    if command == "verify":
        parser.add_argument("path", type=Path)
        parser.add_argument("--sums", action="store_true", help="print lines for sha256sum -c instead")
        parser.add_argument("--json", action="store_true", help="of a model file: print JSON, for programs")
        tools.add(parser, TOOLS["verify"].field("family"))
    elif command == "list":
        parser.add_argument("run", type=Path)
        parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    elif command == "pin":
        parser.add_argument("checkpoint", type=Path)
        parser.add_argument("--unpin", action="store_true", help="let it go again when newer ones replace it")
    else:
        parser.add_argument("checkpoint", type=Path)
        parser.add_argument("--to", type=Path, help="the file to write (kohya's name of that step, beside the run)")


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Run one of the commands; returns the exit code: 0 done, 1 something is damaged, 3 refused."""
    if rest:
        parser.error(f"unknown: {' '.join(rest)}")
    try:
        if arguments.command == "verify" and arguments.path.is_file():
            arguments.file = str(arguments.path)
            return tools.run(arguments, rest, parser)
        if arguments.command == "verify":
            return _verify(arguments.path, sums=arguments.sums)
        if arguments.command == "list":
            return _list(arguments.run, as_json=arguments.json)
        if arguments.command == "pin":
            return _pin(arguments.checkpoint, pinned=not arguments.unpin)
        print(export.model_file(_checkpoint(arguments.checkpoint), arguments.to))
    except (Refused, CheckpointDamaged, OSError) as error:
        print(f"Refused: {error}", file=sys.stderr)
        return REFUSED
    return DONE


# --- what a path means ---------------------------------------------------------------------------------------------


def _checkpoints(path: Path) -> list[Path]:
    """The checkpoints that a path means: itself, or all those of a run, oldest first. Raises Refused."""
    for folder in (path / "checkpoints", path):
        checkpoints = [item.path for item in manifest.listing(folder)]
        if checkpoints:
            return checkpoints[::-1]
    return [_checkpoint(path)]


def _checkpoint(path: Path) -> Path:
    """The path, if what is there is or was a checkpoint. Raises Refused."""
    _require_folder(path)
    if manifest.is_checkpoint(path):
        return path
    raise Refused(f"{path} is no checkpoint{_what_is_there(path)}")


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise Refused(f"there is no folder {path}")


def _what_is_there(path: Path) -> str:
    """Where the folder that was meant may be."""
    held = manifest.listing(path / "checkpoints") or manifest.listing(path)
    if held:
        return f"; the newest one in it is {held[0].path}"
    inside = ", ".join(str(run.path) for run in run_folder.find_runs([path])[:5])
    return f"; there are runs in it: {inside}" if inside else ", and there is none in it"


# --- the commands --------------------------------------------------------------------------------------------------


def _verify(path: Path, *, sums: bool) -> int:
    """Check every byte. Exit code 1 when anything is damaged, or is of a newer program."""
    damaged = 0
    for folder in _checkpoints(path):
        try:
            if sums:
                print("\n".join(manifest.sums([folder])))
            else:
                sound = manifest.verify(folder)
                print(f"{folder}: sound, step {sound.step}, {len(sound.files)} files, {sound.bytes / 1e6:.1f} MB")
        except CheckpointDamaged as error:
            if not folder.is_dir():  # deleted meanwhile, by a trainer that goes on
                continue
            damaged += 1
            word = "TOO NEW" if isinstance(error, CheckpointNewer) else "DAMAGED"
            print(f"{folder}: {word}: {error}", file=sys.stderr if sums else sys.stdout)
    return DAMAGED if damaged else DONE


def _pin(path: Path, *, pinned: bool) -> int:
    checkpoint = _checkpoint(path).resolve()
    manifest.pin(checkpoint, pinned)
    print(f"{checkpoint} is {'kept' if pinned else 'no longer kept'}, whatever the rules for older ones say")
    return DONE


def _list(path: Path, *, as_json: bool) -> int:
    """List a run's checkpoints, newest first, by their manifests (verify reads every byte)."""
    _require_folder(path)
    run = RunFolder(path)
    if not run.run_file.exists() and not run.checkpoints.is_dir():
        raise Refused(f"{path} is no run{_what_is_there(path)}")
    checkpoints = manifest.listing(run.checkpoints)
    best = evaluations.best(checkpoints, _told_by(run), run)
    if as_json:
        rows = [_row(item, best) for item in checkpoints]
        print(json.dumps({"run": str(path), "status": run_folder.status(run), "checkpoints": rows}, indent=1))
        return DONE
    print(f"{path}: {run_folder.status(run)}, {len(checkpoints)} checkpoint{'' if len(checkpoints) == 1 else 's'}")
    for item in checkpoints:
        print(f"  {_line(item, best)}")
    return DONE


def _told_by(run: RunFolder) -> str:
    """What the run's options tell its best checkpoint by."""
    try:
        return read_config(run.config_file).best_checkpoint_by
    except ConfigError:
        return VALIDATION_LOSS


def _row(item: Found, best: int | None) -> dict[str, Any]:
    listed = item.manifest
    return {
        "step": item.step,
        "path": str(item.path),
        "problem": item.problem,
        "pinned": item.pinned,
        "best": item.step == best,
        "validation_loss": listed.validation[0] if listed and listed.validation else None,
        "epoch": listed.epoch if listed else None,
        "loss": listed.loss if listed else None,
        "bytes": listed.bytes if listed else None,
        "created": listed.created if listed else None,
    }


def _line(item: Found, best: int | None) -> str:
    marks = f"{'  pinned' if item.pinned else ''}{'  best' if item.step == best else ''}"
    if item.manifest is None:
        return f"step {item.step:>8}  DAMAGED: {item.problem}{marks}"
    loss = "-" if item.manifest.loss is None else f"{item.manifest.loss:.4f}"
    if item.manifest.validation:
        loss += f"  validation {item.manifest.validation[0]:.4f}"
    size = f"{item.manifest.bytes / 1e6:.1f} MB"
    return f"step {item.step:>8}  epoch {item.manifest.epoch:>5}  loss {loss}  {size:>10}{marks}"
