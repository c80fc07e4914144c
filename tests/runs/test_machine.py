"""What is told of a machine, with a driver of our own in place of NVIDIA's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gui.views import machine as told_machine
from trainer.runs import machine
from trainer.runs.machine import Readings


class NoDriver(Exception):
    pass


def driver(count: int, *, power: bool = True) -> Any:
    """pynvml, as far as it is used, with `count` GPUs; their power is not told where there is no sensor."""

    def watts(handle: int) -> int:
        if not power:
            raise NoDriver
        return 200_000

    return SimpleNamespace(
        NVMLError=NoDriver,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=50 + handle),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=8_000_000_000, total=24_000_000_000),
        nvmlDeviceGetPowerUsage=watts,
        nvmlDeviceGetEnforcedPowerLimit=lambda handle: 300_000,
        nvmlDeviceGetName=lambda handle: "Some GPU",
        nvmlDeviceGetUUID=lambda handle: f"GPU-{handle}",
        nvmlDeviceGetTemperature=lambda handle, kind: 60 + handle,
    )


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver", machine._Driver())
    monkeypatch.setattr(told_machine, "_last", {})


def test_where_there_is_no_gpu_nothing_is_said_of_it(tmp_path: Path) -> None:
    found = machine.read(tmp_path)
    assert found.gpus == ()
    assert found.memory_total > found.memory > 0
    assert found.disk_free is not None
    assert [part["name"] for part in told_machine.told(tmp_path)] == ["CPU", "Memory", "Disk"]


def test_the_bar_tells_load_memory_temperature_and_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "pynvml", driver(1))
    shown = told_machine.told(tmp_path)[0]
    assert (shown["name"], shown["words"]) == ("GPU", "50% · 8 GB of 24 GB · 60 °C · 200 W")


def test_what_a_gpu_has_no_sensor_for_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "pynvml", driver(2, power=False))
    assert [part["words"] for part in told_machine.told(tmp_path)][:2] == [
        "50% · 8 GB of 24 GB · 60 °C",
        "51% · 8 GB of 24 GB · 61 °C",
    ]


def test_a_trainer_tells_of_its_own_gpu_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "pynvml", driver(2))
    assert Readings(tmp_path, ["1"], seconds=3600).due() is None
    numbers = Readings(tmp_path, ["1"], seconds=0).due()
    assert numbers is not None
    assert {name: value for name, value in numbers.items() if name.startswith("gpu")} == {
        "gpu_load": 0.51, "gpu_memory": 8_000_000_000, "gpu_temperature": 61, "gpu_power": 200.0,
    }  # fmt: skip
    both = Readings(tmp_path / "not there yet", ["0", "GPU-1"], seconds=0).due()
    assert both is not None and (both["gpu_memory"], both["gpu_temperature"]) == (16_000_000_000, 61)
    none = Readings(tmp_path, [], seconds=0).due()
    assert none is not None and not any(name.startswith("gpu") for name in none)


def test_a_driver_that_fails_is_not_asked_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fail() -> None:
        asked.append(1)
        raise NoDriver

    monkeypatch.setattr(machine, "pynvml", SimpleNamespace(NVMLError=NoDriver, nvmlInit=fail))
    assert machine.read(tmp_path).gpus == machine.read(tmp_path).gpus == ()
    assert len(asked) == 1
