"""What comes between the refusals and the first step: the model is loaded, what can be computed once is cached, and a
checkpoint is restored and proved."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainer.caching import filling
from trainer.caching.filling import Encoder
from trainer.checkpoints import checkpoint, preflight
from trainer.checkpoints.resume import ResumeRefused, Verdict
from trainer.models import adapters, base_model
from trainer.models import model as models
from trainer.models.model import Model
from trainer.options.config import Config
from trainer.options.sections.training import NETWORK, TEXTUAL_INVERSION
from trainer.recipe import timesteps
from trainer.runs.manifest import CheckpointDamaged
from trainer.training import importing, watching
from trainer.training.beginning import DTYPES, Beginning, warn_of_writes
from trainer.training.loader import Loader, Sources
from trainer.training.progress import CachingMeter, Meter
from trainer.training.sampling import Sampler
from trainer.training.saving import Saver
from trainer.training.state import State
from trainer.training.validation import Validator

logger = logging.getLogger(__name__)


@dataclass
class Training:
    """Everything that the steps need."""

    begun: Beginning
    module: nn.Module  # the model as accelerate prepared it
    state: State
    loader: Loader
    saver: Saver
    meter: Meter
    sampler: Sampler
    validator: Validator | None  # None where there are no validation images
    goes_back: bool = False  # whether the session ends because the run goes back to an earlier checkpoint


def prepare(begun: Beginning) -> Training | None:
    """Load, cache, restore and prove. None where only the caches were to be filled.

    Raises BaseModelMissing, NetworkFileError, ResumeRefused, StopRequested.
    """
    config, accelerator, verdict = begun.config, begun.accelerator, begun.verdict
    logger.info("Loading %s", config.pretrained_model_name_or_path)
    dtype = DTYPES[config.mixed_precision]
    model = models.load(config, begun.inputs.model_path, dtype, begun.device)
    start = {NETWORK: config.network_weights, TEXTUAL_INVERSION: config.weights}.get(config.training_kind)
    if start and not verdict:
        adapters.load(config).from_file(model.targets, adapters.naming_of(config), Path(start))
    aside = threading.Lock()  # held while what is kept aside is on the device for a moment
    sources = prepare_sources(begun, model, aside)
    if config.cache_only:
        begun.session.finish("stopped" if verdict else "finished", "cached")
        begun.agreement.wait()
        return None
    begun.agreement.wait()  # one may have loaded from a slower disk
    model.stream_blocks(begun.device)
    if config.fine_tunes:
        model.to(begun.device)
        model.leave_out_idle()
    module = accelerator.prepare(model.module())
    state = State(config, model, begun.device)
    if begun.checkpoint_bytes is None:
        begun.checkpoint_bytes = state.checkpoint_bytes(len(begun.inputs.scan.entries))
        preflight.require_disk_space(config, begun.checkpoint_bytes)
        warn_of_writes(begun, begun.checkpoint_bytes)
    if verdict:
        probe_loss = restore(state, verdict)
        if verdict.grade == "changed" and not verdict.rollback:  # a rollback is measured by the level it goes back to
            state.alarms.forget()
        begun.session.resumed(probe_loss, epochs=begun.plan.place(state.global_step)[0])
    if begun.imported:
        begun.session.took_over(importing.restore(state, begun.imported, begun.curve))
    state.origin, state.planned_steps = begun.plan.origin, begun.planned_steps
    if begun.mirroring:
        begun.mirroring.wake()  # that a new session has begun, and from where
    begun.signals.raise_if_requested()
    return Training(
        begun=begun,
        module=module,
        state=state,
        loader=Loader(config, begun.plan, sources, accelerator.num_processes, accelerator.process_index),
        saver=Saver(
            config,
            begun.run,
            state,
            begun.plan,
            begun.curve,
            begun.inputs,
            begun.session,
            begun.environment,
            begun.mirroring,
        ),
        meter=Meter(
            state,
            begun.session.events,
            begun.inputs.total_steps,
            watching.cooling(config, begun.device, begun.stop_is_asked),
        ),
        sampler=Sampler(state, begun, aside, sources.text),
        validator=make_validator(begun, sources, state),
    )


# --- computed once -------------------------------------------------------------------------------------------------


def prepare_sources(begun: Beginning, model: Model, aside: threading.Lock) -> Sources:
    """Compute what is to be cached, in all processes, then move what is no longer needed off the device."""
    config, device = begun.config, begun.device
    cached = {"latents_cached": config.cache_latents, "text_cached": config.cache_text_encoder_outputs}

    @contextlib.contextmanager
    def lending(kind: str) -> Iterator[None]:
        """Within, what encodes this kind is on the device."""
        with aside:
            model.prepare(device, **cached | {kind: False})
            try:
                yield
            finally:
                model.prepare(device, **cached)

    entries = (*begun.inputs.scan.entries, *begun.inputs.scan.validation)
    meter = functools.partial(
        CachingMeter,
        events=begun.session.events,
        global_step=begun.session.global_step,
        raise_if_requested=begun.raise_if_stopped,
    )

    def encoder(
        encode: Callable[[Any], Any], components: Sequence[str], identity: str, named_by: str, kind: str
    ) -> Encoder[Any]:
        """`named_by`: the option whose digest stood for the components in caches of earlier versions."""
        described = {"family": config.family, "encoder": identity}
        settings = {**described, "model": base_model.identity_of(config, begun.inputs.model_path, components)}
        former = {**described, "model": begun.inputs.base_model[named_by]}
        lent = functools.partial(lending, kind)
        return Encoder(encode, settings, {"model": getattr(config, named_by)}, lent, former)

    latents = text = None
    if config.cache_latents:
        model.prepare(device, **cached | {"latents_cached": False})
        name = "vae" if config.vae else "pretrained_model_name_or_path"
        pictures = encoder(model.encode_images, ["vae"], model.image_identity(), name, "latents_cached")
        latents = filling.latent_source(config, entries, pictures, begun.agreement, meter("latents"))
    if config.cache_text_encoder_outputs:
        model.prepare(device, **cached | {"text_cached": False})
        looking = config.facts.optional if model.shows_controls else ()
        components, name = (*config.facts.text_components, *looking), "pretrained_model_name_or_path"
        captions = encoder(model.encode_captions, components, model.text_identity(), name, "text_cached")
        shows = model.shows_controls
        prompted = {
            (text, prompt.control if shows else None)
            for prompt in begun.prompts
            for text in (prompt.text, prompt.negative)
        }
        text = filling.text_source(config, entries, captions, begun.agreement, meter("captions"), prompted, shows=shows)
    model.prepare(device, **cached)
    model.load_for_steps(**cached)
    return Sources(
        tokenize=model.tokenize,
        latents=latents,
        text=text,
        latent_channels=model.latent_channels,
        latent_factor=model.latent_factor,
        device=device,
        timesteps=timesteps.from_config(config),
        ragged=model.text.ragged,
        shows=model.shows_controls,
    )


def make_validator(begun: Beginning, sources: Sources, state: State) -> Validator | None:
    """What measures the loss on the validation images; None where there are none."""
    if not begun.inputs.scan.validation:
        return None
    accelerator = begun.accelerator

    def add_up(tensor: Tensor) -> Tensor:
        begun.agreement.wait()  # one may have had a batch more, or slower pictures
        total: Tensor = accelerator.reduce(tensor, "sum")
        return total

    return Validator(
        begun.config,
        begun.inputs.scan.validation,
        sources,
        state,
        begun.device,
        begun.session.events,
        processes=accelerator.num_processes,
        process=accelerator.process_index,
        add_up=add_up,
        curve=begun.curve,
    )


# --- restored and proved -------------------------------------------------------------------------------------------


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
