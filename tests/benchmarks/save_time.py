"""How long a save holds the training up against one clone of the state, and how fast it writes and verifies.

    python -m tests.benchmarks.save_time [--rounds 9] [--megabytes 1,50,500] [--steps 120]

Targets: blocking at most 1.3 clones; the median step after saves at most 1.05 of that before the first one.

The clone is of the same tensors, in turns with the saves, in one process. Then, what work like a training's (matrix
products) takes while a save is being written against the same work without one. At last the demo is trained with a
save at every quarter of its steps: those before the first save, beside the writing of one and after it are compared,
in one run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from trainer.checkpoints.checkpoint import Contents, Save, Saved, Writer
from trainer.runs import manifest
from trainer.runs.events import read_events

MEGABYTES = "1,50,500"
WORK = 256  # side of the matrices that are multiplied
WARM_UP = 5  # steps that are not counted
ROOT = Path(__file__).parents[2]


def state_of(megabytes: int) -> Contents:
    """Weights and two moments like a LoRA's: many small matrices."""
    count = max(2, megabytes * 1_000_000 // (3 * 4 * 16 * 640))
    group = {f"layer{number}.weight": torch.randn(16, 640) for number in range(count)}
    moments = {f"{name}/{kind}": torch.randn(16, 640) for name in group for kind in ("exp_avg", "exp_avg_sq")}
    documents = dict.fromkeys(("dataset.json", "environment.json"), b'{"version": 1}')
    return Contents(group, moments, {}, {"version": 1}, documents, "")


def plain_write(path: Path, size: int) -> float:
    data = os.urandom(1 << 20) * (size >> 20 or 1)
    started = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return len(data) / seconds


def measure(megabytes: int, rounds: int) -> str:
    contents = state_of(megabytes)
    size = contents.tensor_bytes
    done: list[Saved] = []
    blocking, clones, plain, verify = [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = Writer(done.append)
        for step in range(rounds):
            started = time.perf_counter()
            copies = [tensor.clone() for group in (contents.weights, contents.optimizer) for tensor in group.values()]
            clones.append(time.perf_counter() - started)
            del copies
            blocking.append(writer.save(Save(folder, step, 0, None, "run", contents)))
            writer.wait()
            started = time.perf_counter()
            manifest.verify(folder / manifest.folder_name(step))
            verify.append(size / (time.perf_counter() - started))
            plain.append(plain_write(folder / "plain", size))
            manifest.delete(folder / manifest.folder_name(step))
        writer.close()
    median = statistics.median
    written = median(size / saved.write_seconds for saved in done)
    return (
        f"{size / 1e6:6.1f} MB: blocking {median(blocking[1:]) * 1e3:8.2f} ms = "
        f"{median(blocking[1:]) / median(clones[1:]):.2f} clones (first save {blocking[0] / median(clones):.2f}); "
        f"written and re-read at {written / 1e6:.0f} MB/s, plain write with fsync {median(plain) / 1e6:.0f} MB/s; "
        f"verified at {median(verify) / 1e6:.0f} MB/s"
    )


def work() -> float:
    """Seconds of a piece of work: matrix products, as most of a step is."""
    matrix = torch.ones(WORK, WORK)
    started = time.perf_counter()
    for _ in range(4):
        matrix = (matrix @ matrix) / WORK
    return time.perf_counter() - started


def measure_beside(megabytes: int, rounds: int) -> str:
    """How much longer work takes while a save is written."""
    contents = state_of(megabytes)
    alone, beside = [], []
    with tempfile.TemporaryDirectory() as name:
        folder, done = Path(name), threading.Event()
        writer = Writer(lambda saved: done.set())
        for step in range(rounds):
            alone += [work() for _ in range(20)]
            done.clear()
            writer.save(Save(folder, step, 0, None, "run", contents))
            while not done.is_set():
                beside.append(work())
            writer.wait()
            manifest.delete(folder / manifest.folder_name(step))
        writer.close()
    ratio = statistics.mean(beside) / statistics.mean(alone)
    return f"{contents.tensor_bytes / 1e6:6.1f} MB: work takes {ratio:.2f} of its usual time while a save is written"


def measure_training(steps: int) -> str:
    """Seconds of a step before the first save, beside the writing of one, and after it, in one training of the demo."""
    every = steps // 4
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "trainer", "train", "--config", "presets/demo.toml", "--output_dir", folder),
                *("--max_train_steps", str(steps), "--save_every_n_steps", str(every), "--save_every_n_minutes", "0"),
                *("--sample_every_n_steps", "0", "--no-sample_at_first"),
            ],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
            check=True,
            capture_output=True,
        )
        events, _ = read_events(Path(folder) / "zorb" / "events.jsonl")
    seconds = {event["global_step"]: event["step_seconds"] for event in events if event["event"] == "step"}
    saved = {event["global_step"]: event["write_seconds"] for event in events if event["event"] == "checkpoint_saved"}
    beside: set[int] = set()
    for step, writing in saved.items():
        for place, passed in enumerate(itertools.accumulate(seconds[after] for after in range(step + 1, steps + 1))):
            beside.add(step + 1 + place)
            if passed > writing:
                break
    median = statistics.median
    before = median(seconds[step] for step in range(WARM_UP + 1, every + 1))
    after = median(seconds[step] for step in range(every + 1, steps + 1) if step not in beside)
    writing = median(seconds[step] for step in beside)
    return (
        f"the demo: a step takes {before:.3f} s before the first save, {writing:.3f} s beside one "
        f"({len(beside)} steps) and {after:.3f} s after it: {after / before:.2f} of before"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", default=MEGABYTES, help="sizes of the state, comma-separated")
    parser.add_argument("--steps", type=int, default=120, help="steps of the demo; 0 leaves it out")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.megabytes.split(",")]
    for megabytes in sizes:
        print(measure(megabytes, arguments.rounds), flush=True)
    for megabytes in sizes:
        print(measure_beside(megabytes, arguments.rounds), flush=True)
    if arguments.steps:
        print(measure_training(arguments.steps), flush=True)


if __name__ == "__main__":
    main()
