"""Alarms over steps and machine: found where something is wrong, silent where nothing is, equal after a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from tests.benchmarks import alarm_rates
from trainer.options.sections.watching import Watching
from trainer.recipe.alarms import STRETCHES, Alarm, StepAlarms, Window, trend
from trainer.recipe.conditions import DiskRoom, GpuHeat, SlowReading, SlowSaves, Throughput
from trainer.recipe.resume_watch import DriftAfterResume
from trainer.runs import alarm_kinds

GB = 1_000_000_000
Step = tuple[float, float, float]  # loss, gradient norm, rate


def fed(steps: list[Step], alarms: StepAlarms | None = None, first: int = 1) -> list[tuple[int, str]]:
    watched = alarms or StepAlarms(Watching(alarm_window=10), total_steps=len(steps))
    return [(step, alarm.kind) for step, values in enumerate(steps, first) for alarm in watched.after(step, *values)]


def test_few_healthy_runs_raise_an_alarm_and_few_ill_ones_do_not() -> None:
    well, ill = alarm_rates.count(24, seed=7)
    assert sum(bool(told) for told in well) == 0
    assert [fault for fault, expected, told in ill if not expected & told] == []


def test_a_loss_that_triples_is_a_divergence_told_once() -> None:
    assert fed([(0.1, 1.0, 1e-4)] * 100 + [(0.3, 1.0, 1e-4)] * 100) == [(120, "divergence")]


def test_a_divergence_that_went_away_and_came_back_is_told_again() -> None:
    low, high = [(0.1, 1.0, 1e-4)] * 50, [(0.3, 1.0, 1e-4)] * 50
    assert [kind for _, kind in fed(low + high + low + high)] == ["divergence", "divergence"]


def test_gradients_ten_times_larger_smaller_or_zero_are_told_apart() -> None:
    usual = [(0.1, 1.0, 1e-4)] * 100
    assert fed(usual + [(0.1, 20.0, 1e-4)] * 40) == [(120, "exploding_gradients")]
    assert fed(usual + [(0.1, 0.05, 1e-4)] * 40) == [(120, "vanishing_gradients")]
    assert fed(usual + [(0.1, 0.0, 1e-4)] * 40) == [(110, "no_gradient")]


def test_steps_that_are_not_finite_belong_to_no_level() -> None:
    assert fed([(0.1, 1.0, 1e-4)] * 50 + [(math.nan, 1.0, 1e-4), (0.1, math.inf, 1e-4)] * 50) == []


def test_a_rate_near_zero_is_told_while_much_of_the_run_is_to_come_but_not_in_a_warm_up_or_at_the_end() -> None:
    peak, none = [(0.1, 1.0, 1e-4)] * 100, (0.1, 1.0, 1e-7)
    assert fed(peak + [none] * 100) == [(120, "low_rate")]
    assert fed([none] * 30 + peak) == []
    assert fed(peak + [none] * 25) == []


def test_a_loss_that_fell_and_settled_has_converged_and_one_that_never_fell_is_on_a_plateau() -> None:
    options = Watching(alarm_window=10, alarm_plateau_steps=200)
    flat, fallen = [(0.1, 1.0, 1e-4)] * 600, [(1.0, 1.0, 1e-4)] * 20
    assert fed(flat, StepAlarms(options, 600)) == [(390, "plateau")]
    told = fed(fallen + flat, StepAlarms(options, 620))
    assert [kind for _, kind in told] == ["converged"]


def test_what_is_kept_stays_small_however_long_the_run() -> None:
    alarms = StepAlarms(Watching(alarm_window=10), total_steps=100_000)
    draw = np.random.default_rng(0)
    for step, loss in enumerate(np.exp(draw.normal(0, 0.5, 20_000)).tolist(), 1):
        alarms.after(step, loss, 1.0, 1e-4)
    assert len(alarms.stretches) <= STRETCHES
    assert sum(stretch.steps for stretch in alarms.stretches) == 20_000
    assert len(json.dumps(alarms.as_dict())) < 20_000


@pytest.mark.parametrize("cut", [1, 95, 104, 119, 120, 121])
def test_a_resumed_run_raises_the_alarms_of_the_straight_one(cut: int) -> None:
    draw = np.random.default_rng(3)
    levels = [0.1] * 100 + [0.5] * 60 + [0.1] * 60 + [0.7] * 60
    steps = [(level * math.exp(draw.normal(0, 0.3)), 1.0, 1e-4) for level in levels]
    straight = StepAlarms(Watching(alarm_window=10), total_steps=len(steps))
    told = fed(steps, straight)
    assert len(told) >= 2
    before = StepAlarms(Watching(alarm_window=10), total_steps=len(steps))
    first = fed(steps[:cut], before)
    after = StepAlarms(Watching(alarm_window=10), total_steps=len(steps))
    after.restore(json.loads(json.dumps(before.as_dict())))
    assert first + fed(steps[cut:], after, cut + 1) == told
    assert after == straight


def test_a_window_has_the_mean_and_the_variance_of_the_mean_of_the_logarithms() -> None:
    losses = np.random.default_rng(1).uniform(0.1, 2, 40)
    window = Window()
    for loss in losses.tolist():
        window.add(loss, 1.0, 0.0)
    assert window.level == pytest.approx(np.log(losses).mean())
    assert window.error == pytest.approx(np.log(losses).var(ddof=1) / 40)


def test_a_trend_is_the_line_of_least_squares_and_its_error() -> None:
    from scipy.stats import linregress

    levels = np.random.default_rng(2).normal(0, 1, 12) - 0.2 * np.arange(12)
    fall, error = trend([Window(1, level) for level in levels.tolist()])
    fitted = linregress(np.arange(12), levels)
    assert fall == pytest.approx(-12 * fitted.slope) and error == pytest.approx(12 * fitted.stderr)


def test_a_level_above_that_before_the_resume_is_a_drift_told_once() -> None:
    options = Watching(alarm_window=10)
    for factor, told in ((1.0, 0), (1.1, 0), (1.5, 1)):
        watch = DriftAfterResume(options, (math.log(0.1), 0.0001))
        assert sum(watch.add(0.1 * factor) is not None for _ in range(60)) == told
    assert DriftAfterResume(options, None).add(9.0) is None


# --- the machine ---------------------------------------------------------------------------------------------------


def test_steps_that_take_twice_as_long_are_told_with_what_they_wait_for() -> None:
    watch = Throughput(Watching())
    told = [watch.add(seconds, data) for seconds, data in [(1.0, 0.0)] * 50 + [(2.0, 1.5)] * 150]
    (alarm,) = [alarm for alarm in told if alarm]
    assert alarm.kind == "slow" and "of which 1.5 s are waiting for data" in alarm.seen


def test_a_single_pause_is_no_slowness() -> None:
    watch = Throughput(Watching())
    assert not any(watch.add(seconds, 0.0) for seconds in [1.0] * 50 + [600.0] + [1.0] * 150)


def disk(free: Sequence[float], save_bytes: int | None = None) -> list[str]:
    """Kinds of alarm when so many gigabytes are free, a minute apart."""
    watch = DiskRoom(Watching(alarm_disk_saves=2, alarm_disk_hours=2.0))
    return [alarm.kind for minute, left in enumerate(free) for alarm in watch.add(60.0 * minute, left * GB, save_bytes)]


def test_a_disk_that_fills_is_told_once_before_it_is_full() -> None:
    assert disk([100 - minute / 2 for minute in range(100)]) == ["disk_filling"]
    assert disk([100 - minute / 20 for minute in range(100)]) == []
    assert disk([100] * 20 + [40] * 20) == []  # one large file


def test_too_little_room_for_two_more_saves_is_told_once_until_there_is_room_again() -> None:
    assert disk([5, 3, 3, 5, 3], 2 * GB) == ["disk_small", "disk_small"]
    assert disk([5, 3, 3, 5, 3]) == []


def test_a_hot_or_throttled_gpu_is_told_when_it_stays_so() -> None:
    watch = GpuHeat(Watching(alarm_gpu_temperature=87))
    samples = [(90, False), (80, False), (88, False), (89, True), (90, True), (90, True), (90, True)]
    assert [alarm.kind for sample in samples for alarm in watch.add(*sample)] == ["gpu_hot", "gpu_throttled"]
    assert list(GpuHeat(Watching()).add(None, False)) == []


def test_every_kind_says_what_was_seen_why_it_may_be_and_what_to_do() -> None:
    for kind, known in alarm_kinds.KINDS.items():
        fields = alarm_kinds.warning(kind, "this was seen")
        assert "this was seen" in fields["message"]
        assert known.reasons and all(way.endswith((".", ":")) for way in known.ways_out)


def test_a_drift_of_the_text_encoder_is_told_once_until_it_is_back() -> None:
    alarms = StepAlarms(Watching(alarm_text_encoder_drift=0.1))
    told: list[list[Alarm]] = [alarms.text_encoder(distance) for distance in (0.05, 0.11, 0.2, 0.095, 0.2, 0.05, 0.2)]
    assert [len(each) for each in told] == [0, 1, 0, 0, 0, 0, 1]


def test_a_disk_that_fills_most_of_the_readers_time_is_told_before_steps_wait_for_it() -> None:
    watch = SlowReading(Watching(), readers=2)
    busy = [watch.add(1.0, 1.2) for _ in range(90)]  # two threads: 60 % of the time of each
    (told,) = filter(None, busy)
    assert told.kind == "slow_images" and "each of 2 threads reads for 0.6 s (60 %)" in told.seen
    calm = [SlowReading(Watching(), readers=2).add(1.0, 0.8) for _ in range(90)]
    assert not any(calm) and not any(watch.add(1.0, 0.8) for _ in range(90))
    assert any(watch.add(1.0, 1.2) for _ in range(30))  # again, after it was over


def test_checkpoints_that_take_half_of_the_time_between_two_are_told_once() -> None:
    watch = SlowSaves(Watching())
    told = [watch.add(ended, 30.0, 3_000_000_000) for ended in (100.0, 150.0, 200.0, 300.0, 350.0)]
    assert [alarm and alarm.kind for alarm in told] == [None, "slow_saves", None, None, "slow_saves"]
    assert told[1] and "3 GB took 30 s" in told[1].seen and "100 MB a second" in told[1].seen
