"""What runs beside the training has no OpenMP threads of its own, which would slow every later step down."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainer

COUNTED = '''
import json, os, sys, time
from pathlib import Path
import torch
from trainer.caching import filling
from trainer.checkpoints.checkpoint import Contents, Save, Writer
from trainer.distributed import beside
from trainer.training import loader

def threads():
    """How many the process has, once those that are ending are gone."""
    seen = [0]
    while len(seen) < 6 or len(set(seen[-5:])) > 1:
        time.sleep(0.05)
        seen.append(len(os.listdir("/proc/self/task")))
    return seen[-1]

def work():
    return float((torch.ones(1 << 20) * 2).isfinite().sum())

work()
counts = {"training": torch.get_num_threads()}

def added(name, before):
    counts[name] = threads() - before

before = threads()
group = {"layer": torch.ones(1 << 20)}
writer = Writer(lambda saved: None)
writer.save(Save(Path(sys.argv[1]), 1, 0, None, "run", Contents(group, group, {}, {}, {}, "")))
writer.wait()
added("writer", before)

before = threads()
with loader.thread_pool(2, "loader", torch.device("cpu")) as pool:
    list(pool.map(lambda _: work(), range(20)))
    added("loader", before)

class Groups:
    prepare = staticmethod(lambda number: work())
    compute = staticmethod(lambda prepared: [work()])

before = threads()
for number, values in filling._computed(Groups(), [0, 1, 2, 3], 1):
    counts["decoder"] = max(counts.get("decoder", 0), threads() - before)

before = threads()
counts["apart"] = beside.apart(lambda: (torch.get_num_threads(), work())[0], torch.get_num_threads())
added("left by it", before)
counts["at last"] = torch.get_num_threads()
print(json.dumps(counts))
'''


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's threads in /proc, which Linux alone has")
def test_the_writer_the_loader_and_the_decoders_get_no_openmp_threads(tmp_path: Path) -> None:
    counted = subprocess.run(
        [sys.executable, "-c", COUNTED, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    counts = json.loads(counted.stdout)
    own = counts.pop("training")
    if own == 1:
        pytest.skip("on one core torch uses one thread everywhere")
    assert counts == {"writer": 1, "loader": 2, "decoder": 1, "apart": own, "left by it": 0, "at last": own}


def test_threads_of_modules_that_know_torch_come_from_one_place() -> None:
    home = Path(trainer.__file__).parent
    strays = []
    for path in sorted(home.rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = {
            name.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for name in node.names
        }
        made = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
        }
        if "torch" in names and made & {"ThreadPoolExecutor", "Thread", "Timer", "start_new_thread"}:
            strays.append(path.relative_to(home).as_posix())
    assert strays == ["distributed/beside.py"]
