"""The options of the section Network. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainer.models.families.facts import BLOCKS, CONVOLUTIONAL, TRAINS_ENCODERS
from trainer.options.declaration import option
from trainer.options.network_kinds import NETWORK_KINDS, NETWORK_PRESETS
from trainer.options.sections.training import NETWORK

MOST = 999_999  # of a rank: presets of LoKr write 100000 for whole matrices


@dataclass(frozen=True, kw_only=True)
class Network:
    """Network"""

    KINDS: ClassVar = (NETWORK,)

    network_kind: str = option(
        "lora",
        "Kind of network. lora is read everywhere; docs/networks.md says what the others are for, and who reads them.",
        on_resume="locked",
        sets_speed=True,
        choices=tuple(NETWORK_KINDS),
    )
    network_dim: int = option(16, "Rank of the layers.", low=1, high=MOST, on_resume="locked", sets_speed=True)
    network_alpha: float = option(
        1.0,
        "The network is scaled by alpha / rank. 0: alpha is the same as the rank.",
        low=0,
        high=MOST,
        on_resume="locked",
    )
    network_dropout: float = option(
        0.0,
        "Share of channels between a layer's matrices left out at each step.",
        low=0,
        high=0.99,
        on_resume="trajectory",
        in_header=True,
    )
    rank_dropout: float = option(
        0.0,
        "Share of the ranks left out at each step, for each image by itself; of LoHa and LoKr: of the outputs.",
        low=0,
        high=0.99,
        on_resume="trajectory",
        advanced=True,
    )
    module_dropout: float = option(
        0.0,
        "Share of the network's layers left out at each step.",
        low=0,
        high=0.99,
        on_resume="trajectory",
        advanced=True,
    )
    scale_weight_norms: float = option(
        0.0,
        "Scale a layer's network down after a step in which its weights' norm exceeds this; 1 is usual. 0: never.",
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
        high=MOST,
        on_resume="locked",
        advanced=True,
        sets_speed=True,
    )
    conv_alpha: float = option(
        1.0,
        "Alpha of the convolution layers. 0: the same as their rank.",
        low=0,
        high=MOST,
        on_resume="locked",
        advanced=True,
        shapes="conv_dim",
    )
    conv_kernels_only: bool = option(
        False,
        "With conv_dim, train the 3x3 convolutions alone, without the other layers of their blocks (time_emb_proj, "
        "conv_shortcut): as runs of SD did that were begun before there was this option.",
        on_resume="locked",
        advanced=True,
        traits=(CONVOLUTIONAL,),
        shapes="conv_dim",
    )
    network_preset: str = option(
        "",
        "Which layers are trained, by LyCORIS' names: full (all, convolutions too), full-lin (all but larger kernels), "
        "attn-mlp, attn-only, ia3. Empty: as sd-scripts does.",
        on_resume="locked",
        choices=NETWORK_PRESETS,
        advanced=True,
        sets_speed=True,
    )
    factor: int = option(
        -1,
        "LoKr: the size of its small matrix, as nearly as it divides a layer. -1: about the square root of a layer's.",
        low=-1,
        high=4096,
        on_resume="locked",
        advanced=True,
    )
    decompose_both: bool = option(
        False, "LoKr: thin matrices in place of its small matrix too.", on_resume="locked", advanced=True
    )
    use_tucker: bool = option(
        False,
        "LoHa and LoKr: fewer weights for larger kernels (Tucker decomposition).",
        on_resume="locked",
        advanced=True,
        traits=(CONVOLUTIONAL,),
    )
    train_on_input: bool = option(
        False, "(IA)^3: scale what comes into a layer instead of what leaves it.", on_resume="locked", advanced=True
    )
    constraint: float = option(
        0.0, "Diag-OFT: the most that a layer may be rotated (COFT). 0: any.", low=0, on_resume="locked", advanced=True
    )
    rescaled: bool = option(False, "Diag-OFT: train a scale of each output as well.", on_resume="locked", advanced=True)
    block_dims: str = option(
        "",
        "A rank for each block of the U-Net, with commas between them: 25 of SD, 23 of SDXL; 0 leaves a block out.",
        on_resume="locked",
        advanced=True,
        traits=(BLOCKS,),
        sets_speed=True,
    )
    block_alphas: str = option(
        "", "An alpha for each block of block_dims.", on_resume="locked", advanced=True, traits=(BLOCKS,)
    )
    conv_block_dims: str = option(
        "",
        "A rank of the 3x3 convolutions for each block.",
        on_resume="locked",
        advanced=True,
        traits=(BLOCKS,),
        sets_speed=True,
    )
    conv_block_alphas: str = option(
        "",
        "An alpha of the 3x3 convolutions for each block.",
        on_resume="locked",
        advanced=True,
        traits=(BLOCKS,),
        shapes="conv_block_dims",
    )
    down_lr_weight: str = option(
        "",
        "Factors of the learning rate of the blocks on the way down, with commas between them (12 of SD, 9 of SDXL), "
        "or cosine, sine, linear, reverse_linear, zeros (+0.25). Blocks with 0 are not trained.",
        on_resume="locked",
        advanced=True,
        traits=(BLOCKS,),
    )
    mid_lr_weight: str = option(
        "",
        "Factors of the learning rate of the middle blocks: 1 of SD, 3 of SDXL.",
        on_resume="locked",
        advanced=True,
        traits=(BLOCKS,),
    )
    up_lr_weight: str = option(
        "",
        "Factors of the learning rate of the blocks on the way up, like down_lr_weight.",
        on_resume="locked",
        advanced=True,
        traits=(BLOCKS,),
    )
    block_lr_zero_threshold: float = option(
        0.0,
        "Factors of blocks up to this count as 0.",
        low=0,
        on_resume="locked",
        advanced=True,
        traits=(BLOCKS,),
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
    base_weights: tuple[str, ...] = option(
        (),
        "Network files that become part of the base model while this one is trained, such as a training adapter of a "
        "distilled model.",
        on_resume="locked",
        by_content=True,
        advanced=True,
        sets_speed=True,
    )
    base_weights_multiplier: tuple[str, ...] = option(
        (),
        "Strength of each of base_weights. Empty: 1.",
        on_resume="locked",
        advanced=True,
        shapes="base_weights",
    )
    base_weights_in_samples: bool = option(
        True,
        "Draw sample images with base_weights. Without: as the network will be used on the bare model; takes host "
        "memory for the weights that they change.",
        on_resume="free",
        advanced=True,
    )
    dim_from_weights: bool = option(
        False,
        "Take network_dim, network_alpha, conv_dim and conv_alpha from network_weights.",
        on_resume="free",
        advanced=True,
    )
