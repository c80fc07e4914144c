"""Choices between two pictures whose origin was hidden: kept with the run, added up, with how sure they are.

`judgements.jsonl` in the run's folder has a line a choice. No torch here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.runs.run_folder import RunFolder

Choice = Literal["first", "second", "equal"]
NORMAL = 1.959964  # the quantile that leaves 2.5 % on either side
SOURCE = "Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953"


@dataclass(frozen=True)
class Tally:
    """How often the first and the second of two was chosen, and neither."""

    first_name: str
    second_name: str
    first: int = 0
    second: int = 0
    equal: int = 0

    @property
    def decided(self) -> int:
        return self.first + self.second

    @property
    def share(self) -> float | None:
        """Of the choices between the two, those for the first."""
        return self.first / self.decided if self.decided else None

    @property
    def interval(self) -> tuple[float, float]:
        """Between what the first one's true share lies with 95 % confidence: Wilson's score interval (SOURCE)."""
        return wilson(self.first, self.decided)

    def sentence(self) -> str:
        """For people."""
        if self.share is None:
            return f"{self.first_name} against {self.second_name}: nothing was preferred yet."
        low, high = self.interval
        verdict = (
            f"{self.first_name} is preferred"
            if low > 0.5
            else f"{self.second_name} is preferred"
            if high < 0.5
            else "which one is preferred cannot be told yet"
        )
        return (
            f"{self.first_name} against {self.second_name}: {self.first} to {self.second}, {self.equal} without "
            f"difference; {100 * self.share:.0f} % for the first (95 % interval {100 * low:.0f} to {100 * high:.0f} "
            f"%): {verdict}."
        )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The score interval of a share with 95 % confidence; (0, 1) where nothing was tried."""
    if not trials:
        return 0.0, 1.0
    share, square = successes / trials, NORMAL**2
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = NORMAL * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def file_of(run: RunFolder) -> Path:
    return run.path / "judgements.jsonl"


def keep(run: RunFolder, first: str, second: str, prompt: str, seed: int | None, choice: Choice) -> None:
    """Add a choice. `first` and `second` name what was compared. Raises OSError."""
    line = {"first": first, "second": second, "prompt": prompt, "seed": seed, "choice": choice}
    with file_of(run).open("ab") as file:
        file.write(json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def tallies(run: RunFolder) -> list[Tally]:
    """What was compared in this run, the latest last; a pair counts as one whichever of the two was named first."""
    counts: dict[tuple[str, str], list[int]] = {}
    for line in _lines(run):
        pair, choice = (str(line["first"]), str(line["second"])), line["choice"]
        if pair[::-1] in counts:
            pair, choice = pair[::-1], {"first": "second", "second": "first"}.get(choice, choice)
        count = counts.pop(pair, [0, 0, 0])
        count[("first", "second", "equal").index(choice)] += 1
        counts[pair] = count
    return [Tally(*pair, *count) for pair, count in counts.items()]


def _lines(run: RunFolder) -> Iterator[dict[str, Any]]:
    try:
        data: Sequence[bytes] = file_of(run).read_bytes().splitlines()
    except OSError:
        return
    for part in data:
        try:
            line = json.loads(part)
        except (ValueError, RecursionError):
            continue
        whole = isinstance(line, dict) and {"first", "second"} <= line.keys()
        if whole and line.get("choice") in ("first", "second", "equal"):
            yield line
