"""The options of the section Memory. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.options.declaration import option


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory"""

    fp8_base: bool = option(
        False,
        "Hold the frozen weights of the denoiser's blocks in 8-bit floats (e4m3) and compute in the precision of the "
        "training: half of what they take in bf16. Needs gradient_checkpointing.",
        on_resume="trajectory",
        sets_speed=True,
    )
    quantize: Literal["no", "int8", "nf4", "int8wo"] = option(
        "no",
        "Quantise the denoiser's frozen linear layers while loading. int8 and nf4 (bitsandbytes) need a GPU and leave "
        "a half and 0.26 of their size in bf16; int8wo (torchao) leaves a half, on any device.",
        on_resume="trajectory",
        sets_speed=True,
    )
    base_gguf: str = option(
        "",
        "GGUF file with the denoiser's frozen weights, used instead of the base model's own; what else the model is "
        "made of still comes from pretrained_model_name_or_path, a diffusers folder.",
        on_resume="locked",
        by_content=True,
        advanced=True,
    )
    blocks_to_swap: int = option(
        0,
        "How many of the denoiser's repeated blocks keep their frozen weights in the host's memory and are copied to "
        "the GPU when they compute. Bit-equal; slower by what copying does not overlap. Needs gradient_checkpointing.",
        low=0,
        on_resume="free",
        sets_speed=True,
    )
    cpu_offload_checkpointing: bool = option(
        False,
        "Keep in the host's memory what gradient_checkpointing keeps of the forward pass. Bit-equal; slower.",
        on_resume="free",
        sets_speed=True,
        advanced=True,
    )
    torch_compile: bool = option(
        False,
        "Compile the denoiser's repeated blocks: the first step of each bucket takes minutes, later ones are faster.",
        on_resume="trajectory",
        sets_speed=True,
        advanced=True,
    )
    dynamo_backend: Literal["inductor", "eager", "aot_eager", "cudagraphs", "no"] = option(
        "inductor", "What torch_compile compiles with.", on_resume="trajectory", sets_speed=True, advanced=True
    )
    dynamo_mode: Literal["default", "reduce-overhead", "max-autotune"] = option(
        "default", "How inductor compiles.", on_resume="trajectory", sets_speed=True, advanced=True
    )
