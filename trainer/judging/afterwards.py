"""Sample images of checkpoints and model files whose training is over, beside those it made itself."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.judging.subjects import Painter, Subject
from trainer.recipe import prompts as prompt_files
from trainer.recipe.prompts import Prompt
from trainer.refusal import Refused
from trainer.runs import branches, run_folder
from trainer.runs.events import EventWriter
from trainer.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Wanted:
    """A sample image: what shows its weights and its prompt, and the file it is or will be."""

    subject: Subject
    step: int | None
    prompt: Prompt
    index: int
    path: Path
    run: RunFolder | None  # among whose samples it is told; None for a folder that no run has


def wanted(subject: Subject, asked: str, folder: Path | None) -> list[Wanted]:
    """The sample images of a subject: of the prompts `asked` for (lines, or a file), or else of its own options.

    They go to `folder`, or else to the run's samples; a file's name stands for weights and prompt, so that what is
    there need not be made again. Raises Refused, ConfigError being one.
    """
    config = subject.config.replace(sample_prompts=asked or subject.config.sample_prompts)
    prompts = prompt_files.read(config)
    if not prompts:
        raise Refused(f"{subject.path} was trained without sample_prompts; give --prompts")
    run, step = None, _step(subject)
    if folder is None and subject.run is not None and step is not None and _is_own(subject, step):
        if run_folder.status(subject.run) == "running":
            raise Refused(
                f"{subject.run.path.name} is being trained; ask it for samples (Sample now), or give --output FOLDER"
            )
        run = subject.run
    target = folder or (run.samples if run else subject.results / "samples")
    begin = f"step{step:08d}" if step is not None else subject.name
    settled = [subject.digest, config.pretrained_model_name_or_path, config.mixed_precision, config.sample_sampler]
    return [
        Wanted(
            subject, step, prompt, index,
            target / f"{begin}-{index:02d}-{prompt.seed}-{files.digest([*settled, repr(prompt)])[:8]}.png", run,
        )
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip


def _is_own(subject: Subject, step: int) -> bool:
    """Whether its weights are of the run as it is now, and not of a branch that was left behind."""
    assert subject.run is not None
    return not subject.is_checkpoint or branches.is_own(subject.run, subject.path, step)


def _step(subject: Subject) -> int | None:
    """The step of its weights; that of a run's result is in its header."""
    if subject.step is not None or subject.is_checkpoint:
        return subject.step
    with contextlib.suppress(OSError, ValueError, KeyError), subject.path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 100 << 20)))
        return int(header["__metadata__"]["ss_steps"])
    return None


def make(painter: Painter, missing: Sequence[Wanted]) -> Iterator[Wanted]:
    """Make the sample images, each written whole before it comes. Those of one subject are to follow one another, so
    that its weights are loaded once. Raises Refused and OSError."""
    for subject in dict.fromkeys(item.subject for item in missing):
        its = [item for item in missing if item.subject is subject]
        with contextlib.closing(painter.pictures(subject, [item.prompt for item in its])) as made:
            for item, picture in zip(its, made, strict=True):
                data = io.BytesIO()
                picture.save(data, "PNG")
                item.path.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(item.path, data.getvalue())
                if item.run is not None:
                    _tell(item, item.run)
                yield item


def _tell(item: Wanted, run: RunFolder) -> None:
    """The run's event of it, like that of a sample made during the training."""
    path, prompt = item.path.relative_to(run.path).as_posix(), item.prompt
    EventWriter(run.events_file).write(
        "sample_saved", item.step or 0, path=path, prompt=prompt.text, index=item.index, seed=prompt.seed
    )
