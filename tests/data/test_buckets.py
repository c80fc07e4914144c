"""Buckets and the order of batches: every sample once, sizes never mixed, and the same whoever asks."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from trainer.data.augmentation import cut_at, cut_by_rules, resampling_of
from trainer.data.buckets import (
    Size,
    bucket_for,
    bucket_of_unenlarged,
    bucket_sizes,
    cover,
    epoch_order,
    micro_batches,
    steps_per_epoch,
)
from trainer.options.config import Config

sides = st.integers(16, 4000)
sizes = st.tuples(sides, sides)
bucket_numbers = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda numbers: np.array(numbers, np.int64))
seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 1000)


# --- sizes ---------------------------------------------------------------------------------------------------------


@given(
    resolution=st.tuples(st.integers(8, 128), st.integers(8, 128)).map(lambda pair: (8 * pair[0], 8 * pair[1])),
    low=st.integers(8, 256),
    high=st.integers(256, 1024),
    step=st.sampled_from((8, 32, 64)),
)
def test_every_bucket_is_within_the_bounds_on_the_steps_and_no_larger_in_area_than_the_resolution(
    resolution: Size, low: int, high: int, step: int
) -> None:
    found = bucket_sizes(resolution, low, high, step)
    area = resolution[0] * resolution[1]
    square = max(step, math.isqrt(area) // step * step)
    assert (square, square) in found
    assert {(height, width) for width, height in found} == set(found)
    for width, height in set(found) - {(square, square)}:
        assert width % step == height % step == 0
        assert width * height <= area
        assert low - step < min(width, height)
        assert max(width, height) < high + step


def test_the_buckets_of_512_pixels_are_kohyas() -> None:
    found = bucket_sizes((512, 512), 256, 1024, 64)
    assert found == (
        (256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576), (512, 512),
        (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256),
    )  # fmt: skip


@given(size=sizes)
def test_a_picture_goes_where_its_shape_is_nearest(size: Size) -> None:
    bucket = bucket_for(size, (512, 512), 256, 1024, 64, no_upscale=False)
    nearest = {abs(each[0] / each[1] - size[0] / size[1]): each for each in bucket_sizes((512, 512), 256, 1024, 64)}
    assert bucket[0] / bucket[1] - size[0] / size[1] in (min(nearest), -min(nearest))
    off = abs(bucket[0] / bucket[1] - size[0] / size[1])
    for width, height in bucket_sizes((512, 512), 256, 1024, 64):
        assert off <= abs(width / height - size[0] / size[1])


@given(size=sizes)
def test_without_upscaling_a_bucket_is_no_larger_than_its_picture_and_the_resolution(size: Size) -> None:
    bucket = bucket_for(size, (512, 512), 256, 1024, 64, no_upscale=True)
    assert bucket[0] % 64 == bucket[1] % 64 == 0
    assert bucket[0] <= max(64, size[0])
    assert bucket[1] <= max(64, size[1])
    assert bucket[0] * bucket[1] <= max(512 * 512, 64 * max(bucket))


@given(size=sizes, bucket=st.tuples(st.integers(8, 1024), st.integers(8, 1024)))
def test_a_picture_is_scaled_to_just_cover_its_bucket(size: Size, bucket: Size) -> None:
    width, height = cover(size, bucket)
    assert width >= bucket[0]
    assert height >= bucket[1]
    assert width == bucket[0] or height == bucket[1]
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    assert abs(width - size[0] * scale) <= 1
    assert abs(height - size[1] * scale) <= 1


# --- the order of an epoch -----------------------------------------------------------------------------------------


def steps_of(order: NDArray[np.int64], global_batch: int) -> list[list[int]]:
    return [order[start : start + global_batch].tolist() for start in range(0, len(order), global_batch)]


@given(buckets=bucket_numbers, seed=seeds, epoch=epochs, global_batch=st.integers(1, 12))
def test_every_sample_of_an_epoch_is_trained_once(
    buckets: NDArray[np.int64], seed: int, epoch: int, global_batch: int
) -> None:
    order = epoch_order(seed, epoch, buckets, global_batch)
    assert sorted(order.tolist()) == list(range(len(buckets)))
    steps = steps_of(order, global_batch)
    assert len(steps) == steps_per_epoch(len(buckets), global_batch)
    assert {len(step) for step in steps[:-1]} <= {global_batch}


@given(buckets=bucket_numbers, seed=seeds, epoch=epochs, global_batch=st.integers(1, 12))
def test_the_order_is_a_pure_function(buckets: NDArray[np.int64], seed: int, epoch: int, global_batch: int) -> None:
    before = buckets.copy()
    order = epoch_order(seed, epoch, buckets, global_batch)
    np.random.seed(0)
    epoch_order(seed + 1, epoch, buckets, global_batch)
    epoch_order(seed, epoch + 1, buckets, global_batch)
    assert np.array_equal(epoch_order(seed, epoch, buckets, global_batch), order)
    assert np.array_equal(buckets, before)


@given(buckets=bucket_numbers, seed=seeds, epoch=epochs, global_batch=st.integers(1, 12))
def test_only_what_buckets_leave_over_is_mixed(
    buckets: NDArray[np.int64], seed: int, epoch: int, global_batch: int
) -> None:
    order = epoch_order(seed, epoch, buckets, global_batch)
    whole = Counter(
        int(buckets[step[0]])
        for step in steps_of(order, global_batch)
        if len(step) == global_batch and len({int(buckets[sample]) for sample in step}) == 1
    )
    for bucket, members in Counter(buckets.tolist()).items():
        assert whole[bucket] >= members // global_batch


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    buckets = np.zeros(50, np.int64)
    orders = {tuple(epoch_order(seed, epoch, buckets, 4)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


# --- dealing a step out --------------------------------------------------------------------------------------------


@given(
    buckets=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    per_device=st.integers(1, 5),
    processes=st.sampled_from((1, 2, 4)),
)
def test_a_micro_batch_is_of_one_bucket_and_no_larger_than_a_device_takes(
    buckets: list[int], per_device: int, processes: int
) -> None:
    samples = list(range(100, 100 + len(buckets)))
    bucket_of = dict(zip(samples, buckets, strict=True))
    for shares in micro_batches(samples, buckets, per_device, processes):
        assert len(shares) == processes
        assert len({bucket_of[sample] for share in shares for sample in share}) == 1
        assert max(len(share) for share in shares) <= per_device
        assert shares[0]  # what a process without a sample is lent


@given(buckets=st.lists(st.integers(0, 3), min_size=1, max_size=40), per_device=st.integers(1, 5))
def test_one_two_and_four_processes_share_out_the_same_samples(buckets: list[int], per_device: int) -> None:
    samples = list(range(len(buckets)))
    for processes in (1, 2, 4):
        dealt = micro_batches(samples, buckets, per_device, processes)
        assert sorted(sample for shares in dealt for share in shares for sample in share) == samples


@pytest.mark.parametrize(("processes", "per_device"), [(1, 4), (2, 2), (4, 1)])
def test_a_full_micro_batch_gives_each_process_its_part(processes: int, per_device: int) -> None:
    assert micro_batches(range(8), [0] * 8, per_device, processes) == [
        [list(range(start, start + 4))[process::processes] for process in range(processes)] for start in (0, 4)
    ]


# --- as sd-scripts scales and cuts ---------------------------------------------------------------------------------

SD_SCRIPTS = Config(bucket_rules="sd-scripts", resolution="512", enable_bucket=True, bucket_no_upscale=True)


@pytest.mark.parametrize(
    ("size", "scaled", "bucket"),
    [
        ((2000, 1500), (512, 384), (512, 384)),  # worked out by hand from its rule: nothing is cropped
        ((300, 500), (300, 500), (256, 448)),  # smaller than the area: cut unscaled
        ((512, 512), (512, 512), (512, 512)),
        ((1500, 2000), (384, 512), (384, 512)),
        ((3000, 1000), (768, 256), (768, 256)),
    ],
)
def test_without_enlargement_buckets_and_sizes_are_those_of_sd_scripts(size: Size, scaled: Size, bucket: Size) -> None:
    assert bucket_of_unenlarged(size, (512, 512), 64) == bucket
    cut = cut_by_rules(size, bucket, SD_SCRIPTS)
    assert cut.scaled == scaled
    assert (cut.left, cut.top) == ((scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2)


@given(size=st.tuples(st.integers(16, 3000), st.integers(16, 3000)))
def test_a_picture_covers_its_bucket_by_their_rules_too(size: Size) -> None:
    bucket = bucket_of_unenlarged(size, (512, 512), 64)
    cut = cut_by_rules(size, bucket, SD_SCRIPTS)
    assert bucket[0] % 64 == bucket[1] % 64 == 0
    assert 0 <= cut.left <= cut.scaled[0] - bucket[0] and 0 <= cut.top <= cut.scaled[1] - bucket[1]


def test_half_pixels_are_rounded_up_and_odd_slack_down() -> None:
    options = Config(bucket_rules="sd-scripts", enable_bucket=True)
    assert cut_by_rules((1365, 1024), (512, 512), options).scaled == (683, 512)  # 682.5
    assert cut_by_rules((1365, 1024), (512, 512), options).left == 85  # half of 171
    assert cut_at((1365, 1024), (512, 512)).scaled == (682, 512)


def test_a_random_crop_without_buckets_is_of_the_unscaled_picture() -> None:
    options = Config(bucket_rules="sd-scripts", random_crop=True)
    assert cut_by_rules((900, 700), (512, 512), options, (0.0, 1.0)).scaled == (900, 700)
    assert cut_by_rules((900, 700), (512, 512), options, (0.0, 1.0)).top == 188
    assert cut_by_rules((300, 700), (512, 512), options).scaled == (512, 1195)  # too narrow: scaled to cover


def test_automatic_interpolation_is_area_down_and_lanczos_up() -> None:
    assert resampling_of((800, 800), (512, 512), "automatic") == Image.Resampling.BOX
    assert resampling_of((400, 800), (512, 512), "automatic") == Image.Resampling.LANCZOS
    assert resampling_of((800, 800), (512, 512), "lanczos") == Image.Resampling.LANCZOS
