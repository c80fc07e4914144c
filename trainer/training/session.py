"""One process's work on a run: what it may begin from, its record in run.json, how it ended. No torch here."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from trainer import files
from trainer.checkpoints.resume import Verdict
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs import branches, manifest, run_folder
from trainer.runs.events import EVENTS_VERSION, EventWriter
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopRequested

logger = logging.getLogger(__name__)

# What PyTorch, CUDA and the system say when memory ran out, on the GPU and in the computer itself.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "memoryallocation")


class TrainingFailed(Exception):
    """The training cannot go on; `advice` says what to change. `told`: another process tells it to the user."""

    def __init__(self, message: str, advice: str, *, told: bool = False) -> None:
        super().__init__(message)
        self.advice = advice
        self.told = told


def record_finished(config: Config, run: RunFolder, step: int) -> None:
    """Complete the record of a run whose process was killed after the last checkpoint and before it could say so."""
    branches.remove_temporary(config, run)
    record = run_folder.read_run(run)
    if record and record["status"] == "running":
        EventWriter(run.events_file).write("run_finished", step, reason="finished")
        run_folder.write_run(run, record | {"status": "finished"})


class Session:
    """This process's entry in the run's record. Every process has one; only the one that holds the lock writes it."""

    def __init__(self, config: Config, run: RunFolder, verdict: Verdict | None) -> None:
        self._config = config
        self._run = run
        self._verdict = verdict
        self.events = EventWriter(run.events_file)
        self.global_step = verdict.step if verdict else 0
        record = run_folder.read_run(run)
        if record is None or verdict is None or not manifest.listing(run.checkpoints):
            record = run_folder.new_run(config.output_name)
        if verdict and verdict.manifest.run_id != record["run_id"]:
            record["parent"] = {
                "run_id": verdict.manifest.run_id,
                "step": verdict.step,
                "manifest": verdict.manifest.digest,
                "path": str(verdict.path.absolute()),
            }
        self.record = record
        self.number = len(record["sessions"]) + 1

    @property
    def resumed_from(self) -> int | None:
        """The step of the run's own checkpoint that this session continues; None for a fresh start or a branch."""
        own = self._verdict is not None and self._verdict.manifest.run_id == self.run_id
        return self._verdict.step if self._verdict and own else None

    @property
    def run_id(self) -> str:
        return str(self.record["run_id"])

    @contextlib.contextmanager
    def recorded(self, **started: Any) -> Iterator[Session]:
        """Write run.json, config.toml and run_started; at the end, how it ended."""
        run, verdict = self._run, self._verdict
        for folder in (run.control, run.samples, run.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        branches.remove_temporary(self._config, run)
        run_folder.drop_old_requests(run)
        entry = {
            "session": self.number,
            "started": time.time(),
            "from_step": self.global_step,
            "grade": verdict.grade if verdict else None,
            "resumed_from": str(verdict.path.absolute()) if verdict else None,
            "allowed": _allowed(verdict) if verdict else [],
            "total_steps": started.get("total_steps"),
            **run_folder.this_process(),
        }
        self.record |= {"status": "running", **run_folder.this_process()}
        self.record["sessions"] = [*self.record["sessions"], entry]
        run_folder.write_run(run, self.record)
        files.write_text(run.config_file, to_toml(self._config))
        if verdict:
            for path, reason in verdict.rejected:
                aside = manifest.set_aside(path, reason)
                self.events.write("checkpoint_rejected", verdict.step, path=str(aside), reason=reason)
        self.events.write("run_started", self.global_step, version=EVENTS_VERSION, session=self.number, **started)
        try:
            yield self
        except StopRequested:
            self._end("stopped", "stopped")
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def resumed(self, probe_loss: float, epochs: int) -> None:
        """Record what was restored, and move what came after it aside. `epochs`: completed at the resumed step."""
        verdict = self._verdict
        assert verdict is not None
        moved = branches.abandon(
            self._config,
            self._run,
            verdict.step,
            epochs,
            self.number,
            differs=verdict.grade != "bit-exact",
            passed_over=bool(verdict.rejected),
        )
        for path in moved:
            logger.info("The later checkpoint %s is kept at %s", path.name, path)
        self.events.write(
            "resumed",
            verdict.step,
            step=verdict.step,
            session=self.number,
            path=str(verdict.path),
            grade=verdict.grade,
            probe_loss=probe_loss,
            learning_rates=verdict.learning_rates,
            differences={
                item.name: [item.checkpoint, item.now] for item in verdict.differences if item.on_resume != "free"
            },
            dataset=list(verdict.dataset),
            environment=list(verdict.environment),
            abandoned=[str(path) for path in moved],
        )

    def warn(self, kind: str, message: str) -> None:
        logger.warning("%s", message)
        self.events.write("warning", self.global_step, kind=kind, message=message)

    def finish(self, status: run_folder.Status, reason: str) -> None:
        self._end(status, reason)

    def _end(self, status: run_folder.Status, reason: str) -> None:
        branches.remove_temporary(self._config, self._run)  # what a failed save could not remove
        self.events.write("run_finished", self.global_step, reason=reason)
        self._write_status(status, reason)

    def _fail(self, error: BaseException) -> None:
        advice = getattr(error, "advice", "") or advise(error)
        message = str(error) or type(error).__name__
        self.events.write("run_failed", self.global_step, error=message, advice=advice)
        self._write_status("failed", message)

    def _write_status(self, status: run_folder.Status, reason: str) -> None:
        self.record["sessions"][-1] |= {"ended": time.time(), "to_step": self.global_step, "reason": reason}
        self.record["status"] = status
        try:
            run_folder.write_run(self._run, self.record)
        except OSError as error:  # the status is then derived from the process, which is gone
            logger.warning("%s cannot be written: %s", self._run.run_file, error)


def _allowed(verdict: Verdict) -> list[str]:
    """What is not as it was, by permission."""
    return [item.name for item in verdict.differences if item.allowed] + (["dataset"] if verdict.dataset else [])


def advise(error: BaseException) -> str:
    """What a user can do about an error that ended a training."""
    text = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return (
            "Memory ran out. Set gradient_checkpointing = true, halve train_batch_size and double "
            "gradient_accumulation_steps, use optimizer_type = AdamW8bit, set cache_latents = true, or lower "
            "resolution; then resume."
        )
    if "use_deterministic_algorithms" in text:
        return (
            "An operation has no deterministic implementation on this device. Set deterministic = false to train all "
            "the same; a resumed run is then no longer bit-equal."
        )
    if isinstance(error, OSError):
        return "A file could not be read or written; see console.log. Then resume from the latest checkpoint."
    return "See console.log for the details. The latest checkpoint is intact and can be resumed."
