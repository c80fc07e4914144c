"""Images and captions on disk: found, checked, fingerprinted, compared. No torch here."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import buckets, files, randomness
from trainer.config import OPTIONS, Config
from trainer.findings import KINDS, Finding
from trainer.refusal import Refused
from trainer.scan import EXTENSIONS, list_pictures, read_folders

DATASET_VERSION = 1
SMALLEST_SHARE = 1 / 16  # of a picture that its bucket must show: less, and scaling it would take absurd memory
LARGEST_ENLARGEMENT = 1.5  # times a picture is scaled up before it is remarked on
FOLDER_NAME = re.compile(r"(\d+)_(.*)", re.DOTALL)


class DatasetError(Refused):
    """The images cannot be trained at all; the message says why and what to do."""


@dataclass(frozen=True)
class Entry:
    """One image with its caption, as it will be trained."""

    id: str  # of its content; addresses its random draws, so other images do not matter to it
    path: Path
    relative: str  # path below train_data_dir
    digest: str  # SHA-256 of the file
    size: buckets.Size  # (width, height) in pixels, turned upright
    bucket: buckets.Size
    caption: str  # as read; empty when there is none
    repeats: int


@dataclass(frozen=True)
class Scan:
    """The outcome of looking at train_data_dir. `entries` are ordered by id, which no renaming changes."""

    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]
    notices: tuple[str, ...]

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


@dataclass(frozen=True)
class _Folder:
    path: Path
    repeats: int
    class_tokens: str


def _folders(root: Path) -> tuple[list[_Folder], list[str]]:
    if not root.exists():
        raise DatasetError(f"train_data_dir: there is no folder {root}")
    if not root.is_dir():
        raise DatasetError(f"train_data_dir: {root} is not a folder")
    notices, found = [], []
    subfolders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for entry in subfolders:
        match = FOLDER_NAME.fullmatch(entry.name)
        if match and int(match[1]) >= 1:
            found.append(_Folder(entry, int(match[1]), match[2].strip()))
        elif match:
            notices.append(f"{entry} is skipped: 0 repeats")
    if not found:
        if not list_pictures(root) and subfolders:
            raise DatasetError(
                f"train_data_dir: no images in {root}; its folders are not named <repeats>_<class> "
                f'(like "10_{subfolders[0].name}"), and a plain folder holds the images directly'
            )
        return [_Folder(root, 1, "")], notices
    notices += [
        f"{entry} is skipped: its name does not begin with a number of repeats, like 10_{entry.name}"
        for entry in subfolders
        if not FOLDER_NAME.fullmatch(entry.name)
    ]
    if direct := list_pictures(root):
        notices.append(f"{len(direct)} images directly in {root} are skipped: it has folders named <repeats>_<class>")
    return found, notices


def scan(
    config: Config,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int = 4,
) -> Scan:
    """Look at every image of train_data_dir: read the new ones whole, skip and name those that cannot be read.

    Raises DatasetError when nothing can be trained.
    """
    root = Path(config.train_data_dir)
    if not config.train_data_dir:
        raise DatasetError("train_data_dir is empty: name the folder that holds the images")
    folders, notices = _folders(root)
    contents = read_folders(
        [(folder.path, (config.caption_extension,)) for folder in folders],
        config.cache_path,
        progress=progress,
        workers=workers,
    )
    entries: list[Entry] = []
    findings: list[Finding] = []
    copies: dict[str, list[Path]] = {}
    uncaptioned = 0
    for folder, content in zip(folders, contents, strict=True):
        findings += content.findings()
        for picture in content.pictures:
            fact = picture.facts
            if fact.problem:
                continue
            size = (fact.width, fact.height)
            bucket = _bucket(size, config)
            if buckets.visible_share(size, bucket) < SMALLEST_SHARE:
                findings.append(Finding("too_narrow", picture.path, f"{size[0]} x {size[1]} pixels"))
                continue
            findings += picture.findings()
            if (factor := buckets.enlargement(size, bucket)) > LARGEST_ENLARGEMENT:
                findings.append(
                    Finding("too_small", picture.path, f"{size[0]} x {size[1]} pixels, enlarged {factor:.1f} times")
                )
            caption = picture.caption_text()
            if caption is None:
                uncaptioned += 1
                caption = folder.class_tokens
            # Copies of one picture are told apart by their number, in the order of their paths.
            same = copies.setdefault(fact.digest, [])
            if same:
                findings.append(Finding("duplicate", picture.path, "of", (same[0],)))
            same.append(picture.path)
            entries.append(
                Entry(
                    id=fact.digest[:32] if len(same) == 1 else f"{fact.digest[:32]}-{len(same)}",
                    path=picture.path,
                    relative=picture.path.relative_to(root).as_posix(),
                    digest=fact.digest,
                    size=size,
                    bucket=bucket,
                    caption=caption,
                    repeats=folder.repeats,
                )
            )
    if not entries:
        unread = [finding for finding in findings if KINDS[finding.kind].skipped]
        detail = f"; {len(unread)} files cannot be read, first {unread[0].path}: {unread[0].reason}" if unread else ""
        raise DatasetError(
            f"train_data_dir: no images in {root}{detail}. Images are {', '.join(sorted(EXTENSIONS))}, directly "
            "inside or in folders named <repeats>_<class>"
        )
    if uncaptioned:
        notices.append(
            f"{uncaptioned} of {len(entries)} images have no {config.caption_extension} file; the folder's class is "
            "their caption"
        )
    return Scan(tuple(sorted(entries, key=lambda entry: entry.id)), tuple(findings), tuple(notices))


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


# --- captions ------------------------------------------------------------------------------------------------------


def captions_vary(config: Config) -> bool:
    """Whether an image's caption differs from one use to the next, apart from being dropped whole."""
    return config.shuffle_caption or config.caption_tag_dropout_rate > 0


def plain_caption(entry: Entry, config: Config) -> str:
    """The caption with prefix and suffix, nothing shuffled or left out."""
    return " ".join(part for part in (config.caption_prefix, entry.caption, config.caption_suffix) if part)


def caption_for(entry: Entry, config: Config, epoch: int, repeat: int) -> str:
    """The caption of one use of an image: dropped, shuffled and thinned as the options say, drawn by its address."""
    if config.caption_dropout_every_n_epochs and (epoch + 1) % config.caption_dropout_every_n_epochs == 0:
        return ""
    draw = randomness.generator(config.seed, "caption", entry.id, epoch, repeat)
    if draw.random() < config.caption_dropout_rate:
        return ""
    if not captions_vary(config):
        return plain_caption(entry, config)
    separator = config.caption_separator
    parts = [part.strip() for part in entry.caption.split(separator) if part.strip()]
    kept, rest = parts[: config.keep_tokens], parts[config.keep_tokens :]
    if config.shuffle_caption:
        rest = [rest[index] for index in draw.permutation(len(rest))]
    if config.caption_tag_dropout_rate > 0:
        rest = [part for part in rest if draw.random() >= config.caption_tag_dropout_rate]
    joined = f"{separator} ".join(kept + rest)
    return " ".join(part for part in (config.caption_prefix, joined, config.caption_suffix) if part)


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
    images = {
        entry.id: {
            "path": entry.relative,
            "caption": hashlib.sha256(entry.caption.encode()).hexdigest()[:32],
            "bucket": list(entry.bucket),
            "repeats": entry.repeats,
        }
        for entry in found.entries
    }
    content = {key: [image["caption"], image["bucket"], image["repeats"]] for key, image in images.items()}
    settings = preprocessing(config)
    return {
        "version": DATASET_VERSION,
        "preprocessing": settings,
        "images": images,
        "digest": hashlib.sha256(files.json_bytes([content, settings])).hexdigest(),
    }


@dataclass(frozen=True)
class DatasetDifference:
    """What changed in the images since a checkpoint; paths as they are now, or were."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]  # another picture under the same name
    captions: tuple[str, ...]
    treated: tuple[str, ...]  # another bucket or number of repeats

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.captions or self.treated)

    def lines(self, most: int = 10) -> list[str]:
        """For people: each kind of change with its first files by name."""
        kinds = {
            "added": self.added,
            "removed": self.removed,
            "another picture": self.changed,
            "caption changed": self.captions,
            "bucket or repeats changed": self.treated,
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
                if (old[key]["bucket"], old[key]["repeats"]) != (new[key]["bucket"], new[key]["repeats"])
            )
        ),
    )
