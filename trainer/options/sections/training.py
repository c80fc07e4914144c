"""The options of the section Training. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.models.families.facts import TRAINS_ENCODERS, TWO_ENCODERS
from trainer.options.declaration import option
from trainer.options.optimizer_table import IMPORT_PATH, OPTIMIZERS

NETWORK, FINETUNE, TEXTUAL_INVERSION = "network", "finetune", "textual_inversion"
LrScheduler = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "warmup_stable_decay",
    "piecewise_constant",
    "reduce_lr_on_plateau",
    "adafactor",
]
LrSchedulerType = Literal[
    "",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "StepLR",
    "MultiStepLR",
    "ConstantLR",
    "LinearLR",
    "PolynomialLR",
]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training"""

    training_kind: Literal["network", "finetune", "textual_inversion"] = option(
        NETWORK,
        "What is trained: a network beside the frozen base model (a LoRA as a rule), the base model itself "
        "(fine-tuning and DreamBooth), or a new word of its text encoders; docs/finetune.md says what that takes.",
        on_resume="locked",
        sets_speed=True,
    )
    train_text_encoder: bool = option(
        False,
        "Fine-tune the text encoders as well, at text_encoder_lr.",
        on_resume="locked",
        sets_speed=True,
        traits=(TRAINS_ENCODERS,),
        kinds=(FINETUNE,),
    )
    stop_text_encoder_training: float = option(
        0.0,
        "Step after which the text encoders stay as they are, or below 1 as a share of all steps. 0: never.",
        low=0,
        on_resume="trajectory",
        traits=(TRAINS_ENCODERS,),
        advanced=True,
    )
    max_train_steps: int = option(
        1600, "Length of the run in steps. Raise it to extend a finished run.", low=1, on_resume="free"
    )
    max_train_epochs: int | None = option(
        None, "Length of the run in epochs; replaces max_train_steps.", low=1, on_resume="free"
    )
    train_batch_size: int = option(
        1,
        "Number of images each device trains at a time.",
        low=1,
        on_resume="trajectory",
        scope="dataset",
        sets_speed=True,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Number of micro-batches accumulated into one step.",
        low=1,
        on_resume="trajectory",
        sets_speed=True,
        in_header=True,
    )
    learning_rate: float = option(
        1e-4,
        "Learning rate at the peak of its curve.",
        low=0,
        high=100,
        on_resume="trajectory",
        in_header=True,
    )
    unet_lr: float | None = option(
        None,
        "Learning rate of the U-Net. Empty: learning_rate.",
        low=0,
        high=100,
        on_resume="trajectory",
        in_header=True,
    )
    text_encoder_lr: float | None = option(
        None,
        "Learning rate of the text encoder, or of the first of two. Empty: learning_rate.",
        low=0,
        high=100,
        on_resume="trajectory",
        in_header=True,
        traits=(TRAINS_ENCODERS,),
    )
    text_encoder_lr2: float | None = option(
        None,
        "Learning rate of the second text encoder. Empty: text_encoder_lr. sd-scripts writes both in text_encoder_lr.",
        low=0,
        high=100,
        on_resume="trajectory",
        traits=(TWO_ENCODERS,),
    )
    lr_scheduler: LrScheduler = option(
        "constant", "Shape of the learning rate curve.", on_resume="trajectory", in_header=True
    )
    lr_warmup_steps: float = option(
        0.0, "Warm-up in steps, or below 1 as a share of all steps.", low=0, on_resume="trajectory"
    )
    lr_scheduler_num_cycles: int = option(
        1,
        "Cycles of cosine_with_restarts; half waves of cosine_with_min_lr and warmup_stable_decay.",
        low=1,
        on_resume="trajectory",
        advanced=True,
    )
    lr_scheduler_power: float = option(
        1.0, "Power of the polynomial curve.", low=0, on_resume="trajectory", advanced=True
    )
    lr_decay_steps: float = option(
        0.0,
        "Length of warmup_stable_decay's fall in steps, or below 1 as a share of all steps.",
        low=0,
        on_resume="trajectory",
        advanced=True,
    )
    lr_scheduler_timescale: int | None = option(
        None,
        "Steps after which inverse_sqrt has fallen to its first part. Empty: those of the warm-up, or 10,000.",
        low=1,
        on_resume="trajectory",
        advanced=True,
    )
    lr_scheduler_min_lr_ratio: float | None = option(
        None,
        "What is left of the learning rate at the end of cosine_with_min_lr and warmup_stable_decay, as a share.",
        low=0,
        high=1,
        on_resume="trajectory",
        advanced=True,
    )
    lr_scheduler_type: LrSchedulerType = option(
        "",
        "One of PyTorch's learning rate schedulers, which takes the place of lr_scheduler and of the warm-up.",
        on_resume="trajectory",
        advanced=True,
    )
    lr_scheduler_args: tuple[str, ...] = option(
        (),
        "Arguments of lr_scheduler or lr_scheduler_type, as name=value.",
        on_resume="trajectory",
        advanced=True,
    )
    optimizer_type: str = option(
        "AdamW",
        "Optimizer; or the class of another one, as package.module.Class.",
        on_resume="locked",
        sets_speed=True,
        choices=tuple(OPTIMIZERS),
        pattern=IMPORT_PATH.pattern,
    )
    optimizer_args: tuple[str, ...] = option(
        (), "Additional arguments of the optimizer, as name=value.", on_resume="trajectory", advanced=True
    )
    max_grad_norm: float = option(
        1.0, "Clip the gradient to this norm. 0: no clipping.", low=0, on_resume="trajectory", in_header=True
    )
    seed: int = option(42, "Seed of every random draw.", low=0, high=2**63 - 1, on_resume="trajectory", in_header=True)
    mixed_precision: Literal["no", "fp16", "bf16"] = option(
        "no",
        "Precision of the forward and backward pass.",
        on_resume="trajectory",
        sets_speed=True,
        in_header=True,
    )
    full_bf16: bool = option(
        False,
        "Hold what is trained, and its gradients, in bf16: half of the memory. Each update is rounded up or down by "
        "chance, with odds that make it right on average, so that small ones are not lost. Needs mixed_precision = "
        "bf16.",
        on_resume="trajectory",
        sets_speed=True,
    )
    no_half_vae: bool = option(
        False, "Run the VAE in fp32 under mixed precision.", on_resume="trajectory", advanced=True
    )
    gradient_checkpointing: bool = option(
        False,
        "Save memory by computing activations twice; slower.",
        on_resume="trajectory",
        sets_speed=True,
        in_header=True,
    )
    use_ema: bool = option(
        False,
        "Keep an exponential moving average of the weights and export it in their place.",
        on_resume="locked",
        sets_speed=True,
    )
    ema_decay: float = option(
        0.999,
        "Decay of the moving average.",
        low=0,
        high=1,
        on_resume="trajectory",
        advanced=True,
        shapes="use_ema",
    )
    deterministic: bool = option(
        True,
        "Use deterministic GPU kernels. Without it a resumed run on a GPU is not bit-equal.",
        on_resume="trajectory",
        advanced=True,
    )
    max_nonfinite_steps: int = option(
        20,
        "Stop after this many steps in a row without a finite loss and gradient.",
        low=1,
        on_resume="free",
        advanced=True,
    )
