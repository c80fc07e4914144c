"""The options of the section Model. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.models import families
from trainer.models.families.facts import CLIP_SKIP, DDPM, FLOW, PADS_TEXT
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
        "Base model: a diffusers folder, a single .safetensors file, a Hugging Face id, or an address (s3:// ...) "
        "of a folder or file, which is copied to this machine.",
        on_resume="locked",
        by_content=True,
        address=True,
        sets_speed=True,
    )
    single_file_config: str = option(
        "",
        "Diffusers folder that describes a single-file model (its configs and tokenizer), and has the components that "
        "the file lacks: a file of a transformer needs one. Empty: downloaded from Hugging Face, which needs a "
        "connection.",
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
        component=True,
    )
    text_encoder: str = option(
        "",
        "Text encoder to use instead of the model's own: its diffusers folder, or a .safetensors file of its weights.",
        on_resume="locked",
        by_content=True,
        advanced=True,
        component=True,
    )
    clip_l: str = option(
        "",
        "CLIP-L to use instead of the model's own: its diffusers folder, or a .safetensors file of its weights.",
        on_resume="locked",
        by_content=True,
        advanced=True,
        component=True,
    )
    clip_g: str = option(
        "",
        "CLIP-G to use instead of the model's own: its diffusers folder, or a .safetensors file of its weights.",
        on_resume="locked",
        by_content=True,
        advanced=True,
        component=True,
    )
    t5xxl: str = option(
        "",
        "T5-XXL to use instead of the model's own: its diffusers folder, or a .safetensors file of its weights.",
        on_resume="locked",
        by_content=True,
        advanced=True,
        component=True,
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
    apply_t5_attn_mask: bool = option(
        False,
        "Leave a caption's padding out of T5 and of the denoiser's attention. Without, it takes part, as the official "
        "pipeline has it.",
        on_resume="trajectory",
        advanced=True,
        traits=(PADS_TEXT,),
    )
    max_sequence_length: int | None = option(
        None,
        "Tokens of a caption that the text encoder takes; the rest does not count. Empty: as usual for the model.",
        low=16,
        high=4096,
        on_resume="trajectory",
        advanced=True,
        traits=(FLOW,),
    )
