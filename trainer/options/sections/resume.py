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
        'Checkpoint to continue from: "latest", a step number, or a path. "auto": the latest, or a start from scratch '
        "if the run never saved one. Empty: start from scratch. A state of sd-scripts (its ...-state folder) begins a "
        "new run.",
        on_resume="free",
        path=True,
    )
    resume_allow: tuple[str, ...] = option(
        (),
        'Options that may differ from the checkpoint although this changes the run; "dataset" allows changed '
        'images and captions, "all" everything that can be allowed. A permission is for the first resume that it is '
        "given at: what differs at a later one is asked again, and allowed by the name with the number that the "
        'refusal tells, like "dataset:1f0c55a2".',
        on_resume="free",
    )
    resume_lr_policy: Literal["keep", "stretch", "restart"] = option(
        "keep",
        "Learning rate after a resume: keep the checkpoint's curve, stretch it over the new length, or restart "
        "with a new curve. Decided once: repeating the command changes nothing.",
        on_resume="free",
    )
    resume_lr_scale: float = option(
        1.0,
        "Factor applied to the learning rate from the resumed step on; once, however often the command is repeated.",
        low=0,
        high=1000,
        on_resume="free",
        advanced=True,
    )
    resume_warmup_steps: int = option(
        0, "Warm the learning rate up over n steps after the resume; once.", low=0, on_resume="free", advanced=True
    )
    resume_lr_decision: str = option(
        "",
        "Name of what resume_lr_policy, resume_lr_scale and resume_warmup_steps decide. The same decision is taken "
        "again under another name only.",
        on_resume="free",
        advanced=True,
    )
