"""What the loop asks of an architecture. A family never imports the loop or another family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from trainer.models.network import Target
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt


class Model(Protocol):
    """A loaded base model with what is trained inside. A torch module whose forward is one micro-batch's losses."""

    targets: list[Target]
    latent_channels: int
    latent_factor: int
    base_version: str  # kohya's ss_base_model_version
    architecture: str  # of modelspec
    prediction_type: str

    def module(self) -> nn.Module:
        """Itself as a torch module: forward(tensors of a MicroBatch) -> each sample's loss, (batch,), in fp32.

        Its submodules are what takes part in training; the rest is kept aside and moved by the methods below.
        """
        ...

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (batch, 3, height, width) from -1 to 1 -> mean and deviation of the scaled latents, on the host."""
        ...

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the text encoder reads, by the names of a MicroBatch's tensors, each with the captions first."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Text encoder outputs, (captions, tokens, width), on the host, in fp32."""
        ...

    def image_identity(self) -> str:
        """What decides `encode_images` besides the picture, the base model's content apart."""
        ...

    def text_identity(self) -> str:
        """What decides `encode_captions` besides the caption, the base model's content apart."""
        ...

    def prepare(self, device: torch.device, *, latents_cached: bool, text_cached: bool) -> None:
        """Put what every step needs on the device and take the rest off it."""
        ...

    def probe(self) -> float:
        """A loss on a fixed synthetic input that passes through all trained layers; no option but the precision and
        clip_skip decides it. Equal weights on equal hardware give equal bits."""
        ...

    def sample(self, prompts: Sequence[Prompt], sampler: str, device: torch.device) -> list[Image.Image]:
        """The prompts' images with the weights as they are. Reads no global random numbers."""
        ...


class Family(Protocol):
    """An architecture."""

    def load(self, config: Config, path: Path, dtype: torch.dtype, device: torch.device) -> Model:
        """Load the base model from a diffusers folder or a single file and put the LoRA layers in.

        `dtype`: of the frozen weights. Raises BaseModelMissing when files are missing or of another architecture.
        """
        ...
