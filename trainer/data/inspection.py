"""The deeper look at pictures: every one decoded, for damage that a scan cannot see, and for near copies. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.findings import Finding
from trainer.data.folder_scan import PICTURES, Facts, Progress, learn, no_progress
from trainer.data.pictures import PictureError, open_picture
from trainer.file_memory import FileMemory, stamp_of

NEAR_BITS = 5  # of 64 that the hashes of near copies may differ in
NEAR_COLOUR = 12  # of 255 that their mean colours may differ by
ROWS_AT_ONCE = 1024  # of a comparison of many with many


class Look(NamedTuple):
    """What a decoded picture looks like; `problem` and its kind when it cannot be decoded."""

    problem: str = ""
    hash: int = 0  # 64 bits: whether each of 8 x 8 places is brighter than its neighbour on the left
    red: int = 0  # means, from 0 to 255
    green: int = 0
    blue: int = 0
    kind: str = "damaged"  # or "unreadable": the disk did not answer


def look_whole(file: str) -> Look:
    """Decode a picture. The hash is dHash: https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html"""
    try:
        picture = open_picture(Path(file), Path(file).read_bytes())
    except OSError as error:
        return Look(error.strerror or str(error), kind="unreadable")
    except PictureError as error:
        return Look(error.reason)
    small = picture.resize((9, 8), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), dtype=np.int16)
    bits = np.packbits((np.diff(grey, axis=1) > 0).reshape(-1))
    red, green, blue = (int(value) for value in np.asarray(small).mean(axis=(0, 1)))
    return Look("", int.from_bytes(bits.tobytes(), "big"), red, green, blue)


def inspect(
    digests: dict[Path, str], memory_folder: Path, *, progress: Progress = no_progress, workers: int = 4
) -> list[Finding]:
    """Decode every picture (path -> SHA-256) once: what is damaged, and what is nearly the same.

    A damaged picture is remembered as one, so that the next scan skips it. Exact copies are not named again.
    """
    stamps = {str(path): stamp for path in digests if (stamp := stamp_of(path))}
    rows = learn(FileMemory(memory_folder, "looks"), stamps, _row, progress, workers, _lasts)
    looks = {path: Look(*rows[str(path)]) for path in digests if str(path) in rows}
    damaged = [path for path, seen in looks.items() if seen.problem and seen.kind == "damaged"]
    FileMemory(memory_folder, PICTURES).remember(
        (str(path), stamps[str(path)], list(Facts(problem="damaged", detail=looks[path].problem))) for path in damaged
    )
    first = {digest: path for path, digest in reversed(digests.items()) if path in looks and not looks[path].problem}
    distinct = sorted(first.values())
    groups = near_copies([looks[path] for path in distinct])
    return [Finding(seen.kind, path, seen.problem) for path, seen in looks.items() if seen.problem] + [
        Finding("near_duplicate", distinct[place], "", (distinct[group[0]],)) for group in groups for place in group[1:]
    ]


def _row(file: str) -> list[Any]:
    return list(look_whole(file))


def _lasts(row: Sequence[Any]) -> bool:
    return Look(*row).kind == "damaged"


def near_copies(looks: Sequence[Look]) -> list[list[int]]:
    """Groups of two or more places in `looks` that look nearly the same, the groups and their members in order.

    Hashes that differ in at most NEAR_BITS of 64 bits agree in at least one of their eight bytes (5 < 8), so only
    those with an equal byte are compared.
    """
    if len(looks) < 2:
        return []
    hashes = np.array([seen.hash for seen in looks], dtype=np.uint64)
    colours = np.array([seen[2:5] for seen in looks], dtype=np.int16)
    leads_to = list(range(len(looks)))  # towards the first of a group

    def first_of(place: int) -> int:
        while leads_to[place] != place:
            leads_to[place] = place = leads_to[leads_to[place]]
        return place

    for shift in range(0, 64, 8):
        for left, right in _pairs_of(hashes, colours, shift).T.tolist():
            one, other = sorted((first_of(left), first_of(right)))
            leads_to[other] = one
    groups: dict[int, list[int]] = {}
    for place in range(len(looks)):
        groups.setdefault(first_of(place), []).append(place)
    return [members for members in groups.values() if len(members) > 1]


def _pairs_of(hashes: NDArray[np.uint64], colours: NDArray[np.int16], shift: int) -> NDArray[np.int64]:
    """(2, pairs): places of near copies whose hashes agree in the byte at `shift`."""
    values = (hashes >> np.uint64(shift)) & np.uint64(255)
    pairs = [np.empty((2, 0), dtype=np.int64)]
    for value in np.unique(values):
        members = np.flatnonzero(values == value)
        for start in range(0, len(members), ROWS_AT_ONCE):
            rows = members[start : start + ROWS_AT_ONCE]
            near = np.bitwise_count(hashes[rows, None] ^ hashes[None, members]) <= NEAR_BITS
            above, beside = np.nonzero(near & (rows[:, None] < members[None, :]))
            above, beside = rows[above], members[beside]
            alike = np.abs(colours[above] - colours[beside]).max(axis=1, initial=0) <= NEAR_COLOUR
            pairs.append(np.stack([above[alike], beside[alike]]))
    return np.concatenate(pairs, axis=1)
