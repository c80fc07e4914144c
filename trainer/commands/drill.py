"""The user's own proof: his preset, on his machine, interrupted and resumed, compared with a straight run.

No torch here; the training is done by the real command in processes of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import quantities
from trainer.checkpoints import preflight
from trainer.options.config import Config
from trainer.options.problems import ConfigError
from trainer.options.writing import to_toml
from trainer.refusal import Refused
from trainer.runs import manifest, on_finish
from trainer.runs.events import read_events
from trainer.runs.run_folder import RunFolder

EQUAL, DIFFERENT, REFUSED, STOPPED = 0, 1, 3, 4
VERDICTS = {EQUAL: "passed", DIFFERENT: "failed", REFUSED: "refused", STOPPED: "stopped"}
STAGES = 3
COMPARED = ("batch", "loss", "lr", "grad_norm")
LOG_END = 2000  # characters of a failed training's log that are shown
KILL_WAIT = 3600.0  # seconds for the process to come to where it is killed


class DrillFailed(Exception):
    """A training of the drill ended otherwise than it should; the message has the end of its log."""


@dataclass(frozen=True)
class Outcome:
    """What the drill found. `first_difference`: (step, what), None where everything was equal."""

    steps: int
    killed_after: int
    resumed_at: int
    grade: str
    first_difference: tuple[int, str] | None
    different_files: tuple[str, ...]
    checkpoint_bytes: int
    blocking_seconds: float
    write_seconds: float
    step_seconds: float
    first_step_seconds: float  # from the start of the resumed process
    peak_memory: int  # bytes: of the GPU, or of the process where there is none

    @property
    def equal(self) -> bool:
        return self.first_difference is None and not self.different_files

    def lines(self) -> list[str]:
        """For people: the verdict first."""
        if self.equal:
            verdict = "PASSED: the resumed run is bit-equal to the one that was never interrupted."
        elif self.first_difference:
            step, what = self.first_difference
            verdict = f"FAILED: from step {step} on, {what} differs. Resumes are not exact with these settings here."
        else:
            verdict = f"FAILED: the losses are equal, but {', '.join(self.different_files)} differ."
        return [
            verdict,
            f"{self.steps} steps; killed after step {self.killed_after}, resumed at step {self.resumed_at} "
            f"({self.grade}); losses, learning rates, gradient norms, images, captions and timesteps compared, then "
            "the weights and the optimizer bit for bit",
            f"a checkpoint takes {self.checkpoint_bytes / 1e6:.1f} MB; saving it holds the training up for "
            f"{self.blocking_seconds * 1e3:.0f} ms and is written in {self.write_seconds:.1f} s beside it; "
            f"a step takes {self.step_seconds:.2f} s; from start to first resumed step "
            f"{self.first_step_seconds:.1f} s; {quantities.size(self.peak_memory)} of memory at the peak",
        ]


def declare(command: str, parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--config", required=True, help="a preset")
    parser.add_argument("--steps", type=int, default=8, help="steps of the rehearsal (4 or more)")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON for programs: the stages as lines on standard error, the verdict and its figures at the end",
    )


def run(arguments: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Do the drill that was asked for; returns the exit code."""
    return rehearse(arguments.config, rest, steps=arguments.steps, as_json=arguments.json)


def rehearse(preset: str, rest: Sequence[str], *, steps: int, as_json: bool = False) -> int:
    """Do the drill and print its verdict; returns the exit code: 0 equal, 1 different or failed, 3 refused, 4 stopped.

    `as_json`: one JSON object on standard output at the end, and one on standard error as each stage begins.
    """

    def announce(stage: int, doing: str) -> None:
        if as_json:
            print(json.dumps({"stage": stage, "of": STAGES, "doing": doing}), file=sys.stderr, flush=True)
        else:
            print(f"{doing} ...", flush=True)

    def end(code: int, lines: list[str], **more: Any) -> int:
        verdict = {"version": 1, "verdict": VERDICTS[code], "lines": lines, **more}
        print(json.dumps(verdict) if as_json else "\n".join(lines), flush=True)
        return code

    try:
        config = preflight.read_options(preset, rest)[0]
        if steps < 4:
            raise ConfigError([])
    except ConfigError as error:
        return end(REFUSED, [f"Refused: {problem}" for problem in error.problems or ("--steps must be 4 or more",)])
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".drill-{config.output_name}-", dir=config.output_dir))
    try:
        outcome = compare(config, folder, steps, announce)
    except Refused as refusal:
        return end(REFUSED, [f"Refused: {line}" for line in str(refusal).splitlines()])
    except DrillFailed as failure:
        return end(DIFFERENT, [f"FAILED: {failure}"])
    except KeyboardInterrupt:
        return end(STOPPED, ["The drill was stopped before its verdict."])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return end(EQUAL if outcome.equal else DIFFERENT, outcome.lines(), outcome=dataclasses.asdict(outcome))


def rehearsal_of(config: Config, folder: Path, steps: int) -> Config:
    """The preset's training, only shorter and in `folder`, without what else saves, samples, ends or resumes it."""
    return config.replace(
        output_dir=str(folder),
        output_name="straight",
        cache_dir=str(config.cache_path),
        max_train_steps=steps,
        max_train_epochs=None,
        early_stopping_patience=0,
        resume_from_checkpoint="",
        resume_allow=(),
        resume_lr_policy="keep",
        resume_lr_scale=1.0,
        resume_warmup_steps=0,
        resume_lr_decision="",
        overwrite_run=False,
        cache_only=False,
        save_state=True,
        save_every_n_steps=0,
        save_every_n_epochs=0,
        save_every_n_minutes=0.0,
        sample_every_n_steps=0,
        sample_every_n_epochs=0,
        sample_at_first=False,
        sample_at_resume=False,
        max_rollbacks=0,
    )


def compare(config: Config, folder: Path, steps: int, announce: Callable[[int, str], None]) -> Outcome:
    """Train straight, then with a kill and a resume, in `folder`. Raises Refused or DrillFailed.

    `announce`: is called with the number of each stage, from 1, and what it does.
    """
    middle = steps // 2
    rehearsal = rehearsal_of(config, folder, steps)
    announce(1, f"Training {steps} steps straight")
    train(rehearsal, folder)
    killed = rehearsal.replace(output_name="interrupted", save_every_n_steps=middle)
    announce(2, f"Training again, to be killed after step {middle} is saved")
    killed_after = train_and_kill(killed, folder, middle)
    announce(3, "Resuming")
    started = time.time()
    train(killed.replace(resume_from_checkpoint="latest"), folder)
    return judge(rehearsal, killed, steps, killed_after, started)


def command(config: Config, folder: Path) -> list[str]:
    preset = folder / f"{config.output_name}.toml"
    preset.write_text(to_toml(config), encoding="utf-8")
    return [sys.executable, "-m", "trainer", "train", "--config", str(preset), "--json"]


def train(config: Config, folder: Path) -> None:
    """Train to the end. Raises Refused, and DrillFailed where it ended before."""
    quiet = on_finish.silenced()
    done = subprocess.run(
        command(config, folder), env=quiet, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode == 0:
        return
    try:
        end = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):  # it was killed, or did not even begin
        log = done.stderr[-LOG_END:]
        raise DrillFailed(f"the training ended with code {done.returncode} and no word; its log:\n{log}") from None
    reasons = "\n".join(end["reasons"])
    if end["ended"] == "refused":
        raise Refused(reasons)
    raise DrillFailed(f"the training {end['ended']}: {reasons}\n{done.stderr[-LOG_END:]}")


def train_and_kill(config: Config, folder: Path, middle: int) -> int:
    """Start a training and SIGKILL it once its checkpoint is saved; returns the last step it recorded."""
    process = subprocess.Popen(
        command(config, folder), env=on_finish.silenced(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + KILL_WAIT
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if any(event["event"] == "checkpoint_saved" for event in events_of(config)):
                break
            time.sleep(0.05)  # each look takes time from the training
    finally:
        process.kill()
        process.wait()
    done = [event["global_step"] for event in events_of(config) if event["event"] == "step"]
    if not manifest.listing(RunFolder(config.run_dir).checkpoints):
        raise DrillFailed(f"no checkpoint of step {middle} was saved before the process ended")
    return max(done, default=0)


def events_of(config: Config) -> list[dict[str, Any]]:
    return read_events(RunFolder(config.run_dir).events_file)[0]


def judge(straight: Config, resumed: Config, steps: int, killed_after: int, started: float) -> Outcome:
    """Compare every step and every file of the two last checkpoints."""
    events = events_of(resumed)
    expected = {event["global_step"]: event for event in events_of(straight) if event["event"] == "step"}
    result = {event["global_step"]: event for event in events if event["event"] == "step"}
    resumption = next((event for event in events if event["event"] == "resumed"), None)
    if resumption is None:
        raise DrillFailed("the run was complete before it could be killed; use more --steps")
    difference = next(
        (
            (step, name)
            for step in range(1, steps + 1)
            for name in COMPARED
            if expected.get(step, {}).get(name) != result.get(step, {}).get(name)
        ),
        None,
    )
    last = manifest.folder_name(steps)
    left, right = (manifest.verify(RunFolder(config.run_dir).checkpoints / last) for config in (straight, resumed))
    tensors = sorted(name for name in left.files.keys() | right.files.keys() if name.endswith(".safetensors"))
    saved = next(event for event in events if event["event"] == "checkpoint_saved")
    after = [event for event in events if event["event"] == "step" and event["time"] > started]
    seconds = sorted(event["step_seconds"] for event in expected.values())
    return Outcome(
        steps=steps,
        killed_after=killed_after,
        resumed_at=resumption["step"],
        grade=resumption["grade"],
        first_difference=difference,
        different_files=tuple(name for name in tensors if left.files.get(name) != right.files.get(name)),
        checkpoint_bytes=saved["bytes"],
        blocking_seconds=saved["blocking_seconds"] + saved.get("probe_seconds", 0.0),
        write_seconds=saved["write_seconds"],
        step_seconds=seconds[len(seconds) // 2],
        first_step_seconds=after[0]["time"] - started,
        peak_memory=max(int(event["memory"]) for event in (*expected.values(), *after)),
    )
