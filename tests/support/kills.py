"""Runs that are killed again and again and restarted each time, compared with one that was left alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support import tiny
from tests.support.faults import SAVING, Fault, FileCalls
from tests.support.forked_trainer import Server
from tests.support.runs_at_tiny_size import (
    assert_bit_equal,
    config_for,
    events_of,
    exported_tensors_of,
    run,
    steps_of,
    temporary_in,
    tensors_of,
)
from trainer.options.config import Config
from trainer.runs import manifest, run_folder
from trainer.runs.events import read_events
from trainer.runs.run_folder import RunFolder

KILLED = -9
MOST_KILLS_OF_A_RUN = 6

# Between them: every kind of file that a session writes, and pruning after nearly every save.
KINDS: dict[str, dict[str, Any]] = {
    "a save every step": {"keep_last_n_checkpoints": 2},
    "everything that can be saved": {
        "save_every_n_steps": 2,
        "keep_last_n_checkpoints": 1,
        "save_every_n_epochs": 1,
        "save_last_n_steps": 3,
        "network_dropout": 0.2,
        "use_ema": True,
        **tiny.CACHED,
        "sample_prompts": "a thing --s 2 --w 64 --h 64",
        "sample_every_n_steps": 3,
    },
}


@dataclass(frozen=True)
class Straight:
    """A run that nobody disturbed."""

    config: Config
    steps: dict[int, tuple[Any, ...]]
    tensors: dict[str, torch.Tensor]
    exported: dict[str, torch.Tensor]
    seconds: float  # how long it took, to know when a kill may hit something
    calls: int  # to the disk
    calls_of_a_save: int


def train_straight(trainers: Server, model: Path, images: Path, output: Path, **options: Any) -> Straight:
    """A run in this process, whose calls are counted, and one in a process like those that will be killed."""
    config = config_for(model, images, output, **options)
    threads: list[str] = []
    with FileCalls(lambda call: threads.append(threading.current_thread().name), thread=""):
        assert run(config) == "finished"
    trainers.wait_until_ready()
    started = time.perf_counter()
    forked = config.replace(output_dir=f"{output}-forked")
    assert trainers.train(forked) == 0
    seconds = time.perf_counter() - started
    assert_bit_equal(tensors_of(forked), tensors_of(config))
    saving = sum(thread.startswith(SAVING) for thread in threads)
    return Straight(
        config=config,
        steps=steps_of(config),
        tensors=tensors_of(config),
        exported=exported_tensors_of(config),
        seconds=seconds,
        calls=len(threads),
        calls_of_a_save=saving // len(events_of(config, "checkpoint_saved")),
    )


@dataclass
class Tally:
    """What the kills amounted to."""

    kills: int = 0
    in_saves: int = 0
    runs: int = 0
    resumes: int = 0
    fresh_starts: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.in_saves} of them in a save, in {self.runs} runs; "
            f"{self.resumes} resumes, {self.fresh_starts} starts without a checkpoint"
        )


def in_a_save(straight: Straight, draw: random.Random) -> Fault:
    """Death at a random call to the disk during one of the first two saves of a session."""
    return Fault("file call", draw.randint(1, 2 * straight.calls_of_a_save), half=draw.random() < 0.5, thread=SAVING)


def at_any_file(straight: Straight, draw: random.Random) -> Fault:
    """Death at a random call to the disk, on any thread."""
    return Fault("file call", draw.randint(1, straight.calls), half=draw.random() < 0.5)


def sound_steps(config: Config) -> list[int]:
    """The steps of the run's checkpoints, newest first; all of them have to verify."""
    found = manifest.listing(RunFolder(config.run_dir).checkpoints, thorough=True)
    assert [(item.path.name, item.problem) for item in found if item.problem] == []
    return [item.step for item in found]


def unreadable_lines(config: Config) -> int:
    lines = [line for line in RunFolder(config.run_dir).events_file.read_bytes().splitlines() if line]
    return len(lines) - len(read_events(RunFolder(config.run_dir).events_file)[0])


def resumable(config: Config, tally: Tally) -> Config:
    """The config of the next session: one command that begins, and resumes wherever there is a checkpoint."""
    sound = sound_steps(config)
    reported = [event["global_step"] for event in events_of(config, "checkpoint_saved")]
    assert not reported or (sound and sound[0] >= reported[-1]), "a checkpoint that was reported is gone"
    tally.resumes += bool(sound)
    tally.fresh_starts += not sound
    return config.replace(resume_from_checkpoint="auto")


def check_continued(config: Config, offset: int, newest: int | None) -> None:
    """The session whose events begin at `offset` went on from the newest checkpoint there was, if it got so far."""
    events, _ = read_events(RunFolder(config.run_dir).events_file, offset)
    resumed = [(event["step"], event["grade"]) for event in events if event["event"] == "resumed"]
    steps = [event["global_step"] for event in events if event["event"] == "step"]
    if newest is None:
        assert resumed == []
    else:
        assert resumed in ([], [(newest, "bit-exact")])
        assert steps == [] or (resumed and steps[0] == newest + 1)


def train_through_kills(
    trainers: Server, straight: Straight, output: Path, draw: random.Random, kills: int, tally: Tally
) -> None:
    """A run that is killed `kills` times, or as often as it does not finish before; then compared."""
    config = straight.config.replace(output_dir=str(output))
    code: int | None = None
    killed = 0
    while code != 0:
        config = resumable(config, tally)
        newest = next(iter(sound_steps(config)), None)
        _, offset = read_events(RunFolder(config.run_dir).events_file)
        how: Callable[[Straight, random.Random], Fault] | None = None
        if killed == kills:
            code = trainers.train(config)
            assert code == 0, (output / "printed.txt").read_text()[-3000:]
        else:
            # Every second kill is in a save; of the others every second is at a moment, or at a file.
            how = in_a_save if tally.in_saves * 2 <= tally.kills else draw.choice([at_any_file, None])
            trainer = trainers.start(config, how(straight, draw) if how else None)
            if how is None:
                time.sleep(draw.uniform(0, straight.seconds))
                trainer.kill()
            code = trainer.wait()
            assert code in (0, KILLED), trainer.printed[-3000:]
        if code == KILLED:
            killed += 1
            tally.kills += 1
            tally.in_saves += how is in_a_save
        check_continued(config, offset, newest)
    tally.runs += 1

    assert steps_of(config) == straight.steps
    assert_bit_equal(tensors_of(config), straight.tensors)
    assert_bit_equal(exported_tensors_of(config), straight.exported)
    # Also the one resumed from, and one more if death came between the last save and its pruning.
    assert len(sound_steps(config)) <= straight.config.keep_last_n_checkpoints + 2
    assert [path for path in temporary_in(output) if not path.startswith(".cache")] == []
    assert unreadable_lines(config) <= killed
    assert run_folder.status(RunFolder(config.run_dir)) == "finished"
