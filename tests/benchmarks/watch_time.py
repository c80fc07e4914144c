"""What watching costs a step: the alarms by themselves, and whole runs with all of it on against off.

    python -m tests.benchmarks.watch_time [--rounds 5] [--steps 12]

Times are the training thread's own CPU seconds, which other programs on the machine do not stretch. Target: at most
1 %.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState

from tests.benchmarks.step_time import SIDE, make_model
from tests.support import tiny
from trainer.options.config import Config
from trainer.options.sections.watching import Watching
from trainer.recipe.alarms import StepAlarms
from trainer.recipe.conditions import Throughput
from trainer.runs.signals import StopSignals
from trainer.training import loop


def alarms_alone(steps: int) -> float:
    """CPU seconds of one step's alarms."""
    draw = np.random.default_rng(0)
    losses = np.exp(draw.normal(-2, 0.5, steps)).tolist()
    watch, speed = StepAlarms(Watching(), total_steps=steps), Throughput(Watching())
    began = time.thread_time()
    for step, loss in enumerate(losses, 1):
        watch.after(step, loss, 1.0, 1e-4)
        speed.add(1.0, 0.0)
    return (time.thread_time() - began) / steps


def run(config: Config) -> float:
    """CPU seconds of the training thread in a run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    began = time.thread_time()
    with StopSignals() as signals:
        loop.train(config, signals)
    return time.thread_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    print(f"alarms alone: {1e6 * alarms_alone(100_000):.1f} microseconds a step", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = Config(
            pretrained_model_name_or_path=str(make_model(folder / "model")),
            train_data_dir=str(tiny.make_images(folder / "images", count=8, sizes=((SIDE * 8, SIDE * 8),))),
            output_dir=str(folder),
            resolution=str(SIDE * 8),
            network_dim=16,
            train_batch_size=2,
            max_train_steps=arguments.steps,
            alarm_window=10,
        )
        off = {"alarms": False, "resources_every_n_seconds": 0.0}
        on = {"resources_every_n_seconds": 1.0, "max_gpu_temperature": 90}
        differences = []
        for number in range(arguments.rounds):
            without = run(config.replace(output_name=f"off{number}", **off))
            watched = run(config.replace(output_name=f"on{number}", **on))
            differences.append(watched / without - 1)
            print(f"round {number + 1}: off {without:.2f} s, on {watched:.2f} s", flush=True)
    print(f"watching costs {100 * statistics.median(differences):+.2f} % (median of {arguments.rounds} rounds)")


if __name__ == "__main__":
    main()
