"""Files written whole or not at all, and their digests. No torch here."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from trainer.quantities import size

MOST_TEXT = 10_000_000  # bytes of a preset, a dataset file or a list of prompts
READ_AT_ONCE = 4 << 20  # bytes
PATIENCE = 10.0 if os.name == "nt" else 0.0  # seconds that `patiently` goes on trying
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[\d¹²³]|lpt[\d¹²³]) *(\..*)?", re.IGNORECASE)
MOST_NAME = 200  # bytes; file systems take 255, and temporary names, steps and extensions are added
SPARE_BYTES = 64 << 20  # left free on the disk beside what a save needs


def usual_mode() -> int:
    """The mode a newly created file usually has: 0666 without the process's umask."""
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


_MODE = usual_mode()  # once, at import: os.umask changes the whole process for an instant
_TEMPORARY = re.compile(r"\.tmp-(.+)-[a-z0-9_]{8}", re.DOTALL)  # every temporary name is of this form


def unusable_name(name: str, *, windows: bool = os.name == "nt") -> str:
    """Why no file or folder can have such a name here, or be told from another by it; empty when it can.

    Windows keeps characters and the names of devices for itself, and drops dots and spaces at the end.
    """
    if not name or name in (".", "..") or re.search(r"[/\0]", name):
        return "is not a name of a file"
    if len(name.encode(errors="surrogatepass")) > MOST_NAME:
        return f"is longer than {MOST_NAME} bytes"
    if windows and re.search(r'[\x00-\x1f<>:"\\|?*]', name):
        return 'has a character that Windows does not allow in names; leave out \\ : * ? " < > |'
    if windows and name[-1] in ". ":
        return "ends with a dot or a space, which Windows drops"
    if windows and DEVICES.fullmatch(name):
        return "is the name of a device on Windows"
    return ""


def most_path() -> int | None:
    """The characters that a path may have; None where there is no bound that anybody meets."""
    if sys.platform != "win32":
        return None
    import winreg

    with (
        contextlib.suppress(OSError),
        winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key,
    ):
        if winreg.QueryValueEx(key, "LongPathsEnabled")[0]:
            return None
    return 259


def exists(path: Path) -> bool:
    """Whether there is such a file or folder. A name that no disk can hold is not there."""
    try:
        return path.exists()
    except OSError:
        return False


def read_text(path: Path) -> str:
    """The UTF-8 text of a file that a person names, without a byte order mark.

    Raises OSError or UnicodeDecodeError; OSError also for what is no plain file, or larger than any text of a person.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would be to wait
        raise OSError("it is not a plain file")
    with path.open("rb") as file:
        text = file.read(MOST_TEXT + 1)
    if len(text) > MOST_TEXT:
        raise OSError(f"it is larger than {size(MOST_TEXT)}")
    return text.decode("utf-8-sig")


def patiently(change: Callable[[], Any]) -> None:
    """Rename, replace or delete, again and again for a while where Windows refuses it, which it does as long as anybody
    has the file open, or one in the folder: the page and virus scanners have, for a moment. Raises OSError."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            change()
            return
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


def replace(source: Path, target: Path) -> None:
    """Give a file the name of another, which it replaces, or a new one. Raises OSError."""
    patiently(lambda: source.replace(target))


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder. Raises OSError."""
    patiently(lambda: source.rename(target))


def unlink(path: Path) -> None:
    """Delete a file if it is there. Raises OSError."""
    patiently(lambda: path.unlink(missing_ok=True))


def fsync_open(file: IO[bytes]) -> None:
    """Make what was written to an open file durable."""
    file.flush()
    os.fsync(file.fileno())


def fsync_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Make the folder's own entries durable (a rename is only so after this). Not every file system can, and Windows,
    which has no such call, writes them by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(PermissionError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def restore_mode(path: Path) -> None:
    """Give a file the usual mode (safetensors and tempfile leave 0600)."""
    path.chmod(_MODE)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that, whatever happens, its name leads to the old content or to all of the new.

    `durable=False` is much faster, and holds for every end of the process, but not for one of the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        restore_mode(temporary)
        replace(temporary, path)
        if durable:
            fsync_folder(path.parent)
    finally:
        unlink(temporary)


def remove_temporary(folder: Path, name: str = ".*") -> None:
    """Remove what interrupted writes and deletions left in a folder, of files and folders whose name matches `name`.

    Only for the process that alone writes such names there. What cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()):
            match = _TEMPORARY.fullmatch(entry.name)
            if match and re.fullmatch(name, match[1], re.DOTALL):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError (disk full) when the file system of `folder` has less than `needed` bytes and some to spare."""
    free = free_bytes(folder)
    if free < needed + SPARE_BYTES:
        message = f"{size(needed)} are needed and {size(SPARE_BYTES)} to spare, {size(free)} are free"
        raise OSError(errno.ENOSPC, message, str(folder))


def free_bytes(folder: Path) -> int:
    """What is free on the file system of a folder, which need not exist yet."""
    existing = folder.absolute()
    while not exists(existing):
        existing = existing.parent
    return shutil.disk_usage(existing).free


def write_text(path: Path, text: str) -> None:
    """Like `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def json_bytes(value: Any) -> bytes:
    """The one JSON form of a value: sorted keys, UTF-8, no NaN; a file name that is not UTF-8 keeps JSON's escapes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")


def compact_json_bytes(value: Any) -> bytes:
    """Like `json_bytes` on one line, which is several times faster: for what hundreds of thousands of images say."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)  # indented, Python itself would do it
    return text.encode(errors="backslashreplace")


def digest(value: Any) -> str:
    """SHA-256 of a value's content as JSON."""
    return hashlib.sha256(compact_json_bytes(value)).hexdigest()


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's content, in hexadecimal digits. `progress`: told now and then how many bytes are read."""
    with path.open("rb") as file:
        if progress is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while part := file.read(READ_AT_ONCE):
            digest.update(part)
            progress(file.tell())
        return digest.hexdigest()
