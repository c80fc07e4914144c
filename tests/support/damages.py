"""Ways in which a checkpoint can be damaged, and a small run to try them on."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.runs_at_tiny_size import config_for, run
from trainer import files
from trainer.checkpoints import choosing
from trainer.options.config import Config
from trainer.runs import manifest
from trainer.runs.manifest import MANIFEST, CheckpointDamaged
from trainer.runs.run_folder import RunFolder

STEPS = 4
FILES = (
    "weights.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "state.json",
    "config.toml",
    "dataset.json",
    "environment.json",
    MANIFEST,
)


@dataclass(frozen=True)
class Sound:
    """A finished run with a checkpoint at each step, and another run to take files from."""

    config: Config
    other: Config

    def copy(self, output: Path) -> Config:
        shutil.copytree(self.config.run_dir / "checkpoints", output / "run" / "checkpoints")
        return self.config.replace(output_dir=str(output), resume_from_checkpoint="latest")


def checkpoint_of(config: Config, step: int = STEPS) -> Path:
    return RunFolder(config.run_dir).checkpoints / manifest.folder_name(step)


def train_sound(model: Path, images: Path, output: Path) -> Sound:
    config = config_for(model, images, output / "one", max_train_steps=STEPS, use_ema=True)
    other = config.replace(output_dir=str(output / "other"), seed=1, keep_tokens=1)
    run(config)
    run(other)
    return Sound(config, other)


# --- damages of one file -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Victim:
    """A file of a checkpoint, with the same file of another step and of another run."""

    path: Path
    other_step: Path
    other_run: Path
    draw: random.Random

    @property
    def header(self) -> int:
        """How many bytes the header has: of a document, its first quarter."""
        data = self.path.read_bytes()
        return 8 + int.from_bytes(data[:8], "little") if self.path.suffix == ".safetensors" else len(data) // 4

    def flip(self, first: int, last: int) -> None:
        data = bytearray(self.path.read_bytes())
        data[self.draw.randrange(first, last)] ^= 1 << self.draw.randrange(8)
        self.path.write_bytes(data)


def _flip_header(file: Victim) -> None:
    file.flip(0, file.header)


def _flip_body(file: Victim) -> None:
    file.flip(file.header, file.path.stat().st_size)


def _cut_short(file: Victim) -> None:
    data = file.path.read_bytes()
    file.path.write_bytes(data[: file.draw.randrange(1, len(data))])


def _lengthen(file: Victim) -> None:
    file.path.write_bytes(file.path.read_bytes() + file.draw.randbytes(file.draw.randint(1, 64)))


def _zero_tail(file: Victim) -> None:
    """As if the length had reached the disk and the end of the content had not."""
    data = file.path.read_bytes()
    last = int(np.flatnonzero(np.frombuffer(data, np.uint8))[-1])  # a tail that was zeros before is no damage
    kept = file.draw.randint(0, last)
    file.path.write_bytes(data[:kept] + bytes(len(data) - kept))


def _remove(file: Victim) -> None:
    file.path.unlink()


def _empty(file: Victim) -> None:
    file.path.write_bytes(b"")


def _take_other_steps(file: Victim) -> None:
    shutil.copyfile(file.other_step, file.path)


def _take_other_runs(file: Victim) -> None:
    shutil.copyfile(file.other_run, file.path)


def _make_folder(file: Victim) -> None:
    file.path.unlink()
    file.path.mkdir()


def _make_link(file: Victim) -> None:
    """To the right content, but in another place, where it may change."""
    elsewhere = file.path.parent.with_name(f"{file.path.name}.elsewhere")
    file.path.rename(elsewhere)
    file.path.symlink_to(elsewhere)


OF_A_FILE: dict[str, Callable[[Victim], None]] = {
    "a bit of the header flipped": _flip_header,
    "a bit of the body flipped": _flip_body,
    "cut short": _cut_short,
    "lengthened": _lengthen,
    "its tail zeroed": _zero_tail,
    "removed": _remove,
    "emptied": _empty,
    "another step's": _take_other_steps,
    "another run's": _take_other_runs,
    "a folder": _make_folder,
    "a link": _make_link,
}
# Files that are the same at every step of a run, and in every run on a machine: to swap them is no damage.
SAME = {
    "another step's": ("config.toml", "dataset.json", "environment.json"),
    "another run's": ("environment.json",),
}
DAMAGES = [(file, kind) for file in FILES for kind in OF_A_FILE if file not in SAME.get(kind, ())]


def damage(sound: Sound, config: Config, file: str, kind: str, draw: random.Random) -> Path:
    """Damage a file of the run's newest checkpoint; returns the checkpoint."""
    checkpoint = checkpoint_of(config)
    OF_A_FILE[kind](
        Victim(
            path=checkpoint / file,
            other_step=checkpoint_of(sound.config, draw.randint(1, STEPS - 1)) / file,
            other_run=checkpoint_of(sound.other) / file,
            draw=draw,
        )
    )
    return checkpoint


def check_refused(config: Config, file: str) -> str:
    """The newest checkpoint is refused with the file named, and the one before it is the latest; returns the reason."""
    checkpoint = checkpoint_of(config)
    try:
        manifest.verify(checkpoint)
    except CheckpointDamaged as error:
        reason = str(error)
    else:
        raise AssertionError(f"{checkpoint} verifies")
    # A manifest that is sound in itself belongs to another step, or does not fit the files.
    assert file in reason or (file == MANIFEST and ("of step" in reason or any(name in reason for name in FILES)))
    chosen = choosing.choose(config)
    assert chosen.path == checkpoint_of(config, STEPS - 1)
    assert chosen.rejected == ((checkpoint, reason),)
    return reason


def content_of(folder: Path) -> dict[str, str]:
    """Every file below a folder and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "-"
        for path in sorted(folder.rglob("*"))
    }


def rewrite_manifest(checkpoint: Path, **changes: object) -> None:
    """Change entries of the manifest and give it the digest that goes with them."""
    body = json.loads((checkpoint / MANIFEST).read_bytes())
    body.pop("digest")
    body |= changes
    digest = hashlib.sha256(files.json_bytes(body)).hexdigest()
    (checkpoint / MANIFEST).write_bytes(files.json_bytes({**body, "digest": digest}))
