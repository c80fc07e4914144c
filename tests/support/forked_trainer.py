"""Trainer processes that start at once: forks of a process that has imported everything and done nothing.

What runs in them is `trainer.__main__.main`, with real files, signals and exit codes; only the seconds of imports are
saved. `python -m tests.support.forked_trainer` is the process that forks; a test has a `Server`. Windows has no forks:
there each is a process of its own from the start.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import psutil

from tests.support.faults import Fault
from trainer import files
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs import launch
from trainer.runs.run_folder import RunFolder

FORK_TRAININGS = "REKINDLE_TEST_FORK_TRAININGS"
REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """The process that forks; use it as a context."""

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked_trainer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks trainers has died"
        return json.loads(answer)

    def wait_until_ready(self) -> None:
        """Return when everything is imported."""
        self.ask(ready=True)

    def start(
        self, config: Config, fault: Fault | None = None, environment: Mapping[str, str] | None = None
    ) -> Trainer:
        """Start to train what a config describes; what the trainer prints goes to printed.txt beside the run."""
        output = Path(config.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        preset, printed = output / f"{config.output_name}.preset.toml", output / "printed.txt"
        files.write_text(preset, to_toml(config))  # whole, since another process may be reading it
        pid = self.ask(
            arguments=["train", "--config", str(preset)],
            printed=str(printed),
            run=str(config.run_dir),
            fault=dataclasses.asdict(fault) if fault else None,
            environment=dict(environment or {}),
        )
        return Trainer(self, pid, printed)

    def start_queue(self, arguments: Sequence[str], printed: Path) -> int:
        """Start to work on a queue, whose trainings are forks in their turn; returns the process's number."""
        pid: int = self.ask(
            arguments=list(arguments), printed=str(printed), run="", fault=None, environment={FORK_TRAININGS: "1"}
        )
        return pid

    def start_several(
        self, config: Config, count: int, faults: Mapping[int, Fault] | None = None, patience: int = 1800
    ) -> list[Trainer]:
        """Start `count` processes that train together, as torch's launchers would; `faults` by process.

        `patience`: seconds after which the training's group of processes gives an operation up.
        """
        common = {"TEST_PATIENCE": str(patience)}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
        common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        return [
            self.start(config, (faults or {}).get(rank), {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(count)
        ]

    def train(self, config: Config, fault: Fault | None = None) -> int:
        """Train, and return the exit code, or the negative number of the signal that ended it."""
        return self.start(config, fault).wait()


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A trainer's process."""

    server: Server
    pid: int
    printed_to: Path

    def wait(self) -> int:
        code: int = self.server.ask(wait=self.pid)
        return code

    def kill(self) -> None:
        psutil.Process(self.pid).kill()  # not waited for yet, so the number is still its own

    @property
    def printed(self) -> str:
        return self.printed_to.read_text()


# --- in the process that forks -------------------------------------------------------------------------------------


def _train(
    arguments: Sequence[str], printed: str, run: str, fault: dict[str, Any] | None, environment: dict[str, str],
    output: int | None = None,
) -> None:  # fmt: skip
    """What a child does. Does not return."""
    code = 1
    try:
        os.environ.update(environment)
        to = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666) if output is None else output
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(to, 1)
        os.dup2(to, 2)
        from torch.distributed import distributed_c10d

        from tests.support import faults
        from trainer.__main__ import main

        if sys.platform != "win32" and environment.get(FORK_TRAININGS):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            here = SimpleNamespace(start=forked_training)
            setattr(launch, "detached", here)  # noqa: B010 - a type checker knows it as a module
        if patience := os.environ.get("TEST_PATIENCE"):
            distributed_c10d.default_pg_timeout = datetime.timedelta(seconds=int(patience))
        if fault:
            faults.bring_about(Fault(**{**fault, "do": tuple(fault["do"])}), RunFolder(Path(run)))
        code = main(arguments)
    except (AttributeError, ImportError, TypeError):
        traceback.print_exc()  # of a fault that could not be prepared
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if sys.platform != "win32":

    def forked_training(
        arguments: Sequence[str], folder: Path, output: IO[bytes], more: Mapping[str, str] | None = None
    ) -> ForkedTraining:
        """In place of `detached.start`."""
        return ForkedTraining(arguments, folder, output, more or {})

    class ForkedTraining:
        """What `launch.start` needs of a process: a fork that trains, in place of one that imports everything first."""

        def __init__(self, arguments: Sequence[str], folder: Path, output: IO[bytes], more: Mapping[str, str]) -> None:
            self.returncode: int | None = None
            self.pid = os.fork()
            if self.pid == 0:
                os.setsid()
                os.chdir(folder)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                _train(list(arguments)[3:], "", "", None, {**more, FORK_TRAININGS: ""}, output=output.fileno())

        def poll(self) -> int | None:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode


def serve() -> None:
    if sys.platform == "win32":
        serve_without_forks()
        return
    import torch

    import trainer.models.families.sd
    import trainer.training.loop  # noqa: F401 - what takes the seconds

    assert torch.get_num_threads() == 1
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a process with threads must not fork"
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "ready" in request:
            print("true", flush=True)
            continue
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _train(**request)
        print(pid, flush=True)


def serve_without_forks() -> None:
    started: dict[int, subprocess.Popen[bytes]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(started.pop(request["wait"]).wait(), flush=True)
        elif "ready" in request:
            print("true", flush=True)
        else:
            process = subprocess.Popen([sys.executable, "-m", "tests.support.forked_trainer", line])
            started[process.pid] = process
            print(process.pid, flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        _train(**json.loads(sys.argv[1]))
    serve()
