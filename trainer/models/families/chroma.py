"""Chroma: FLUX.1's layout without pooled text or guidance; T5's padding is masked but for one token."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from diffusers import ChromaPipeline
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import Tensor, nn

from trainer.models.flow import PROBED_TOKENS, FlowFamily, folded_prediction
from trainer.models.placement import Components
from trainer.options.config import Config
from trainer.recipe.prompts import Prompt


class Chroma(FlowFamily):
    """See `base.Family`."""

    ragged = frozenset({"states"})

    def official(self, components: Components, *, controls: bool = False) -> Any:
        return ChromaPipeline

    def encode(self, pipeline: Any, caption: str, device: torch.device, config: Config) -> dict[str, Tensor]:
        """Up to the first token of the padding, which is the only one that counts."""
        limit = config.max_sequence_length or 512
        states, _, mask, *_ = pipeline.encode_prompt(
            caption, device=device, do_classifier_free_guidance=False, max_sequence_length=limit
        )
        return {"states": states[0][mask[0].bool()]}

    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        places = noisy.shape[2] * noisy.shape[3] // 4
        mask = given.get("states_mask") if len(noisy) > 1 else None  # one caption fills its batch
        mask = None if mask is None else F.pad(mask, (0, places), value=True)
        denoiser._gradient_checkpointing_func = functools.partial(checkpointed, mask)
        return folded_prediction(denoiser, noisy, given["states"], timestep=timesteps, attention_mask=mask)

    def sample(
        self, denoiser: Any, text: Mapping[str, Tensor], negative: Mapping[str, Tensor], prompt: Prompt
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": text["states"],
            "prompt_attention_mask": text["states_mask"],
            "negative_prompt_embeds": negative["states"],
            "negative_prompt_attention_mask": negative["states_mask"],
            "guidance_scale": prompt.guidance_scale,
        }

    def shapes(self, denoiser: Any) -> dict[str, tuple[int, ...]]:
        return {"states": (PROBED_TOKENS, denoiser.config.joint_attention_dim)}


def checkpointed(mask: Tensor | None, block: nn.Module, *arguments: Any) -> Any:
    """A block's output without what its gradient needs, which is computed again; with the mask, which diffusers leaves
    out of the single blocks in this case."""
    if isinstance(block, ChromaSingleTransformerBlock):
        arguments = (*arguments, mask)
    return torch.utils.checkpoint.checkpoint(block.__call__, *arguments, use_reentrant=False)


FAMILY = Chroma()
