"""About how much of a GPU's memory a training takes, from the options and the headers of the base model's files, and
what would make it fit. No torch here."""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainer.checkpoints import checkpoint_size
from trainer.models import activations, blocks
from trainer.models.activations import Kept
from trainer.models.families.facts import CLIP_TEXT, CONVOLUTIONAL, UPCASTS_VAE
from trainer.models.file_header import Shape, Shapes
from trainer.options.config import OPTIONS, Config
from trainer.options.conflicts import combination_problems
from trainer.quantities import size as words

T = TypeVar("T")
NUMBER = {"no": 4, "fp16": 2, "bf16": 2}  # bytes of a weight
QUANTISED = {"int8": 1.0, "int8wo": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}  # the same, of a linear layer
OF_A_ROW = {"int8": 4, "int8wo": 4, "nf4": 0}  # bytes of its own scale
NOT_CAST = re.compile(r"pos_embed|patch_embed|norm|time_embed|t_embedder|cap_embedder")  # by fp8_base
OVERHEAD = 600_000_000  # the driver's context, kernels with their workspaces, what the allocator cannot use
WORDS = 512  # tokens of a caption, where the text encoder is not CLIP
STREAMED = 3  # blocks of blocks_to_swap on the GPU at a time: computing, on its way, not yet given back
FIRST_CHANNELS = re.compile(r"(^|\.)encoder\.conv_(in|1)\.weight$")  # of a VAE


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU. `weights`: of the components that are there while a step is made, by name."""

    weights: Mapping[str, int]
    trained: int
    gradients: int
    moments: int
    average: int
    activations: int
    caching: int  # all that is there while pictures and captions are encoded once; 0 where they are not
    sampling: int  # all that is there while sample images are made; 0 where there are none
    host: int  # weights that blocks_to_swap keeps in the host's memory

    @property
    def resident(self) -> int:
        """What stays from step to step."""
        return sum(self.weights.values()) + self.trained + self.moments + self.average + OVERHEAD

    @property
    def steps(self) -> int:
        """All that is there in a step."""
        return self.resident + self.gradients + self.activations

    @property
    def peak(self) -> int:
        return max(self.steps, self.caching, self.sampling)

    def line(self) -> str:
        """For people."""
        others = {"trained weights": self.trained, "gradients": self.gradients, "optimizer": self.moments}
        others |= {"moving average": self.average, "activations": self.activations, "driver and workspaces": OVERHEAD}
        parts = ", ".join(f"{name} {words(count)}" for name, count in {**self.weights, **others}.items() if count)
        when = {self.caching: "while caching", self.sampling: "while sampling", self.steps: "in a step"}[self.peak]
        line = f"GPU memory: about {words(self.peak)} at the most, {when}; a step takes {parts}"
        return f"{line}; {words(self.host)} of weights stay in the host's memory" if self.host else line

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**dataclasses.asdict(self), "overhead": OVERHEAD, "steps": self.steps, "peak": self.peak}


class Estimator:
    """Estimates for one base model."""

    def __init__(self, model: Path, largest: tuple[int, int] | None = None, *, controls: bool = False) -> None:
        """`largest`: (width, height) of the largest bucket; None: what resolution says. `controls`: images have control
        pictures, whatever conditioning_data_dir says."""
        self._model = model
        self._controls = controls
        self._largest = largest
        self._known: dict[Any, Any] = {}

    def _once(self, key: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """What was computed for this key before, or now."""
        if key not in self._known:
            self._known[key] = compute()
        result: T = self._known[key]
        return result

    def of(self, config: Config) -> Memory:
        """The estimate. `config`: with a settled family. Raises SizeUnknown."""
        facts = config.facts
        trained_components = {part.component for part in config.trained_parts}
        denoiser, host = self._denoiser(config)
        weights, aside = {facts.denoiser.component: denoiser}, 0
        if config.fine_tunes:
            weights = {}
        for name in ("vae", *(part.component for part in facts.encoders)):
            cached = config.cache_latents if name == "vae" else config.cache_text_encoder_outputs
            if config.fine_tunes and name in trained_components:
                continue
            if name in trained_components or not cached:
                weights[name] = self._weights(config, name)
            elif name != "vae":
                aside += self._weights(config, name)
        trained, gradients, moments = self._trained(config)
        memory = Memory(
            weights=weights,
            trained=trained,
            gradients=gradients,
            moments=moments,
            average=trained * (2 if config.full_bf16 else 1) if config.use_ema else 0,
            activations=self._activations(config),
            caching=0,
            sampling=0,
            host=host,
        )
        vae, coding = self._weights(config, "vae"), self._coding(config)
        pictures = vae + config.vae_batch_size * coding if config.cache_latents else 0
        captions = aside and aside + weights.get("vae", 0)
        caching = max(pictures, captions)
        sampling = memory.resident + vae * ("vae" not in weights) + 2 * coding if config.sample_prompts.strip() else 0
        return dataclasses.replace(memory, caching=caching and caching + OVERHEAD, sampling=sampling)

    def blocks(self, config: Config) -> int:
        """How many blocks the denoiser has."""
        names = self._of(config, config.facts.denoiser.component)
        return len(blocks.all_of(names))

    def _trained(self, config: Config) -> tuple[int, int, int]:
        """Bytes of the trained parameters, of their gradients and of what the optimizer keeps."""
        names = tuple(part.component for part in config.trained_parts)
        network = tuple(getattr(config, name) for name, option in OPTIONS.items() if option.section == "Network")
        kind = (names, network, config.training_kind, config.full_bf16, config.optimizer_type, config.optimizer_args)

        def compute() -> tuple[int, int, int]:
            parameters = checkpoint_size.trained(config, self._model)
            idle = checkpoint_size.idle(config, parameters)
            reached = {name: shape for name, shape in parameters.items() if name not in idle}
            moments = sum(sum(checkpoint_size.moments(config, *item).values()) for item in reached.items())
            number = 2 if config.full_bf16 else 4
            return number * _numbers(parameters), number * _numbers(reached), moments

        return self._once(kind, compute)

    # --- weights ---------------------------------------------------------------------------------------------------

    def _of(self, config: Config, component: str) -> Shapes:
        """The shapes of a component's tensors."""
        facts = config.facts
        options = {name: option for option, name in facts.overrides.items()}
        override = getattr(config, options[component]) if component in options else ""
        source = Path(override) if override else None
        return self._once(("shapes", component, override), lambda: self._read(config, component, source))

    def _read(self, config: Config, component: str, override: Path | None) -> Shapes:
        source = override or self._model
        if source.is_dir():
            inner = source / component
            return checkpoint_size.in_folder(inner if inner.is_dir() else source)
        tensors = checkpoint_size.in_file(source)
        if override:
            return tensors
        originals = {part.component: part.original for part in (config.facts.denoiser, *config.facts.encoders)}
        own = originals.get(component, "first_stage_model." if component == "vae" else "")
        if own:
            return {name: shape for name, shape in tensors.items() if name.startswith(own)}
        others = tuple(prefix for prefix in (*originals.values(), "first_stage_model.", "vae.") if prefix)
        return {name: shape for name, shape in tensors.items() if not name.startswith(others)}

    def _weights(self, config: Config, component: str) -> int:
        number = _number_of_vae(config) if component == "vae" else NUMBER[config.mixed_precision]
        numbers = self._once(("numbers", component), lambda: sum(map(math.prod, self._of(config, component).values())))
        return number * numbers

    def _denoiser(self, config: Config) -> tuple[int, int]:
        """Bytes of the denoiser's weights on the GPU, and of those that the host keeps."""
        kind = (config.mixed_precision, config.fp8_base, config.quantize, config.base_gguf, config.blocks_to_swap)
        return self._once(("denoiser", *kind), lambda: self._compute_denoiser(config))

    def _compute_denoiser(self, config: Config) -> tuple[int, int]:
        shapes = self._of(config, config.facts.denoiser.component)
        layers = {name.removesuffix(".weight") for name, shape in shapes.items() if _is_layer(name, shape)}
        sizes = {name: _held(name, shape, layers, config) for name, shape in shapes.items()}
        whole = sum(sizes.values())
        if config.base_gguf:
            compressed = Path(config.base_gguf).stat().st_size if Path(config.base_gguf).is_file() else whole
            sizes = {name: size * compressed / whole for name, size in sizes.items()}
            whole = compressed
        chosen = set(blocks.streamed(shapes, config.blocks_to_swap)) if config.blocks_to_swap else set()
        of_block: dict[str, float] = {}
        for name, size in sizes.items():
            if (block := blocks.block_of(name)) in chosen:
                of_block[block] = of_block.get(block, 0.0) + size
        host = sum(of_block.values())
        on_the_way = sum(sorted(of_block.values())[-STREAMED:])
        return round(whole - host + on_the_way), round(host)

    # --- activations -----------------------------------------------------------------------------------------------

    def _activations(self, config: Config) -> int:
        """Of a micro-batch, in the backward pass or while pictures are encoded before it, whichever is more."""
        facts, batch = config.facts, config.train_batch_size
        width, height = self._largest or config.resolution_size
        convolutional = CONVOLUTIONAL in facts.traits
        pixels = facts.factor if convolutional else facts.granularity  # of a place, along each side
        text = 77 * (config.max_token_length // 75) if CLIP_TEXT in facts.traits else WORDS
        size = (-(-height // pixels), -(-width // pixels))
        if config.has_controls or self._controls:  # behind the image's tokens, as many or as many as their area has
            size = (1, math.prod(size) + (config.control_area or height * width) // pixels**2)
        checkpointing = config.gradient_checkpointing

        def kept(component: str, size: tuple[int, int], text: int, convolutional: bool) -> Kept:
            rank = config.network_dim if component in names and config.kind.plus else 0
            shapes, precision = self._of(config, component), config.mixed_precision
            return self._once(
                ("kept", component, size, text, precision, rank),
                lambda: activations.kept(shapes, size, text, precision, rank=rank, convolutional=convolutional),
            )

        names = {part.component for part in config.trained_parts}
        held = kept(facts.denoiser.component, size, text, convolutional).most(
            checkpointing=checkpointing, offloaded=config.cpu_offload_checkpointing
        )
        for part in config.trained_parts:
            if part.tokenizer:
                held += kept(part.component, (1, text), 0, False).most(checkpointing=checkpointing)
        return batch * max(held, 0 if config.cache_latents else self._coding(config))

    def _coding(self, config: Config) -> int:
        """Of the VAE, which computes at full resolution without keeping anything: what its first layers have at a time,
        for one picture; its decoder has about twice of it."""
        width, height = self._largest or config.resolution_size
        shapes = self._of(config, "vae")
        channels = max((shape[0] for name, shape in shapes.items() if FIRST_CHANNELS.search(name)), default=128)
        return 4 * channels * width * height * _number_of_vae(config)


def _number_of_vae(config: Config) -> int:
    """Bytes of a number in the VAE."""
    overflows = config.mixed_precision == "fp16" and UPCASTS_VAE in config.facts.traits
    return NUMBER["no" if config.no_half_vae or overflows else config.mixed_precision]


def _numbers(parameters: Shapes) -> int:
    return sum(map(math.prod, parameters.values()))


def _is_layer(name: str, shape: Shape) -> bool:
    return name.endswith(".weight") and len(shape) >= 2


def _held(name: str, shape: Shape, layers: set[str], config: Config) -> float:
    """Bytes of one of the denoiser's tensors."""
    count = math.prod(shape)
    if config.quantize != "no" and _is_layer(name, shape) and len(shape) == 2:
        return count * QUANTISED[config.quantize] + shape[0] * OF_A_ROW[config.quantize]
    cast = config.fp8_base and blocks.block_of(name) and name.rpartition(".")[0] in layers and not NOT_CAST.search(name)
    return count * (1 if cast else NUMBER[config.mixed_precision])


# --- what would make it fit ----------------------------------------------------------------------------------------

Changes = dict[str, Any]  # of options


def _cheaper(config: Config, blocks_of_it: int) -> Iterator[Changes]:
    """What saves memory, that first which costs least."""
    yield {"cache_latents": True}
    yield {"cache_text_encoder_outputs": True}
    yield {"mixed_precision": "bf16"}
    yield {"gradient_checkpointing": True}
    if config.train_batch_size > 1:
        accumulated = config.gradient_accumulation_steps * config.train_batch_size
        yield {"train_batch_size": 1, "gradient_accumulation_steps": accumulated}
    if config.fine_tunes:
        yield {"full_bf16": True}
    if config.optimizer_type == "AdamW":
        yield {"optimizer_type": "AdamW8bit"}
    if config.quantize == "no" and not config.base_gguf:
        yield {"fp8_base": True}
    yield {"cpu_offload_checkpointing": True}
    yield {"blocks_to_swap": blocks_of_it}
    if config.quantize == "no" and not config.base_gguf:
        yield {"fp8_base": False, "quantize": "nf4"}


def fitting(config: Config, estimator: Estimator, room: int) -> Changes | None:
    """The cheapest changes of options, in the order of their cost, with which the training fits into so many bytes;
    none where it fits as it is, None where nothing is enough. Raises SizeUnknown."""
    wrong = set(combination_problems(config))

    def merged(changes: Sequence[Changes]) -> Config:
        return config.replace(**{name: value for change in changes for name, value in change.items()})

    def peak(changes: Sequence[Changes]) -> float:
        """Endless where the options do not go together."""
        changed = merged(changes)
        return math.inf if set(combination_problems(changed)) - wrong else estimator.of(changed).peak

    chosen: list[Changes] = []
    most = estimator.blocks(config)
    for change in _cheaper(config, most):
        if peak(chosen) <= room:
            break
        if peak([*chosen, change]) < peak(chosen):
            chosen.append(change)
    if peak(chosen) > room:
        return None
    for change in reversed(chosen):  # what others made needless, the costliest first
        rest = [other for other in chosen if other is not change]
        if peak(rest) <= room:
            chosen = rest
    if chosen and "blocks_to_swap" in chosen[-1]:
        fewest = bisect.bisect_left(
            range(most), True, key=lambda count: peak([*chosen, {"blocks_to_swap": count}]) <= room
        )
        chosen[-1] = {"blocks_to_swap": fewest}
    now = merged(chosen)
    return {
        name: getattr(now, name) for change in chosen for name in change if getattr(now, name) != getattr(config, name)
    }


def advice(config: Config, estimator: Estimator, room: int) -> str:
    """What to say where a training does not fit into so many bytes; empty where it does. Raises SizeUnknown."""
    if estimator.of(config).peak <= room:
        return ""
    changes = fitting(config, estimator, room)
    here = f"that does not fit the {words(room)} of this GPU"
    if changes is None:
        return f"{here}, and no memory option is enough: lower resolution or network_dim, or take a smaller model"
    named = ", ".join(f"{name} = {json.dumps(value)}" for name, value in changes.items())
    return f"{here}; it would with {named}"
