"""What can be wrong with the files of a dataset, what it means for the training, and what to do. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One thing that can be wrong. `skipped`: whether the file is left out of the training."""

    title: str
    skipped: bool
    advice: str


KINDS: Mapping[str, Kind] = {
    "unreadable": Kind("Cannot be read", True, "Check the file's permissions and links, or replace it."),
    "empty_file": Kind("Empty file", True, "The file has no bytes; copy it again or remove it."),
    "truncated": Kind("Cut off", True, "The end of the file is missing; copy or download it again."),
    "damaged": Kind("Damaged", True, "The file cannot be decoded; replace it, or open it elsewhere and save it again."),
    "bomb": Kind("Too many pixels", True, "Scale the picture down and save it again."),
    "too_narrow": Kind("Too narrow", True, "Almost all of it would be cropped away; cut it into squarer pieces."),
    "not_a_file": Kind("Not a file", True, "A folder, pipe or device is named like a picture; rename or remove it."),
    "foreign": Kind("Unsupported format", True, "Convert it to PNG, JPEG or WebP."),
    "too_small": Kind(
        "Small", False, "It is enlarged, which teaches blur; use a larger version or a lower resolution."
    ),
    "wrong_extension": Kind("Misnamed", False, "It is trained, but other programs may skip it; rename it."),
    "duplicate": Kind("Exact copy", False, "Each copy is trained; remove the copies, or use repeats on purpose."),
    "near_duplicate": Kind("Near copy", False, "Both are trained; keep the better one unless both are wanted."),
    "no_caption": Kind("No caption file", False, "The folder's class is its caption; write one in the Dataset tab."),
    "empty_caption": Kind("Empty caption", False, "It is trained without a caption; write one in the Dataset tab."),
    "long_caption": Kind(
        "Long caption", False, "Its end is probably cut off; shorten it, or set max_token_length to 150 or 225."
    ),
    "caption_encoding": Kind("Caption is not UTF-8", False, "Check that it reads correctly, and save it as UTF-8."),
    "caption_unreadable": Kind("Caption cannot be read", False, "Check the caption file's permissions, size and type."),
    "lonely_caption": Kind("Caption without picture", False, "Rename it like its picture, or remove it."),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one file. `kind`: a name in KINDS."""

    kind: str
    path: Path
    detail: str = ""
    others: tuple[Path, ...] = ()  # for copies: what it is a copy of

    @property
    def about(self) -> str:
        """For people, without the kind and the file's name."""
        return self.detail or ", ".join(f"of {path}" for path in self.others)

    @property
    def reason(self) -> str:
        """For people, without the file's name."""
        return f"{KINDS[self.kind].title.lower()}: {self.about}".removesuffix(": ")

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kind": self.kind,
            "path": str(self.path),
            "skipped": KINDS[self.kind].skipped,
            "detail": self.detail,
            "others": [str(path) for path in self.others],
            "advice": KINDS[self.kind].advice,
        }


def by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """The findings of each kind there is, in the order of KINDS."""
    rest = list(findings)
    present = Counter(finding.kind for finding in rest)
    return {kind: [item for item in rest if item.kind == kind] for kind in KINDS if present[kind]}


def effect(kind: str) -> str:
    """What becomes of a file of which this was found, in a word or two."""
    if KINDS[kind].skipped:
        return "skipped"
    return "not used" if kind == "lonely_caption" else "trained"


def lines(findings: Iterable[Finding], most: int = 10) -> list[str]:
    """For people: each kind with its count, what to do, and its first files by name."""
    result = []
    for kind, members in by_kind(findings).items():
        about = KINDS[kind]
        result.append(f"{about.title} ({len(members)}, {effect(kind)}). {about.advice}")
        for finding in members[:most]:
            result.append(f"    {finding.path}: {finding.about}".removesuffix(": "))
        if len(members) > most:
            result.append(f"    and {len(members) - most} more")
    return result
