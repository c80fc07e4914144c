"""What the bar tells of the machine, with GPUs of our own in place of NVIDIA's."""

from __future__ import annotations

from pathlib import Path

import pytest

from gui.views import machine
from gui.views.machine import Readings
from trainer.runs import resources
from trainer.runs.resources import GpuSample

WHOLE = GpuSample("Some GPU", 0.5, 60.0, 200.0, 8_000_000_000, 24_000_000_000, False)
SHARED = GpuSample("Some GPU", None, 61.0, None, 8_000_000_000, 24_000_000_000, False)


class Gpus:
    def __init__(self, *samples: GpuSample) -> None:
        self.samples = list(samples)
        self.asked = 0

    def read(self) -> list[GpuSample]:
        self.asked += 1
        return self.samples


def words(monkeypatch: pytest.MonkeyPatch, folder: Path, gpus: Gpus) -> dict[str, str]:
    monkeypatch.setattr(resources, "gpus_here", lambda: gpus)
    return {part["name"]: part["words"] for part in Readings().told(folder)}


def test_where_there_is_no_gpu_nothing_is_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(words(monkeypatch, tmp_path, Gpus())) == ["CPU", "Memory", "Disk"]


def test_a_gpu_is_told_as_far_as_its_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert words(monkeypatch, tmp_path, Gpus(WHOLE))["GPU"] == "50 % · 8 GB of 24 GB · 60 °C · 200 W"
    both = words(monkeypatch, tmp_path, Gpus(WHOLE, SHARED))
    assert both["GPU 1"] == "8 GB of 24 GB · 61 °C"


def test_a_reading_serves_every_page_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(WHOLE)
    monkeypatch.setattr(resources, "gpus_here", lambda: gpus)
    readings = Readings()
    assert readings.told(tmp_path) == readings.told(tmp_path)
    assert gpus.asked == 1
    monkeypatch.setattr(machine, "SECONDS", -1.0)
    readings.told(tmp_path)
    assert gpus.asked == 2


def test_a_disk_is_told_of_before_its_folder_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "free" in words(monkeypatch, tmp_path / "not" / "yet", Gpus())["Disk"]
