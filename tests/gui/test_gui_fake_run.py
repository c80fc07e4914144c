"""A run folder as the trainer leaves it, made without training; the other tests of the browser interface read it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer import files
from trainer.options import checks, writing
from trainer.options.config import Config
from trainer.options.problems import Given
from trainer.recipe import schedule
from trainer.runs import events, manifest, run_folder
from trainer.runs.run_folder import RunFolder


def settings(output: Path, name: str = "fox", **options: Any) -> Config:
    given = {
        "pretrained_model_name_or_path": "model",
        "train_data_dir": "images",
        "output_dir": str(output),
        "output_name": name,
        "max_train_steps": 200,
        "lr_scheduler": "cosine",
        **options,
    }
    return checks.resolve({key: Given(value, "test") for key, value in given.items()})[0]


def write_checkpoint(run: RunFolder, of: Config, step: int, run_id: str, loss: float = 0.1) -> Path:
    """A checkpoint folder that verifies."""
    folder = run.checkpoints / manifest.folder_name(step)
    folder.mkdir(parents=True)
    curve = schedule.new_curve(of, of.max_train_steps).as_dict()
    state = {"version": 1, "global_step": step, "lr_curve": curve, "base_model": {}}
    documents = {
        "state.json": state,
        "dataset.json": {"version": 1},
        "environment.json": {"version": 1, "processes": 1},
    }
    for file, content in documents.items():
        files.write_bytes(folder / file, files.json_bytes(content))
    files.write_text(folder / "config.toml", writing.to_toml(of))
    for file in ("weights.safetensors", "optimizer.safetensors"):
        files.write_bytes(folder / file, bytes(range(256)))
    data = manifest.compose(folder, step, run_id, time.time(), step // 20, loss)
    files.write_bytes(folder / manifest.MANIFEST, data)
    return folder


def loss_at(step: int) -> float:
    return 0.08 + 0.12 * math.exp(-step / 60) + 0.03 * math.sin(step * 1.7)


def write_session(
    run: RunFolder,
    of: Config,
    number: int,
    steps: Sequence[int],
    *,
    resumed_at: int | None = None,
    seconds: float = 0.4,
) -> None:
    """The events of a session that did these steps, a second apart from the next."""
    now = time.time() - seconds * len(steps)
    lines: list[dict[str, Any]] = []

    def tell(event: str, at: int, **fields: Any) -> None:
        lines.append({"event": event, "time": now, "global_step": at, **fields})

    tell("run_started", resumed_at or 0, session=number, total_steps=of.max_train_steps, steps_per_epoch=20)
    if resumed_at is not None:
        tell("resumed", resumed_at, step=resumed_at, session=number, grade="bit-exact")
    for step in steps:
        now += seconds
        tell(
            "step", step, epoch=(step - 1) // 20, loss=loss_at(step + number), lr=1e-4, grad_norm=0.5,
            step_seconds=seconds, data_seconds=0.01,
        )  # fmt: skip
        if step % 50 == 0:
            tell("checkpoint_saved", step, path=f"checkpoints/{manifest.folder_name(step)}", bytes=204800)
            for index in range(2):
                name = f"samples/{step:08d}-{index}.png"
                (run.path / "samples").mkdir(exist_ok=True)
                Image.new("RGB", (64, 64), (step % 256, 90 * index, 120)).save(run.path / name)
                tell("sample_saved", step, path=name, prompt=["a fox in the snow", "a red fox"][index], index=index)
    with run.events_file.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def make_run(
    output: Path, name: str = "fox", *, status: str = "stopped", alive: bool = False, **options: Any
) -> RunFolder:
    """A run of two sessions: 130 steps, then resumed at 100 and stopped at 150. `alive`: this process works on it."""
    of = settings(output, name, **options)
    run = RunFolder(of.run_dir)
    run.path.mkdir(parents=True)
    record = run_folder.new_run(name)
    for step in (50, 100, 150):
        write_checkpoint(run, of, step, record["run_id"], loss_at(step))
    write_session(run, of, 1, range(1, 131))
    write_session(run, of, 2, range(101, 151), resumed_at=100)
    if not alive and status != "running":
        events.EventWriter(run.events_file).write("run_finished", 150, reason=status)
    process = (
        run_folder.this_process() if alive else {"pid": 1, "process_start": "gone", "boot_id": "", "host": "elsewhere"}
    )
    run_folder.write_run(run, record | {"status": status, **process})
    files.write_text(run.config_file, writing.to_toml(of))
    run.console_file.write_text("Loading model\r\nstep 1/200\rstep 2/200\rstep 150/200\n\x1b[31mSaved\x1b[0m\n")
    return run


def test_the_fake_run_has_three_checkpoints_that_verify(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = manifest.listing(run.checkpoints, thorough=True)
    assert [item.step for item in found] == [150, 100, 50]
    assert all(item.manifest for item in found)


@pytest.mark.parametrize(("alive", "status"), [(True, "running"), (False, "interrupted")])
def test_the_fake_run_is_running_only_while_its_process_lives(tmp_path: Path, alive: bool, status: str) -> None:
    assert run_folder.status(make_run(tmp_path, status="running", alive=alive)) == status
