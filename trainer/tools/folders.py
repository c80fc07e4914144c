"""A model's folder written anew: what is not weights as it is, and whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from trainer import files
from trainer.tools.tensors import TensorSource, refuse_existing


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which gets the target's name once the block has ended without an error.

    Raises Refused where the target is there.
    """
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                files.fsync_file(path)
        temporary.chmod(0o777 & files.usual_mode() | 0o111)
        refuse_existing(target)
        files.rename(temporary, target)
        files.fsync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(
    model: Path, target: Path, sources: Mapping[Path, TensorSource], write_one: Callable[[TensorSource, Path], None]
) -> None:
    """Write a model, file or folder, to another place: the weights of `sources` by `write_one(source, place)`, and what
    else a folder has as it is."""
    if model.is_file():
        refuse_existing(target)
        write_one(sources[model], target)
        return
    with new_folder(target) as temporary:
        for path in sorted(model.rglob("*")):
            place = temporary / path.relative_to(model)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            elif path in sources:
                write_one(sources[path], place)
            else:
                shutil.copyfile(path, place)
