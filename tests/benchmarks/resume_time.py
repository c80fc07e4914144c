"""Start to first step of a resume at step 1,000,000, of one at step 10 and of a fresh run, by the real command.

    python -m tests.benchmarks.resume_time [--rounds 5]

They take turns. Target: the two resumes equal within the noise, since nothing is replayed; against a fresh start a
resume verifies and loads a checkpoint and computes the probe loss twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import tiny
from trainer import files
from trainer.runs import manifest
from trainer.runs.events import read_events

FRESH, EARLY, LATE = 0, 10, 1_000_000  # steps completed before


def train(folder: Path, output: Path, *options: str) -> None:
    command = [
        *(sys.executable, "-m", "trainer", "train", "--config", str(folder / "preset.toml")),
        *("--output_dir", str(output), *options),
    ]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def age(checkpoints: Path) -> None:
    """Make the checkpoint at EARLY one at LATE, as if the run had come that far."""
    folder = checkpoints / manifest.folder_name(EARLY)
    target = checkpoints / manifest.folder_name(LATE)
    shutil.copytree(folder, target)
    old = manifest.read(target)
    (target / manifest.MANIFEST).unlink()
    state = json.loads((target / "state.json").read_text())
    files.write_bytes(target / "state.json", files.json_bytes({**state, "global_step": LATE}))
    listing = manifest.compose(target, LATE, old.run_id, old.created, old.epoch, old.loss)
    files.write_bytes(target / manifest.MANIFEST, listing)


def seconds_to_first_step(folder: Path, source: Path, step: int, number: int) -> float:
    output = folder / f"begun-{step}-{number}"
    resume = ("--resume_from_checkpoint", str(step)) if step else ()
    if step:
        shutil.copytree(source, output)
    else:  # what the other two have as well
        shutil.copytree(source / ".cache", output / ".cache")
    started = time.time()
    train(folder, output, *resume, "--max_train_steps", str(step + 1))
    events, _ = read_events(output / "run" / "events.jsonl")
    shutil.rmtree(output)
    return (
        next(event["time"] for event in events if event["event"] == "step" and event["global_step"] == step + 1)
        - started
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.make_model(folder / "model")
        tiny.make_images(folder / "images", count=50, repeats=4)
        (folder / "preset.toml").write_text(
            f'pretrained_model_name_or_path = "{folder / "model"}"\ntrain_data_dir = "{folder / "images"}"\n'
            'output_name = "run"\nresolution = 64\nnetwork_dim = 4\nmax_train_steps = 10\n'
        )
        source = folder / "source"
        train(folder, source)
        age(source / "run" / "checkpoints")
        times: dict[int, list[float]] = {FRESH: [], EARLY: [], LATE: []}
        for number in range(arguments.rounds):
            for step in list(times)[:: 1 if number % 2 else -1]:
                times[step].append(seconds_to_first_step(folder, source, step, number))
    for step, seconds in times.items():
        median = statistics.median(seconds)
        what = f"resumed at step {step:,}" if step else "begun afresh"
        print(f"{what:>25}: median {median:.2f} s, {min(seconds):.2f} to {max(seconds):.2f} s")
    medians = {step: statistics.median(seconds) for step, seconds in times.items()}
    print(f"late against early: {medians[LATE] / medians[EARLY]:.3f}")
    print(f"early against fresh: {medians[EARLY] / medians[FRESH]:.3f}")


if __name__ == "__main__":
    main()
