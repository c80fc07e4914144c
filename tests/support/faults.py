"""What can happen to a trainer at work, made to happen at one exact point: death, signals, a disk that fails."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from trainer.runs import run_folder
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopSignals

# --- calls that reach the disk -------------------------------------------------------------------------------------

CALLS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "chmod", "fsync", "open", "listdir", "scandir")
SAVING = "checkpoint"  # the name of the thread that writes begins so


@dataclass(frozen=True)
class Call:
    """A call that is about to be made. `half` makes half of it, where there is such a thing."""

    name: str
    path: str
    half: Callable[[], None]


Observer = Callable[[Call], None]


class _WatchedFile(io.FileIO):
    """A file opened for writing whose writes are told of."""

    def __init__(self, file: Any, mode: str, tell: Callable[..., None]) -> None:
        self._tell = tell
        super().__init__(file, mode)

    def write(self, data: Any) -> int:
        written = super().write
        self._tell("write", self.name, lambda: written(bytes(data)[: len(data) // 2]))
        return written(data)


class FileCalls:
    """Within, the observer is told of each call to the disk before it is made; it may raise, or end the process.

    `thread`: only calls of threads whose name begins so.
    """

    def __init__(self, observer: Observer, thread: str = SAVING) -> None:
        self._observer = observer
        self._thread = thread
        self._patches = pytest.MonkeyPatch()
        self._telling = threading.local()

    def __enter__(self) -> FileCalls:
        for name in CALLS:
            self._patches.setattr(os, name, self._told(name, getattr(os, name)))
        self._patches.setattr(io, "open", self._opening(io.open))
        self._patches.setattr(safetensors.torch, "save_file", self._saving_tensors(safetensors.torch.save_file))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.undo()

    def _tell(self, name: str, path: object, half: Callable[[], object] = lambda: None) -> None:
        if getattr(self._telling, "now", False) or not threading.current_thread().name.startswith(self._thread):
            return
        self._telling.now = True  # what the observer itself does with files is not told of
        try:
            self._observer(Call(name, str(path), lambda: (half(), None)[1]))
        finally:
            self._telling.now = False

    def _told(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **kwargs: Any) -> Any:
            self._tell(name, args[0] if args else "")
            return call(*args, **kwargs)

        return told

    def _opening(self, open_file: Callable[..., Any]) -> Callable[..., Any]:
        def opening(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            self._tell("open file", file)
            if "b" not in mode or not set(mode) & set("wax+"):
                return open_file(file, mode, buffering, *args, **kwargs)
            raw = _WatchedFile(file, mode.replace("b", ""), self._tell)
            if not buffering:
                return raw
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        return opening

    def _saving_tensors(self, save_file: Callable[..., None]) -> Callable[..., None]:
        def saving(tensors: Any, filename: Any, metadata: Any = None) -> None:
            def half() -> None:
                save_file(tensors, filename, metadata)
                os.truncate(filename, Path(filename).stat().st_size // 2)

            self._tell("write tensors", filename, half)
            save_file(tensors, filename, metadata)

        return saving


class Death(BaseException):
    """The process would be dead."""


class Deadly:
    """Ends all effect on the disk from one call on, as a SIGKILL there would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, call: Call) -> None:
        self.left -= 1
        if self.left < 0:
            raise Death


# --- moments of a training -----------------------------------------------------------------------------------------

MOMENTS = {  # what is about to be called then
    "scanning": ("trainer.data.dataset", "read_folders"),
    "loading": ("trainer.models.parts", "Parts._load"),
    "caching": ("trainer.models.model", "Model.encode_images"),
    "stepping": ("trainer.training.state", "State.clip"),
    "saving": ("trainer.runs.manifest", "compose"),
    "sampling": ("trainer.models.previews", "one_picture"),
    "moving aside": ("trainer.runs.manifest", "move_aside"),
    "ending": ("trainer.training.session", "Session.finish"),
}

ERRORS: dict[str, Exception] = {
    "out of memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "disk full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
}


WAIT_SECONDS = 20.0


@dataclass(frozen=True)
class Fault:
    """When a moment comes for the `count`-th time, these are done: names of signals, of ERRORS, requests to the run, or
    "wait", which takes WAIT_SECONDS.

    The moment "file call" is that before a call to the disk, in threads whose name begins with `thread`; `half`
    makes half of that call first.
    """

    moment: str
    count: int = 1
    do: tuple[str, ...] = ("SIGKILL",)
    half: bool = False
    thread: str = ""


@dataclass
class _Counter:
    fault: Fault
    run: RunFolder
    seen: int = 0
    handled: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reached(self, call: Call | None = None) -> None:
        with self.lock:
            self.seen += 1
            now = self.seen == self.fault.count
        if not now:
            return
        if call and self.fault.half:
            call.half()
        for action in self.fault.do:
            if action in ERRORS:
                raise ERRORS[action]
            if action == "wait":
                time.sleep(WAIT_SECONDS)
            elif action.startswith("SIG"):
                self._signal(signal.Signals[action])
            else:
                run_folder.ask(self.run, action)  # type: ignore[arg-type]

    def _signal(self, number: signal.Signals) -> None:
        """Send it to this process and return when it was handled: two of a kind at once would count as one."""
        expected = self.handled + 1
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 300
        while self.handled < expected:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{number.name} was not handled")
            time.sleep(0.001)


def bring_about(fault: Fault, run: RunFolder) -> None:
    """Make the fault happen in this process, which is to end thereafter: nothing is put back."""
    counter = _Counter(fault, run)
    handle = StopSignals._handle

    def handled(signals: StopSignals, number: int, frame: Any) -> None:
        counter.handled += 1
        handle(signals, number, frame)

    StopSignals._handle = handled  # type: ignore[method-assign, assignment]
    if fault.moment == "file call":
        FileCalls(counter.reached, fault.thread).__enter__()
        return
    module, attribute = MOMENTS[fault.moment]
    owner: Any = importlib.import_module(module)
    *outer, name = attribute.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    def at_the_moment(*args: Any, **kwargs: Any) -> Any:
        counter.reached()
        return original(*args, **kwargs)

    setattr(owner, name, at_the_moment)
