"""What can be wrong with options, and values as they were given. No torch here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.refusal import Refused


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the options: the option's name (or ""), what is wrong with the way out, and where."""

    key: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.key}: {self.message}{place}" if self.key else f"{self.message}{place}"


@dataclass(frozen=True)
class Given:
    """A value as it was given, and where."""

    value: Any
    where: str


Source = Mapping[str, Given]


class ConfigError(Refused):
    """All problems of the options at once. `read`: what could be read beside them, to be checked as well."""

    def __init__(self, problems: Sequence[Problem], read: Source | None = None) -> None:
        self.problems = tuple(problems)
        self.read = read or {}
        super().__init__("\n".join(str(problem) for problem in problems))


@dataclass(frozen=True)
class Checked:
    """The outcome of checking sources: the right values, what is wrong, and what the user should know."""

    values: dict[str, Any]
    problems: list[Problem]
    notices: list[str]


def nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
