"""One process's work on a run: what it may begin from, its record in run.json, how it ended. No torch here."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from typing import Any

from trainer import files
from trainer.checkpoints import decisions, resume, retention
from trainer.checkpoints.choosing import ResumeRefused
from trainer.checkpoints.kohya_state import KohyaState
from trainer.checkpoints.resume import Verdict
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.runs import branches, lineage, manifest, run_folder
from trainer.runs.events import EVENTS_VERSION, EventWriter, SilentWriter
from trainer.runs.failures import advice_for, kind_of
from trainer.runs.manifest import CheckpointDamaged
from trainer.runs.rollbacks import Rollback
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopRequested

logger = logging.getLogger(__name__)


def record_finished(config: Config, run: RunFolder, step: int) -> None:
    """Complete the work on a run whose process was killed after the last checkpoint and before it could say so."""
    branches.remove_temporary(config, run)
    retention.prune(run, config, None)
    record = run_folder.read_run(run)
    if record and record["status"] == "running":
        EventWriter(run.events_file).write("run_finished", step, reason="finished")
        run_folder.write_run(run, record | {"status": "finished"})


class Session:
    """The entry in the run's record of the process that holds its lock, and all that it reports."""

    writes = True

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        verdict: Verdict | None,
        total_steps: int,
        imported: KohyaState | None = None,
    ) -> None:
        self._config = config
        self._run = run
        self._verdict = verdict
        self._imported = imported
        self._decisions = verdict.decisions if verdict else decisions.at_the_start(config, total_steps)
        self.events: EventWriter = EventWriter(run.events_file)
        self._begins_at = verdict.step if verdict else imported.step if imported else 0
        self.global_step = self._begins_at
        self.id = lineage.new_session()
        self.record = self._record(run_folder.read_run(run))
        self.number = len(self.record["sessions"]) + 1

    def _record(self, before: dict[str, Any] | None) -> dict[str, Any]:
        """The run's record, or that of a new run, which may begin at another one's checkpoint."""
        verdict = self._verdict
        new = run_folder.new_run(self._config.output_name)
        if verdict is None:
            return new
        if verdict.own:
            return before or new | {"run_id": verdict.manifest.run_id}
        if before and resume.was_begun_with(verdict.manifest, before):
            return before
        parent = {
            "run_id": verdict.manifest.run_id,
            "step": verdict.step,
            "manifest": verdict.manifest.digest,
            "path": str(verdict.path.absolute()),
        }
        return new | {"parent": parent}

    @property
    def resumed_from(self) -> int | None:
        """The step of the checkpoint that this session continues; None for a fresh start."""
        return self._verdict.step if self._verdict else None

    def for_checkpoints(self) -> dict[str, Any]:
        """What every checkpoint of this session says of where it comes from and what was decided on the way."""
        verdict = self._verdict
        before = (lineage.sessions_of(verdict.state) or ()) if verdict else ()
        return {
            "session": self.number,
            "lineage": [*before, (self.id, self._begins_at)],
            "decisions": self._decisions.as_dict(),
        }

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
            "grade": verdict.grade if verdict else "imported" if self._imported else None,
            "resumed_from": str(origin.path.absolute()) if (origin := verdict or self._imported) else None,
            "id": self.id,
            "lineage": self.for_checkpoints()["lineage"],
            "learning_rate": dataclasses.asdict(verdict.decision) if verdict and verdict.decision else None,
            "words": list(decisions.given(self._config)),
            "allowed": [dataclasses.asdict(item) for item in verdict.permitted] if verdict else [],
            "total_steps": started.get("total_steps"),
            **run_folder.this_process(),
        }
        self.record |= {"status": "running", **run_folder.this_process()}
        self.record["sessions"] = [*self.record["sessions"], entry]
        run_folder.write_run(run, self.record)
        files.write_text(run.config_file, to_toml(self.config_to_keep()))
        for path, reason in verdict.rejected if verdict else ():
            own = path.resolve().parent == run.checkpoints.resolve()  # another run's are not ours to move
            aside = manifest.set_aside(path, reason) if own else path
            self.events.write("checkpoint_rejected", self.global_step, path=str(aside), reason=reason)
        self.events.write(
            "run_started", self.global_step, version=EVENTS_VERSION, session=self.number, id=self.id, **started
        )
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
        try:
            moved = branches.go_on_from(
                self._config,
                self._run,
                verdict.manifest,
                verdict.path,
                epochs,
                self.number,
                differs=verdict.grade != "bit-exact",
                passed_over=bool(verdict.rejected),
            )
        except (OSError, CheckpointDamaged) as error:
            raise ResumeRefused([f"resume_from_checkpoint: {verdict.path} cannot be taken over: {error}"]) from error
        if (back := Rollback.of(self.record)) and back.waiting:
            taken = dataclasses.replace(back, waiting=False)
            if verdict.rollback:
                taken = dataclasses.replace(taken, step=verdict.step, checkpoint=verdict.manifest.digest)
            self.record["rollback"] = taken.as_dict()
            run_folder.write_run(self._run, self.record)
        for path in moved:
            logger.info("The checkpoint %s, which does not lead here, is kept at %s", path.name, path)
        self.events.write(
            "resumed",
            verdict.step,
            step=verdict.step,
            session=self.number,
            path=str(verdict.path),
            lineage=self.for_checkpoints()["lineage"] if lineage.sessions_of(verdict.state) is not None else None,
            grade=verdict.grade,
            probe_loss=probe_loss,
            learning_rates=verdict.learning_rates,
            differences={
                item.name: [item.checkpoint, item.now] for item in verdict.differences if item.on_resume != "free"
            },
            dataset=list(verdict.dataset),
            environment=list(verdict.environment),
            learning_rate=dataclasses.asdict(verdict.decision) if verdict.decision else None,
            **({"rollback": dataclasses.asdict(verdict.rollback)} if verdict.rollback else {}),
            allowed=[dataclasses.asdict(item) for item in verdict.permitted],
            abandoned=[str(path) for path in moved],
        )

    def took_over(self, differences: list[str]) -> None:
        """Record that another program's state was imported, and what differs from what it would have done."""
        imported = self._imported
        assert imported is not None
        described = {"path": str(imported.path), "grade": "imported", "differences": differences}
        self.events.write("imported", imported.step, step=imported.step, session=self.number, **described)
        logger.info("Imported weights, moments and step %d of %s; never exact", imported.step, imported.path)
        for difference in differences:
            self.warn("imported", difference)

    def config_to_keep(self) -> Config:
        """The options of this session, whose permissions allow no more than what they allowed."""
        permitted = self._verdict.permitted if self._verdict else ()
        return self._config.replace(resume_allow=tuple(item.word for item in permitted))

    def warn(self, kind: str, message: str) -> None:
        logger.warning("%s", message)
        self.events.write("warning", self.global_step, kind=kind, message=message)

    def finish(self, status: run_folder.Status, reason: str) -> None:
        self._end(status, reason)

    def roll_back(self, back: Rollback) -> None:
        """Record that this session ends here, and that the next one goes on from an earlier checkpoint.

        Raises OSError: without the record the run would not know where to go on.
        """
        message = (
            f"{back.seen} The run goes back to step {back.step} and on from there at {back.scale:g} times the learning "
            f"rate (rollback {back.number} of {self._config.max_rollbacks}); what came after that step is kept aside."
        )
        self.record["rollback"] = back.as_dict()
        self.record["sessions"][-1] |= {"ended": time.time(), "to_step": self.global_step, "reason": "rolled_back"}
        run_folder.write_run(self._run, self.record)
        self.events.write("rolled_back", self.global_step, to_step=back.step, number=back.number, scale=back.scale)
        self.warn("rolled_back", message)

    def _end(self, status: run_folder.Status, reason: str) -> None:
        branches.remove_temporary(self._config, self._run)  # what a failed save could not remove
        self.events.write("run_finished", self.global_step, reason=reason)
        self._write_status(status, reason)

    def _fail(self, error: BaseException) -> None:
        message = str(error) or type(error).__name__
        advice, kind = advice_for(error), kind_of(error)
        self.events.write("run_failed", self.global_step, error=message, advice=advice, kind=kind)
        self._write_status("failed", message)

    def _write_status(self, status: run_folder.Status, reason: str) -> None:
        self.record["sessions"][-1] |= {"ended": time.time(), "to_step": self.global_step, "reason": reason}
        self.record["status"] = status
        try:
            run_folder.write_run(self._run, self.record)
        except OSError as error:  # the status is then derived from the process, which is gone
            logger.warning("%s cannot be written: %s", self._run.run_file, error)


class SilentSession(Session):
    """The session of a process that does not hold the run's lock: the same record, and nothing of it is written."""

    writes = False

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        verdict: Verdict | None,
        total_steps: int,
        imported: KohyaState | None = None,
    ) -> None:
        super().__init__(config, run, verdict, total_steps, imported)
        self.events: EventWriter = SilentWriter(run.events_file)

    @contextlib.contextmanager
    def recorded(self, **started: Any) -> Iterator[Session]:
        yield self

    def resumed(self, probe_loss: float, epochs: int) -> None:
        pass

    def took_over(self, differences: list[str]) -> None:
        pass

    def warn(self, kind: str, message: str) -> None:
        pass

    def finish(self, status: run_folder.Status, reason: str) -> None:
        pass

    def roll_back(self, back: Rollback) -> None:
        pass
