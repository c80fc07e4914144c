"""What the images of a training are like as a whole, and how far they have moved from what they were. No torch here.

A portrait counts images by folder, tag, caption length, size, bucket, brightness, saturation and hue. Two portraits are
compared, each kind of count by itself, by the Jensen-Shannon distance: the square root of the Jensen-Shannon divergence
to base 2 (Lin 1991, https://doi.org/10.1109/18.61115; a distance by Endres and Schindelin 2003,
https://doi.org/10.1109/TIT.2003.813506). It is 0 where the shares are the same and 1 where they have nothing in common.
"""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer import randomness
from trainer.data.dataset import Entry
from trainer.data.pictures import PictureError, thumbnail

VERSION = 1
MOST_PICTURES = 512  # whose pixels are looked at; which, their content decides
SIDE = 64  # pixels of the small pictures that brightness and colour are taken from
MOST_TAGS = 300
SMALL, LARGE = 0.1, 0.3  # distances; below the first one nothing is to be expected
KINDS = {
    "folder": ("Folders", "what there is more of now is drawn more often, and takes over in samples of any prompt"),
    "tag": ("Tags", "tags that became frequent are learned anew; those that went fade from the first epochs on"),
    "words": ("Words of a caption", "prompts of the new length work better than those of the old one"),
    "pixels": ("Size of the files", "small files that are enlarged teach blur; larger ones show no difference"),
    "bucket": ("Buckets", "the loss moves with the shapes by itself; only validation can be compared"),
    "brightness": ("Brightness", "samples take over the brightness of the new images within some hundred steps"),
    "saturation": ("Saturation", "samples take over the saturation of the new images within some hundred steps"),
    "hue": ("Hue", "samples drift towards the new colours, also where the prompt does not name them"),
}  # title, and what a large shift usually does


def portrait(
    entries: Sequence[Entry], digest: str, separator: str, over: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
    """What images are like: for each of KINDS the number of samples by label. `digest`: of the dataset's record.

    `over` is asked before each picture is opened; None as soon as it says so. What cannot be read is left out.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    for entry in entries:
        times = entry.repeats
        counts["folder"][str(entry.path.parent.name)] += times
        tags = {part for piece in entry.caption.split(separator or ",") if (part := piece.strip())}
        counts["tag"].update(dict.fromkeys(tags, times))
        counts["words"][_doubling(len(entry.caption.split()), "words")] += times
        counts["pixels"][_doubling(round(math.sqrt(entry.size[0] * entry.size[1])), "px")] += times
        counts["bucket"]["x".join(map(str, entry.bucket))] += times
    chosen = sorted(entries, key=lambda entry: randomness.fraction(0, "portrait", entry.id))[:MOST_PICTURES]
    for entry in chosen:
        if over():
            return None
        try:
            small = thumbnail(entry.path, SIDE)
        except PictureError:
            continue
        red, green, blue = np.asarray(small, dtype=np.float64).reshape(-1, 3).mean(axis=0) / 255
        hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
        counts["brightness"][_tenth(0.299 * red + 0.587 * green + 0.114 * blue)] += entry.repeats
        counts["saturation"][_tenth(saturation)] += entry.repeats
        counts["hue"]["grey" if saturation < 0.08 else f"{30 * int(12 * hue % 12)}°"] += entry.repeats
    kept = {name: dict(count.most_common(MOST_TAGS)) for name, count in counts.items()}
    return {"version": VERSION, "digest": digest, "images": len(entries), "seen": len(chosen), "counts": kept}


def _tenth(share: float) -> str:
    low = min(9, int(10 * share))
    return f"{low / 10:.1f}-{(low + 1) / 10:.1f}"


def _doubling(number: int, unit: str) -> str:
    """The power of two that a number is below: classes that double."""
    return f"0 {unit}" if number == 0 else f"{2 ** (number.bit_length() - 1)}-{2 ** number.bit_length() - 1} {unit}"


@dataclass(frozen=True)
class Shift:
    """How far one of KINDS has moved. `changes`: (label, share then, share now), the largest change first."""

    kind: str
    distance: float
    changes: tuple[tuple[str, float, float], ...]

    @property
    def title(self) -> str:
        return KINDS[self.kind][0]

    @property
    def meaning(self) -> str:
        """What a shift of this size usually does, as a rule of thumb."""
        if self.distance < SMALL:
            return "hardly different"
        return f"{'large' if self.distance >= LARGE else 'noticeable'}: {KINDS[self.kind][1]}"

    def as_json(self, most: int = 8) -> dict[str, Any]:
        """For events and programs."""
        changes = [list(change) for change in self.changes[:most]]
        return {"kind": self.kind, "distance": self.distance, "meaning": self.meaning, "changes": changes}

    def line(self, most: int = 3) -> str:
        """For people."""
        shown = self.changes[:most]
        changes = ", ".join(f"{label} {100 * then:.0f} % -> {100 * now:.0f} %" for label, then, now in shown)
        return f"{self.title}: distance {self.distance:.2f} ({self.meaning}){': ' + changes if changes else ''}"


def distance(then: Mapping[str, float], now: Mapping[str, float]) -> float:
    """The Jensen-Shannon distance of two sets of counts, of 0 to 1; 0 where one of them counts nothing."""
    before, after = sum(then.values()), sum(now.values())
    if not before or not after:
        return 0.0
    total = 0.0
    for label in then.keys() | now.keys():
        p, q = then.get(label, 0) / before, now.get(label, 0) / after
        middle = (p + q) / 2
        total += sum(share / 2 * math.log2(share / middle) for share in (p, q) if share)
    return math.sqrt(min(1.0, max(0.0, total)))


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Shift]:
    """How far each kind has moved, the furthest first. Raises KeyError, TypeError or AttributeError where one of them
    is no portrait."""
    shifts = []
    for kind in KINDS:
        before, after = dict(then["counts"].get(kind, {})), dict(now["counts"].get(kind, {}))
        sums = sum(before.values()) or 1, sum(after.values()) or 1
        shares = [(label, before.get(label, 0) / sums[0], after.get(label, 0) / sums[1]) for label in before | after]
        changed = sorted((item for item in shares if item[1] != item[2]), key=lambda item: -abs(item[1] - item[2]))
        shifts.append(Shift(kind, distance(before, after), tuple(changed)))
    return sorted(shifts, key=lambda shift: -shift.distance)


def lines(shifts: Sequence[Shift]) -> list[str]:
    """For people: what has moved, and what has not in one line."""
    moved = [shift.line() for shift in shifts if shift.distance >= SMALL]
    rest = [shift.title.lower() for shift in shifts if shift.distance < SMALL]
    return moved + ([f"Hardly different: {', '.join(rest)}"] if rest else [])
