"""What a run uses of its machine: recorded, added up, and paused for."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

import pytest

from trainer.options.sections.watching import Watching
from trainer.runs import resources
from trainer.runs.events import EventWriter, read_events
from trainer.runs.resources import Cooling, GpuSample, NoGpus, Recorder, find_gpus, recorded

SAMPLE = GpuSample("GPU", 0.9, 60.0, 300.0, 8_000_000_000, 24_000_000_000, throttled=False)


class ScriptedGpus:
    """A GPU whose samples were written beforehand; the last one stays. There is none on a test machine."""

    def __init__(self, *samples: GpuSample) -> None:
        self._samples = list(samples)

    def read(self) -> list[GpuSample]:
        return [self._samples.pop(0) if len(self._samples) > 1 else self._samples[0]]


def recorder(folder: Path, gpus: resources.Gpus, **options: float) -> Recorder:
    writer = EventWriter(folder / "events.jsonl")
    return Recorder(Watching(**options), writer, gpus, folder, step=lambda: 7, save_bytes=lambda: None)  # type: ignore[arg-type]


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    return [event for event in read_events(folder / "events.jsonl")[0] if event["event"] == kind]


def test_energy_is_the_power_over_time_and_its_cost_follows_from_the_price(tmp_path: Path) -> None:
    powers = [dataclasses.replace(SAMPLE, watts=watts) for watts in (100.0, 300.0, 500.0)]
    record = recorder(tmp_path, ScriptedGpus(*powers), electricity_price=0.5)
    for seconds in (0.0, 1800.0, 3600.0):
        record.record(seconds)
    told = events(tmp_path, "resources")
    assert [event["energy_kwh"] for event in told] == [None, pytest.approx(0.1), pytest.approx(0.3)]
    assert told[-1]["cost"] == pytest.approx(0.15) and told[-1]["global_step"] == 7


def test_a_sample_has_the_gpu_the_cpu_the_memory_and_the_disk(tmp_path: Path) -> None:
    recorder(tmp_path, ScriptedGpus(SAMPLE)).record(0.0)
    (told,) = events(tmp_path, "resources")
    assert told["gpus"] == [dataclasses.asdict(SAMPLE)]
    free, rss = told["disk_free"], told["memory"]
    assert isinstance(free, int) and abs(free - shutil.disk_usage(tmp_path).free) < 5_000_000_000
    assert isinstance(rss, int) and rss > 1_000_000


def test_without_a_gpu_only_its_figures_are_missing(tmp_path: Path) -> None:
    recorder(tmp_path, NoGpus()).record(0.0)
    (told,) = events(tmp_path, "resources")
    assert told["gpus"] == [] and told["energy_kwh"] is None


def test_a_gpu_that_cannot_be_read_is_left_out() -> None:
    assert find_gpus(["11111111-2222-3333-4444-555555555555"]).read() == []


def test_a_hot_gpu_is_a_warning_with_reasons_and_ways_out(tmp_path: Path) -> None:
    record = recorder(tmp_path, ScriptedGpus(dataclasses.replace(SAMPLE, temperature=91.0)))
    for seconds in range(5):
        record.record(float(seconds))
    (told,) = events(tmp_path, "warning")
    assert told["kind"] == "gpu_hot" and told["seen"] == "the GPU is at 91 °C" and told["ways_out"]


def test_samples_are_taken_on_a_thread_until_the_end_of_the_run(tmp_path: Path) -> None:
    with recorded(recorder(tmp_path, NoGpus()), 0.01):
        deadline = time.monotonic() + 300
        while len(events(tmp_path, "resources")) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    count = len(events(tmp_path, "resources"))
    time.sleep(0.05)
    assert count >= 3 and len(events(tmp_path, "resources")) == count


def test_a_training_waits_until_the_gpu_is_five_degrees_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PAUSE_SECONDS", 0.001)
    hot, warm, cool = (dataclasses.replace(SAMPLE, temperature=degrees) for degrees in (80.0, 76.0, 75.0))
    gpus = ScriptedGpus(hot, hot, hot, warm, cool, hot)
    assert Cooling(80, gpus, lambda: False).wait() > 0
    assert gpus.read() == [hot]  # all before were read


def test_a_stop_ends_the_wait_and_no_limit_means_no_wait() -> None:
    hot = ScriptedGpus(dataclasses.replace(SAMPLE, temperature=95.0))
    assert Cooling(80, hot, lambda: True).wait() < 1
    assert Cooling(0, hot, lambda: False).wait() == 0
