"""A loaded base model with what is trained inside: the torch module that every family shares. It knows none of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trainer import devices, randomness
from trainer.data import pictures
from trainer.data.captions import Shown
from trainer.models import adapters, base_model, compiling, families, mapped_weights, previews, quantising, text
from trainer.models.adapters.base import Target
from trainer.models.base_weights import MergedParts
from trainer.models.families.base import Family
from trainer.models.families.facts import CONVOLUTIONAL, GUIDANCE
from trainer.models.parts import Parts
from trainer.models.placement import Components
from trainer.models.streaming import Streamer, offloaded_activations
from trainer.models.text import Arrays, TextSource
from trainer.options.config import Config
from trainer.recipe import losses
from trainer.recipe.prompts import Prompt

PROBE_SIDE = 16  # latents; small, so that a save costs little
PROBE_GEOMETRY = 512.0  # pixels, of the probe's square picture
TEXT = "text."  # what conditioning is called by in a micro-batch, before its own name


def load(config: Config, path: Path, dtype: torch.dtype, device: torch.device) -> Model:
    """Load a base model from a diffusers folder or a single file and add what is trained.

    `dtype`: of the frozen weights. Raises BaseModelMissing when files are missing or of another architecture.
    """
    config = base_model.settle(config, path)
    parts = (MergedParts if config.base_weights else Parts)(config, path, dtype)
    return Model(config, families.get(config.family), Components(parts), dtype)


class Model(nn.Module):
    """A torch module whose forward is one micro-batch's losses. Its submodules are what takes part in training; the
    other components stand aside, see `placement.Components`."""

    def __init__(self, config: Config, family: Family, components: Components, dtype: torch.dtype) -> None:
        super().__init__()
        facts = config.facts
        self.config = config
        self.family = family
        self.components = components
        self.dtype = dtype
        self.latent_channels, self.latent_factor = facts.channels, facts.factor
        self.targets: list[Target] = []
        denoiser: Any = components.keep(facts.denoiser.component)
        # bitsandbytes lays the weights that it steps out in its own way
        moves = config.fine_tunes and config.optimizer.package == "bitsandbytes" and not config.full_bf16
        if CONVOLUTIONAL in facts.traits and not quantising.package_of(config) and not moves:
            mapped_weights.to_channels_last(denoiser)
        self.add_module(facts.denoiser.component, denoiser)
        for part in config.trained_parts:
            module = components.keep(part.component)
            self.add_module(part.component, module)
            tokenizer = components[part.tokenizer] if part.tokenizer else None
            self.targets.append(Target(part, module, tokenizer))
        adapter = adapters.load(config)
        for target in self.targets:
            adapter.add(target, config)
            parameters = adapter.parameters(target)
            for name in target.part.idle_among(parameters):  # processes would wait for their gradients
                parameters[name].requires_grad_(False)
        if config.full_bf16:
            for parameter in self._trained():
                parameter.data = parameter.data.to(torch.bfloat16)
        if config.gradient_checkpointing:
            self._checkpoint_gradients()
        if config.fp8_base:
            quantising.cast_blocks(denoiser, dtype, self._trained())
        if config.torch_compile:
            compiling.compile_blocks(denoiser, config)
        self.objective = family.objective(components, config)
        self.latents = family.latents(components)
        self.text = family.text(components, config, dtype)
        self.prediction_type = self.objective.prediction_type
        self.base_version, self.architecture = family.described(facts, denoiser, self.prediction_type)
        self._encoders = tuple(part.component for part in facts.encoders)

    def _checkpoint_gradients(self) -> None:
        denoiser: Any = self.denoiser
        denoiser.enable_gradient_checkpointing()
        for target in self.targets:
            if target.part.tokenizer:
                encoder: Any = target.module
                encoder.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def denoiser(self) -> nn.Module:
        """The network that is given noisy latents."""
        return self.get_submodule(self.config.facts.denoiser.component)

    @property
    def device(self) -> torch.device:
        """Where the training computes."""
        return next(self.denoiser.parameters()).device

    def module(self) -> nn.Module:
        """Itself: forward(tensors of a MicroBatch) -> each sample's loss, (batch,), in fp32."""
        return self

    @property
    def _trains_text(self) -> bool:
        return any(target.part.tokenizer for target in self.targets)

    @property
    def _frozen_encoders(self) -> tuple[str, ...]:
        return tuple(name for name in self._encoders if not self.components.is_kept(name))

    # --- devices ---------------------------------------------------------------------------------------------------

    def prepare(self, device: torch.device, *, latents_cached: bool, text_cached: bool) -> None:
        """Put what every step needs on the device; the rest leaves it, and memory, until it is used again."""
        host = torch.device("cpu")
        self.components.put(["vae"], host if latents_cached else device)
        self.components.put(self._frozen_encoders, host if text_cached else device)
        if latents_cached:
            self.components.release(["vae"])
        if text_cached:
            self.components.release(self._frozen_encoders)
        devices.give_back_memory(device)

    def load_for_steps(self, *, latents_cached: bool, text_cached: bool) -> None:
        """Load what every step uses, before other threads prepare batches: loading in half precision changes torch's
        default precision for all threads until it is done."""
        for name in (*(() if latents_cached else ("vae",)), *(() if text_cached else self._frozen_encoders)):
            self.components[name]
        self.components.parts.alone = False

    def stream_blocks(self, device: torch.device) -> None:
        """Keep in the host's memory what blocks_to_swap asks for; to be called before the model goes to the device."""
        if self.config.blocks_to_swap:
            Streamer(self.denoiser, self.config.blocks_to_swap, device, self._trained())

    def _trained(self) -> list[nn.Parameter]:
        """What is trained, and what would be if a gradient reached it."""
        adapter = adapters.load(self.config)
        return [parameter for target in self.targets for parameter in adapter.parameters(target).values()]

    def lent_encoders(self, device: torch.device) -> AbstractContextManager[None]:
        """Within, frozen text encoders are on the device."""
        return self.components.lent(self._frozen_encoders, device)

    # --- encoding --------------------------------------------------------------------------------------------------

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (batch, 3, height, width) from -1 to 1 -> mean and deviation of the scaled latents, on the host.

        Raises ArithmeticError where they are not finite.
        """
        mean, std = self.latents.encode(pixels)
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise ArithmeticError("the VAE gives values that are not finite in this precision; set no_half_vae = true")
        return mean.cpu(), std.cpu()

    def image_identity(self) -> str:
        """What decides `encode_images` besides the picture, the base model's content apart."""
        return f"{self.components.parts.dtype_of('vae')}"

    @property
    def tokenize(self) -> text.Tokenize | None:
        """What turns captions into a micro-batch's tensors; None where the captions themselves are encoded."""
        return self.text.tokenize

    @property
    def shows_controls(self) -> bool:
        """Whether the text encoder looks at the control pictures as well."""
        return self.components.parts.pipeline_name in self.config.facts.edits

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str], shown: Sequence[Image.Image | None] = ()) -> list[Arrays]:
        """What is cached of each caption: arrays by name, on the host, without padding; bfloat16 as uint16. `shown`:
        the picture with each, where the text encoder looks at some."""
        return text.rows(self.text.encode(self._read(captions, shown)), self.text.ragged, self.text.precision)

    def _read(self, captions: Sequence[str], shown: Sequence[Image.Image | None] = ()) -> dict[str, Any]:
        if self.text.tokenize:
            return dict(self.text.tokenize(captions))
        return {"captions": tuple(captions), **({"shown": tuple(shown)} if any(shown) else {})}

    def text_identity(self) -> str:
        """What decides `encode_captions` besides the caption, the base model's content apart."""
        identity = self.text.identity()
        return identity if self.text.precision == "float32" else f"{identity} stored={self.text.precision}"

    # --- training --------------------------------------------------------------------------------------------------

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Each sample's loss, (batch,), in fp32, from the tensors of a MicroBatch."""
        latents = self._latents(batch)  # (batch, channels, height / factor, width / factor)
        timesteps, noise = batch["timesteps"], self._noise(batch, latents)
        noised_by = noise + batch["input_noise"] if "input_noise" in batch else noise
        noisy_latents = self.objective.noised(latents, noised_by, timesteps)
        given = self._conditioning(batch)
        with offloaded_activations(self.device) if self.config.cpu_offload_checkpointing else nullcontext():
            model_pred = self.family.predict(self.denoiser, noisy_latents.to(self.dtype), timesteps, given)
        target = self.objective.target(latents, noise, timesteps)
        return self.objective.losses(model_pred, target, timesteps, batch.get("mask"))

    def _latents(self, batch: Mapping[str, Tensor]) -> Tensor:
        if "latent_mean" in batch:
            mean, std = batch["latent_mean"], batch["latent_std"]
        else:
            mean, std = self.latents.encode(batch["pixels"])
        return mean + std * batch["latent_noise"]

    def _noise(self, batch: Mapping[str, Tensor], latents: Tensor) -> Tensor:
        noise = batch["noise"]
        if "offset" not in batch:
            return noise
        strength = batch["offset_strength"]  # (batch, 1, 1, 1)
        if self.config.adaptive_noise_scale:
            mean = latents.mean(dim=(2, 3), keepdim=True).abs()
            strength = (strength + self.config.adaptive_noise_scale * mean).clamp(min=0)
        return noise + strength * batch["offset"]

    def _conditioning(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the denoiser is given, in its precision: cached, or encoded now."""
        given = {name.removeprefix(TEXT): tensor for name, tensor in batch.items() if name.startswith(TEXT)}
        if not given:
            with nullcontext() if self._trains_text else torch.no_grad():
                given = self.text.encode(batch)
        given = self._in_precision(given)
        if "geometry" in batch:
            given["geometry"] = batch["geometry"]
        if "control_pixels" in batch:
            given |= self._in_precision({"control": self.latents.encode(batch["control_pixels"])[0]})
        elif "control" in batch:
            given |= self._in_precision({"control": batch["control"]})
        return given | self.guidance(len(batch["timesteps"]))

    def guidance(self, count: int) -> dict[str, Tensor]:
        """What a batch's denoiser is told of the guidance, in models that are told it."""
        if GUIDANCE not in self.config.facts.traits:
            return {}
        scale = self.config.guidance_scale
        return {"guidance": torch.full((count,), 1.0 if scale is None else scale, device=self.device)}

    def _in_precision(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = self.device
        return {
            name: tensor.to(device, self.dtype) if tensor.is_floating_point() else tensor.to(device)
            for name, tensor in given.items()
        }

    @torch.no_grad()
    def probe(self) -> float:
        """A loss on a fixed synthetic input that passes through all trained layers; no option but the precision and
        clip_skip decides it. Equal weights on equal hardware give equal bits."""
        return float(self._probed())

    def leave_out_idle(self) -> None:
        """Of a fine-tune, freeze what nothing ever reaches back to, so that it is neither stepped nor saved: what takes
        no part in the graph of the probe's loss. To be called where the model computes."""
        if not self.config.fine_tunes:
            return
        with torch.enable_grad():
            loss = self._probed()
        reached, seen, left = set(), set(), [loss.grad_fn]
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                reached.add(node.variable)
            left += [following for following, _ in node.next_functions]
        for parameter in self._trained():
            if parameter not in reached:
                parameter.requires_grad_(False)

    def _probed(self) -> Tensor:
        """The probe's loss."""
        draw = randomness.generator(0, "probe")
        device = self.device

        def normal(*size: int) -> Tensor:
            return torch.from_numpy(draw.standard_normal(size, dtype="float32")).to(device, self.dtype)

        latents, noise = (normal(2, self.latent_channels, PROBE_SIDE, PROBE_SIDE) for _ in range(2))
        given = {name: normal(2, *shape) for name, shape in self.family.shapes(self.denoiser).items()}
        timesteps = torch.tensor(self.objective.probed, device=device)
        training = self.training
        self.eval()
        with self.autocast():
            if self._trains_text:
                given = self._in_precision(self.text.encode(self.text.probe()))
            given |= self.guidance(2)
            side = PROBE_GEOMETRY
            given["geometry"] = torch.tensor([[side, side, 0.0, 0.0, side, side]] * 2, device=device)
            noisy_latents = self.objective.noised(latents, noise, timesteps)
            model_pred = self.family.predict(self.denoiser, noisy_latents.to(self.dtype), timesteps, given)
        self.train(training)
        return losses.sample_losses(model_pred, noise, "l2").mean()

    # --- sampling --------------------------------------------------------------------------------------------------

    def sample(
        self, prompts: Sequence[Prompt], sampler: str, device: torch.device, cached: TextSource | None = None
    ) -> list[Image.Image]:
        """The prompts' images with the weights as they are; see `samples`."""
        return list(self.samples(prompts, sampler, device, cached))

    def samples(
        self, prompts: Sequence[Prompt], sampler: str, device: torch.device, cached: TextSource | None = None
    ) -> Generator[Image.Image, None, None]:
        """The prompts' images, each when it is made; then, or when the generator is closed, the model is as it was.

        Reads no global random numbers. `cached`: where the prompts' texts are found encoded; without it they are
        encoded now.
        """
        return previews.draw(self, prompts, sampler, device, cached)

    def conditioning_of(
        self, caption: str, cached: TextSource | None, control: Shown | None = None
    ) -> dict[str, Tensor]:
        """A caption's conditioning, as a batch of one, in the denoiser's precision. Raises PictureError."""
        shown = control if self.shows_controls else None
        if cached is None:
            looked_at = [pictures.open_shown(shown)] if shown else []
            return self._in_precision(self.text.encode(self._read([caption], looked_at)))
        row = {name: text.to_tensor(np.asarray(array)) for name, array in cached(caption, shown).items()}
        return self._in_precision(text.joined([row], self.text.ragged))

    def as_it_will_be_used(self) -> AbstractContextManager[None]:
        """Within, what is only part of the base model while it is trained is left out, if samples are drawn so."""
        parts = self.components.parts
        return parts.left_out() if isinstance(parts, MergedParts) else nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """Half precision where the training has it."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
