"""What can be said of an architecture without loading it. Standard library only, so that every room may read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

FLOW = "flow"  # rectified flow: float timesteps from 0 (picture) to 1 (noise), the target is noise minus picture
DDPM = "ddpm"  # whole timesteps of a noise schedule; predicts noise or v
CLIP_TEXT = "clip-text"  # captions in chunks of 75 tokens, with emphasis
CLIP_SKIP = "clip-skip"  # an earlier layer of its text encoder can be used
TRAINS_ENCODERS = "trains-encoders"  # its text encoders can get LoRA layers
GUIDANCE = "guidance-embedding"  # the denoiser is told a guidance scale
PADS_TEXT = "pads-text"  # it takes part in what a caption means that it is filled up to a length
TWO_ENCODERS = "two-encoders"  # two text encoders can be trained, each at a rate of its own
UPCASTS_VAE = "upcasts-vae"  # its VAE overflows in fp16, unless its config says that it does not
CONVOLUTIONAL = "convolutional"  # the denoiser is made of convolutions
CONTROLS = "controls"  # the denoiser can be given a control picture, of which it is to make another
BLOCKS = "blocks"  # its U-Net has numbered blocks, each of which can have a rank and a rate


@dataclass(frozen=True)
class Part:
    """A component whose layers can be trained: the denoiser, or a text encoder.

    The patterns are regular expressions, searched in the path of a layer with a matrix or a kernel. `layers` are
    trained always, `convolutions` only with conv_dim, `outer` only where all layers are asked for; the rank of larger
    kernels is conv_dim, that of others network_dim.
    """

    component: str  # its folder, and the first part of its parameters' names in a checkpoint
    prefix: str  # of its keys in kohya's files
    layers: str
    convolutions: str = ""
    outer: str = ""
    kernels: str = ""  # of those, the layers whose kernels are larger than one pixel
    path_prefix: str = ""  # put before a path in kohya's keys when it is not there
    tokenizer: str = ""  # component; of text encoders
    original: str = ""  # what its tensors begin with in a single file; empty: it has other names there
    original_layers: str = ""  # the patterns in the names of a single file
    original_convolutions: str = ""
    original_outer: str = ""
    drops_last: bool = False  # diffusers leaves out the last layer of a text encoder in OpenCLIP's names
    idle: str = ""  # layers that nothing ever reaches back to; {last} is the number of the last block

    def idle_among(self, names: Iterable[str]) -> frozenset[str]:
        """Of names that begin with layers' paths, all of one component: those that never get a gradient. Such layers
        stay as they began, without effect, but are in the files."""
        if not self.idle:
            return frozenset()
        names = list(names)
        number = self.idle.replace("{last}", r"(\d+)")
        last = max((int(match[1]) for name in names if (match := re.search(number, name))), default=-1)
        return frozenset(name for name in names if re.search(self.idle.replace("{last}", str(last)), name))

    def trains(self, path: str, *, convolutions: bool, outer: bool = False, original: bool = False) -> bool:
        """Whether the layer of this path is trained. `original`: the path is one of a single file."""
        of_file = (self.original_layers, self.original_convolutions, self.original_outer)
        patterns = of_file if original else (self.layers, self.convolutions, self.outer)
        wanted = (True, convolutions, outer)
        return any(
            want and pattern and re.search(pattern, path) for want, pattern in zip(wanted, patterns, strict=True)
        )

    def has_larger_kernel(self, path: str) -> bool:
        """Whether the layer of this path, by diffusers' name, is a convolution over more than one pixel."""
        return bool(self.kernels and re.search(self.kernels, path))


@dataclass(frozen=True)
class Blocks:
    """How many numbered blocks a U-Net has in sd-scripts' lists of ranks and rates: `base` before those of the way
    down, `out` after those of the way up; rates are given for the others."""

    base: int
    down: int
    middle: int
    up: int
    out: int

    @property
    def count(self) -> int:
        return self.base + self.down + self.middle + self.up + self.out

    def number(self, original: str) -> int:
        """The block of a layer, from its path in the original file: "input_blocks.4.1.proj_in"."""
        side, _, rest = original.partition(".")
        middle = self.base + self.down
        starts = {"input_blocks": self.base, "middle_block": middle, "output_blocks": middle + self.middle}
        if side not in starts:
            return self.count - 1 if side == "out" else 0
        inner = int(rest.split(".")[0])
        return starts[side] + (min(inner, self.middle - 1) if side == "middle_block" else inner)


@dataclass(frozen=True)
class Facts:
    """An architecture of base models. `module` is imported only to load a model."""

    title: str
    module: str
    pipelines: tuple[str, ...]  # diffusers' classes in model_index.json; the first reads a single file
    signature: tuple[str, ...]  # patterns; a single file with a tensor for each is of this architecture
    components: tuple[str, ...]  # the subfolders of a diffusers model that are needed
    denoiser: Part
    encoders: tuple[Part, ...]
    channels: int  # of the latents as they are trained and cached
    factor: int  # pixels of a latent, along each side
    granularity: int  # pixels of which every side of a picture must be a multiple
    traits: frozenset[str]
    version: str  # kohya's ss_base_model_version
    architecture: str  # of modelspec
    keys: str = "kohya"  # how a LoRA file names its tensors, see models/keys.py
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of options that are left to the family
    guidance: float = 7.5  # of sample images
    embedded_guidance: float = 3.5  # of sample images, where the denoiser is told it
    blocks: Blocks | None = None  # of the denoiser; with the trait of the same name
    overrides: Mapping[str, str] = field(default_factory=lambda: {"vae": "vae"})  # option -> component it replaces
    edits: tuple[str, ...] = ()  # of its pipelines, those whose text encoder looks at the control picture as well: with
    # them each image needs one, with the others none can have one
    optional: tuple[str, ...] = ()  # components that only some of its models have
    trained_instead: str = ""  # the base model for training, where there is one distilled for few steps as well
    denoiser_alone: bool = False  # a single file is read for the denoiser; the rest is of single_file_config

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Everything that can be trained."""
        return (self.denoiser, *(self.encoders if TRAINS_ENCODERS in self.traits else ()))

    @property
    def text_components(self) -> tuple[str, ...]:
        """What decides how a caption is encoded."""
        return tuple(name for part in self.encoders for name in (part.component, part.tokenizer) if name)

    def is_single_file(self, names: Mapping[str, Any]) -> bool:
        """Whether a single file with tensors of these names is of this architecture."""
        return bool(self.signature) and all(
            any(pattern.search(name) for name in names) for pattern in map(re.compile, self.signature)
        )
