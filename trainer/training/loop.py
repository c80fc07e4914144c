"""The training loop, to be read from top to bottom. It knows steps, checkpoints and requests; no family's name, no file
format, no browser."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import time
import traceback
from typing import Literal

import torch
from torch import Tensor

from trainer import devices, randomness
from trainer.distributed.agreement import Wish
from trainer.distributed.processes import lost_connection
from trainer.options.config import Config
from trainer.recipe import early_stopping
from trainer.runs import branches, run_folder
from trainer.runs.console import ConsoleLog
from trainer.runs.failures import TrainingFailed
from trainer.runs.signals import StopSignals
from trainer.training import portraits, rollback, validation
from trainer.training.beginning import begin, judge_memory
from trainer.training.loader import Step
from trainer.training.preparing import Training, prepare

logger = logging.getLogger(__name__)
Ending = Literal["finished", "stopped", "cached"]
SessionEnding = Literal["finished", "stopped", "cached", "rolled back"]
WISHES = {"stop": Wish.STOP, "save": Wish.SAVE, "sample": Wish.SAMPLE}


def train(config: Config, signals: StopSignals, console: ConsoleLog | None = None) -> Ending:
    """Train a run from its start or from a checkpoint to its end, or until it is asked to stop.

    Raises ConfigError, DatasetError, BaseModelMissing, NetworkFileError, ResumeRefused or RunInUse when it may not
    begin, StopRequested when it is stopped before its first step, TrainingFailed when it cannot go on.
    `console`: becomes the run's console.log once the run is held.
    """
    while (ending := train_session(config, signals, console)) == "rolled back":
        gc.collect()  # the model goes before it is loaded again
        config = rollback.to_go_on(config)
    return ending


def train_session(config: Config, signals: StopSignals, console: ConsoleLog | None) -> SessionEnding:
    """Train until the run ends, is asked to stop, or has to go back. Raises as `train` does."""
    with begin(config, signals, console) as begun:
        if begun is None:
            return "finished"
        training = prepare(begun)
        if training is None:
            return "cached"
        with portraits.kept(begun):
            ending = train_steps(training)
        finish(training, ending)
        begun.agreement.wait()
        return ending


def train_steps(training: Training) -> SessionEnding:
    """Every step from the state's to the run's end. "stopped" when it was asked to before; that step is then saved."""
    begun, state, meter, saver = training.begun, training.state, training.meter, training.saver
    if begun.config.sample_at_first and state.global_step == 0:
        training.sampler.sample()
    if begun.config.sample_at_resume and begun.verdict:
        training.sampler.sample(resumed=True)
    steps = training.loader.steps(state.global_step)
    training.module.train()
    if not validate(training):  # which is due where a stop came before it
        validate_resumed(training)
    updating = stopping = False
    try:
        while not (is_over(training) or stopping):
            started = time.perf_counter()
            step = next(steps)
            data_seconds = time.perf_counter() - started

            rates = state.set_learning_rate(begun.curve)
            loss = forward_and_backward(step, training)
            grad_norm = state.clip()
            finite = torch.isfinite(grad_norm) & torch.isfinite(loss)
            updating = True
            state.update(finite)
            updating = False

            begun.session.global_step = state.global_step
            seconds = {"step_seconds": time.perf_counter() - started, "data_seconds": data_seconds}
            meter.add(loss, grad_norm, finite, epoch=step.epoch, rates=rates, batch=step.digest, **seconds)
            validate(training)

            wish = begun.agreement.on(wish_of_this_process(training))
            if wish & Wish.ROLL_BACK:
                training.goes_back = True
                return "stopped" if wish & Wish.STOP else "rolled back"
            if wish & Wish.GIVE_UP:
                raise not_finite(training)
            stopping = bool(wish & Wish.STOP) and not is_over(training)
            sample(training, on_request=bool(wish & Wish.SAMPLE))
            if not is_over(training):
                save(training, on_request=bool(wish & (Wish.SAVE | Wish.STOP)))
    except Exception as error:
        # Weights and moments are those of the last completed step, unless the optimizer itself failed.
        if begun.session.writes and not updating and not isinstance(error, TrainingFailed):
            emergency_save(training, error)
        saver.close()  # leaving waits for what is being written
        raise
    finally:
        steps.close()
    meter.flush()
    if stopping and begun.config.sample_at_resume:
        training.sampler.sample()
    return "stopped" if stopping else "finished"


def is_over(training: Training) -> bool:
    """Whether no step is left, or early stopping has had enough."""
    state, inputs = training.state, training.begun.inputs
    return state.global_step >= inputs.total_steps or early_stopping.patience_is_over(state.config, state.validation)


def finish(training: Training, ending: SessionEnding) -> None:
    """Write what is still to be written, and record how the session ended. Raises TrainingFailed."""
    begun, state, saver = training.begun, training.state, training.saver
    judge_memory(begun)
    if ending == "finished":
        saver.save([*saver.due_files(), branches.last_file(begun.config)], checkpoint=True)
    saver.close()
    if training.goes_back:
        rollback.take(training)
    elif saver.last_error:
        raise TrainingFailed(
            f"the last save failed: {saver.last_error}",
            "Earlier checkpoints are intact. Remove the cause, then resume from the latest.",
        )
    if ending == "stopped":
        begun.session.finish("stopped", "stopped")
    elif ending == "finished":
        early = state.global_step < begun.inputs.total_steps
        begun.session.finish("finished", "early_stopping" if early else "finished")


# --- a step --------------------------------------------------------------------------------------------------------


def forward_and_backward(step: Step, training: Training) -> Tensor:
    """Add up the gradients of a step's micro-batches; returns their loss, the mean over the samples of all processes,
    on the device."""
    accelerator, state = training.begun.accelerator, training.state
    processes, process = accelerator.num_processes, accelerator.process_index
    loss = torch.zeros((), device=accelerator.device)
    for number, micro_batch in enumerate(step.micro_batches):
        batch = micro_batch.to(accelerator.device)
        torch.manual_seed(randomness.torch_seed(state.config.seed, "dropout", step.index, number, process))
        is_last = number == len(step.micro_batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(training.module):
            share = (training.module(batch) * batch["weights"]).sum()
            # DDP takes the mean over processes; the weights already make it a mean over samples.
            scaled = share * processes
            (state.scaler.scale(scaled) if state.scaler else scaled).backward()
        loss += share.detach()
    return accelerator.reduce(loss, "sum") if processes > 1 else loss


def validate(training: Training) -> bool:
    """Measure the loss on the validation images, if it is due; whether it was."""
    begun, state = training.begun, training.state
    if not training.validator or not validation.is_due(begun.config, begun.plan, state.validation, state.global_step):
        return False
    training.meter.flush()
    training.validator.run(given_up=functools.partial(given_up, training))
    return True


def validate_resumed(training: Training) -> None:
    """Measure what a resume restored, where that is wanted."""
    verdict = training.begun.verdict
    if training.validator and verdict and training.begun.config.validate_at_resume:
        exact = verdict.grade == "bit-exact"
        training.validator.after_resume(functools.partial(given_up, training), exact=exact)


def given_up(training: Training) -> bool:
    """Whether a validation is to be left because a stop was asked for, and no other process is in the midst of it."""
    return training.begun.signals.requested and training.begun.agreement.processes == 1


def wish_of_this_process(training: Training) -> Wish:
    """What a signal, a request in the run folder, the clock or the losses ask for after a step."""
    begun, state = training.begun, training.state
    wish = Wish.STOP if begun.signals.requested else Wish(0)
    if state.nonfinite_in_a_row >= begun.config.max_nonfinite_steps:
        wish |= Wish.GIVE_UP
    if begun.session.writes:
        for request in run_folder.take_requests(begun.run):
            wish |= WISHES[request]
        if training.saver.due_by_time:
            wish |= Wish.SAVE
        kept = is_over(training) or wish & (Wish.SAVE | Wish.STOP) or training.saver.due_files()
        if rollback.is_due(training, look=bool(kept)):
            wish |= Wish.ROLL_BACK
    return wish


def sample(training: Training, *, on_request: bool) -> None:
    """Make the sample images that are due or asked for."""
    if on_request and not training.begun.prompts:
        training.begun.session.warn("no_prompts", "Sample images were asked for, but sample_prompts is empty.")
    if on_request or training.sampler.is_due():
        training.meter.flush()
        training.sampler.sample()


def save(training: Training, *, on_request: bool) -> None:
    """Begin to write the model files that are due, and a checkpoint with them or on request."""
    due = training.saver.due_files()
    if due or on_request:
        training.meter.flush()
        with training.begun.agreement.waited_for():  # it waits for the save before it
            training.saver.save(due, checkpoint=training.begun.config.save_state or on_request)


# --- what ends a training before its time --------------------------------------------------------------------------


def not_finite(training: Training) -> TrainingFailed:
    fp16 = training.begun.config.mixed_precision == "fp16"
    return TrainingFailed(
        f"{training.state.nonfinite_in_a_row} steps in a row had no finite loss and gradient",
        "The weights were not touched by them, and the latest checkpoint is sound. Lower the learning rate, "
        + ("use bf16 instead of fp16, " if fp16 else "")
        + "set no_half_vae = true or look for broken images; then resume.",
        kind="not_finite",
    )


def emergency_save(training: Training, error: Exception) -> None:
    """Save the last completed step of a training that is about to end with an error."""
    state, saver = training.state, training.saver
    if torch.cuda.is_available() and lost_connection(error):
        return  # the device waits for the lost process, and would for ever
    traceback.clear_frames(error.__traceback__)  # they hold the activations, and memory may be what ran out
    state.zero_grad()
    devices.give_back_memory(training.begun.device)
    try:
        training.meter.flush()
        if state.global_step and saver.last_step != state.global_step and not state.nonfinite_in_a_row:
            logger.info("Saving step %d before giving up", state.global_step)
            saver.save([], checkpoint=True)
        saver.close()
    except RuntimeError as second:  # the device is lost
        logger.warning("Step %d could not be saved: %s", state.global_step, second)
