"""Seconds from the start of the command to its first word, to a refusal, and to each word of a start that goes well.

    python -m tests.benchmarks.start_time [--rounds 3]

Targets: the first word within a second, a wrong option refused within two.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def lines_of(*options: str) -> list[tuple[float, str]]:
    """(seconds since the start, line) of everything that a training of the demo prints."""
    command = [sys.executable, "-u", "-m", "trainer", "train", "--config", "presets/demo.toml", *options]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        return [(time.perf_counter() - started, line.rstrip()) for line in process.stderr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    refusals = [lines_of("--network_dim", "0") for _ in range(arguments.rounds)]
    print(f"first word after {statistics.median(lines[0][0] for lines in refusals):.2f} s")
    print(f"a wrong option refused after {statistics.median(lines[-1][0] for lines in refusals):.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        for seconds, line in lines_of("--output_dir", folder, "--max_train_steps", "1", "--no-sample_at_first"):
            print(f"{seconds:6.2f} s  {line.partition(' ')[2]}")


if __name__ == "__main__":
    main()
