"""FLUX.2: tokens with four-dimensional positions; dev is told its guidance, klein has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from torch import Tensor

from trainer.models.families.facts import Facts
from trainer.models.flow import PROBED_TOKENS, FlowFamily
from trainer.models.latents import BatchNormLatents, picture, with_control
from trainer.models.placement import Components
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt

CONTROL_FRAME = 10  # of the first control picture, among the positions
WIDTHS = {3072: "4b", 4096: "9b"}  # of klein's transformers


class Flux2(FlowFamily):
    """See `base.Family`."""

    def official(self, components: Components, *, controls: bool = False) -> Any:
        return Flux2Pipeline if components["transformer"].config.guidance_embeds else Flux2KleinPipeline

    def latents(self, components: Components) -> BatchNormLatents:
        return BatchNormLatents(components)

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        limit = config.max_sequence_length or 512
        states, _ = pipeline.encode_prompt(caption, device=device, max_sequence_length=limit)
        return {"states": states[0]}

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        batch, _, height, width = noisy.shape
        states = given["states"]
        sequence, places = with_control(noisy, given.get("control"), CONTROL_FRAME)
        places = F.pad(places, (0, 1))  # frame, row, column, place in the text
        words = F.pad(torch.arange(states.shape[1], device=states.device).float()[:, None], (3, 0))
        predicted = denoiser(
            hidden_states=sequence,
            timestep=timesteps,
            guidance=given["guidance"] if denoiser.config.guidance_embeds else None,
            encoder_hidden_states=states,
            txt_ids=words.expand(batch, -1, -1),
            img_ids=places.expand(batch, -1, -1),
            return_dict=False,
        )[0]
        return picture(predicted, height, width)

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        if denoiser.config.guidance_embeds:  # it takes no negative prompt
            return {"prompt_embeds": text["states"], "guidance_scale": prompt.embedded_guidance}
        return {
            "prompt_embeds": text["states"],
            "negative_prompt_embeds": negative["states"],
            "guidance_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        return {"states": (PROBED_TOKENS, denoiser.config.joint_attention_dim)}

    def described(self, facts: Facts, denoiser: Any, prediction_type: str) -> tuple[str, str]:
        config = denoiser.config
        if config.guidance_embeds:
            return "flux2_dev", "Flux.2-dev"
        size = WIDTHS.get(config.num_attention_heads * config.attention_head_dim, "4b")
        return f"flux2_klein_{size}", f"Flux.2-klein-{size}"


FAMILY = Flux2()
