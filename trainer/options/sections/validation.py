"""The options of the section Validation. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.options.declaration import option


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Validation"""

    validation_split: float = option(
        0.0,
        "Share of the images that is held out of the training to measure progress. An image's content decides "
        "whether it is held out, so adding images never moves the others.",
        low=0,
        high=0.9,
        on_resume="trajectory",
        in_header=True,
        scope="dataset",
    )
    validation_data_dir: str = option(
        "",
        "Folder of images that are used only to measure progress, laid out like train_data_dir. Copies of them "
        "are left out of the training.",
        on_resume="trajectory",
        by_content=True,
        address=True,
    )
    validation_seed: int | None = option(
        None,
        "Seed of the split and of the noise that validation uses. Empty: seed.",
        low=0,
        high=2**63 - 1,
        on_resume="trajectory",
        in_header=True,
        advanced=True,
        scope="dataset",
    )
    validate_every_n_steps: int = option(
        0, "Validate every n steps. 0: not by steps.", low=0, on_resume="free", in_header=True
    )
    validate_every_n_epochs: int = option(
        0,
        "Validate every n epochs. 0: every epoch, unless validate_every_n_steps is set.",
        low=0,
        on_resume="free",
        in_header=True,
    )
    validate_at_resume: bool = option(
        True,
        "Measure the validation loss also right after a resume, and compare it with the last one before. It is not "
        "counted by early stopping.",
        on_resume="free",
        advanced=True,
    )
    max_validation_steps: int = option(
        0,
        "Maximum number of batches in a validation. 0: all of them.",
        low=0,
        on_resume="free",
        in_header=True,
        advanced=True,
    )
    early_stopping_patience: int = option(
        0,
        "End the run after this many validations in a row without a better loss. 0: never.",
        low=0,
        on_resume="free",
    )
    early_stopping_min_delta: float = option(
        0.0,
        "A validation loss counts as better when it is lower by more than this.",
        low=0,
        on_resume="free",
        advanced=True,
    )
