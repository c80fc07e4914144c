"""What an architecture says of itself. A family never imports the loop or another family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.models.families.facts import Facts
from trainer.models.latents import Codec
from trainer.models.placement import Components
from trainer.models.text import Text
from trainer.options.config import Config
from trainer.recipe.objectives import Objective
from trainer.recipe.prompts import Prompt


class Family(Protocol):
    """An architecture. Everything else is the same for all, see `models.model`."""

    def objective(self, components: Components, config: Config) -> Objective:
        """What is predicted. Raises BaseModelMissing where the model predicts something else."""
        ...

    def latents(self, components: Components) -> Codec:
        """How pictures become latents."""
        ...

    def text(self, components: Components, config: Config, dtype: torch.dtype) -> Text:
        """How captions become conditioning."""
        ...

    def predict(self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """The prediction for noisy latents, in their layout. `given`: the conditioning by name, and
        "geometry"; "control": the latents of a control picture, in families that take one."""
        ...

    def pipeline(self, components: Components, scheduler: Any, *, controls: bool = False) -> Any:
        """The official pipeline that samples, without text encoders: it is given their outputs. `controls`: it is given
        control pictures as well."""
        ...

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        """The pipeline's arguments for a prompt's conditioning besides size, steps and generator."""
        ...

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of a caption's conditioning, for the probe; some length where it is ragged."""
        ...

    def described(self, facts: Facts, denoiser: Any, prediction_type: str) -> tuple[str, str]:
        """kohya's ss_base_model_version and modelspec's architecture."""
        ...
