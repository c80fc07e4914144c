"""How a training starts: with a word at once, and with nothing imported before what can be refused without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs_at_tiny_size import config_for
from trainer import file_memory
from trainer.models import base_model
from trainer.options.writing import to_toml

SLOW = ("torch", "accelerate", "diffusers", "transformers", "peft")  # to import
TOLD = """
import json, logging, sys

told = []

class Watch(logging.Handler):
    def emit(self, record):
        told.append([record.getMessage(), [name for name in json.loads(sys.argv[1]) if name in sys.modules]])

logging.getLogger().addHandler(Watch())
from trainer.__main__ import main
print(json.dumps([main(sys.argv[2:]), told]))
"""
INTERRUPTED = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, Interrupt())
from trainer.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def preset(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "preset.toml"
    path.write_text(to_toml(config_for(tiny_model, tiny_images, tmp_path / "output", max_train_steps=1)))
    return path


def started(preset: Path, *options: str) -> tuple[int, list[tuple[str, list[str]]]]:
    """The exit code of a start, and each line of its log with what had been imported of SLOW and numpy by then."""
    done = subprocess.run(
        [sys.executable, "-c", TOLD, json.dumps([*SLOW, "numpy"]), "train", "--config", str(preset), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    code, told = json.loads(done.stdout)
    return code, told


def test_the_first_word_comes_before_all_imports(preset: Path) -> None:
    _, told = started(preset, "--network_dim", "0")
    assert told[0] == [f"Reading {preset}", []]


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--network_dim", "0"], "0 is below 1"),
        (["--train_data_dir", "/nowhere"], "there is no folder or file /nowhere"),
        (["--sample_prompts", "a fox --w 7"], "not a multiple of 8"),
    ],
)
def test_a_wrong_option_is_refused_before_the_slow_imports(preset: Path, options: list[str], refusal: str) -> None:
    code, told = started(preset, *options)
    assert code == 3
    assert refusal in told[-1][0]
    assert not set(told[-1][1]) & set(SLOW)


def test_a_run_that_is_there_already_is_refused_before_the_slow_imports(preset: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "output" / "run" / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    code, told = started(preset)
    assert code == 3
    assert "already holds checkpoints" in told[-1][0]
    assert not set(told[-1][1]) & set(SLOW)


@pytest.mark.parametrize(("module", "asked"), [("numpy", "SIGINT"), ("torch", "SIGTERM"), ("diffusers", "SIGINT")])
def test_a_signal_during_the_imports_ends_the_trainer_in_order(preset: Path, module: str, asked: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(signal=asked), module, "train", "--config", str(preset)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("Stopped before the first step; there was nothing to save.")


def test_reading_a_base_model_is_told_in_bytes_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.files.READ_AT_ONCE", 4)
    for name, size in (("model_index.json", 2), ("unet/config.json", 6), ("unet/model.safetensors", 10)):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    told: list[Any] = []
    for _ in range(2):
        base_model.digest(tmp_path / "model", ("unet",), tmp_path, lambda done, total: told.append((done, total)))
    assert told == [(2, 18), (6, 18), (8, 18), (12, 18), (16, 18), (18, 18)]


def test_a_digest_that_is_broken_off_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file_memory.sha256_of([path], tmp_path / "memory", stop)
    told: list[int] = []
    file_memory.sha256_of([path], tmp_path / "memory", lambda done, total: told.append(done))
    assert told == [10]
