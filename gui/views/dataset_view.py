"""What the Dataset tab shows of a report: items and their filter, small pictures, pieces of HTML. No widgets here."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw

from gui import look
from trainer import files
from trainer.data import caption_edits, dataset_report, folder_scan, pictures
from trainer.data.dataset import Entry
from trainer.data.dataset_report import Report
from trainer.data.findings import KINDS, Finding, by_kind, effect
from trainer.data.pictures import PictureError
from trainer.file_memory import stamp_of
from trainer.options.config import Config
from trainer.refusal import Refused

SMALL_SIDE = 256  # pixels of a thumbnail's longer side
LARGE_SIDE = 512  # and of the picture whose caption is edited
MOST_BUCKETS = 40
MOST_NAMED = 8  # files of each kind of problem
MOST_TAGS = 40
MOST_OFFERED = 3000  # tags that are completed while they are typed

CSS = """
#tab-dataset .beside { flex-wrap: wrap; } #tab-dataset .beside button { white-space: nowrap; }
#dataset-about { min-width: min(100%, 280px) !important; flex: 1; } #dataset-where { flex: 1; text-align: center; }
.dataset-parts { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
  margin-top: .8rem; }
.dataset-parts h3 { font-size: 1rem; font-weight: 600; margin: 0 0 .2rem 0; }
.dataset-parts table.plain th, .dataset-parts table.plain td:not(:first-child) { overflow-wrap: normal; }
.dataset-parts .scroll table.plain { min-width: 0; }
.dataset-parts .scroll table.plain td:first-child { white-space: normal; overflow-wrap: anywhere; }
.buckets .shape { display: inline-block; background: var(--border-color-primary); border-radius: 2px;
  vertical-align: middle; }
.buckets td:first-child { width: 36px; text-align: center; } .buckets td:nth-child(2) { white-space: nowrap; }
.buckets td:nth-child(3) { width: 45%; } .buckets .bar { margin-top: .35rem; }
.tags button.small { border-radius: 999px; margin: .12rem .15rem .12rem 0; white-space: normal;
  overflow-wrap: anywhere; }
#dataset-problems button.small { white-space: normal; text-align: left; overflow-wrap: anywhere; }
#dataset-selected { flex: 1 1 200px; } #dataset-selected p { margin: 0; }
.drop { border: 2px dashed var(--border-color-primary); border-radius: 10px; padding: .6rem .9rem; }
.drop.over { border-color: #1d4ed8; background: var(--background-fill-secondary); } .drop p { margin: .2rem 0; }
.drop p.told:empty { display: none; }
.drop input[type="text"] { padding: .25rem .5rem; border-radius: 6px; border: 1px solid var(--input-border-color);
  background: var(--input-background-fill); color: inherit; }
.drop label.small { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .1rem .6rem;
  cursor: pointer; background: var(--button-secondary-background-fill); }
.drop label.small:focus-within { outline: 2px solid var(--color-accent); }
.drop input[type="file"] { position: absolute; opacity: 0; width: 1px; height: 1px; }
ul.tags-offered { position: absolute; z-index: 60; top: 100%; left: 0; min-width: 200px; max-width: 100%; margin: 2px 0;
  padding: 4px; list-style: none; border-radius: 8px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-primary); box-shadow: 0 8px 24px rgb(0 0 0 / 25%); }
ul.tags-offered li { padding: .3rem .6rem; border-radius: 6px; cursor: pointer; }
ul.tags-offered li:hover, ul.tags-offered li[aria-selected="true"] { background: var(--background-fill-secondary);
  outline: 2px solid var(--color-accent); outline-offset: -2px; }
#dataset-problems code, #dataset-preview code { overflow-wrap: anywhere; font-size: .85rem; }
#dataset-gallery .grid-wrap { max-height: none !important; height: auto !important; overflow: visible; }
#dataset-gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(min(46%, 150px), 1fr)) !important; }
#dataset-gallery .caption-label { left: 0; right: 0; bottom: 0; max-width: 100%; border-radius: 0; font-size: .75rem;
  line-height: 1.3; white-space: normal; overflow-wrap: anywhere; display: -webkit-box; -webkit-line-clamp: 2;
  -webkit-box-orient: vertical; overflow: hidden; text-align: left; padding: 2px 6px 0 6px; }
img.chosen { max-height: 320px; max-width: 100%; border-radius: 6px; margin: 0 auto; display: block; }
#dataset-preview ins { text-decoration: none; font-weight: 600; }
#dataset-preview:not(:has(*)), #dataset-message:not(:has(.note)), #prepare-message:not(:has(.note)) { display: none; }
@media (max-width: 640px) {
  #dataset-problems thead, #dataset-preview thead { display: none; }
  #dataset-problems td, #dataset-preview td { display: block; border: 0 !important; padding: .1rem .3rem; }
  #dataset-problems tr, #dataset-preview tr { display: block; padding: .5rem 0;
    border-bottom: 1px solid var(--border-color-primary) !important; }
  #dataset-problems td:first-child { font-weight: 600; }
  #dataset-where { order: -1; flex-basis: 100%; } .dataset-parts table.plain :is(th, td) { padding: .3rem .25rem; }
}
"""


# --- looking, in a thread -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One picture of a dataset, trained or skipped."""

    path: Path
    caption: str
    kinds: frozenset[str]  # of what is wrong with it
    entry: Entry | None  # None when it is skipped


@dataclass(frozen=True)
class Looked:
    """A dataset as the tab knows it."""

    report: Report
    items: tuple[Item, ...]  # by path


class Job:
    """One look at a dataset in a thread. `progress`: pictures looked at, of how many new ones."""

    def __init__(self, config: Config, *, deep: bool) -> None:
        self.config = config
        self.deep = deep
        self.progress = (0, 0)
        self.looked: Looked | None = None
        self.refusal = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _tell(self, done: int, total: int) -> None:
        self.progress = (done, total)

    def _run(self) -> None:
        try:
            made = dataset_report.make(self.config, deep=self.deep, progress=self._tell)
            self.looked = Looked(made, tuple(items_of(made)))
        except (Refused, OSError) as error:
            self.refusal = str(error)
        except Exception as error:
            self.refusal = f"{type(error).__name__}: {error}"
            raise

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it is done within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()


class Looker:
    """Looks at one dataset at a time, however many pages ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._job: Job | None = None

    def look(self, config: Config, *, deep: bool = False) -> Job:
        """A new look, or the one that is under way. What was looked at deeper once is looked at so again."""
        with self._lock:
            job = self._job
            deep = deep or (job is not None and job.deep and job.config == config)
            if job is None or (job.config, job.deep) != (config, deep) or job.wait(0):
                self._job = job = Job(config, deep=deep)
            return job

    def latest(self, config: Config) -> Job:
        """What was seen of the dataset last; a look now when it is another one."""
        with self._lock:
            if self._job is not None and self._job.config == config:
                return self._job
        return self.look(config)


def items_of(made: Report) -> list[Item]:
    """Every picture, those that are skipped included, by path."""
    kinds: dict[Path, set[str]] = {}
    captions = {}
    for finding in made.findings:
        path = finding.path
        if not folder_scan.is_picture_name(path.name):
            captions[path] = finding.kind
        for each in (path, *finding.others):
            kinds.setdefault(each, set()).add(finding.kind)
    items = []
    used = {entry.path: entry for entry in made.entries}
    of_caption = {path.with_suffix(""): kind for path, kind in captions.items()}
    for path in sorted(used.keys() | {path for path in kinds if folder_scan.is_picture_name(path.name)}):
        kinds_of_path = kinds.get(path, set())
        if kind := of_caption.get(path.with_suffix("")):
            kinds_of_path = kinds_of_path | {kind}
        entry = used.get(path)
        items.append(Item(path, entry.caption if entry else "", frozenset(kinds_of_path), entry))
    return items


# --- choosing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Which items are wanted; what is empty does not matter."""

    folder: str = ""
    kind: str = ""
    tag: str = ""
    text: str = ""


def matching(items: Iterable[Item], wanted: Filter, separator: str) -> list[Item]:
    """The items that have everything that is wanted. Text is looked for in names and captions, whatever its case."""
    text, tag = wanted.text.strip().casefold(), wanted.tag.strip()
    return [
        item
        for item in items
        if (not wanted.folder or str(item.path.parent) == wanted.folder)
        and (not wanted.kind or wanted.kind in item.kinds)
        and (not tag or tag in caption_edits.tags_of(item.caption, separator))
        and (not text or text in item.caption.casefold() or text in item.path.name.casefold())
    ]


def folder_choices(looked: Looked) -> list[tuple[str, str]]:
    counts: dict[Path, int] = {}
    for item in looked.items:
        counts[item.path.parent] = counts.get(item.path.parent, 0) + 1
    return [("All folders", ""), *((f"{path.name} ({count:,})", str(path)) for path, count in sorted(counts.items()))]


def kind_choices(looked: Looked) -> list[tuple[str, str]]:
    counts: dict[str, int] = {}
    for item in looked.items:
        for kind in item.kinds:
            counts[kind] = counts.get(kind, 0) + 1
    listed = [(f"{about.title} ({counts[kind]:,})", kind) for kind, about in KINDS.items() if kind in counts]
    return [("All images", ""), *listed]


# --- small pictures -------------------------------------------------------------------------------------------------


def small_pictures(items: Sequence[Item], folder: Path) -> list[tuple[str, str]]:
    """(thumbnail file, what to write under it) of each item; made now where there is none yet."""
    with ThreadPoolExecutor(4) as pool:
        files = pool.map(lambda item: small_picture(item, folder), items)
        return [(str(file), under(item)) for file, item in zip(files, items, strict=True)]


def under(item: Item) -> str:
    """What is written under a picture."""
    caption = item.caption or ("(skipped)" if item.entry is None else "(no caption)")
    return f"{printable(item.path.name)} · {caption if len(caption) <= 90 else caption[:90] + '…'}"


def printable(name: str) -> str:
    """A file's name as a text that can be sent: what is not UTF-8 is escaped."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def small_picture(item: Item, folder: Path, side: int = SMALL_SIDE) -> Path:
    """A picture's thumbnail, or a grey one with the reason why there is none."""
    stamp = stamp_of(item.path) if item.entry is not None else None
    if stamp is not None:
        key = f"{printable(str(item.path))} {stamp} {side}"
        target = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.webp"
        if target.is_file():
            return target
        try:
            return _written(pictures.thumbnail(item.path, side), target)
        except PictureError:
            pass
    kinds = [KINDS[kind].title for kind in sorted(item.kinds) if KINDS[kind].skipped]
    return _sign(kinds[0] if kinds else "Cannot be shown", folder)


def _sign(words: str, folder: Path) -> Path:
    target = folder / f"sign-{hashlib.sha256(words.encode()).hexdigest()[:20]}.webp"
    if target.is_file():
        return target
    picture = Image.new("RGB", (SMALL_SIDE, SMALL_SIDE), "#4b5563")
    ImageDraw.Draw(picture).text((SMALL_SIDE / 2, SMALL_SIDE / 2), words, fill="white", anchor="mm", font_size=26)
    return _written(picture, target)


def _written(picture: Image.Image, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.stem}-{threading.get_ident()}.tmp")
    picture.save(temporary, "WEBP", quality=80)
    files.replace(temporary, target)
    return target


# --- HTML -----------------------------------------------------------------------------------------------------------


def counting(job: Job) -> str:
    done, total = job.progress
    what = "Decoding every picture" if job.deep else "Counting"
    return look.note(f"{what}… {done:,} of {total:,}" if total else f"{what}…")


def summary(looked: Looked) -> str:
    """Facts, folders, buckets, captions and tags."""
    made = looked.report
    if not made.found.entries:
        return look.note(made.refusal, kind="bad")
    folders = made.folders()
    skipped = sum(item.entry is None for item in looked.items)
    facts = look.facts(
        [
            ("Images", f"{len(made.found.entries):,}"),
            ("Samples an epoch", f"{made.found.samples:,}"),
            ("Steps an epoch", f"{made.steps_per_epoch:,}"),
            ("Buckets", f"{len(made.found.bucket_counts()):,}"),
            ("Validation images", f"{len(made.found.validation):,}"),
            ("Skipped files", f"{skipped:,}"),
        ]
    )
    rows = [
        [printable(item.path.name), f"{item.images:,}", f"{item.repeats:,}", f"{item.samples:,}", item.use]
        for item in folders
    ]
    parts = [
        ("Folders", look.table(["Folder", "Images", "Repeats", "Samples", "Use"], rows)),
        ("Buckets", buckets_picture(made)),
        ("Captions", _captions(made)),
    ]
    body = "".join(f"<section><h3>{escape(title)}</h3>{content}</section>" for title, content in parts)
    notices = look.note("Note:", made.found.notices, kind="warn") if made.found.notices else ""
    return f'{facts}<div class="dataset-parts">{body}</div>{notices}'


def buckets_picture(made: Report) -> str:
    """Each bucket's shape, size and share of the samples, the fullest first."""
    counts = sorted(made.found.bucket_counts().items(), key=lambda item: -item[1])
    most = counts[0][1]
    longest = max(max(size) for size, _ in counts)
    rows = []
    for (width, height), number in counts[:MOST_BUCKETS]:
        shape = f'style="width:{width / longest * 28:.0f}px;height:{height / longest * 28:.0f}px"'
        rows.append(
            f'<tr><td><span class="shape" {shape}></span></td><td>{width} × {height}</td>'
            f'<td><div class="bar"><div style="width:{100 * number / most:.1f}%"></div></div></td>'
            f"<td>{number:,}</td></tr>"
        )
    head = (
        '<thead><tr><th aria-label="Shape"></th><th>Size</th><th aria-label="Share"></th><th>Samples</th></tr></thead>'
    )
    more = f"<p>and {len(counts) - MOST_BUCKETS:,} more</p>" if len(counts) > MOST_BUCKETS else ""
    return f'<table class="plain buckets">{head}<tbody>{"".join(rows)}</tbody></table>{more}'


def _captions(made: Report) -> str:
    lengths = made.caption_lengths()
    text = f"{lengths.captions:,} of {len(made.entries):,} images have one"
    if lengths.captions:
        text += f"; {lengths.shortest} to {lengths.longest} words, half of them {lengths.median} or fewer"
    if lengths.too_long:
        longer = "is probably" if lengths.too_long == 1 else "are probably"
        text += f". {lengths.too_long:,} {longer} longer than the {made.config.max_token_length} tokens that are read"
    counted = made.tags(MOST_OFFERED)
    tags = "".join(
        look.button(f"{tag[:60]} {number:,}", "tag", tag, title=f"Show the images with the tag {tag}")
        for tag, number in counted[:MOST_TAGS]
    )
    offered = escape(json.dumps([tag for tag, _ in counted]))
    data = f'data-tags="{offered}" data-separator="{escape(made.config.caption_separator)}"'
    return f'<p>{escape(text)}.</p><div class="tags" {data}>{tags}</div>'


def problems(looked: Looked) -> str:
    """Each kind of problem with its count, what to do and the first files."""
    rows = []
    for kind, members in by_kind(looked.report.findings).items():
        about = KINDS[kind]
        more = f"<br>and {len(members) - MOST_NAMED:,} more" if len(members) > MOST_NAMED else ""
        files = "<br>".join(map(_named, members[:MOST_NAMED])) + more
        shown = look.button(about.title, "kind", kind, title=f"Show the images with this problem: {about.title}")
        rows.append(
            f"<tr><td>{shown}</td><td>{len(members):,} {effect(kind)}</td>"
            f"<td>{escape(about.advice)}<br>{files}</td></tr>"
        )
    if not rows:
        return look.note("Nothing is wrong with the files.", kind="good")
    head = "<thead><tr><th>Problem</th><th>Files</th><th>What to do, and where</th></tr></thead>"
    return f'<table class="plain">{head}<tbody>{"".join(rows)}</tbody></table>'


def _named(finding: Finding) -> str:
    """The file of a finding, to be clicked where it is a picture, and what is said of it; in HTML."""
    name, about = printable(finding.path.name), printable(finding.about)
    if not folder_scan.is_picture_name(finding.path.name):
        return f"<code>{escape(f'{name}: {about}'.removesuffix(': ')[:200])}</code>"
    clicked = look.button(name, "picture", printable(str(finding.path)), title=f"Show {name}")
    return clicked + (f"<code>{escape(about[:200])}</code>" if about else "")


def large_picture(item: Item, folder: Path) -> str:
    """One picture as large as it is edited by."""
    data = base64.b64encode(small_picture(item, folder, LARGE_SIDE).read_bytes()).decode()
    return f'<img class="chosen" alt="{escape(printable(item.path.name))}" src="data:image/webp;base64,{data}">'


def about(item: Item) -> str:
    """The facts of one picture."""
    lines = [KINDS[kind].title + ": " + KINDS[kind].advice for kind in sorted(item.kinds)]
    if item.entry is None:
        return look.note(f"{printable(str(item.path))} is skipped.", lines, kind="bad")
    size, bucket = item.entry.size, item.entry.bucket
    text = (
        f"{printable(str(item.path))}: {size[0]} × {size[1]} pixels, bucket {bucket[0]} × {bucket[1]}, "
        f"{item.entry.repeats} times an epoch."
    )
    return look.note(text, lines, kind="warn" if lines else "")
