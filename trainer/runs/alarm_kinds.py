"""Kinds of alarm: why each may be and what a person can do, and the `warning` event that tells of it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of alarm: what it is, why it may be and what helps, the likeliest first."""

    title: str
    reasons: tuple[str, ...]
    ways_out: tuple[str, ...]


KINDS = {
    "divergence": Kind(
        "The training diverges",
        (
            "the learning rate is too high for this batch size, rank or optimizer",
            "images or captions that do not belong there came in",
            "the precision is too low (fp16 overflows)",
        ),
        (
            "Stop, and resume a checkpoint from before the rise with resume_lr_scale = 0.3.",
            "Set max_grad_norm = 1, or a longer lr_warmup_steps.",
            "Compare the samples of the last checkpoints before you go on.",
        ),
    ),
    "loss_drift": Kind(
        "The loss is another one since the resume",
        (
            "options or images were changed with permission: the start of this session names them",
            "the learning rate began anew (resume_lr_policy)",
            "the optimizer's state was not restored (a warm start)",
        ),
        (
            "Where the change was not intended, stop and resume the checkpoint again without it.",
            "Set resume_warmup_steps, or a resume_lr_scale below 1.",
        ),
    ),
    "plateau": Kind(
        "The loss does not fall",
        (
            "the learning rate is too low, or the rank too small, for what the images show",
            "captions do not describe the images",
            "at random timesteps a small gain is hard to see: samples and the validation loss show more",
        ),
        (
            "Compare the samples of an early and a late checkpoint; where they are alike, raise the learning rate.",
            "Hold images out (validation_split) for a loss that can be compared.",
        ),
    ),
    "converged": Kind(
        "The loss has settled",
        ("what can be learned at this learning rate has been learned",),
        (
            "Compare the samples of the last checkpoints; the run can be stopped when they are alike.",
            "A falling learning rate (cosine) brings the last few per cent.",
        ),
    ),
    "exploding_gradients": Kind(
        "The gradients explode",
        (
            "the learning rate is too high",
            "broken images or captions",
            "fp16 overflows",
        ),
        (
            "Lower the learning rate, or set max_grad_norm = 1.",
            "Use bf16 instead of fp16.",
            "Look for broken images in the Dataset tab.",
        ),
    ),
    "vanishing_gradients": Kind(
        "The gradients vanish",
        (
            "the weights left the range in which they learn, often after too high a learning rate",
            "fp16 rounds small gradients to zero",
        ),
        (
            "Resume a checkpoint from before the fall with a lower learning rate.",
            "Use bf16 instead of fp16.",
        ),
    ),
    "no_gradient": Kind(
        "Nothing is trained",
        (
            "the weights that were started from are zero on both sides of a layer",
            "all of the loss is masked out (masked_loss, alpha_mask)",
        ),
        ("Stop; check network_weights and the masks.",),
    ),
    "low_rate": Kind(
        "The learning rate is near zero",
        (
            "the curve of lr_scheduler ends long before the run does",
            "learning_rate or lr_scheduler_power is not what was meant",
        ),
        (
            "Stop here: nothing more will be learned.",
            'Or resume with resume_lr_policy = "stretch" or "restart".',
        ),
    ),
    "slow": Kind(
        "Steps take longer than they did",
        (
            "another program uses the GPU or the CPU",
            "heat has lowered the GPU's clock",
            "the disk or the network that the images come from is busy",
            "the GPU's memory is full, and the driver uses the computer's instead",
        ),
        (
            "Close other programs, and look at the GPU's load, temperature and memory.",
            "Where steps wait for data: cache_latents, cache_latents_to_disk, more max_data_loader_n_workers.",
        ),
    ),
    "slow_images": Kind(
        "The disk hardly keeps up with the training",
        ("the images are on a network drive or a slow disk", "another program uses the same disk"),
        (
            "Set cache_latents_to_disk with cache_dir on a fast disk, or copy the images to one.",
            "More max_data_loader_n_workers help where a drive is far away rather than slow.",
        ),
    ),
    "slow_saves": Kind(
        "Checkpoints take long to write",
        ("output_dir is on a network drive or a slow disk", "checkpoints are large and saved often"),
        (
            "Save less often (save_every_n_steps, save_every_n_minutes): a save waits for the one before it.",
            "Write output_dir to a faster disk, and have checkpoint_mirror copy it to the slow one.",
        ),
    ),
    "disk_small": Kind(
        "There is hardly room for another save",
        ("the run's own checkpoints, samples and model files", "other programs on the same disk"),
        (
            "Free some space; the training goes on, and a save that fails is tried again.",
            "Keep fewer checkpoints: lower keep_last_n_checkpoints, or save less often.",
        ),
    ),
    "disk_filling": Kind(
        "The disk is filling",
        ("the run's own checkpoints, samples and model files", "other programs on the same disk"),
        (
            "Free some space before it is full.",
            "Keep fewer checkpoints: lower keep_last_n_checkpoints, or save less often.",
        ),
    ),
    "gpu_hot": Kind(
        "The GPU is hot",
        ("dust, a fan that stands still, too little air", "a power limit that the cooling does not match"),
        ("Better the cooling, or lower the power limit (nvidia-smi -pl).",),
    ),
    "gpu_throttled": Kind(
        "The GPU is slowed down by heat",
        ("dust, a fan that stands still, too little air",),
        ("Better the cooling, or lower the power limit (nvidia-smi -pl): often it costs less speed than the heat.",),
    ),
    "text_encoder_drift": Kind(
        "The text encoder has moved far from its base",
        (
            "its learning rate is too high: it wants a fraction of the denoiser's",
            "it has been trained for too long",
        ),
        (
            "Lower text_encoder_lr, or train the denoiser only (network_train_unet_only = true).",
            "Look at samples of prompts that have nothing to do with the images: they suffer first.",
        ),
    ),
}


def warning(kind: str, seen: str) -> dict[str, Any]:
    """The fields of the `warning` event: `message` for people, and its parts for a page."""
    facts = KINDS[kind]
    return {
        "kind": kind,
        "message": f"{facts.title}: {seen}. It may be that {'; or '.join(facts.reasons)}. {' '.join(facts.ways_out)}",
        "title": facts.title,
        "seen": seen,
        "reasons": list(facts.reasons),
        "ways_out": list(facts.ways_out),
    }
