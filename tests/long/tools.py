"""Merges, verifies and edits a model file of more than 4 GB: python -m tests.long.tools [--megabytes N] [--folder F]

Prints how much memory that took beside the libraries; it is bounded by the largest tensor, not by the file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from trainer.tools import TOOLS

WIDTH = 1024
BLOCKS = "model.diffusion_model.input_blocks.4.1.transformer_blocks"
LAYER = "lora_unet_input_blocks_4_1_transformer_blocks_{}_attn1_to_q"
CHANGED = (0, 3)  # blocks that the network has
MOST = 200e6  # bytes


def make(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """A file with the layers of an SDXL, its numbers all but empty, and a LoRA for two of them."""
    names = [
        f"{BLOCKS}.{number}.attn1.to_q.weight" for number in range(max(4, megabytes * 1_000_000 // (WIDTH * WIDTH * 2)))
    ]
    header: dict[str, object] = {}
    size = WIDTH * WIDTH * 2
    for number, name in enumerate(names):
        header[name] = {"dtype": "F16", "shape": [WIDTH, WIDTH], "data_offsets": [number * size, (number + 1) * size]}
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    model = folder / "model.safetensors"
    with model.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        for number in (0, 3, len(names) - 1):  # the others are holes
            file.seek(8 + len(data) + number * size)
            file.write(torch.full((WIDTH, WIDTH), 1.0 + number % 7, dtype=torch.float16).numpy().tobytes())
        file.truncate(8 + len(data) + len(names) * size)
    lora = folder / "lora.safetensors"
    tensors = {}
    for number in CHANGED:
        tensors[f"{LAYER.format(number)}.lora_down.weight"] = torch.full((1, WIDTH), 0.5)
        tensors[f"{LAYER.format(number)}.lora_up.weight"] = torch.full((WIDTH, 1), 1.0 + number)
    safetensors.torch.save_file(tensors, lora)
    return model, lora


def check(model: Path, lora: Path, merged: Path) -> None:
    """See that two tensors were changed as the LoRA says, and all others copied."""
    with safetensors.safe_open(model, "pt") as before, safetensors.safe_open(merged, "pt") as after:
        assert set(before.keys()) == set(after.keys())
        for name in before.keys():  # noqa: SIM118
            number = int(name.split(".")[6])
            expected = before.get_tensor(name)
            if number in CHANGED:
                expected = expected + 0.5 * (1.0 + number)
            assert torch.equal(after.get_tensor(name), expected), name


def most_memory() -> int:
    """Bytes that this process has ever had at once."""
    text = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=4600)
    parser.add_argument("--folder", type=Path, help="where there is room for the file twice")
    known = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tools-", dir=known.folder))
    try:
        model, lora = make(folder, known.megabytes)
        merged, renamed = folder / "merged.safetensors", folder / "renamed.safetensors"
        steps = (
            ("merge", {"files": [str(lora)], "model": str(model), "output": str(merged), "family": "sdxl"}),
            ("verify", {"file": str(merged), "family": "sdxl"}),
            ("metadata", {"file": str(merged), "output": str(renamed), "set": ["title=large"]}),
            (
                "extract",
                {
                    "original": str(model),
                    "tuned": str(merged),
                    "output": str(folder / "x"),
                    "rank": 2,
                    "family": "sdxl",
                },
            ),
        )
        TOOLS["verify"].run({"file": str(lora), "family": "sdxl"}, lambda done, total: None)  # imports everything
        before = most_memory()
        for command, given in steps:
            tool = TOOLS[command]
            arguments = {field.name: field.default for field in tool.fields} | given
            tool.run(arguments, lambda done, total: None)
            more = most_memory() - before
            print(f"{command}: {model.stat().st_size / 1e9:.2f} GB, {more / 1e6:.0f} MB of memory", flush=True)
            if more > MOST:
                sys.exit(f"{command} took more than {MOST / 1e6:.0f} MB")
        check(model, lora, renamed)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
