"""The options of the section Network. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.models.families.facts import TRAINS_ENCODERS
from trainer.options.declaration import option


@dataclass(frozen=True, kw_only=True)
class Network:
    """Network"""

    network_dim: int = option(16, "Rank of the LoRA layers.", low=1, high=1024, on_resume="locked", sets_speed=True)
    network_alpha: float = option(
        1.0,
        "The LoRA is scaled by alpha / rank. 0: alpha is the same as the rank.",
        low=0,
        high=4096,
        on_resume="locked",
    )
    network_dropout: float = option(
        0.0,
        "Share of LoRA channels left out at each step.",
        low=0,
        high=0.99,
        on_resume="trajectory",
        in_header=True,
    )
    rank_dropout: float = option(
        0.0,
        "Share of the ranks left out at each step, for each image by itself.",
        low=0,
        high=0.99,
        on_resume="trajectory",
        advanced=True,
    )
    module_dropout: float = option(
        0.0,
        "Share of the LoRA layers left out at each step.",
        low=0,
        high=0.99,
        on_resume="trajectory",
        advanced=True,
    )
    scale_weight_norms: float = option(
        0.0,
        "Scale a LoRA layer down after a step in which its weights' norm exceeds this; 1 is usual. 0: never.",
        low=0,
        on_resume="trajectory",
        advanced=True,
    )
    loraplus_lr_ratio: float | None = option(
        None,
        "LoRA+: how many times the learning rate the second matrix of each layer gets; 16 is usual. Empty: the same.",
        low=0,
        on_resume="locked",
        advanced=True,
    )
    loraplus_unet_lr_ratio: float | None = option(
        None, "LoRA+ of the U-Net. Empty: loraplus_lr_ratio.", low=0, on_resume="locked", advanced=True
    )
    loraplus_text_encoder_lr_ratio: float | None = option(
        None, "LoRA+ of the text encoder. Empty: loraplus_lr_ratio.", low=0, on_resume="locked", advanced=True
    )
    conv_dim: int | None = option(
        None,
        "Rank of LoRA layers on the 3x3 convolutions. Empty: none there.",
        low=1,
        high=1024,
        on_resume="locked",
        advanced=True,
        sets_speed=True,
    )
    conv_alpha: float = option(
        1.0,
        "Alpha of the convolution layers. 0: the same as their rank.",
        low=0,
        high=4096,
        on_resume="locked",
        advanced=True,
        shapes="conv_dim",
    )
    network_train_unet_only: bool = option(
        False, "Train the U-Net, not the text encoder.", on_resume="locked", sets_speed=True
    )
    network_train_text_encoder_only: bool = option(
        False,
        "Train the text encoder, not the U-Net.",
        on_resume="locked",
        advanced=True,
        sets_speed=True,
        traits=(TRAINS_ENCODERS,),
    )
    network_weights: str = option(
        "",
        "LoRA file to start from (weights only; the step count, optimizer and learning rate start anew).",
        on_resume="free",
        path=True,
        advanced=True,
        must_exist=True,
    )
    dim_from_weights: bool = option(
        False,
        "Take network_dim, network_alpha, conv_dim and conv_alpha from network_weights.",
        on_resume="free",
        advanced=True,
    )
