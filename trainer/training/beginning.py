"""How a training begins: its run is locked, everything is examined, and what must not begin is refused.

Nothing of the base model is loaded here, and nothing is changed before the last refusal.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from trainer import devices, quantities
from trainer.checkpoints import choosing, kohya_state, memory_size, mirror, preflight
from trainer.checkpoints.checkpoint_size import SizeUnknown
from trainer.checkpoints.choosing import ResumeRefused
from trainer.checkpoints.kohya_state import KohyaState
from trainer.checkpoints.memory_size import Memory
from trainer.checkpoints.mirror import Mirroring
from trainer.checkpoints.preflight import Inputs
from trainer.checkpoints.resume import Verdict
from trainer.data.epochs import Origin
from trainer.distributed.agreement import Agreement
from trainer.distributed.processes import Processes, several_processes
from trainer.models import adapters, quantising
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem
from trainer.recipe import optimizers, prompts, schedule
from trainer.recipe.prompts import Prompt
from trainer.recipe.schedule import LrCurve
from trainer.runs import branches, manifest, preemption, run_folder
from trainer.runs.console import ConsoleLog
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopRequested, StopSignals
from trainer.training import class_images, environment, session, tracking, watching
from trainer.training.loader import Plan
from trainer.training.session import Session, SilentSession

logger = logging.getLogger(__name__)
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SILENT_SECONDS, PROGRESS_SECONDS = 1.0, 5.0


@dataclass
class Beginning:
    """What is known of a training before its base model is loaded, and what it holds while it lasts."""

    config: Config
    accelerator: Accelerator
    signals: StopSignals
    run: RunFolder
    session: Session
    agreement: Agreement
    environment: dict[str, Any]  # what environment.json of its checkpoints says
    inputs: Inputs
    verdict: Verdict | None  # None for a fresh start
    imported: KohyaState | None  # what a fresh start begins with, where it is another program's
    plan: Plan
    planned_steps: int  # the run's length when it first began
    curve: LrCurve
    prompts: tuple[Prompt, ...]
    mirroring: Mirroring | None  # in the process that holds the run, where it is wanted
    checkpoint_bytes: int | None  # None until the model is loaded
    memory: Memory | None = None  # what the device is estimated to hold; None where it has none of its own

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def stop_is_asked(self) -> bool:
        """Whether a signal or a request waits for the training to stop."""
        return self.signals.requested or (self.session.writes and (self.run.control / "stop").exists())

    def raise_if_stopped(self) -> None:
        """Raises StopRequested once a stop is asked for, by a signal or in the run folder; where nothing is to save."""
        self.signals.raise_if_requested()
        if self.session.writes and "stop" in run_folder.take_requests(self.run):
            raise StopRequested


@contextlib.contextmanager
def begin(config: Config, signals: StopSignals, console: ConsoleLog | None) -> Iterator[Beginning | None]:
    """Hold the run, examine everything, and within, record the session and what ends it. None: nothing is left to do.

    Raises Refused when the training may not begin, StopRequested when it is stopped before its first step.
    """
    notice = preemption.notice_of()
    with signals.at_once() if several_processes() else contextlib.nullcontext():  # they wait for one another
        accelerator = make_accelerator(config)
    processes = Processes(accelerator.num_processes, accelerator.process_index)
    here = environment.describe(config, accelerator.device, processes.count)
    run = RunFolder(config.run_dir)

    with processes.watched():
        if config.num_class_images:
            if accelerator.is_main_process:
                class_images.make(config, accelerator.device, DTYPES[config.mixed_precision], signals)
            processes.meet(signals)
        inputs = preflight.examine_inputs(
            config,
            processes.count,
            told_now_and_then(signals, "Reading images: %s of %s", "{:,}".format),
            told_now_and_then(signals, "Reading the base model to know it again: %s of %s", quantities.size),
        )
        config = inputs.config
        sample_prompts = prompts.read(config)
    logger.info("%s", "\n".join(inputs.lines()))
    logger.info("%d process%s, on %s", processes.count, "es" if processes.count > 1 else "", here["device"])
    with processes.watched(), holding(run, config, accelerator):
        if config.checkpoint_mirror:
            processes.meet(signals)  # none looks for checkpoints before they have been fetched
        verdict = examined_checkpoint(inputs, here)
        inputs = inputs.resumed(verdict)
        if verdict and verdict.finished and branches.last_file(config).exists():
            if accelerator.is_main_process:
                session.record_finished(config, run, verdict.step)
            yield None
            return
        size = checkpoint_bytes(config, inputs, verdict)
        preflight.require_disk_space(config, size or 0)
        imported = None if verdict else kohya_state.examine(config, inputs.total_steps)
        planned_steps = verdict.state.get("planned_steps", inputs.total_steps) if verdict else inputs.total_steps
        origin = verdict.origin if verdict else Origin()
        this_session = (Session if accelerator.is_main_process else SilentSession)(
            config, run, verdict, inputs.total_steps, imported
        )
        begun = Beginning(
            config=config,
            accelerator=accelerator,
            signals=signals,
            run=run,
            session=this_session,
            agreement=processes.meet(signals),
            environment=here,
            inputs=inputs,
            verdict=verdict,
            imported=imported,
            plan=Plan(config, inputs.scan.entries, inputs.batches_per_step, origin, planned_steps),
            planned_steps=planned_steps,
            curve=verdict.curve if verdict else schedule.new_curve(config, inputs.total_steps),
            prompts=tuple(sample_prompts),
            mirroring=None,
            checkpoint_bytes=size,
        )
        recorded = this_session.recorded(**description(begun))
        noticed = preemption.watched(notice, lambda: stop_before_the_machine_goes(begun))
        with mirrored(begun), recorded, processes.watched(), followed(begun), noticed:
            if console and this_session.writes:
                console.attach(run.console_file)
            if size is not None:
                warn_of_writes(begun, size)
            if at_stake := preflight.at_stake(config, inputs, verdict):
                this_session.warn("at_stake", at_stake)
            warn_of_memory(begun)
            yield begun


@contextlib.contextmanager
def mirrored(begun: Beginning) -> Iterator[None]:
    """Within, the process that holds the run copies it to its mirror; at the end, also how it ended."""
    config, running = begun.config, begun.session
    if not (config.checkpoint_mirror and running.writes):
        yield
        return
    begun.mirroring = Mirroring(config, begun.run, running.events, running.warn, running.resumed_from)
    try:
        yield
    finally:
        begun.mirroring.close()


def stop_before_the_machine_goes(begun: Beginning) -> None:
    begun.session.warn(
        "preemption",
        "The machine is about to be taken away: the training stops after this step and saves, to be resumed elsewhere.",
    )
    begun.signals.requested = True


@contextlib.contextmanager
def followed(begun: Beginning) -> Iterator[None]:
    """Within, trackers are told of the events, and what is used of the machine is recorded."""
    config, running = begun.config, begun.session
    used = watching.recording(
        config, running, begun.device, begun.accelerator.num_processes, lambda: begun.checkpoint_bytes
    )
    with tracking.following(config, running), used:
        yield


def make_accelerator(config: Config) -> Accelerator:
    """accelerate, with the switches set on which equal bits depend. Raises ConfigError."""
    environment.make_deterministic(config)
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError([Problem("mixed_precision", "fp16 needs an NVIDIA or AMD GPU; use bf16 or no")])
    schedule.check(config)
    optimizers.check(config)
    adapters.check(config)
    tracking.require(config)
    quantising.check(config)
    return Accelerator(
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def told_now_and_then(signals: StopSignals, line: str, describe: Callable[[int], str]) -> Callable[[int, int], None]:
    """Tells the log how much of how much is done, after a second and then every few. Raises StopRequested."""
    due: float | None = None

    def progress(done: int, total: int) -> None:
        nonlocal due
        signals.raise_if_requested()
        now = time.monotonic()
        if due is None:
            due = now + SILENT_SECONDS
        elif now > due:
            due = now + PROGRESS_SECONDS
            logger.info(line, describe(done), describe(total))

    return progress


@contextlib.contextmanager
def holding(run: RunFolder, config: Config, accelerator: Accelerator) -> Iterator[None]:
    """Hold the run's lock in the main process; see that a fresh start loses nothing. Raises ResumeRefused, RunInUse."""
    if not accelerator.is_main_process:
        yield
        return
    if config.checkpoint_mirror:
        with run_folder.locked(run):
            mirror.restore(config)
    if choosing.starts_from_scratch(config):
        preflight.require_fresh(config)
        by_choice = choosing.begins_by_choice(config)
        if by_choice and config.overwrite_run and (run_folder.read_run(run) or manifest.listing(run.checkpoints)):
            logger.info("The old run is kept at %s", branches.replace_run(config, run))
    with run_folder.locked(run):
        yield


def examined_checkpoint(inputs: Inputs, here: dict[str, Any]) -> Verdict | None:
    """What a resume will be, told to the log; None for a fresh start. Raises ResumeRefused."""
    verdict = preflight.examine_checkpoint(inputs, here)
    if verdict:
        logger.info("%s", "\n".join(verdict.lines()))
        if verdict.refusals:
            raise ResumeRefused(list(verdict.refusals))
    return verdict


def checkpoint_bytes(config: Config, inputs: Inputs, verdict: Verdict | None) -> int | None:
    """What a checkpoint takes, as far as it is known before the model is loaded."""
    try:
        return preflight.bytes_of_save(config, inputs, verdict)
    except SizeUnknown as unknown:
        logger.info("How much a checkpoint takes is known when the model is loaded: %s", unknown)
        return None


def warn_of_writes(begun: Beginning, bytes_of_save: int) -> None:
    """Say when so much will be written that it wears a disk out."""
    much = preflight.write_budget(begun.config, begun.inputs, begun.verdict, bytes_of_save).warning()
    if much:
        begun.session.warn("write_budget", much)


def warn_of_memory(begun: Beginning) -> None:
    """Say when the GPU is likely to be too small, and what would help."""
    if room := devices.memory_total(begun.device):
        begun.memory, advice = preflight.memory_of(begun.inputs, room)
        if begun.memory and advice:
            begun.session.warn(
                "gpu_memory", f"About {quantities.size(begun.memory.peak)} of GPU memory are needed; {advice}"
            )


def judge_memory(begun: Beginning) -> None:
    """Record what the device held at the most beside what was estimated, without what the driver takes: an estimate
    that is judged by every run."""
    measured = devices.memory_used(begun.device)
    if begun.memory is None or measured is None:
        return
    estimated = begun.memory.peak - memory_size.OVERHEAD
    begun.session.events.write(
        "memory_judged",
        begun.session.global_step,
        estimated=estimated,
        measured=measured,
        ratio=estimated / max(1, measured),
    )
    logger.info(
        "GPU memory: %s were used at the most, and %s had been estimated (without the driver's)",
        quantities.size(measured),
        quantities.size(estimated),
    )


def description(begun: Beginning) -> dict[str, Any]:
    """What the event of the session's start says."""
    inputs = begun.inputs
    return {
        "total_steps": inputs.total_steps,
        "steps_per_epoch": inputs.steps_per_epoch,
        "images": len(inputs.scan.entries),
        "samples": inputs.scan.samples,
        "skipped": len(inputs.scan.skipped),
        "processes": begun.accelerator.num_processes,
        "device": str(begun.device),
    }
