"""The options of the section Model. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.models import families
from trainer.models.families.facts import CLIP_SKIP, DDPM
from trainer.options.declaration import option


@dataclass(frozen=True, kw_only=True)
class Model:
    """Model"""

    family: str = option(
        families.AUTO,
        "Architecture of the base model; auto reads it from the model's files.",
        on_resume="locked",
        choices=families.choices(),
    )
    pretrained_model_name_or_path: str = option(
        "",
        "Base model: a diffusers folder, a single .safetensors file, or a Hugging Face id.",
        on_resume="locked",
        by_content=True,
        sets_speed=True,
    )
    single_file_config: str = option(
        "",
        "Diffusers folder that describes a single-file model (its configs and tokenizer). Empty: downloaded from "
        "Hugging Face, which needs a connection.",
        on_resume="locked",
        by_content=True,
        advanced=True,
    )
    vae: str = option(
        "",
        "VAE to use instead of the model's own: a diffusers folder or a .safetensors file.",
        on_resume="locked",
        by_content=True,
        advanced=True,
    )
    v_parameterization: bool = option(
        False,
        "Train with v-prediction (SD 2.x 768). A model whose scheduler is set to v_prediction always trains that way.",
        on_resume="locked",
        traits=(DDPM,),
    )
    clip_skip: int | None = option(
        None,
        "Use the output of the text encoder's n-th layer from the end. Empty: the last layer.",
        low=1,
        high=12,
        on_resume="trajectory",
        advanced=True,
        in_header=True,
        traits=(CLIP_SKIP,),
    )
