"""What the families of rectified flow do alike: objective, captions, pipeline. Each adds what is its own."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from trainer.models.families.facts import Facts
from trainer.models.latents import Codec, Latents, fold, picture, unfold, with_control
from trainer.models.placement import Components
from trainer.models.text import PipelineText, Rows
from trainer.options.config import Config
from trainer.recipe.objectives import RectifiedFlow

PROBED_TOKENS = 8  # of a caption of the probe, which may have any number
ALMOST_NOISE = 1 - 1e-6  # of solvers that divide by what is left of the picture


class FlowFamily(ABC):
    """The half of `families.base.Family` that they share; predict, sample and shapes are each family's own."""

    ragged: frozenset[str] = frozenset()  # tensors of a caption that are as long as it is

    @abstractmethod
    def official(self, components: Components, *, controls: bool = False) -> Any:
        """The class of the official pipeline. `controls`: one that is given control pictures."""

    @abstractmethod
    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        """What the official pipeline makes of one caption, by name, without padding where it is ragged. `pipeline`: it
        has the text encoders, on `device`, and nothing else."""

    def encode_shown(
        self, pipeline: Any, caption: str, shown: Image.Image, device: torch.device, config: Config
    ) -> dict[str, Tensor]:
        """The same of a caption and a control picture; of families whose text encoder looks at it."""
        raise TypeError(f"the text encoder of {config.facts.title} looks at no pictures")

    def ragged_with(self, config: Config) -> frozenset[str]:
        """The conditioning that has a length of its own for each caption."""
        return self.ragged

    def objective(self, components: Components, config: Config) -> RectifiedFlow:
        return RectifiedFlow(config, components["scheduler"].config)

    def latents(self, components: Components) -> Codec:
        return Latents(components)

    def text(self, components: Components, config: Config, dtype: torch.dtype) -> PipelineText:
        facts = config.facts

        def rows(captions: Sequence[str], shown: Sequence[Image.Image | None]) -> Rows:
            """Each by itself, so that what is beside it in a batch does not show in its last bits; and in the
            encoder's own precision, as it is cached."""
            encoder = components[facts.encoders[0].component]
            looking = facts.optional if any(shown) else ()
            given = {name: components[name] for name in (*facts.text_components, *looking)}
            pipeline = made(self.official(components), given, components.parts.settings)
            with torch.autocast(encoder.device.type, enabled=False):
                return [
                    self.encode_shown(pipeline, caption, picture, encoder.device, config)
                    if picture
                    else self.encode(pipeline, caption, encoder.device, config)
                    for caption, picture in zip(captions, shown, strict=True)
                ]

        precisions = {str(components.parts.dtype_of(part.component)) for part in facts.encoders}
        identity = " ".join([*sorted(precisions), f"max_sequence_length={config.max_sequence_length}"])
        identity += " masked" if config.apply_t5_attn_mask else ""
        return PipelineText(components, rows, identity=identity, dtype=dtype, ragged=self.ragged_with(config))

    def pipeline(self, components: Components, scheduler: Any, *, controls: bool = False) -> Any:
        denoiser = components.parts.facts.denoiser.component
        given = {"vae": components["vae"], denoiser: components[denoiser], "scheduler": scheduler}
        return made(self.official(components, controls=controls), given, components.parts.settings)

    def described(self, facts: Facts, denoiser: Any, prediction_type: str) -> tuple[str, str]:
        return facts.version, facts.architecture


def folded_prediction(
    denoiser: Any,
    noisy: Tensor,
    states: Tensor,
    control: Tensor | None = None,
    mask: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """The prediction of a denoiser made like FLUX.1: for latents folded to tokens with positions, a control picture's
    in the next frame, and text whose positions are zero. `mask`: (batch, tokens), which of the text counts."""
    folded = fold(noisy)
    sequence, places = with_control(folded, None if control is None else fold(control), frame=1)
    if mask is not None:
        others["joint_attention_kwargs"] = {"attention_mask": F.pad(mask, (0, len(places)), value=True)[:, None, None]}
    predicted = denoiser(
        hidden_states=sequence,
        encoder_hidden_states=states,
        txt_ids=torch.zeros(states.shape[1], 3, dtype=places.dtype, device=places.device),
        img_ids=places,
        return_dict=False,
        **others,
    )[0]
    return unfold(picture(predicted, *folded.shape[2:]))


def sampler(kind: str, changes: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """diffusers' sampler of this name for rectified flow; `own`: the settings of the model's scheduler.

    Each goes through the noise levels that the model's own scheduler would: not every one of diffusers' takes those
    that the official pipelines ask for.
    """
    schedule = FlowMatchEulerDiscreteScheduler.from_config(own)
    if kind == type(schedule).__name__:
        return schedule
    base: Any = getattr(diffusers, kind)

    class Following(base):
        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Sequence[float] | None = None,
            mu: float | None = None,
        ) -> None:
            schedule.set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu)
            super().set_timesteps(schedule.num_inference_steps, device=device)
            levels, timesteps = schedule.sigmas.clone(), schedule.timesteps
            if self.order == 2:  # each but the first is passed twice
                levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
                timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
            else:
                levels[0] = levels[0].clamp(max=ALMOST_NOISE)
            self.sigmas, self.timesteps = levels.cpu(), timesteps  # as diffusers' own are

    return Following.from_config({**own, **changes, "use_dynamic_shifting": False})


def made(kind: Any, components: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """A pipeline of these components and no others, with the settings that it takes."""
    parameters = dict(inspect.signature(kind.__init__).parameters)
    missing = {name: None for name, parameter in parameters.items() if parameter.default is parameter.empty}
    missing.pop("self")
    return kind(**missing | {name: value for name, value in settings.items() if name in parameters} | dict(components))
