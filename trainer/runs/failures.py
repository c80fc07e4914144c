"""Kinds of failure: what each is called, what gives it away and what a person can change. No torch here.

The trainer names the kind when it fails, and the event carries it; only what ended without an event (a process that
died, the console of a start) is recognised by its words.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass


class TrainingFailed(Exception):
    """The training cannot go on; `advice` says what to change. `told`: another process tells it to the user.

    `kind`: the name of one of KINDS, or "" where it is none of them.
    """

    def __init__(self, message: str, advice: str, *, kind: str = "", told: bool = False) -> None:
        super().__init__(message)
        self.advice = advice
        self.kind = kind
        self.told = told


@dataclass(frozen=True)
class Kind:
    """A kind of failure: a regular expression of the words that give it away, in small letters, the errors of the
    system that are of this kind, and what to change, most helpful first."""

    signs: str
    title: str
    ways_out: tuple[str, ...]
    errnos: tuple[int, ...] = ()


KINDS = {
    "memory": Kind(
        r"out ?of ?memory|memoryerror|(cannot|can't) allocate memory|alloc_cpu|alloc_failed|memoryallocation",
        "Memory ran out.",
        (
            "Set gradient_checkpointing = true: slower by a third, a fraction of the memory.",
            "Halve train_batch_size and double gradient_accumulation_steps: the same training in half the memory.",
            "Set optimizer_type = AdamW8bit: its state takes a quarter.",
            "Set cache_latents and cache_text_encoder_outputs = true: the VAE and the text encoder leave the memory.",
            "Lower resolution, or close other programs that use the GPU.",
        ),
        (errno.ENOMEM,),
    ),
    "disk": Kind(
        r"no space left|disk (is )?(too small|full)|enospc|quota exceeded",
        "The disk is full.",
        (
            "Free some space, or choose an output_dir on another disk (Folders).",
            "Keep fewer checkpoints: lower keep_last_n_checkpoints, or save less often (Saving).",
        ),
        (errno.ENOSPC, errno.EDQUOT),
    ),
    "not_finite": Kind(
        r"not finite|no finite|non-?finite|\bnan\b",
        "The loss stopped being a number.",
        (
            "Lower the learning rate, or give it a warm-up (lr_warmup_steps).",
            "With mixed_precision fp16, choose bf16, or turn no_half_vae on.",
            "Look for broken images in the Dataset tab. The checkpoints are sound: resume from the latest.",
        ),
    ),
    "damage": Kind(
        r"damaged|does not match its own digest|sha-256|was changed|never completed",
        "A checkpoint is damaged.",
        (
            "Choose an older one in the Resume tab: Verify there reads every byte of each and says which are sound.",
            "Damage without a crash or a full disk points at the disk or the memory of this machine: check them.",
        ),
    ),
    "probe": Kind(
        r"probe loss",
        "What was loaded does not compute what was saved.",
        (
            "The base model, a package or the machine's memory is not what it was: check the installation.",
            "Or resume an older checkpoint.",
        ),
    ),
    "in_use": Kind(
        r"is in use by process",
        "Another process trains this run.",
        ("Stop that process first, or choose another output_name.",),
    ),
    "exists": Kind(
        r"already holds checkpoints",
        "The run exists already.",
        (
            "To continue it: Resume tab, Continue this run.",
            "To begin a new one: choose another output_name, or turn overwrite_run on, which moves the old one aside.",
        ),
    ),
    "package": Kind(
        r"no module named|importerror|pip install",
        "A package is missing.",
        ("Install it into the environment that runs this page; the log names it.",),
    ),
    "deterministic": Kind(
        r"use_deterministic_algorithms",
        "An operation has no deterministic implementation on this device.",
        ("Set deterministic = false to train all the same; a resumed run is then no longer bit-equal.",),
    ),
    "gpu": Kind(
        r"cuda error|device-side assert|cudnn|no kernel image|hip error",
        "The GPU or its driver failed.",
        (
            "Resume from the latest checkpoint; if it happens again, restart the machine and update the driver.",
            "A torch built for another GPU generation fails like this at once: install the build for yours.",
        ),
    ),
    "permission": Kind(
        r"permission denied|read-only file system|errno 13|errno 30",
        "A file or folder may not be written.",
        ("Give this user the right to write there, or choose another output_dir or cache_dir.",),
        (errno.EACCES, errno.EROFS, errno.EPERM),
    ),
    "download": Kind(
        r"connectionerror|offline mode|could not resolve|couldn't connect|localentrynotfound|hfvalidation",
        "The base model could not be fetched.",
        ("Check the connection and the model's name, or name a folder or .safetensors file on this machine.",),
    ),
}
SEE_LOG = "See console.log for the details. The latest checkpoint is intact and can be resumed."
FILE_TROUBLE = "A file could not be read or written; see console.log. Then resume from the latest checkpoint."


def kind_of_words(text: str) -> str:
    """The kind that a message's words point at; "" where they point at none."""
    small = text.lower()
    return next((name for name, kind in KINDS.items() if re.search(kind.signs, small)), "")


def kind_of(error: BaseException) -> str:
    """The kind of an error: what it says of itself, else its errno, else the words of its type and message.

    The libraries' errors have few types of their own: CUDA's lack of memory is often a plain RuntimeError.
    """
    if isinstance(error, TrainingFailed) and error.kind:
        return error.kind
    if isinstance(error, OSError) and error.errno is not None:
        return next((name for name, kind in KINDS.items() if error.errno in kind.errnos), "")
    return kind_of_words(f"{type(error).__name__}: {error}")


def advice_for(error: BaseException) -> str:
    """What a person can do about an error that ended a training, in a few sentences."""
    if advice := getattr(error, "advice", ""):
        return str(advice)
    if kind := KINDS.get(kind_of(error)):
        return " ".join([kind.title, *kind.ways_out, "Then resume from the latest checkpoint."])
    return FILE_TROUBLE if isinstance(error, OSError) else SEE_LOG
