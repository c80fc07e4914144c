"""The options of the section Saving. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.options.declaration import option
from trainer.options.sections.training import FINETUNE

VALIDATION_LOSS = "validation_loss"
# What the best checkpoint can be told by, and what is better: besides the first, figures of python -m trainer evaluate.
BEST_BY: dict[str, Literal["lower", "higher"]] = {
    VALIDATION_LOSS: "lower",
    "fid": "lower",
    "kid": "lower",
    "inception_score": "higher",
    "precision": "higher",
    "recall": "higher",
    "clip_score": "higher",
    "clip_retrieval": "higher",
    "clip_similarity": "higher",
    "dino_similarity": "higher",
    "memorised": "lower",
}


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Saving"""

    save_every_n_steps: int = option(0, "Save every n steps. 0: not by steps.", low=0, on_resume="free")
    save_every_n_epochs: int = option(0, "Save every n epochs. 0: not by epochs.", low=0, on_resume="free")
    save_every_n_minutes: float = option(
        10.0,
        "Write a checkpoint, but no model file, when the last one is n minutes old. 0: not by time.",
        low=0,
        on_resume="free",
    )
    save_state: bool = option(
        True, "Write a checkpoint with every save, so that the run can be resumed there.", on_resume="free"
    )
    save_precision: Literal["float", "fp16", "bf16"] = option("fp16", "Precision of the model files.", on_resume="free")
    save_model_as: Literal["safetensors", "diffusers"] = option(
        "safetensors",
        "A fine-tuned model as one .safetensors file, or as a diffusers folder, <name>-diffusers.",
        on_resume="free",
        kinds=(FINETUNE,),
    )
    keep_last_n_checkpoints: int = option(
        3, "Number of newest checkpoints to keep. 0: all of them.", low=0, on_resume="free"
    )
    keep_every_n_steps: int = option(
        0, "Also keep checkpoints at multiples of n steps. 0: none.", low=0, on_resume="free", advanced=True
    )
    save_last_n_steps_state: int = option(
        0, "Also keep the checkpoints of the last n steps. 0: none.", low=0, on_resume="free", advanced=True
    )
    save_last_n_epochs_state: int = option(
        0, "Also keep the checkpoints of the last n epochs. 0: none.", low=0, on_resume="free", advanced=True
    )
    keep_best_checkpoint: bool = option(
        True,
        "Also keep the checkpoint with the lowest validation loss, or the best by another figure (best_checkpoint_by). "
        "Without validation images none counts as the best: the training loss depends more on the timesteps drawn than "
        "on the weights.",
        on_resume="free",
        advanced=True,
    )
    best_checkpoint_by: str = option(
        VALIDATION_LOSS,
        "What the best checkpoint is told by. All but validation_loss are figures of `python -m trainer evaluate`, "
        "which has to be run on the checkpoints, while the training goes on or after it; until then none is the best.",
        on_resume="free",
        advanced=True,
        choices=tuple(BEST_BY),
    )
    save_last_n_steps: int = option(
        0,
        "Delete model files saved by steps when they are more than n steps old. 0: never.",
        low=0,
        on_resume="free",
        advanced=True,
    )
    save_last_n_epochs: int = option(
        0,
        "Delete model files saved by epochs when they are n or more epochs old. 0: never.",
        low=0,
        on_resume="free",
        advanced=True,
    )
    checkpoint_mirror: str = option(
        "",
        "Copy every checkpoint and model file to a second place while training: a folder, or an address like "
        "s3://bucket/folder, gs://, hf:// or ssh://. Another machine continues from there with "
        'resume_from_checkpoint = "latest" or "auto". Credentials come from the environment. Empty: nowhere.',
        on_resume="free",
    )
    no_metadata: bool = option(
        False, "Write only the necessary metadata to the model file.", on_resume="free", advanced=True
    )
    training_comment: str = option(
        "", "Comment stored in the model file.", on_resume="free", advanced=True, in_header=True
    )
    metadata_title: str = option("", "Title in the model file. Empty: output_name.", on_resume="free", advanced=True)
    metadata_author: str = option("", "Author in the model file.", on_resume="free", advanced=True)
    metadata_description: str = option("", "Description in the model file.", on_resume="free", advanced=True)
    metadata_license: str = option("", "Licence in the model file.", on_resume="free", advanced=True)
    metadata_tags: str = option("", "Tags in the model file, comma-separated.", on_resume="free", advanced=True)
