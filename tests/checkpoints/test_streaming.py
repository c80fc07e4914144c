"""A large state is saved without a copy of it in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.checkpoints import checkpoint
from trainer.models import tensor_files

PEAK = """
import resource, sys
from pathlib import Path
import torch
from trainer.checkpoints.checkpoint import Contents, Save, Saved, Writer

MIB = 1 << 20
tensors = {f"unet.{number}": torch.ones(8 * MIB // 4) for number in range(40)}  # 320 MiB
(Path(sys.argv[1]) / "checkpoints").mkdir()
documents = dict.fromkeys(("dataset.json", "environment.json"), b"{}")
contents = Contents(weights=tensors, optimizer={}, ema={}, state={}, documents=documents, config="")
done: list[Saved] = []
writer = Writer(done.append)
one = {"unet.0": tensors["unet.0"]}
first = Contents(weights=one, optimizer={}, ema={}, state={}, documents=documents, config="")
writer.save(Save(Path(sys.argv[1]) / "checkpoints", 1, 0, None, "run", first, streamed=True))
writer.wait()  # whatever saving takes of memory by itself, it has now
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
writer.save(Save(Path(sys.argv[1]) / "checkpoints", 2, 0, None, "run", contents, streamed=True))
writer.close()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert not done[1].error and done[1].path, done[1].error
print((after - before) // 1024)  # MiB
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measured as Linux counts memory")
def test_saving_a_state_takes_a_tenth_of_it_in_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 32


def test_files_are_written_and_read_as_safetensors_does(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    tensors = {
        "a.weight": torch.randn(3, 5, generator=draw),
        "b": torch.randn(7, generator=draw).to(torch.bfloat16),
        "c": torch.randn(2, 3, 4, 4, generator=draw).to(memory_format=torch.channels_last),
        "half": torch.randn(3, generator=draw).half(),
        "count": torch.tensor(7),
        "nothing": torch.zeros(0, 4),
    }
    tensor_files.write(
        tmp_path / "ours.safetensors",
        {name: checkpoint.as_entry(tensor) for name, tensor in tensors.items()},
        {"a": "b"},
    )
    loaded = load_file(tmp_path / "ours.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs.safetensors")
    for name, entry in tensor_files.entries(tmp_path / "theirs.safetensors").items():
        assert np.array_equal(entry.values(), tensors[name].float().numpy())
        assert entry.in_precision("bf16").dtype == ("BF16" if tensors[name].is_floating_point() else "I64")
