"""Resolution buckets and batch order: pure functions. No pictures, no torch here."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trainer import randomness

Size = tuple[int, int]  # (width, height) in pixels


@lru_cache(maxsize=32)
def bucket_sizes(resolution: Size, low: int, high: int, step: int) -> tuple[Size, ...]:
    """All bucket sizes of at most the resolution's area, sides between low and high in multiples of step.

    The same set as kohya's sd-scripts makes, which also rounds low down and high up to multiples of step.
    """
    low, high = max(step, low // step * step), -(-high // step) * step
    area = resolution[0] * resolution[1]
    square = max(step, math.isqrt(area) // step * step)
    sizes = {(square, square)}
    for width in range(low, high + 1, step):
        height = min(high, area // width // step * step)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def bucket_for(size: Size, resolution: Size, low: int, high: int, step: int, no_upscale: bool) -> Size:
    """The bucket of a picture of this size: the one nearest in aspect ratio.

    With no_upscale, the picture's own size, scaled down to the resolution's area if larger, rounded down to step.
    """
    width, height = size
    if no_upscale:
        scale = min(1.0, math.sqrt(resolution[0] * resolution[1] / (width * height)))
        return max(step, int(width * scale) // step * step), max(step, int(height * scale) // step * step)
    ratio = width / height
    ratios, best = _by_ratio(resolution, low, high, step)
    place = bisect.bisect_left(ratios, ratio)
    near = best[max(0, place - 1) : place + 1]
    return min(near, key=lambda bucket: (abs(bucket[0] / bucket[1] - ratio), -bucket[0] * bucket[1]))


def _rounded(length: float, step: int) -> int:
    """A length in whole pixels, down to a multiple of step."""
    return int(length + 0.5) // step * step


def unenlarged(size: Size, resolution: Size, step: int) -> Size:
    """What sd-scripts scales a picture to under bucket_no_upscale; its bucket is that, rounded down to step.

    A picture larger than the resolution's area gets one side in multiples of step and the other as its own aspect
    ratio wants it: of the two ways, the one whose bucket is nearer in aspect ratio.
    """
    width, height = size
    if width * height <= resolution[0] * resolution[1]:
        return size
    ratio = width / height
    whole_width = math.sqrt(resolution[0] * resolution[1] * ratio)
    by_width = _rounded(whole_width, step)
    by_height = _rounded(resolution[0] * resolution[1] / whole_width, step)
    near_width = abs(by_width / max(1, _rounded(by_width / ratio, step)) - ratio)
    near_height = abs(_rounded(by_height * ratio, step) / max(1, by_height) - ratio)
    if near_width < near_height:
        return by_width, int(by_width / ratio + 0.5)
    return int(by_height * ratio + 0.5), by_height


def bucket_of_unenlarged(size: Size, resolution: Size, step: int) -> Size:
    """The bucket of a picture under sd-scripts' bucket_no_upscale."""
    width, height = unenlarged(size, resolution, step)
    return max(step, width // step * step), max(step, height // step * step)


@lru_cache(maxsize=32)
def _by_ratio(resolution: Size, low: int, high: int, step: int) -> tuple[list[float], list[Size]]:
    """The aspect ratios of the bucket sizes in order, and the largest bucket of each."""
    largest: dict[float, Size] = {}
    for size in bucket_sizes(resolution, low, high, step):
        largest[size[0] / size[1]] = size  # in the order of their widths, so of one ratio the largest is last
    ratios = sorted(largest)
    return ratios, [largest[ratio] for ratio in ratios]


def cover(size: Size, bucket: Size) -> Size:
    """The smallest size of the picture's aspect ratio that covers the bucket; what sticks out is cropped."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    return max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale))


def of_area(size: Size, area: int, step: int) -> Size:
    """The size of about this area and this aspect ratio whose sides are multiples of step."""
    width = math.sqrt(area * size[0] / size[1])
    return max(step, round(width / step) * step), max(step, round(area / width / step) * step)


def visible_share(size: Size, bucket: Size) -> float:
    """The share of a picture that is left after cropping it to its bucket: from just above 0 to 1."""
    ratio = size[0] * bucket[1] / (size[1] * bucket[0])
    return min(ratio, 1 / ratio)


def enlargement(size: Size, bucket: Size) -> float:
    """How many times a picture's sides are scaled up to cover its bucket; below 1 when they are scaled down."""
    return max(bucket[0] / size[0], bucket[1] / size[1])


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Steps an epoch takes: every step trains global_batch samples, only the last may train fewer."""
    return -(-samples // global_batch)


def epoch_order(seed: int, epoch: int, buckets: NDArray[np.int64], global_batch: int) -> NDArray[np.int64]:
    """The order of an epoch's samples: step i trains order[i * global_batch : (i + 1) * global_batch].

    `buckets`: (samples,), the bucket number of each sample. Every sample appears once. A step takes samples of one
    bucket as long as a bucket has enough of them; what is left over of all buckets shares the remaining steps, and
    the epoch's last step holds what is not enough for a full one. A pure function of its arguments.
    """
    random = randomness.generator(seed, "order", epoch)
    full: list[NDArray[np.int64]] = []
    rest: list[NDArray[np.int64]] = []
    for bucket in random.permutation(np.unique(buckets)):
        members = random.permutation(np.flatnonzero(buckets == bucket))
        whole = len(members) // global_batch * global_batch
        full.append(members[:whole])
        rest.append(members[whole:])
    left = np.concatenate(rest) if rest else np.empty(0, dtype=np.int64)
    whole = len(left) // global_batch * global_batch
    rows = np.concatenate([*full, left[:whole]]).reshape(-1, global_batch)
    return np.concatenate([random.permutation(rows, axis=0).reshape(-1), left[whole:]]).astype(np.int64)


def micro_batches(
    samples: Sequence[int], buckets: Sequence[int], per_device: int, processes: int
) -> list[list[list[int]]]:
    """Deal a step's samples out: [micro-batch][process] -> samples, all of one bucket, at most per_device each.

    `buckets[i]` is the bucket of `samples[i]`. Where a bucket has fewer samples than there are processes, a process
    gets an empty list (the caller pads it with a sample of weight zero, since all processes step together).
    """
    groups: dict[int, list[int]] = {}
    for sample, bucket in zip(samples, buckets, strict=True):
        groups.setdefault(bucket, []).append(sample)
    dealt = []
    for group in groups.values():
        for start in range(0, len(group), per_device * processes):
            chunk = group[start : start + per_device * processes]
            dealt.append([chunk[process::processes] for process in range(processes)])
    return dealt
