"""The files of a dataset's folders: listed, looked at once, remembered. No torch here, and no option of a training.

A picture's identity is the SHA-256 of its file. Its size comes from its header; whether the file is whole, from its
format's own end mark, sums and lengths. Pixels are decoded only where these leave a doubt, so damage in the middle of
a file that has no sums (JPEG, WebP) shows when the picture is decoded: by `trainer.inspection`, or by the training.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from trainer.data.findings import Finding
from trainer.data.pictures import FORMATS, PICTURE_ERRORS, PictureError, check_size, open_picture
from trainer.file_memory import FileMemory, stamp_of_stat

MANY_IN_ONE = {"MPO": "JPEG"}  # what Pillow calls a JPEG that holds several pictures, as telephones write them
EXTENSIONS = frozenset(extension for known in FORMATS.values() for extension in known)
FOREIGN_EXTENSIONS = frozenset(
    {".jxl", ".heic", ".heif", ".svg", ".psd", ".xcf", ".kra", ".eps", ".ico", ".exr", ".hdr", ".dds"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"}
)  # pictures that cannot be read here; they are named
TAIL = 1 << 16  # bytes at the end of a JPEG that are searched for its end mark
LARGEST_CAPTION = 1 << 20  # bytes
READ_AT_ONCE = 32  # files a thread is given
REMEMBERED_AT_ONCE = 4096  # files after which what was learnt is kept
PICTURES = "pictures"  # what is remembered of them
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Progress that is not shown."""


# There may be a hundred thousand of each of these: tuples are made the fastest.


class Facts(NamedTuple):
    """What looking at a picture once told. `problem`: a kind of trainer.findings, and `detail`; empty when sound."""

    digest: str = ""  # SHA-256 of the file
    width: int = 0  # in pixels, turned upright
    height: int = 0
    format: str = ""  # Pillow's name of it
    problem: str = ""
    detail: str = ""


class Caption(NamedTuple):
    """What a caption file holds. `problem`: a kind of trainer.findings, and `detail`; empty when sound."""

    text: str
    problem: str = ""
    detail: str = ""


class Picture(NamedTuple):
    """A file that is named like a picture, and what its caption file holds if there is one."""

    file: str  # its path
    facts: Facts
    caption_file: str
    caption: Caption | None

    @property
    def path(self) -> Path:
        return Path(self.file)

    def whole_caption(self) -> str | None:
        """All lines of its caption file; None where there is none that can be read."""
        if self.caption is None or self.caption.problem == "caption_unreadable":
            return None
        return self.caption.text.strip()

    def caption_text(self) -> str | None:
        """The first line of its caption file; None where there is none that can be read."""
        text = self.whole_caption()
        return None if text is None else next(iter(text.splitlines()), "").strip()

    def is_remarkable(self, first_line: str | None) -> bool:
        """Whether there are `findings`; much faster, for the many of which there is nothing to say."""
        usual = FORMATS[self.facts.format]
        return not (first_line and self.caption and not self.caption.problem and self.file.endswith(usual))

    def findings(self, first_line: str | None) -> Iterator[Finding]:
        """What is remarkable about it and its caption, apart from what keeps it out; `first_line`: `caption_text`."""
        extension = self.file[self.file.rfind(".") :].lower()
        if extension not in FORMATS[self.facts.format]:
            yield Finding("wrong_extension", self.path, f"its content is {self.facts.format}")
        if self.caption is None:
            yield Finding("no_caption", self.path)
        elif self.caption.problem:
            yield Finding(self.caption.problem, Path(self.caption_file), self.caption.detail)
        if first_line == "":
            yield Finding("empty_caption", self.path)


@dataclass(frozen=True, slots=True)
class Folder:
    """What is directly in one folder, by name."""

    path: Path
    pictures: tuple[Picture, ...]
    lonely_captions: tuple[Path, ...]  # without a picture
    foreign: tuple[Path, ...]  # pictures in formats that cannot be read

    def findings(self) -> Iterator[Finding]:
        """What is skipped, and captions without a picture."""
        for picture in self.pictures:
            if picture.facts.problem:
                yield Finding(picture.facts.problem, picture.path, picture.facts.detail)
        yield from (Finding("foreign", path) for path in self.foreign)
        yield from (Finding("lonely_caption", path) for path in self.lonely_captions)


def list_pictures(folder: Path) -> list[Path]:
    """The files directly in a folder that are named like pictures, in the order of their names. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if is_picture_name(entry.name))


def is_picture_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


# --- one picture ---------------------------------------------------------------------------------------------------


def look(path: Path) -> Facts:
    """Read a picture's bytes once: its digest, its size from the header, whether it is whole."""
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length == 0:
                return Facts(problem="empty_file")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            with Image.open(file, formats=tuple(FORMATS)) as opened:
                check_size(opened.size)
                size, format_name = _upright(opened), MANY_IN_ONE.get(opened.format or "", opened.format or "")
                is_plain = SOUND.get(format_name)
                plain = is_plain is not None and is_plain(file, length)
    except UnidentifiedImageError:
        return Facts(problem="unreadable", detail="it is not a picture in any format that can be read")
    except Image.DecompressionBombError as error:
        return Facts(problem="bomb", detail=str(error))
    except MemoryError:
        return Facts(problem="unreadable", detail="memory ran out")
    except PICTURE_ERRORS as error:
        if isinstance(error, OSError) and error.strerror:
            return Facts(problem="unreadable", detail=error.strerror)
        return _problem(str(error) or type(error).__name__)
    if not plain:
        try:
            size = open_picture(path).size
        except PictureError as error:
            return _problem(error.reason)
    return Facts(digest, *size, format_name)


def _upright(opened: Image.Image) -> tuple[int, int]:
    """The size after turning by the EXIF orientation. For a PNG only what is told before the pixels counts here."""
    turned = Image.Image.getexif(opened).get(0x0112) in (5, 6, 7, 8)  # PngImageFile's own would decode the pixels
    return (opened.height, opened.width) if turned else opened.size


def _problem(reason: str) -> Facts:
    return Facts(problem="truncated" if "truncat" in reason.lower() else "damaged", detail=reason)


def _png_is_whole(file: BinaryIO, length: int) -> bool:
    """Every chunk has its checksum up to the end mark, and none after the pixels tells of an orientation."""
    file.seek(8)
    pixels = False
    while len(header := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", header)
        if size > length:
            return False
        body, checksum = file.read(size), file.read(4)
        if zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big") != checksum or (pixels and kind in (b"eXIf", b"iTXt")):
            return False
        if kind == b"IEND":
            return True
        pixels = pixels or kind == b"IDAT"
    return False


def _jpeg_is_whole(file: BinaryIO, length: int) -> bool:
    """The end mark follows the last scan; neither appears inside compressed data."""
    file.seek(max(0, length - TAIL))
    tail = file.read(TAIL)
    return tail.rfind(b"\xff\xd9") > tail.rfind(b"\xff\xda")


def _webp_is_whole(file: BinaryIO, length: int) -> bool:
    file.seek(4)
    return int.from_bytes(file.read(4), "little") + 8 <= length


def _gif_is_whole(file: BinaryIO, length: int) -> bool:
    file.seek(max(0, length - 64))
    return file.read().rstrip(b"\0").endswith(b";")


def _bmp_is_whole(file: BinaryIO, length: int) -> bool:
    file.seek(2)
    return int.from_bytes(file.read(4), "little") == length


def _avif_is_whole(file: BinaryIO, length: int) -> bool:
    """The boxes of the file follow each other to its very end."""
    place = 0
    while place + 8 <= length:
        file.seek(place)
        size = int.from_bytes(file.read(4), "big")
        if size == 0:  # to the end of the file
            return True
        if size == 1:
            file.seek(place + 8)
            size = int.from_bytes(file.read(8), "big")
        if size < 8:
            return False
        place += size
    return place == length


SOUND: Mapping[str, Callable[[BinaryIO, int], bool]] = {
    "PNG": _png_is_whole,
    "JPEG": _jpeg_is_whole,
    "WEBP": _webp_is_whole,
    "GIF": _gif_is_whole,
    "BMP": _bmp_is_whole,
    "AVIF": _avif_is_whole,
}  # whether a file is whole, without decoding it; pictures of other formats are decoded


# --- one caption ---------------------------------------------------------------------------------------------------

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_caption(file: str) -> Caption:
    """A caption file's text: UTF-8, or what its byte order mark says, or else Latin-1, which is a finding."""
    path = Path(file)
    try:
        if not path.is_file():  # a pipe would be waited for
            return Caption("", "caption_unreadable", "it is not a file")
        with path.open("rb") as opened:
            data = opened.read(LARGEST_CAPTION + 1)
    except OSError as error:
        return Caption("", "caption_unreadable", error.strerror or str(error))
    if len(data) > LARGEST_CAPTION:
        return Caption("", "caption_unreadable", "it is larger than 1 MB")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return Caption(data.decode("latin-1"), "caption_encoding", "it was read as Latin-1")
    if encoding in ("utf-16", "utf-32"):
        return Caption(text, "caption_encoding", f"it was read as {encoding.upper()}")
    return Caption(text)


# --- folders -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Listing:
    """A folder's names. `pictures` and `texts`: path -> stamp, "" where there is no regular file."""

    path: Path
    pictures: Mapping[str, str]
    irregular: Mapping[str, Facts]  # among the pictures
    caption_of: Mapping[str, str]  # picture -> caption file
    texts: Mapping[str, str]
    lonely: tuple[Path, ...]
    foreign: tuple[Path, ...]


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Do not look for garbage among a million new objects again and again: it takes as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_collections()
def read_folders(
    wanted: Sequence[tuple[Path, Sequence[str]]],
    memory_folder: Path,
    *,
    progress: Progress = no_progress,
    workers: int = 4,
) -> list[Folder]:
    """Each (folder, caption extensions: the first of which there is a file counts), as it is now.

    Only new and changed files are read; `memory_folder` keeps what was learnt, also when the scan is interrupted.
    Raises OSError when a folder cannot be listed.
    """
    listings = [_list(folder, extensions) for folder, extensions in wanted]
    pictures = {path: stamp for listing in listings for path, stamp in listing.pictures.items() if stamp}
    texts = {path: stamp for listing in listings for path, stamp in listing.texts.items()}
    facts = learn(FileMemory(memory_folder, PICTURES), pictures, _picture_row, progress, workers, _lasts)
    captions = learn(FileMemory(memory_folder, "captions"), texts, _caption_row, no_progress, workers, _caption_lasts)
    return [_assemble(listing, facts, captions) for listing in listings]


def _list(folder: Path, extensions: Sequence[str]) -> _Listing:
    with os.scandir(folder) as entries:
        names = {entry.name: entry for entry in entries if not entry.name.startswith(".")}
    pictures, irregular, caption_of, texts, foreign = {}, {}, {}, {}, []
    for name in sorted(names):
        stem, dot, ending = name.rpartition(".")
        extension = dot + ending.lower()
        if extension in EXTENSIONS:
            entry = names[name]
            pictures[entry.path] = stamp = _stamp(entry)
            if not stamp:
                irregular[entry.path] = _irregular(entry)
            for item in extensions:
                if stem + item in names:
                    text = names[stem + item]
                    caption_of[entry.path] = text.path
                    texts[text.path] = _stamp(text)
                    break
        elif extension in FOREIGN_EXTENSIONS:
            foreign.append(Path(names[name].path))
    endings = tuple(extensions)
    lonely = [entry for name, entry in names.items() if name.endswith(endings) and entry.path not in texts]
    lonely_files = tuple(sorted(Path(entry.path) for entry in lonely if not entry.is_dir()))
    return _Listing(folder, pictures, irregular, caption_of, texts, lonely_files, tuple(foreign))


def _stamp(entry: os.DirEntry[str]) -> str:
    try:
        status = entry.stat()
    except OSError:
        return ""
    return stamp_of_stat(status) if stat.S_ISREG(status.st_mode) else ""


def _irregular(entry: os.DirEntry[str]) -> Facts:
    """Why what is named like a picture is none that could be opened."""
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return Facts(problem="unreadable", detail="it is a link that leads nowhere")
    except OSError as error:
        return Facts(problem="unreadable", detail=error.strerror or str(error))
    return Facts(problem="not_a_file", detail="it is a folder" if stat.S_ISDIR(mode) else "it is a pipe or a device")


def learn(
    memory: FileMemory,
    stamps: Mapping[str, str],
    read: Callable[[str], list[Any]],
    progress: Progress,
    workers: int,
    is_lasting: Callable[[Sequence[Any]], bool],
) -> dict[str, list[Any]]:
    """What `read` tells of each file (path -> stamp), or told when it was last in this state.

    `is_lasting`: whether a row is to be remembered.
    """
    rows: dict[str, list[Any]] = memory.recall(stamps)
    unknown = [path for path in stamps if path not in rows]
    if not unknown:
        return rows
    done = 0
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(unknown), REMEMBERED_AT_ONCE):
            chunk = unknown[start : start + REMEMBERED_AT_ONCE]
            parts = [chunk[place : place + READ_AT_ONCE] for place in range(0, len(chunk), READ_AT_ONCE)]
            for part, learnt in zip(parts, pool.map(lambda part: [read(path) for path in part], parts), strict=True):
                rows |= zip(part, learnt, strict=True)
                done += len(part)
                progress(done, len(unknown))
            memory.remember(
                (path, stamps[path], rows[path]) for path in chunk if stamps[path] and is_lasting(rows[path])
            )
    return rows


def _picture_row(file: str) -> list[Any]:
    return list(look(Path(file)))


def _lasts(row: Sequence[Any]) -> bool:
    """Whether it will be so as long as the file is: not that a disk did not answer just then."""
    return Facts._make(row).problem != "unreadable"


def _caption_row(file: str) -> list[Any]:
    return list(read_caption(file))


def _caption_lasts(row: Sequence[Any]) -> bool:
    return Caption._make(row).problem != "caption_unreadable"


def _assemble(listing: _Listing, facts: Mapping[str, Sequence[Any]], captions: Mapping[str, Sequence[Any]]) -> Folder:
    pictures = []
    for file in listing.pictures:
        caption_file = listing.caption_of.get(file, "")
        caption = Caption._make(captions[caption_file]) if caption_file else None
        about = listing.irregular.get(file) or Facts._make(facts[file])
        pictures.append(Picture(file, about, caption_file, caption))
    return Folder(listing.path, tuple(pictures), listing.lonely, listing.foreign)
