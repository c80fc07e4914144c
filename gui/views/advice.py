"""What to do about what went wrong. Words for people; no widget here."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """A kind of failure: the words that give it away, and what to change, most helpful first."""

    signs: str  # a regular expression, for small letters
    name: str
    ways_out: tuple[str, ...]


CAUSES = (
    Cause(
        r"out ?of ?memory|memoryerror|cannot allocate memory|alloc_cpu|cublas_status_alloc_failed",
        "Memory ran out.",
        (
            "Turn gradient_checkpointing on (Training): slower by a third, a fraction of the memory.",
            "Halve train_batch_size and double gradient_accumulation_steps: the same training in half the memory.",
            "Choose optimizer_type AdamW8bit: its state takes a quarter.",
            "Turn cache_latents and cache_text_encoder_outputs on: the VAE and the text encoder leave the memory.",
            "Lower resolution, or close other programs that use the GPU.",
        ),
    ),
    Cause(
        r"no space left|disk (is )?(too small|full)|enospc|quota exceeded",
        "The disk is full.",
        (
            "Free some space, or choose an output_dir on another disk (Folders).",
            "Keep fewer checkpoints: lower keep_last_n_checkpoints, or save less often (Saving).",
        ),
    ),
    Cause(
        r"not finite|no finite|non-?finite|\bnan\b",
        "The loss stopped being a number.",
        (
            "Lower the learning rate, or give it a warm-up (lr_warmup_steps).",
            "With mixed_precision fp16, choose bf16, or turn no_half_vae on.",
            "Look for broken images in the Dataset tab. The checkpoints are sound: resume from the latest.",
        ),
    ),
    Cause(
        r"damaged|does not match its own digest|sha-256|was changed|never completed",
        "A checkpoint is damaged.",
        (
            "Choose an older one in the Resume tab: Verify there reads every byte of each and says which are sound.",
            "Damage without a crash or a full disk points at the disk or the memory of this machine: check them.",
        ),
    ),
    Cause(
        r"probe loss",
        "What was loaded does not compute what was saved.",
        (
            "The base model, a package or the machine's memory is not what it was: check the installation.",
            "Or resume an older checkpoint.",
        ),
    ),
    Cause(
        r"is in use by process",
        "Another process trains this run.",
        ("Stop that process first, or choose another output_name.",),
    ),
    Cause(
        r"already holds checkpoints",
        "The run exists already.",
        (
            "To continue it: Resume tab, Continue this run.",
            "To begin a new one: choose another output_name, or turn overwrite_run on, which moves the old one aside.",
        ),
    ),
    Cause(
        r"no module named|importerror|pip install",
        "A package is missing.",
        ("Install it into the environment that runs this page; the log names it.",),
    ),
    Cause(
        r"cuda error|device-side assert|cudnn|no kernel image|hip error",
        "The GPU or its driver failed.",
        (
            "Resume from the latest checkpoint; if it happens again, restart the machine and update the driver.",
            "A torch built for another GPU generation fails like this at once: install the build for yours.",
        ),
    ),
    Cause(
        r"permission denied|read-only file system|errno 13|errno 30",
        "A file or folder may not be written.",
        ("Give this user the right to write there, or choose another output_dir or cache_dir.",),
    ),
    Cause(
        r"connectionerror|offline mode|could not resolve|couldn't connect|localentrynotfound|hfvalidation",
        "The base model could not be fetched.",
        ("Check the connection and the model's name, or name a folder or .safetensors file on this machine.",),
    ),
)


def cause_of(text: str) -> Cause | None:
    """What the words of a failure point at: the first cause whose signs are in them."""
    small = text.lower()
    return next((cause for cause in CAUSES if re.search(cause.signs, small)), None)


def of_failure(error: str, advice: str = "") -> list[str]:
    """What to change after an error, as sentences; the trainer's own advice where nothing is known here."""
    cause = cause_of(error)
    if cause is None:
        return [advice] if advice else []
    return [f"{cause.name} {cause.ways_out[0]}", *cause.ways_out[1:]]


def of_disappearance(exit_code: int | None) -> str:
    """Why a process may have ended without a message. `exit_code`: minus the signal where that is known."""
    if exit_code in (-9, 137):
        return (
            "It was killed (SIGKILL). Unless that was you, the machine's own memory ran out and the system chose this "
            "process: lower max_data_loader_n_workers and train_batch_size, or close other programs."
        )
    if exit_code in (-11, -7, -4, 139):
        return "It crashed inside a library (a segmentation fault or the like): a driver or a package is at fault."
    return "It was killed, it crashed, or the power failed."
