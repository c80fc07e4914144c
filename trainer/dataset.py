"""Images and captions on disk: found, checked, fingerprinted, compared. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import buckets, files, randomness, subsets
from trainer.config import OPTIONS, Config
from trainer.findings import KINDS, Finding
from trainer.scan import EXTENSIONS, no_collections, read_folders
from trainer.subsets import DatasetError, Subset

DATASET_VERSION = 1
SMALLEST_SHARE = 1 / 16  # of a picture that its bucket must show: less, and scaling it would take absurd memory
LARGEST_ENLARGEMENT = 1.5  # times a picture is scaled up before it is remarked on


@dataclass(frozen=True)
class Entry:
    """One image with its caption, as it will be trained."""

    id: str  # of its content; addresses its random draws, so other images do not matter to it
    path: Path
    relative: str  # path below the folder that an option names
    digest: str  # SHA-256 of the file
    size: buckets.Size  # (width, height) in pixels, turned upright
    bucket: buckets.Size
    caption: str  # as read; empty when there is none
    repeats: int
    subset: Subset  # where it is from, and the options of its own


@dataclass(frozen=True)
class Scan:
    """The outcome of looking at the images. `entries` are ordered by id, which no renaming changes."""

    entries: tuple[Entry, ...]  # trained
    findings: tuple[Finding, ...]
    notices: tuple[str, ...]
    validation: tuple[Entry, ...] = ()  # never trained

    @property
    def skipped(self) -> tuple[Finding, ...]:
        """The findings that keep a file out of the training."""
        return tuple(finding for finding in self.findings if KINDS[finding.kind].skipped)

    @property
    def samples(self) -> int:
        """Samples an epoch: images times repeats."""
        return sum(entry.repeats for entry in self.entries)

    def bucket_counts(self) -> dict[buckets.Size, int]:
        """Samples an epoch in each bucket."""
        counts: Counter[buckets.Size] = Counter()
        for entry in self.entries:
            counts[entry.bucket] += entry.repeats
        return dict(sorted(counts.items()))


# --- scanning ------------------------------------------------------------------------------------------------------


@no_collections()
def scan(
    config: Config,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int = 4,
) -> Scan:
    """Look at every image of the training: read the new ones whole, skip and name those that cannot be read.

    Raises DatasetError when nothing can be trained.
    """
    chosen, notices = subsets.of(config)
    contents = read_folders(
        [(subset.folder, (subset.options.caption_extension,)) for subset in chosen],
        config.cache_path,
        progress=progress,
        workers=workers,
    )
    entries: list[Entry] = []
    findings: list[Finding] = []
    copies: dict[str, list[Path]] = {}
    uncaptioned = 0
    for subset, content in zip(chosen, contents, strict=True):
        findings += content.findings()
        below = "" if subset.folder == subset.root else f"{subset.folder.relative_to(subset.root).as_posix()}/"
        for picture in content.pictures:
            fact, path = picture.facts, picture.path
            if fact.problem:
                continue
            size = (fact.width, fact.height)
            bucket = _bucket(size, subset.options)
            if buckets.visible_share(size, bucket) < SMALLEST_SHARE:
                findings.append(Finding("too_narrow", path, f"{size[0]} x {size[1]} pixels"))
                continue
            findings += picture.findings()
            if (factor := buckets.enlargement(size, bucket)) > LARGEST_ENLARGEMENT:
                findings.append(
                    Finding("too_small", path, f"{size[0]} x {size[1]} pixels, enlarged {factor:.1f} times")
                )
            caption = picture.caption_text()
            if caption is None:
                uncaptioned += 1
                caption = subset.class_tokens
            # Copies of one picture are told apart by their number, in the order of their paths.
            same = copies.setdefault(fact.digest, [])
            if same:
                findings.append(Finding("duplicate", path, "", (same[0],)))
            same.append(path)
            entries.append(
                Entry(
                    id=fact.digest[:32] if len(same) == 1 else f"{fact.digest[:32]}-{len(same)}",
                    path=path,
                    relative=below + path.name,
                    digest=fact.digest,
                    size=size,
                    bucket=bucket,
                    caption=caption,
                    repeats=subset.num_repeats,
                    subset=subset,
                )
            )
    if all(entry.subset.is_validation for entry in entries):
        unread = [finding for finding in findings if KINDS[finding.kind].skipped]
        detail = f"; {len(unread)} files cannot be read, first {unread[0].path}: {unread[0].reason}" if unread else ""
        raise DatasetError(
            f"train_data_dir: no images in {config.train_data_dir}{detail}. Images are "
            f"{', '.join(sorted(EXTENSIONS))}, directly inside or in folders named <repeats>_<class>",
            findings,
        )
    if uncaptioned:
        notices.append(
            f"{uncaptioned} of {len(entries)} images have no {config.caption_extension} file; the folder's class is "
            "their caption"
        )
    entries.sort(key=lambda entry: entry.id)
    train, validation, told = split(entries)
    return Scan(tuple(train), tuple(findings), (*notices, *told), tuple(validation))


# --- validation ----------------------------------------------------------------------------------------------------


def split(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry], list[str]]:
    """The entries to train, those to validate with, and notices. Raises DatasetError where nothing is left to train.

    An image's content alone decides whether it is among the validation_split, so that no image that was trained is
    ever validated with when images are added. Where the share is so small that no image is in it, the one nearest to
    it is; adding images can only put a new one, or none, in its place. Copies go together.
    """
    held_out = {entry.digest for entry in entries if entry.subset.is_validation}
    copies = {entry.digest for entry in entries if not entry.subset.is_validation} & held_out
    places = {
        entry.digest: _split_place(entry)
        for entry in entries
        if not entry.subset.is_validation and entry.subset.options.validation_split > 0
    }
    shares = {entry.digest: entry.subset.options.validation_split for entry in entries}
    chosen = {digest for digest, place in places.items() if place < shares[digest]}
    if places and not chosen:
        chosen = {min(places, key=lambda digest: (places[digest], digest))}
    held_out |= chosen
    train = [entry for entry in entries if entry.digest not in held_out]
    unvaried: dict[int, Subset] = {}  # one for each subset, since a config is large
    validation = []
    for entry in entries:
        if entry.digest in chosen or entry.subset.is_validation:
            if id(entry.subset) not in unvaried:
                unvaried[id(entry.subset)] = entry.subset.unvaried()
            validation.append(dataclasses.replace(entry, repeats=1, subset=unvaried[id(entry.subset)]))
    if not train:
        raise DatasetError(
            f"validation: all {len(entries)} images are validation images, so none is left to train; lower "
            "validation_split, choose another validation_seed, or take the images out of validation_data_dir"
        )
    told = [f"{len(copies)} images are not trained, because they are in validation_data_dir"] if copies else []
    return train, validation, told


def _split_place(entry: Entry) -> float:
    options = entry.subset.options
    seed = options.seed if options.validation_seed is None else options.validation_seed
    return randomness.fraction(seed, "validation split", entry.digest)


def _bucket(size: buckets.Size, config: Config) -> buckets.Size:
    if not config.enable_bucket:
        return config.resolution_size
    return buckets.bucket_for(
        size,
        config.resolution_size,
        config.min_bucket_reso,
        config.max_bucket_reso,
        config.bucket_reso_steps,
        config.bucket_no_upscale,
    )


# --- fingerprints --------------------------------------------------------------------------------------------------


def preprocessing(config: Config) -> dict[str, Any]:
    """The options that decide what becomes of an image and its caption."""
    return {
        name: list(value) if isinstance(value := getattr(config, name), tuple) else value
        for name, known in OPTIONS.items()
        if known.section == "Dataset" and known.on_resume == "trajectory"
    }


def record(found: Scan, config: Config) -> dict[str, Any]:
    """What dataset.json keeps: each image by content, its caption and bucket, and one digest over all."""
    images = {entry.id: _image(entry) for entry in found.entries}
    images |= {entry.id: {**_image(entry), "validation": True} for entry in found.validation}
    content = {key: [value for name, value in image.items() if name != "path"] for key, image in images.items()}
    settings = preprocessing(config)
    return {
        "version": DATASET_VERSION,
        "preprocessing": settings,
        "images": images,
        "digest": hashlib.sha256(files.json_bytes([content, settings])).hexdigest(),
    }


def _image(entry: Entry) -> dict[str, Any]:
    return {
        "path": entry.relative,
        "caption": hashlib.sha256(entry.caption.encode()).hexdigest()[:32],
        "bucket": list(entry.bucket),
        "repeats": entry.repeats,
    }


@dataclass(frozen=True)
class DatasetDifference:
    """What changed in the images since a checkpoint; paths as they are now, or were."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]  # another picture under the same name
    captions: tuple[str, ...]
    treated: tuple[str, ...]  # another bucket or number of repeats, or trained then and validated with now

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.captions or self.treated)

    def lines(self, most: int = 10) -> list[str]:
        """For people: each kind of change with its first files by name."""
        kinds = {
            "added": self.added,
            "removed": self.removed,
            "another picture": self.changed,
            "caption changed": self.captions,
            "bucket, repeats or part in validation changed": self.treated,
        }
        result = []
        for kind, paths in kinds.items():
            if paths:
                more = f" and {len(paths) - most} more" if len(paths) > most else ""
                result.append(f"{kind} ({len(paths)}): {', '.join(paths[:most])}{more}")
        return result


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> DatasetDifference:
    """Compare two records by content; times, names and the place of the folder do not matter."""
    if then["digest"] == now["digest"]:
        return DatasetDifference((), (), (), (), ())
    old, new = then["images"], now["images"]
    gone = {old[key]["path"] for key in old.keys() - new.keys()}
    come = {new[key]["path"] for key in new.keys() - old.keys()}
    both = old.keys() & new.keys()
    return DatasetDifference(
        added=tuple(sorted(come - gone)),
        removed=tuple(sorted(gone - come)),
        changed=tuple(sorted(come & gone)),
        captions=tuple(sorted(new[key]["path"] for key in both if old[key]["caption"] != new[key]["caption"])),
        treated=tuple(
            sorted(
                new[key]["path"]
                for key in both
                if any(old[key].get(name) != new[key].get(name) for name in ("bucket", "repeats", "validation"))
            )
        ),
    )
