"""Images and captions on disk: found, checked, fingerprinted, compared. No torch here."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import files, randomness
from trainer.data import addresses, buckets, dataset_config, metadata_files
from trainer.data.augmentation import cut_by_rules, face_in
from trainer.data.captions import Shown
from trainer.data.findings import KINDS, Finding
from trainer.data.folder_scan import EXTENSIONS, Picture, Progress, no_collections, no_progress, read_folders
from trainer.data.subsets import DatasetError, Subset, in_folder
from trainer.options.config import OPTIONS, Config

DATASET_VERSION = 1
SMALLEST_SHARE = 1 / 16  # of a picture that its bucket must show: less, and scaling it would take absurd memory
FIRST_TREATMENT = ("bucket", "repeats", "validation", "is_reg", "mask")  # of an image, in the earliest records
TREATMENT = (*FIRST_TREATMENT, "subset", "face")
MOST_SAMPLES = 100_000_000  # an epoch; their order takes a few bytes of memory for each
CONTROL_STEP = 32  # pixels of which the sides of control pictures with an area of their own are multiples, as in Qwen's
LARGEST_ENLARGEMENT = 1.5  # times a picture is scaled up before it is remarked on


@dataclass(frozen=True, slots=True)
class Entry:
    """One image with its caption, as it will be trained."""

    id: str  # of its content; addresses its random draws, so other images do not matter to it
    file: str  # its path
    relative: str  # path below the folder that an option names
    digest: str  # SHA-256 of the file
    size: buckets.Size  # (width, height) in pixels, turned upright
    bucket: buckets.Size
    caption: str  # as read; empty when there is none
    repeats: int
    subset: Subset  # where it is from, and the options of its own
    mask: Path | None = None  # a picture that is white where the image teaches
    mask_digest: str = ""  # SHA-256 of its file
    control: Entry | None = None  # the picture of which a model that edits is to make the image

    @property
    def path(self) -> Path:
        return Path(self.file)  # made when it is asked for: a hundred thousand of them take time and memory

    @property
    def shown(self) -> Shown | None:
        """The control picture, as a text encoder looks at it."""
        return Shown(self.control.file, self.control.digest) if self.control else None

    @property
    def sizes(self) -> tuple[buckets.Size, buckets.Size]:
        """What images of one batch have in common: their bucket, and that of their control pictures."""
        return self.bucket, self.control.bucket if self.control else (0, 0)


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

    def steps_per_epoch(self, batches_per_step: int) -> int:
        """Steps an epoch takes when each trains so many batches."""
        samples: Counter[int] = Counter()  # by batch size
        for entry in self.entries:
            samples[entry.subset.options.train_batch_size] += entry.repeats
        return sum(buckets.steps_per_epoch(count, size * batches_per_step) for size, count in samples.items())

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
    progress: Progress = no_progress,
    workers: int = 4,
) -> Scan:
    """Look at every image of the training: read the new ones whole, skip and name those that cannot be read.

    Raises DatasetError when nothing can be trained.
    """
    for name in ("train_data_dir", "reg_data_dir", "validation_data_dir"):
        if name == "validation_data_dir" or not config.dataset_config:
            addresses.fetched(name, getattr(config, name))
    try:
        chosen, notices = _subsets(config)
        contents = read_folders(
            [(subset.folder, subset.options.caption_extensions) for subset in chosen],
            config.cache_path,
            progress=progress,
            workers=workers,
        )
    except OSError as error:
        raise DatasetError(f"the folders of the images cannot be read: {error}; check their disk and rights") from error
    partners = _Partners(config.cache_path, workers)
    entries: list[Entry] = []
    findings: list[Finding] = []
    copies: dict[str, list[str]] = {}
    uncaptioned = 0
    told_by = _Captions()
    for subset, content in zip(chosen, contents, strict=True):
        findings += content.findings()
        captions = told_by.of(subset)
        bucket_of = _bucketing(subset.options)
        below = "" if subset.folder == subset.root else f"{subset.folder.relative_to(subset.root).as_posix()}/"
        for picture in content.pictures:
            fact, file = picture.facts, picture.file
            if fact.problem:
                continue
            size = (fact.width, fact.height)
            bucket, share, factor = bucket_of(size)
            if share < SMALLEST_SHARE:
                findings.append(Finding("too_narrow", picture.path, f"{size[0]} x {size[1]} pixels"))
                continue
            if factor > LARGEST_ENLARGEMENT:
                findings.append(
                    Finding("too_small", picture.path, f"{size[0]} x {size[1]} pixels, enlarged {factor:.1f} times")
                )
            first_line = picture.caption_text()
            caption = picture.whole_caption() if subset.options.enable_wildcard else first_line
            own = (
                metadata_files.caption_of(picture.path, subset.root, captions) if captions and caption is None else None
            )
            if picture.is_remarkable(first_line):
                remarks = picture.findings(first_line)
                findings += [remark for remark in remarks if own is None or remark.kind != "no_caption"]
            if own is not None:
                caption = own if subset.options.enable_wildcard else next(iter(own.strip().splitlines()), "")
            elif caption is None:
                uncaptioned += 1
                caption = subset.class_tokens
            # Copies of one picture are told apart by their number, in the order of their paths.
            same = copies.setdefault(fact.digest, [])
            if same and file not in same:  # one file in several subsets is on purpose
                findings.append(Finding("duplicate", picture.path, "", (Path(same[0]),)))
            same.append(file)
            partner = partners.of(file, below, subset, bucket)
            entries.append(
                Entry(
                    id=fact.digest[:32] if len(same) == 1 else f"{fact.digest[:32]}-{len(same)}",
                    file=file,
                    relative=below + file[file.rfind(os.sep) + 1 :],
                    digest=fact.digest,
                    size=size,
                    bucket=bucket,
                    caption=caption,
                    repeats=subset.num_repeats,
                    subset=subset,
                    **partner,
                )
            )
    partners.require_all()
    findings += told_by.lonely(picture.file for content in contents for picture in content.pictures)
    if all(entry.subset.is_validation or entry.subset.is_reg for entry in entries):
        unread = [finding for finding in findings if KINDS[finding.kind].skipped]
        detail = f"; {len(unread)} files cannot be read, first {unread[0].path}: {unread[0].reason}" if unread else ""
        option = "dataset_config" if config.dataset_config else "train_data_dir"
        raise DatasetError(
            f"{option}: no images in {getattr(config, option)}{detail}. Images are "
            f"{', '.join(sorted(EXTENSIONS))}, directly inside or in folders named <repeats>_<class>",
            findings,
        )
    if uncaptioned:
        notices.append(
            f"{uncaptioned} of {len(entries)} images have no {config.caption_extension} file; the folder's class is "
            "their caption"
        )
    if any(subset.options.face_crop_range for subset in chosen) and not any(
        face_in(item.path.stem) for item in entries
    ):
        notices.append(
            "face_crop_aug_range has no effect: no image's name ends with a face's centre x and y, width and height, "
            "like me_120_80_64_64.png"
        )
    entries.sort(key=lambda entry: entry.id)
    train, validation, about_split = split(entries)
    train, about_balance = balance(train)
    _require_sane_repeats(train)
    return Scan(tuple(train), tuple(findings), (*notices, *about_split, *about_balance), tuple(validation))


def _require_sane_repeats(entries: Sequence[Entry]) -> None:
    """Raises DatasetError where an epoch would have more samples than anybody can mean."""
    samples = sum(entry.repeats for entry in entries)
    if samples > MOST_SAMPLES:
        most = max(entries, key=lambda entry: entry.repeats)
        raise DatasetError(
            f"an epoch would have {samples:,} samples, and at most {MOST_SAMPLES:,} are possible: each image in "
            f"{most.path.parent} is used {most.repeats:,} times. The number before the first _ of a folder's name, and "
            "num_repeats, say how often; is it a date or a number of something else?"
        )


def _subsets(config: Config) -> tuple[list[Subset], list[str]]:
    """Every folder of a training, and notices. Raises DatasetError or ConfigError."""
    if config.dataset_config:
        chosen, notices = dataset_config.read(config)
        notices += [
            f"{name} is ignored: dataset_config names the folders"
            for name, option in OPTIONS.items()
            if option.replaced_by == "dataset_config" and getattr(config, name)
        ]
    elif config.train_data_dir:
        chosen, notices = in_folder(config.train_data_dir, "train_data_dir", config)
        if config.reg_data_dir:
            more, told = in_folder(config.reg_data_dir, "reg_data_dir", config)
            chosen += [dataclasses.replace(subset, is_reg=True) for subset in more]
            notices += told
    else:
        raise DatasetError("train_data_dir is empty: name the folder that holds the images")
    if config.validation_data_dir:
        more, told = in_folder(config.validation_data_dir, "validation_data_dir", config)
        chosen += [dataclasses.replace(subset, num_repeats=1, is_validation=True) for subset in more]
        notices += told
    return chosen, notices


class _Captions:
    """The captions that metadata files have for the images of folders; each file is read once."""

    def __init__(self) -> None:
        self._read: dict[tuple[Path, str], dict[str, str]] = {}
        self._of_folder: dict[Path, Mapping[str, str]] = {}  # of those that lie in a folder and are of its images alone

    def of(self, subset: Subset) -> Mapping[str, str]:
        """Raises MetadataError."""
        options = subset.options
        path = Path(options.in_json) if options.in_json else metadata_files.in_folder(subset.root)
        if path is None:
            return {}
        key = (path, options.caption_column)
        if key not in self._read:
            self._read[key] = metadata_files.read(*key)
        if not options.in_json:
            self._of_folder[subset.root] = self._read[key]
        return self._read[key]

    def lonely(self, images: Iterable[str]) -> Iterator[Finding]:
        """Captions of images that are not there."""
        names = {name for file in images for name in (file, os.path.splitext(file)[0])} if self._of_folder else set()
        for root, captions in self._of_folder.items():
            for path in metadata_files.without_image(root, captions, names):
                yield Finding("lonely_caption", path, "named by the metadata, but not there")


class _Partners:
    """Finds the masks or control pictures of images in their conditioning_data_dir, and remembers which are missing."""

    def __init__(self, memory_folder: Path, workers: int) -> None:
        self._memory_folder = memory_folder
        self._workers = workers
        self._folders: dict[Path, dict[str, Picture]] = {}
        self._missing: dict[str, list[str]] = {}

    def of(self, file: str, below: str, subset: Subset, bucket: buckets.Size) -> dict[str, Any]:
        """What its Entry says of the mask or the control picture of an image in this bucket; `below`: the image's
        folder, from its subset's root on."""
        options = subset.options
        if not options.conditioning_data_dir:
            return {}
        what = "control picture" if options.has_controls else "mask"
        image, root = Path(file), Path(options.conditioning_data_dir)
        folders = dict.fromkeys((root / below, root))
        partner = next((self._in(folder)[image.stem] for folder in folders if image.stem in self._in(folder)), None)
        if partner is None:
            self._missing.setdefault(what, []).append(f"{image} (looked for {root / image.stem}.*)")
            return {}
        if not options.has_controls:
            return {"mask": partner.path, "mask_digest": partner.facts.digest}
        size = (partner.facts.width, partner.facts.height)
        own = options.control_area and buckets.of_area(size, options.control_area, CONTROL_STEP)
        if buckets.visible_share(size, own or bucket) < SMALLEST_SHARE:
            shape = f"{size[0]} x {size[1]} pixels do not go with {bucket[0]} x {bucket[1]}; set control_resolution"
            self._missing.setdefault(what, []).append(f"{image} ({partner.path}: {shape})")
        control = Entry(
            id=partner.facts.digest[:32],
            file=str(partner.path),
            relative=partner.path.name,
            digest=partner.facts.digest,
            size=size,
            bucket=own or bucket,
            caption="",
            repeats=1,
            subset=subset,
        )
        return {"control": control}

    def _in(self, folder: Path) -> dict[str, Picture]:
        if folder not in self._folders:
            contents = (
                read_folders([(folder, ())], self._memory_folder, workers=self._workers) if folder.is_dir() else []
            )
            self._folders[folder] = {
                picture.path.stem: picture
                for content in contents
                for picture in content.pictures
                if not picture.facts.problem
            }
        return self._folders[folder]

    def require_all(self) -> None:
        """Raises DatasetError where images have no mask or control picture that can be used."""
        problems = [
            f"conditioning_data_dir: {len(images)} images have no {what} that can be read, first "
            f"{', '.join(images[:3])}; a {what} is a picture named like its image. Add what is missing, or take these "
            "images out"
            for what, images in self._missing.items()
        ]
        if problems:
            raise DatasetError("\n".join(problems))


# --- validation ----------------------------------------------------------------------------------------------------


def split(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry], list[str]]:
    """The entries to train, those to validate with, and notices. Raises DatasetError where nothing is left to train.

    An image's content alone decides whether it is among the validation_split, so that no image that was trained is
    ever validated with when images are added. Where the share is so small that no image is in it, the one nearest to
    it is; adding images can only put a new one, or none, in its place. Copies go together.
    """
    if not any(subset.is_validation or subset.options.validation_split > 0 for subset in _subsets_of(entries)):
        return list(entries), [], []
    held_out = {entry.digest for entry in entries if entry.subset.is_validation}
    copies = {entry.digest for entry in entries if not entry.subset.is_validation} & held_out
    places = {
        entry.digest: _split_place(entry)
        for entry in entries
        if entry.subset.options.validation_split > 0 and not (entry.subset.is_validation or entry.subset.is_reg)
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
        if (entry.digest in chosen and not entry.subset.is_reg) or entry.subset.is_validation:
            if id(entry.subset) not in unvaried:
                unvaried[id(entry.subset)] = entry.subset.unvaried()
            validation.append(dataclasses.replace(entry, repeats=1, subset=unvaried[id(entry.subset)]))
    if all(entry.subset.is_reg for entry in train):
        raise DatasetError(
            f"validation: all {len(entries)} images are validation images, so none is left to train; lower "
            "validation_split, choose another validation_seed, or take the images out of validation_data_dir"
        )
    lines = [f"{len(copies)} images are not trained, because they are in validation_data_dir"] if copies else []
    return train, validation, lines


def _subsets_of(entries: Sequence[Entry]) -> Iterable[Subset]:
    return {id(entry.subset): entry.subset for entry in entries}.values()


def _split_place(entry: Entry) -> float:
    options = entry.subset.options
    seed = options.seed if options.validation_seed is None else options.validation_seed
    return randomness.fraction(seed, "validation split", entry.digest)


# --- regularisation ------------------------------------------------------------------------------------------------


def balance(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """The entries with the repeats of regularisation images set as in sd-scripts, and notices.

    An epoch uses the regularisation images of a dataset as often as its training images. Each has its own repeats
    first, in the order of the ids, until there are enough; those that are left then are not used. Where there are
    not enough, each is used equally often more, and the first ones once more for what remains.
    """
    if not any(subset.is_reg for subset in _subsets_of(entries)):
        return list(entries), []
    result = [entry for entry in entries if not entry.subset.is_reg]
    unused = 0
    for dataset in sorted({entry.subset.dataset for entry in entries if entry.subset.is_reg}):
        needed = sum(entry.repeats for entry in result if entry.subset.dataset == dataset and not entry.subset.is_reg)
        members = [entry for entry in entries if entry.subset.is_reg and entry.subset.dataset == dataset]
        more, first = divmod(max(0, needed - sum(entry.repeats for entry in members)), len(members))
        for place, entry in enumerate(members):
            if needed <= 0:
                unused += 1
                continue
            repeats = entry.repeats + more + (place < first)
            result.append(dataclasses.replace(entry, repeats=repeats))
            needed -= repeats
    notices = [f"{unused} regularisation images are not used: there are more than training samples"] if unused else []
    return sorted(result, key=lambda entry: entry.id), notices


def _bucketing(config: Config) -> Callable[[buckets.Size], tuple[buckets.Size, float, float]]:
    """size -> a picture's bucket, the share of it that is seen there, and how much it is enlarged."""
    resolution = config.resolution_size
    low, high, step = config.min_bucket_reso, config.max_bucket_reso, config.bucket_reso_steps

    @functools.cache
    def fit(size: buckets.Size) -> tuple[buckets.Size, float, float]:
        bucket = resolution
        if config.enable_bucket and config.bucket_no_upscale and config.bucket_rules == "sd-scripts":
            bucket = buckets.bucket_of_unenlarged(size, resolution, step)
        elif config.enable_bucket:
            bucket = buckets.bucket_for(size, resolution, low, high, step, config.bucket_no_upscale)
        if config.bucket_rules == "cover":
            return bucket, buckets.visible_share(size, bucket), buckets.enlargement(size, bucket)
        width, height = cut_by_rules(size, bucket, config).scaled
        return bucket, bucket[0] * bucket[1] / (width * height), max(width / size[0], height / size[1])

    return fit


# --- fingerprints --------------------------------------------------------------------------------------------------


ADDED = ("bucket_rules", "control_resolution")  # since the first records; told where they differ from what those did


def preprocessing(config: Config) -> dict[str, Any]:
    """The options that decide what becomes of an image and its caption."""
    return {
        name: list(value) if isinstance(value := getattr(config, name), tuple) else value
        for name, option in OPTIONS.items()
        if option.section == "Dataset"
        and option.on_resume == "trajectory"
        and not (name in ADDED and getattr(config, name) == option.default)
    }


@no_collections()
def record(scanned: Scan, config: Config, batches_per_step: int = 1) -> dict[str, Any]:
    """What dataset.json keeps: each image by content, its caption and bucket, and one digest over all."""
    special = _own_options(scanned, config, batches_per_step)
    images = {entry.id: _image(entry, special.get(id(entry.subset), ("",))[0]) for entry in scanned.entries}
    images |= {entry.id: {**_image(entry), "validation": True} for entry in scanned.validation}
    content: Any = {key: [value for name, value in image.items() if name != "path"] for key, image in images.items()}
    settings = preprocessing(config)
    own = dict(special.values())
    more = {**({"subsets": own} if own else {}), **({"affixes": "shuffled"} if _shuffles_affixes(settings) else {})}
    return {
        "version": DATASET_VERSION,
        "treatment": list(TREATMENT),
        "preprocessing": settings,
        **more,
        "images": images,
        "digest": files.digest([content, settings, *more.values()]),
    }


def _shuffles_affixes(settings: Mapping[str, Any]) -> bool:
    """Whether prefix or suffix go where they did not go in records without "affixes", which kept them outside."""
    affixes = settings.get("caption_prefix") or settings.get("caption_suffix")
    return bool(affixes and (settings.get("shuffle_caption") or settings.get("caption_tag_dropout_rate")))


def _image(entry: Entry, subset: str = "") -> dict[str, Any]:
    face = face_in(entry.path.stem) if entry.subset.options.face_crop_range else None
    optional = {
        "is_reg": entry.subset.is_reg,
        "mask": entry.mask_digest[:32],
        "control": entry.control.digest[:32] if entry.control else "",
        "control_bucket": list(entry.control.bucket) if entry.control and entry.control.bucket != entry.bucket else (),
        "subset": subset,
        "face": list(face or ()),
    }
    return {
        "path": entry.relative,
        "caption": hashlib.sha256(entry.caption.encode()).hexdigest()[:32],
        "bucket": list(entry.bucket),
        "repeats": entry.repeats,
        **{name: value for name, value in optional.items() if value},
    }


def _own_options(scanned: Scan, config: Config, batches_per_step: int) -> dict[int, tuple[str, dict[str, Any]]]:
    """Of each subset (by its identity) to which dataset_config gives options that are not the run's: its name and
    these options, batch sizes as global batches."""
    result = {}
    same: Counter[str] = Counter()
    for subset in sorted(_subsets_of(scanned.entries), key=lambda subset: (subset.dataset, subset.part)):
        name = f"{subset.dataset + 1}: {subset.folder.name}"
        same[name] += 1  # folders of one name, or one folder with several treatments
        own = dataset_config.own_options(subset, config)
        if "train_batch_size" in own:
            own["global_batch"] = own.pop("train_batch_size") * batches_per_step
        if own:
            result[id(subset)] = (name if same[name] == 1 else f"{name} ({same[name]})", own)
    return result


@dataclass(frozen=True)
class DatasetDifference:
    """What changed in the images since a checkpoint; paths as they are now, or were."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]  # another picture under the same name
    captions: tuple[str, ...]
    treated: tuple[str, ...]  # another bucket, number of repeats, mask, control picture, role or subset
    options: tuple[str, ...] = ()  # of subsets
    content: tuple[Any, Any] = ((), ())  # all of it then and now, whatever the files are called

    def __bool__(self) -> bool:
        kinds = (self.added, self.removed, self.changed, self.captions, self.treated, self.options)
        return any(kinds)

    def lines(self, most: int = 10) -> list[str]:
        """For people: each kind of change with its first files by name."""
        kinds = {
            "added": self.added,
            "removed": self.removed,
            "another picture": self.changed,
            "caption changed": self.captions,
            "bucket, repeats, mask, control picture, role or subset changed": self.treated,
            "options": self.options,
        }
        result = []
        for kind, paths in kinds.items():
            if paths:
                more = f" and {len(paths) - most} more" if len(paths) > most else ""
                result.append(f"{kind} ({len(paths)}): {', '.join(paths[:most])}{more}")
        return result


def compare(then: Mapping[str, Any], now: Mapping[str, Any], follows: Collection[str] = ()) -> DatasetDifference:
    """Compare two records by content; times, names and the place of the folder do not matter.

    `follows`: what of an image's TREATMENT follows from options that are known to differ, and so is no news.
    """
    if then["digest"] == now["digest"]:
        return DatasetDifference((), (), (), (), ())
    old, new = then["images"], now["images"]
    gone = {old[key]["path"] for key in old.keys() - new.keys()}
    come = {new[key]["path"] for key in new.keys() - old.keys()}
    both = old.keys() & new.keys()
    fields = set(then.get("treatment", FIRST_TREATMENT)) & set(now.get("treatment", FIRST_TREATMENT)) - set(follows)
    fields |= {"control", "control_bucket"} - set(follows)  # where a record has none, there was none
    captions = [key for key in both if old[key]["caption"] != new[key]["caption"]]
    treated = [key for key in both if any(old[key].get(name) != new[key].get(name) for name in fields)]
    options = tuple(_changed_options(then, now))
    return DatasetDifference(
        added=tuple(sorted(come - gone)),
        removed=tuple(sorted(gone - come)),
        changed=tuple(sorted(come & gone)),
        captions=tuple(sorted(new[key]["path"] for key in captions)),
        treated=tuple(sorted(new[key]["path"] for key in treated)),
        options=options,
        content=(_news(old, new, fields), [_news(new, old, fields), options]),
    )


def _news(images: Mapping[str, Any], others: Mapping[str, Any], fields: Collection[str]) -> list[tuple[str, Any]]:
    """What images have that is not so, or not there, among the others; the bucket of one that is not there follows."""
    result = []
    for key, image in sorted(images.items()):
        other = others.get(key, {"bucket": image["bucket"]})
        news = [(name, image.get(name)) for name in sorted({"caption", *fields}) if image.get(name) != other.get(name)]
        result += [(key, news)] if news else []
    return result


def _changed_options(record_then: Mapping[str, Any], record_now: Mapping[str, Any]) -> Iterator[str]:
    if (
        _shuffles_affixes(record_then.get("preprocessing", {}))
        and record_now.get("affixes")
        and "affixes" not in record_then
    ):
        yield "caption_prefix and caption_suffix are shuffled with the caption's parts (they stayed outside then)"
    then, now = record_then.get("subsets", {}), record_now.get("subsets", {})
    for subset in sorted(then.keys() | now.keys()):
        old, new = then.get(subset, {}), now.get(subset, {})
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                was, value = (part.get(name, "the run's") for part in (old, new))
                yield f"{name} of subset {subset} ({was!r} then, {value!r} now)"
