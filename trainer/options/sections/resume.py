"""The options of the section Resume. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.options.declaration import option


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Resume"""

    resume_from_checkpoint: str = option(
        "",
        'Checkpoint to continue from: "latest", a step number, or a path. Empty: start from scratch.',
        on_resume="free",
        path=True,
    )
    resume_allow: tuple[str, ...] = option(
        (),
        'Options that may differ from the checkpoint although this changes the run; "dataset" allows changed '
        'images and captions, "all" everything that can be allowed.',
        on_resume="free",
    )
    resume_lr_policy: Literal["keep", "stretch", "restart"] = option(
        "keep",
        "Learning rate after a resume: keep the checkpoint's curve, stretch it over the new length, or restart "
        "with a new curve.",
        on_resume="free",
    )
    resume_lr_scale: float = option(
        1.0,
        "Factor applied to the learning rate from the resumed step on.",
        low=0,
        high=1000,
        on_resume="free",
        advanced=True,
    )
    resume_warmup_steps: int = option(
        0, "Warm the learning rate up over n steps after the resume.", low=0, on_resume="free", advanced=True
    )
