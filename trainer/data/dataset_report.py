"""What a dataset is: folders, buckets, captions, and what is wrong with its files. No torch here."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data import captions, dataset, findings, inspection
from trainer.data.dataset import Entry, Scan
from trainer.data.findings import Finding
from trainer.data.folder_scan import Progress, no_progress
from trainer.data.subsets import DatasetError
from trainer.options.config import Config

MOST_TAGS = 50


@dataclass(frozen=True)
class FolderCount:
    """The images of one folder. `use`: "trained", "regularisation" or "validation"."""

    path: Path
    use: str
    repeats: int
    images: int

    @property
    def samples(self) -> int:
        """Samples an epoch."""
        return self.images * self.repeats


@dataclass(frozen=True)
class CaptionLengths:
    """Of the captions that are not empty, in words."""

    captions: int
    shortest: int
    median: int
    longest: int
    too_long: int  # captions that are probably longer than max_token_length


@dataclass(frozen=True)
class Report:
    """A dataset, looked at. `refusal`: why it cannot be trained at all; empty when it can."""

    config: Config
    found: Scan
    long_captions: tuple[Finding, ...]
    deeper: tuple[Finding, ...]  # found by decoding every picture; empty when that was not asked for
    refusal: str = ""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every image that is used, by path."""
        return tuple(sorted((*self.found.entries, *self.found.validation), key=lambda entry: entry.path))

    @property
    def findings(self) -> tuple[Finding, ...]:
        return (*self.found.findings, *self.long_captions, *self.deeper)

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch takes with one process."""
        return self.found.steps_per_epoch(self.config.gradient_accumulation_steps)

    def folders(self) -> list[FolderCount]:
        """Each folder with images, in the order of their paths."""
        counts = Counter(
            (entry.path.parent, "regularisation" if entry.subset.is_reg else "trained", entry.repeats)
            for entry in self.found.entries
        )
        counts.update((entry.path.parent, "validation", entry.repeats) for entry in self.found.validation)
        return [FolderCount(path, use, repeats, images) for (path, use, repeats), images in sorted(counts.items())]

    def caption_lengths(self) -> CaptionLengths:
        words = sorted(len(entry.caption.split()) for entry in self.entries if entry.caption)
        if not words:
            return CaptionLengths(0, 0, 0, 0, 0)
        return CaptionLengths(
            len(words),
            words[0],
            int(statistics.median(words)),
            words[-1],
            len(self.long_captions),
        )

    def tags(self, most: int = MOST_TAGS) -> list[tuple[str, int]]:
        """The most frequent parts of captions, between separators, with the number of images that have them."""
        return tag_counts((entry.caption for entry in self.entries), self.config.caption_separator).most_common(most)

    def lines(self, most: int = 10) -> list[str]:
        """For people. `most`: files named of each kind of finding."""
        lines = [f"Refused: {line}" for line in self.refusal.splitlines()]
        if self.found.entries:
            counts = self.found.bucket_counts()
            lines += [
                f"{len(self.found.entries)} images, {self.found.samples} samples an epoch, "
                f"{self.steps_per_epoch} steps an epoch"
            ]
            lines += [
                f"    {count.path}: {count.images} images x {count.repeats}"
                + ("" if count.use == "trained" else f" for {count.use}")
                for count in self.folders()
            ]
            lines.append("Buckets: " + ", ".join(f"{w}x{h} {number}" for (w, h), number in counts.items()))
            lengths = self.caption_lengths()
            lines.append(
                f"Captions: {lengths.captions} of {len(self.entries)}; {lengths.shortest} to {lengths.longest} words, "
                f"half of them {lengths.median} or fewer"
            )
            lines.append("Most frequent: " + ", ".join(f"{tag} ({number})" for tag, number in self.tags(15)))
        lines += self.found.notices
        return lines + (findings.lines(self.findings, most) or ["Nothing is wrong with the files."])

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        lengths = self.caption_lengths()
        return {
            "version": 1,
            "refusal": self.refusal,
            "images": len(self.found.entries),
            "validation_images": len(self.found.validation),
            "samples": self.found.samples,
            "steps_per_epoch": self.steps_per_epoch,
            "folders": [
                {"path": str(item.path), "use": item.use, "repeats": item.repeats, "images": item.images}
                for item in self.folders()
            ],
            "buckets": [[*size, number] for size, number in self.found.bucket_counts().items()],
            "caption_words": {
                "captions": lengths.captions,
                "shortest": lengths.shortest,
                "median": lengths.median,
                "longest": lengths.longest,
                "too_long": lengths.too_long,
            },
            "tags": [list(item) for item in self.tags()],
            "notices": list(self.found.notices),
            "findings": [finding.as_json() for finding in self.findings],
        }


def tag_counts(captions: Iterable[str], separator: str) -> Counter[str]:
    """In how many captions each tag is; of those that are equally frequent, the one found first is first."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(list(dict.fromkeys(part for piece in caption.split(separator) if (part := piece.strip()))))
    return counts


def make(config: Config, *, deep: bool = False, progress: Progress = no_progress, workers: int = 4) -> Report:
    """Look at the images of a training; `deep`: decode every one of them.

    Raises DatasetError when there is no folder to look at.
    """
    try:
        scanned, refusal = dataset.scan(config, progress=progress, workers=workers), ""
    except DatasetError as error:
        if not error.findings:
            raise
        scanned, refusal = Scan((), error.findings, ()), str(error)
    deeper: Sequence[Finding] = ()
    if deep:
        digests = {entry.path: entry.digest for entry in (*scanned.entries, *scanned.validation)}
        deeper = inspection.inspect(digests, config.cache_path, progress=progress, workers=workers)
    used = (*scanned.entries, *scanned.validation)
    long = [
        Finding("long_caption", entry.path, f"about {captions.about_tokens(entry.caption)} tokens")
        for entry in used
        if captions.is_cut_off(entry.caption, entry.subset.options)
    ]
    return Report(config, scanned, tuple(long), tuple(deeper), refusal)
