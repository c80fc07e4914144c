"""The options of the section Logging. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.options.declaration import option


@dataclass(frozen=True, kw_only=True)
class Logging:
    """Logging"""

    log_with: Literal["none", "tensorboard", "wandb", "all"] = option(
        "none",
        "Also send curves and samples to TensorBoard or Weights & Biases. none: to TensorBoard if logging_dir is set. "
        "The key of Weights & Biases comes from the environment (WANDB_API_KEY) or from wandb login.",
        on_resume="free",
    )
    logging_dir: str = option(
        "",
        "Folder of TensorBoard's files, in which each run has one of its name. Empty: the run folder.",
        on_resume="free",
        path=True,
    )
    log_prefix: str = option("", "Put before the run's name in logging_dir.", on_resume="free", advanced=True)
    log_tracker_name: str = option("", "Project in Weights & Biases. Empty: rekindle.", on_resume="free", advanced=True)
    wandb_run_name: str = option(
        "", "Name of the run in Weights & Biases. Empty: output_name.", on_resume="free", advanced=True
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names of the trackers that are asked for, as accelerate has them."""
        if self.log_with == "none":
            return ("tensorboard",) if self.logging_dir else ()
        return ("tensorboard", "wandb") if self.log_with == "all" else (self.log_with,)
