"""The training loop. It knows steps, checkpoints and requests; no family's name, no file format, no browser."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from trainer import randomness
from trainer.caching import filling
from trainer.checkpoints import checkpoint, preflight, resume
from trainer.checkpoints.checkpoint_size import SizeUnknown
from trainer.checkpoints.preflight import Inputs
from trainer.checkpoints.resume import ResumeRefused, Verdict
from trainer.distributed.agreement import Agreement, Wish
from trainer.distributed.processes import Processes, lost_connection, several_processes
from trainer.models import families, network
from trainer.models.families.base import Model
from trainer.models.network import DTYPES as FILE_DTYPES
from trainer.options.config import Config
from trainer.options.problems import ConfigError, Problem
from trainer.recipe import early_stopping, optimizers, prompts, schedule
from trainer.runs import branches, manifest, run_folder
from trainer.runs.console import ConsoleLog
from trainer.runs.machine import Readings
from trainer.runs.manifest import CheckpointDamaged
from trainer.runs.run_folder import RunFolder
from trainer.runs.signals import StopRequested, StopSignals
from trainer.training import environment, sampling, session, validation
from trainer.training.loader import Loader, Origin, Plan, Sources, Step
from trainer.training.progress import CachingMeter, Meter
from trainer.training.saving import Saver
from trainer.training.session import Session, TrainingFailed
from trainer.training.state import State
from trainer.training.validation import Validator

logger = logging.getLogger(__name__)
Ending = Literal["finished", "stopped", "cached"]
DTYPES = {"no": torch.float32, "fp16": FILE_DTYPES["fp16"], "bf16": FILE_DTYPES["bf16"]}
WISHES = {"stop": Wish.STOP, "save": Wish.SAVE, "sample": Wish.SAMPLE}


def train(config: Config, signals: StopSignals, console: ConsoleLog | None = None) -> Ending:
    """Train a run from its start or from a checkpoint to its end, or until it is asked to stop.

    Raises ConfigError, DatasetError, BaseModelMissing, NetworkFileError, ResumeRefused or RunInUse when it may not
    begin, StopRequested when it is stopped before its first step, TrainingFailed when it cannot go on.
    `console`: told the run's console.log once the run is held.
    """
    with signals.at_once() if several_processes() else contextlib.nullcontext():  # they wait for one another
        accelerator = make_accelerator(config)
    device, processes = accelerator.device, Processes(accelerator.num_processes, accelerator.process_index)
    here = environment.describe(config, device, processes.count)
    run = RunFolder(config.run_dir)

    # What is there, and what a resume would be; nothing is changed yet.
    with processes.watched():
        sample_prompts = prompts.read(config)
        inputs = preflight.look_at_inputs(config, processes.count, watch_scan(signals))
    logger.info("%s", "\n".join(inputs.lines()))
    logger.info("%d process%s, on %s", processes.count, "es" if processes.count > 1 else "", here["device"])
    total_steps = inputs.total_steps
    with processes.watched(), holding(run, config, accelerator):
        verdict = preflight.look_at_checkpoint(config, inputs, here)
        if verdict:
            logger.info("%s", "\n".join(verdict.lines()))
            if verdict.refusals:
                raise ResumeRefused(list(verdict.refusals))
            if verdict.finished and branches.last_file(config).exists():
                if accelerator.is_main_process:
                    session.record_finished(config, run, verdict.step)
                return "finished"
        size = checkpoint_bytes(config, inputs, verdict)
        preflight.require_disk_space(config, size or 0)
        this_session = Session(config, run, verdict)
        origin = epoch_origin(verdict)
        planned_steps = verdict.state.get("planned_steps", total_steps) if verdict else total_steps
        global_batch = resume.global_batch(config, processes.count)
        plan = Plan(config, inputs.found.entries, global_batch, origin, planned_steps)
        curve = verdict.curve if verdict else schedule.new_curve(config, total_steps)
        agreement = processes.meet(signals)

        with recorded(this_session, accelerator, inputs), processes.watched():
            if console and accelerator.is_main_process:
                console.attach(run.console_file)
            if size and accelerator.is_main_process:
                warn_of_writes(config, inputs, verdict, size, this_session)
            # The model, its layers and what is computed once.
            logger.info("Loading %s", config.pretrained_model_name_or_path)
            model = families.get(config.family).load(config, inputs.model_path, DTYPES[config.mixed_precision], device)
            if config.network_weights and not verdict:
                network.load_kohya(model.targets, Path(config.network_weights))
            events = this_session.events if accelerator.is_main_process else None
            asked = stop_requests(run, signals, accelerator)
            aside = threading.Lock()  # held while what is kept aside is on the device for a moment
            meters = functools.partial(
                CachingMeter, events=events, global_step=this_session.global_step, raise_if_requested=asked
            )
            sources = prepare_sources(config, model, inputs, device, agreement, meters, aside)
            if config.cache_only:
                if events:
                    this_session.finish("stopped" if verdict else "finished", "cached")
                accelerator.wait_for_everyone()
                return "cached"
            prepared = accelerator.prepare(model.module())
            state = State(config, model, device)
            if size is None:
                size = state.checkpoint_bytes(len(inputs.found.entries))
                preflight.require_disk_space(config, size)
                if accelerator.is_main_process:
                    warn_of_writes(config, inputs, verdict, size, this_session)
            if verdict:
                probe_loss = restore(state, verdict)
                if accelerator.is_main_process:
                    this_session.resumed(probe_loss, epochs=plan.place(state.global_step)[0])
            state.origin, state.planned_steps = origin, planned_steps
            signals.raise_if_requested()

            saver = Saver(config, run, state, plan, curve, inputs, this_session, here)
            meter = Meter(state, events, total_steps, Readings(run.path, gpu_uuids(device)))
            validator = make_validator(config, inputs, sources, state, accelerator)

            def sample() -> None:
                if sample_prompts and events:
                    meter.flush()
                    with aside, state.exported_weights():
                        sampling.make(
                            model, sample_prompts, config.sample_sampler, device, run, events, state.global_step
                        )

            def validate() -> None:
                if validator and validation.is_due(config, plan, state.validation, state.global_step):
                    meter.flush()
                    validator.run(events, given_up=lambda: signals.requested and processes.count == 1)

            if config.sample_at_first and state.global_step == 0:
                sample()
            steps = Loader(config, plan, sources, processes.count, processes.number).steps(state.global_step)
            prepared.train()
            validate()  # if a stop came before it
            updating = stopping = False
            ending = state.global_step >= total_steps or early_stopping.patience_is_over(config, state.validation)
            try:
                while not (ending or stopping):
                    started = time.perf_counter()
                    step = next(steps)
                    data_seconds = time.perf_counter() - started
                    lr = state.set_learning_rate(curve)
                    loss = forward_and_backward(step, prepared, state, accelerator)
                    grad_norm = state.clip()
                    finite = torch.isfinite(grad_norm) & torch.isfinite(loss)
                    updating = True
                    state.update(finite)
                    updating = False
                    this_session.global_step = state.global_step
                    meter.add(
                        loss,
                        grad_norm,
                        finite,
                        epoch=step.epoch,
                        lr=lr,
                        step_seconds=time.perf_counter() - started,
                        data_seconds=data_seconds,
                        batch=step.digest,
                    )

                    validate()
                    ending = state.global_step == total_steps or early_stopping.patience_is_over(
                        config, state.validation
                    )

                    wish = agreement.on(wish_of_this_process(state, saver, run, signals, accelerator))
                    if wish & Wish.GIVE_UP:
                        raise not_finite(config, state)
                    stopping = bool(wish & Wish.STOP) and not ending
                    if wish & Wish.SAMPLE or sample_is_due(config, plan, state.global_step):
                        sample()
                    if wish & Wish.SAMPLE and not sample_prompts and accelerator.is_main_process:
                        this_session.warn("no_prompts", "Sample images were asked for, but sample_prompts is empty.")
                    due = saver.due_files()
                    if accelerator.is_main_process and not ending and (due or wish & (Wish.SAVE | Wish.STOP)):
                        meter.flush()
                        saver.save(due, checkpoint=config.save_state or bool(wish & (Wish.SAVE | Wish.STOP)))
            except Exception as error:
                # Weights and moments are those of the last completed step, unless the optimizer itself failed.
                if accelerator.is_main_process and not updating and not isinstance(error, TrainingFailed):
                    emergency_save(saver, state, meter, error)
                saver.close()  # leaving waits for what is being written
                raise
            finally:
                steps.close()
            meter.flush()
            if accelerator.is_main_process:
                if not stopping:
                    saver.save([*saver.due_files(), branches.last_file(config)], checkpoint=True)
                saver.close()
                if saver.last_error:
                    raise TrainingFailed(
                        f"the last save failed: {saver.last_error}",
                        "Earlier checkpoints are intact. Remove the cause, then resume from the latest.",
                    )
                early = state.global_step < total_steps
                reason = "stopped" if stopping else "early_stopping" if early else "finished"
                this_session.finish("stopped" if stopping else "finished", reason)
            accelerator.wait_for_everyone()
            return "stopped" if stopping else "finished"


# --- before the first step -----------------------------------------------------------------------------------------


def make_accelerator(config: Config) -> Accelerator:
    """accelerate, with the switches set on which equal bits depend. Raises ConfigError."""
    environment.make_deterministic(config)
    if config.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError([Problem("mixed_precision", "fp16 needs a GPU; use bf16 or no")])
    optimizers.check(config)
    return Accelerator(
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def gpu_uuids(device: torch.device) -> list[str]:
    """What names the GPU of this process; empty where it trains on none."""
    return [str(torch.cuda.get_device_properties(device).uuid)] if device.type == "cuda" else []


def watch_scan(signals: StopSignals) -> Callable[[int, int], None]:
    """Tells the log how far the scan of the images is, now and then. Raises StopRequested."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        signals.raise_if_requested()
        if time.monotonic() - last > 5:
            last = time.monotonic()
            logger.info("Reading images: %d of %d", done, total)

    return progress


@contextlib.contextmanager
def holding(run: RunFolder, config: Config, accelerator: Accelerator) -> Iterator[None]:
    """Hold the run's lock in the main process; see that a fresh start loses nothing. Raises ResumeRefused, RunInUse."""
    if not accelerator.is_main_process:
        yield
        return
    if not config.resume_from_checkpoint:
        preflight.require_fresh(config)
        if config.overwrite_run and (run_folder.read_run(run) or manifest.listing(run.checkpoints)):
            logger.info("The old run is kept at %s", branches.replace_run(config, run))
    with run_folder.locked(run):
        yield


@contextlib.contextmanager
def recorded(this_session: Session, accelerator: Accelerator, inputs: Inputs) -> Iterator[None]:
    """Record the session in the main process."""
    if not accelerator.is_main_process:
        yield
        return
    with this_session.recorded(
        total_steps=inputs.total_steps,
        steps_per_epoch=inputs.steps_per_epoch,
        images=len(inputs.found.entries),
        samples=inputs.found.samples,
        skipped=len(inputs.found.skipped),
        processes=accelerator.num_processes,
        device=str(accelerator.device),
    ):
        yield


def checkpoint_bytes(config: Config, inputs: Inputs, verdict: Verdict | None) -> int | None:
    """What a checkpoint takes, as far as it is known before the model is loaded."""
    try:
        return preflight.bytes_of_save(config, inputs, verdict)
    except SizeUnknown as unknown:
        logger.info("How much a checkpoint takes is known when the model is loaded: %s", unknown)
        return None


def warn_of_writes(
    config: Config, inputs: Inputs, verdict: Verdict | None, bytes_of_save: int, this_session: Session
) -> None:
    """Say when so much will be written that it wears a disk out."""
    much = preflight.write_budget(config, inputs, verdict, bytes_of_save).warning()
    if much:
        this_session.warn("write_budget", much)


def epoch_origin(verdict: Verdict | None) -> Origin:
    """Where epochs are counted from: moved to the resumed step when the images or the batch are not as they were."""
    if verdict is None:
        return Origin()
    origin = Origin(**verdict.state["epoch_origin"])
    batch_changed = any(
        item.name in ("train_batch_size", "gradient_accumulation_steps") and item.on_resume == "trajectory"
        for item in verdict.differences
    )
    if verdict.dataset or batch_changed:
        started = verdict.state["epoch"] + (1 if verdict.state["place"] else 0)
        return Origin(verdict.step, started)
    return origin


def stop_requests(run: RunFolder, signals: StopSignals, accelerator: Accelerator) -> Callable[[], None]:
    """Raises StopRequested once a stop is asked for, by a signal or in the run folder; for where nothing is to save."""

    def raise_if_requested() -> None:
        signals.raise_if_requested()
        if accelerator.is_main_process and "stop" in run_folder.take_requests(run):
            raise StopRequested

    return raise_if_requested


def prepare_sources(
    config: Config,
    model: Model,
    inputs: Inputs,
    device: torch.device,
    agreement: Agreement,
    meters: Callable[[str], CachingMeter],
    aside: threading.Lock,
) -> Sources:
    """Compute what is to be cached, in all processes, then move what is no longer needed off the device."""
    cached = {"latents_cached": config.cache_latents, "text_cached": config.cache_text_encoder_outputs}
    nothing = dict.fromkeys(cached, False)

    @contextlib.contextmanager
    def lending() -> Iterator[None]:
        with aside:
            model.prepare(device, **nothing)
            try:
                yield
            finally:
                model.prepare(device, **cached)

    model.prepare(device, **nothing)
    base = inputs.base_model
    entries = (*inputs.found.entries, *inputs.found.validation)
    latents = text_states = None
    if config.cache_latents:
        vae = "vae" if config.vae else "pretrained_model_name_or_path"
        settings = {"family": config.family, "model": base[vae], "encoder": model.image_identity()}
        encoder = filling.Encoder(model.encode_images, settings, {"model": getattr(config, vae)}, lending)
        latents = filling.latent_source(config, entries, encoder, agreement, meters("latents"))
    if config.cache_text_encoder_outputs:
        name = "pretrained_model_name_or_path"
        settings = {"family": config.family, "model": base[name], "encoder": model.text_identity()}
        text_encoder = filling.Encoder(model.encode_captions, settings, {"model": getattr(config, name)}, lending)
        text_states = filling.text_source(config, entries, text_encoder, agreement, meters("captions"))
    model.prepare(device, **cached)
    return Sources(model.tokenize, latents, text_states, model.latent_channels, model.latent_factor, device)


def make_validator(
    config: Config, inputs: Inputs, sources: Sources, state: State, accelerator: Accelerator
) -> Validator | None:
    """What measures the loss on the validation images; None where there are none."""
    if not inputs.found.validation:
        return None
    return Validator(
        config,
        inputs.found.validation,
        sources,
        state,
        accelerator.device,
        processes=accelerator.num_processes,
        process=accelerator.process_index,
        add_up=lambda tensor: accelerator.reduce(tensor, "sum"),
    )


def restore(state: State, verdict: Verdict) -> float:
    """Load the checkpoint and prove that it is what was saved; returns the probe loss. Raises ResumeRefused."""
    try:
        loaded = checkpoint.load(verdict.path, verdict.manifest, state.weights, with_ema=state.ema is not None)
        state.restore(loaded)
    except (CheckpointDamaged, ValueError, KeyError, TypeError) as error:
        raise ResumeRefused([f"resume_from_checkpoint: {verdict.path} cannot be loaded: {error}"]) from error
    probe_loss = state.model.probe()
    require_same_probe(state.config, verdict, float(loaded.state["probe_loss"]), probe_loss)
    return probe_loss


def require_same_probe(config: Config, verdict: Verdict, then: float, now: float) -> None:
    """Compare the probe losses: equal where everything is equal, close on other hardware. Raises ResumeRefused."""
    changed = {item.name for item in verdict.differences}
    if "clip_skip" in changed:
        return  # decides the probe
    exact = not verdict.environment and "mixed_precision" not in changed
    tolerance = 0.0 if exact else 1e-3 if config.mixed_precision == "no" else 3e-2
    if abs(now - then) > tolerance * abs(then) or now != now:
        raise ResumeRefused(
            [
                f"the probe loss after loading is {now!r}, but it was {then!r} when {verdict.path} was saved: the "
                "weights, the base model or the arithmetic are not what they were. "
                + ("Nothing known differs: " if exact else "")
                + "check the installation and the memory of this machine, or resume an older checkpoint"
            ]
        )


# --- during training -----------------------------------------------------------------------------------------------


def forward_and_backward(step: Step, prepared: nn.Module, state: State, accelerator: Accelerator) -> Tensor:
    """Add up the gradients of a step's micro-batches; returns their loss, the mean over the samples of all processes,
    on the device."""
    processes, process = accelerator.num_processes, accelerator.process_index
    loss = torch.zeros((), device=accelerator.device)
    for number, micro_batch in enumerate(step.micro_batches):
        batch = micro_batch.to(accelerator.device)
        torch.manual_seed(randomness.torch_seed(state.config.seed, "dropout", step.index, number, process))
        is_last = number == len(step.micro_batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(prepared):
            share = (prepared(batch) * batch["weights"]).sum()
            # DDP takes the mean over processes; the weights already make it a mean over samples.
            scaled = share * processes
            (state.scaler.scale(scaled) if state.scaler else scaled).backward()
        loss += share.detach()
    return accelerator.reduce(loss, "sum") if processes > 1 else loss


def wish_of_this_process(
    state: State, saver: Saver, run: RunFolder, signals: StopSignals, accelerator: Accelerator
) -> Wish:
    """What a signal, a request in the run folder, the clock or the losses ask for after a step."""
    wish = Wish.STOP if signals.requested else Wish(0)
    if state.nonfinite_in_a_row >= state.config.max_nonfinite_steps:
        wish |= Wish.GIVE_UP
    if accelerator.is_main_process:
        for request in run_folder.take_requests(run):
            wish |= WISHES[request]
        if saver.due_by_time:
            wish |= Wish.SAVE
    return wish


def sample_is_due(config: Config, plan: Plan, step: int) -> bool:
    epoch, place = plan.place(step)
    by_step = config.sample_every_n_steps and step % config.sample_every_n_steps == 0
    by_epoch = config.sample_every_n_epochs and place == 0 and epoch % config.sample_every_n_epochs == 0
    return bool(by_step or by_epoch)


def not_finite(config: Config, state: State) -> TrainingFailed:
    return TrainingFailed(
        f"{state.nonfinite_in_a_row} steps in a row had no finite loss and gradient",
        "The weights were not touched by them, and the latest checkpoint is sound. Lower the learning rate, "
        + ("use bf16 instead of fp16, " if config.mixed_precision == "fp16" else "")
        + "set no_half_vae = true or look for broken images; then resume.",
    )


def emergency_save(saver: Saver, state: State, meter: Meter, error: Exception) -> None:
    """Save the last completed step of a training that is about to end with an error."""
    if torch.cuda.is_available() and lost_connection(error):
        return  # the device waits for the lost process, and would for ever
    traceback.clear_frames(error.__traceback__)  # they hold the activations, and memory may be what ran out
    state.optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        meter.flush()
        if state.global_step and saver.last_step != state.global_step and not state.nonfinite_in_a_row:
            logger.info("Saving step %d before giving up", state.global_step)
            saver.save([], checkpoint=True)
        saver.close()
    except RuntimeError as second:  # the device is lost
        logger.warning("Step %d could not be saved: %s", state.global_step, second)
