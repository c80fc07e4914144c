"""A folder of two hundred files as people really have them: some good, most of them trouble."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support import posix

GOOD = ""
BROKEN = "truncated|damaged|unreadable"  # one of these, as the format happens to show it


@dataclass
class Nasty:
    """`expected`: file name -> the kinds of finding it has; {""} for a picture that is trained without any."""

    folder: Path
    expected: dict[str, set[str]] = field(default_factory=dict)
    draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def put(self, name: str, data: bytes, *kinds: str, caption: bytes | None = b"a thing") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        self.expected[name] = set(kinds) or {GOOD}
        if caption is not None and not (set(kinds) & SKIPPED):
            path.with_suffix(".txt").write_bytes(caption)
        return path

    def picture(self, size: tuple[int, int] = (64, 64)) -> Image.Image:
        """Another one each time."""
        coarse = self.draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)

    def encoded(self, format_name: str, mode: str = "RGB", size: tuple[int, int] = (64, 64), **save: Any) -> bytes:
        return encode(self.picture(size).convert(mode), format_name, **save)


SKIPPED = {"unreadable", "empty_file", "truncated", "damaged", "bomb", "too_narrow", "not_a_file", "foreign", BROKEN}


def encode(picture: Image.Image, format_name: str, **save: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, format_name, **save)
    return data.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that claim to be a picture of any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def make(folder: Path, count: int = 200) -> Nasty:
    """Fill a folder with `count` files or more, each with what should be found about it."""
    folder.mkdir(parents=True)
    nasty = Nasty(folder)
    for part in (formats, modes, orientations, damaged, misnamed, bombs, shapes, names, links, captions, others):
        part(nasty)
    rest = random.Random(5)
    number = 0
    while len(nasty.expected) < count:
        name = f"more{number:03d}"
        if number % 4 == 0:
            cut(nasty, f"{name}.png", "PNG", rest.uniform(0.3, 0.95))
        elif number % 4 == 1:
            cut(nasty, f"{name}.jpg", "JPEG", rest.uniform(0.5, 0.9))
        elif number % 4 == 2:
            nasty.put(f"{name}.png", rest.randbytes(rest.randrange(1, 400)), "unreadable")
        else:
            nasty.put(f"{name}.webp", nasty.encoded("WEBP"))
        number += 1
    return nasty


def cut(nasty: Nasty, name: str, format_name: str, share: float, **save: Any) -> Path:
    data = nasty.encoded(format_name, **save)
    return nasty.put(name, data[: int(len(data) * share)], BROKEN)


def formats(nasty: Nasty) -> None:
    """Everything that can be trained."""
    for name, format_name in {
        "good.png": "PNG", "good.jpg": "JPEG", "GOOD.JPEG": "JPEG", "good.jfif": "JPEG", "good.webp": "WEBP",
        "good.avif": "AVIF", "good.bmp": "BMP", "good.gif": "GIF", "good.tif": "TIFF", "good.TIFF": "TIFF",
        "good.jp2": "JPEG2000", "good.ppm": "PPM", "good.tga": "TGA", "good.qoi": "QOI",
    }.items():  # fmt: skip
        nasty.put(name.replace("good", f"good {format_name} {name[-3:]}"), nasty.encoded(format_name))
    frames = [nasty.picture() for _ in range(3)]
    for name, format_name in {"moving.gif": "GIF", "moving webp.webp": "WEBP", "moving png.apng": "PNG"}.items():
        nasty.put(name, encode(frames[0], format_name, save_all=True, append_images=frames[1:]))
        frames = [nasty.picture() for _ in range(3)]
    nasty.put("telephone.jpg", encode(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    nasty.put("progressive.jpg", nasty.encoded("JPEG", progressive=True))
    nasty.put("interlaced tiff.tif", nasty.encoded("TIFF", compression="tiff_lzw"))
    nasty.put("trailing.png", nasty.encoded("PNG") + b"appended by another program")
    nasty.put("trailing.jpeg", nasty.encoded("JPEG") + b"\xff\xda and more" * 9)


def modes(nasty: Nasty) -> None:
    """Every way in which pixels are kept."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        picture = nasty.picture().convert("L" if mode == "I;16" else mode)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        nasty.put(f"mode {mode.replace(';', '-')}.png", encode(picture, "PNG"))
    for mode in ("L", "CMYK", "RGB"):
        nasty.put(f"mode {mode}.jpg", nasty.encoded("JPEG", mode))
    for mode in ("F", "I", "CMYK"):
        grey = nasty.picture() if mode == "CMYK" else nasty.picture().convert("L")
        nasty.put(f"mode {mode}.tif", encode(grey.convert(mode), "TIFF"))
    clear = nasty.picture().convert("RGBA")
    clear.putalpha(0)
    nasty.put("all transparent.png", encode(clear, "PNG"))
    nasty.put("transparent colour.png", encode(nasty.picture().convert("P"), "PNG", transparency=3))


def orientations(nasty: Nasty) -> None:
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        for extension, format_name in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF")):
            nasty.put(f"turned {turn}.{extension}", nasty.encoded(format_name, size=(96, 64), exif=exif))
            nasty.expected[f"turned {turn}.{extension}"] = {GOOD}
    broken = nasty.encoded("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12")
    nasty.put("broken exif.jpg", broken)


def damaged(nasty: Nasty) -> None:
    for format_name, extension in (
        ("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif"),
        ("AVIF", "avif"),
    ):  # fmt: skip
        data = nasty.encoded(format_name, size=(128, 128))
        for share in (0.5, 0.9):
            nasty.put(f"cut {share} {format_name}.{extension}", data[: int(len(data) * share)], BROKEN)
        nasty.put(f"start {format_name}.{extension}", data[:9], BROKEN)
        nasty.put(f"zeroed {format_name}.{extension}", bytes(len(data)), "unreadable")
        nasty.put(f"nothing {format_name}.{extension}", b"", "empty_file")
    flipped = bytearray(nasty.encoded("PNG", size=(128, 128)))
    flipped[len(flipped) // 2] ^= 0xFF
    nasty.put("flipped.png", bytes(flipped), BROKEN)
    nasty.put("exif thumbnail only.jpg", b"\xff\xd8\xff\xe1\x00\x10Exif\0\0" + b"\xff\xd9" * 4, BROKEN)


def misnamed(nasty: Nasty) -> None:
    nasty.put("jpeg really.png", nasty.encoded("JPEG"), "wrong_extension")
    nasty.put("png really.jpg", nasty.encoded("PNG"), "wrong_extension")
    nasty.put("webp really.gif", nasty.encoded("WEBP"), "wrong_extension")
    nasty.put("text.png", b"not a picture at all", "unreadable")
    nasty.put("page.jpg", b"<!DOCTYPE html><title>404</title>", "unreadable")
    nasty.put("archive.webp", b"PK\x03\x04" + bytes(200), "unreadable")
    nasty.put("postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable")
    nasty.put("photo.heic", b"\0\0\0\x18ftypheic", "foreign")
    nasty.put("drawing.svg", b"<svg/>", "foreign")
    nasty.put("layers.psd", b"8BPS", "foreign")


def bombs(nasty: Nasty) -> None:
    nasty.put("bomb.png", png_of_size(30_000, 30_000), "bomb")
    nasty.put("huge bomb.png", png_of_size(2**31 - 1, 2**31 - 1), "bomb")
    nasty.put("no size.png", png_of_size(0, 0), BROKEN)
    text = zlib.compress(bytes(80 << 20))
    body = b"comment\0\0" + text
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(b"zTXt")))
    data = nasty.encoded("PNG")
    nasty.put("text bomb.png", data[:33] + chunk + data[33:], BROKEN)
    nasty.put(
        "gif bomb.gif", b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;", "bomb"
    )


def shapes(nasty: Nasty) -> None:
    nasty.put("one pixel.png", nasty.encoded("PNG", size=(1, 1)), "too_small")
    nasty.put("small.png", nasty.encoded("PNG", size=(20, 20)), "too_small")
    nasty.put("thread.png", nasty.encoded("PNG", size=(1, 9000)), "too_narrow")
    nasty.put("banner.png", nasty.encoded("PNG", size=(4000, 64)), "too_narrow")


def names(nasty: Nasty) -> None:
    for name in (
        "ünïcödé.png", "日本語の名前.png", "عربى.png", "emoji 🦊.png", "combining e\u0301.png", "spaces   in it .png",
        "quote's \"both\".png", "per%cent %20.png", "semi;colon&and.png", "<b>html</b>".replace("/", "-") + ".png",
        "new\nline.png", "-dash.png", "$(echo shell).png", "dots.in.the.name.png", "#hash.png", "back\\slash.png",
        "x" * 251 + ".png",
    ):  # fmt: skip
        nasty.put(name, nasty.encoded("PNG"))
    raw = os.fsdecode(b"not utf-8 \xff\xfe.png")
    nasty.put(raw, nasty.encoded("PNG"))


def links(nasty: Nasty) -> None:
    elsewhere = nasty.folder.parent / "elsewhere.png"
    elsewhere.write_bytes(nasty.encoded("PNG"))
    (nasty.folder / "link to a picture.png").symlink_to(elsewhere)
    (nasty.folder / "link to a picture.txt").write_text("a thing")
    nasty.expected["link to a picture.png"] = {GOOD}
    for name, target, kind in (
        ("broken link.png", "nowhere", "unreadable"),
        ("loop a.png", "loop b.png", "unreadable"),
        ("loop b.png", "loop a.png", "unreadable"),
        ("link to the folder.png", ".", "not_a_file"),
        ("link to a device.png", "/dev/zero", "not_a_file"),
    ):
        (nasty.folder / name).symlink_to(target)
        nasty.expected[name] = {kind}


def captions(nasty: Nasty) -> None:
    def captioned(name: str, data: bytes | None, *kinds: str) -> None:
        nasty.put(f"{name}.png", nasty.encoded("PNG"), caption=data)
        nasty.expected[f"{name}.png"] = set(kinds) & {"no_caption", "empty_caption"} or {GOOD}
        if about := set(kinds) - {"no_caption", "empty_caption"}:
            nasty.expected[f"{name}.txt"] = about

    captioned("caption latin", "café".encode("latin-1"), "caption_encoding")
    captioned("caption utf-16", "a fox".encode("utf-16"), "caption_encoding")
    captioned("caption bytes", bytes(range(128, 256)), "caption_encoding")
    captioned("caption mark", b"\xef\xbb\xbfa fox")
    captioned("caption empty", b"", "empty_caption")
    captioned("caption blank", b" \r\n\t\n", "empty_caption")
    captioned("caption none", None, "no_caption")
    captioned("caption long", b"word " * 50_000)
    captioned("caption huge", b"x" * (2 << 20), "caption_unreadable")
    if posix.make_pipe(nasty.folder / "caption pipe.txt"):
        captioned("caption pipe", None, "caption_unreadable")
    captioned("caption folder", None, "caption_unreadable")
    (nasty.folder / "caption folder.txt").mkdir()
    captioned("caption link", None, "caption_unreadable")
    (nasty.folder / "caption link.txt").symlink_to("nowhere")
    nasty.put("lonely.txt", b"a caption without its picture", "lonely_caption", caption=None)


def others(nasty: Nasty) -> None:
    (nasty.folder / "folder.png").mkdir()
    nasty.expected["folder.png"] = {"not_a_file"}
    if posix.make_pipe(nasty.folder / "pipe.png"):
        nasty.expected["pipe.png"] = {"not_a_file"}
    same = nasty.encoded("PNG")
    nasty.put("copy 1.png", same)
    nasty.put("copy 2.png", same, "duplicate")
    secret = nasty.put("secret.png", nasty.encoded("PNG"), *([] if posix.IS_ROOT else ["unreadable"]))
    secret.chmod(0)
    (nasty.folder / ".hidden.png").write_bytes(b"hidden files are nobody's business")
    (nasty.folder / "notes.md").write_text("other files too")
