"""Every option, declared once; TOML, command line and form values become one checked, frozen Config. No torch here."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import json
import re
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import toml

from trainer import files
from trainer.options import sd_scripts
from trainer.refusal import Refused

OnResume = Literal["locked", "trajectory", "free"]
FAMILIES = ("sd",)


@dataclass(frozen=True)
class Option:
    """One option of the config, as declared by a field of a section."""

    name: str
    section: str  # the section's heading
    kind: Literal["bool", "int", "float", "str", "choice", "list"]
    default: Any
    help: str
    optional: bool  # None means "not given" and is only ever a default
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    on_resume: OnResume
    by_content: bool  # a path whose content, not its spelling, is compared on resume
    path: bool  # names a file or folder: a leading ~ means the user's home
    advanced: bool  # the form shows it in the advanced half of its section
    families: tuple[str, ...]


def option(
    default: Any,
    help: str,
    *,
    on_resume: OnResume,
    low: float | None = None,
    high: float | None = None,
    by_content: bool = False,
    path: bool = False,
    advanced: bool = False,
    families: tuple[str, ...] = FAMILIES,
) -> Any:
    """Declare an option. `on_resume` says what a changed value means for a checkpoint:
    locked (cannot be loaded), trajectory (loads, but the run would differ) or free (cannot change the training)."""
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "on_resume": on_resume,
        "by_content": by_content,
        "path": path or by_content,
        "advanced": advanced,
        "families": families,
    }
    return dataclasses.field(default=default, metadata=metadata)


LrScheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
OptimizerType = Literal["AdamW", "AdamW8bit", "Adafactor", "Lion", "Prodigy", "SGDNesterov"]
Interpolation = Literal["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"]
Sampler = Literal[
    "ddim",
    "pndm",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "dpm_2",
    "dpm_2_a",
    "dpmsolver",
    "dpmsolver++",
    "dpmsingle",
    "unipc",
]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Model"""

    family: Literal["sd"] = option("sd", "Architecture of the base model.", on_resume="locked")
    pretrained_model_name_or_path: str = option(
        "",
        "Base model: a diffusers folder, a single .safetensors file, or a Hugging Face id.",
        on_resume="locked",
        by_content=True,
    )
    single_file_config: str = option(
        "",
        "Diffusers folder that describes a single-file model (its configs and tokenizer). Empty: downloaded from "
        "Hugging Face, which needs a connection.",
        on_resume="locked",
        by_content=True,
        advanced=True,
    )
    vae: str = option(
        "",
        "VAE to use instead of the model's own: a diffusers folder or a .safetensors file.",
        on_resume="locked",
        by_content=True,
        advanced=True,
    )
    v_parameterization: bool = option(
        False,
        "Train with v-prediction (SD 2.x 768). A model whose scheduler is set to v_prediction always trains that way.",
        on_resume="locked",
    )
    clip_skip: int | None = option(
        None,
        "Use the output of the text encoder's n-th layer from the end. Empty: the last layer.",
        low=1,
        high=12,
        on_resume="trajectory",
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Folders"""

    train_data_dir: str = option(
        "",
        "Folder of training images with their caption files: either subfolders named <repeats>_<class>, or images "
        "directly inside.",
        on_resume="trajectory",
        by_content=True,
    )
    reg_data_dir: str = option(
        "",
        "Regularisation images of the class in general, laid out like train_data_dir. Each epoch uses as many of "
        "them as there are training samples.",
        on_resume="trajectory",
        by_content=True,
    )
    dataset_config: str = option(
        "",
        "TOML file in sd-scripts' format that describes several datasets and folders, each with its own options. "
        "train_data_dir and reg_data_dir are then ignored.",
        on_resume="trajectory",
        by_content=True,
        advanced=True,
    )
    conditioning_data_dir: str = option(
        "",
        "Folder of masks for masked_loss: pictures with the names of the images, white where the image is to be "
        "learned, black where it is not.",
        on_resume="trajectory",
        by_content=True,
        advanced=True,
    )
    in_json: str = option(
        "",
        "Captions in one file for images without a caption file: kohya's metadata (.json), or rows with file_name "
        "and a caption column (.jsonl, .csv, .parquet). A metadata.jsonl, .csv or .parquet inside a folder is "
        "found automatically.",
        on_resume="trajectory",
        by_content=True,
        advanced=True,
    )
    output_dir: str = option("output", "Where model files and run folders are written.", on_resume="free", path=True)
    output_name: str = option(
        "last", "Name of the run and of its model files (no path, no extension).", on_resume="free"
    )
    cache_dir: str = option(
        "",
        "Where cached latents and text encoder outputs are kept. Empty: a folder inside output_dir.",
        on_resume="free",
        path=True,
        advanced=True,
    )
    overwrite_run: bool = option(
        False,
        "Start from scratch even if a run of this name has checkpoints; the old run folder is moved aside, never "
        "deleted.",
        on_resume="free",
    )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Dataset"""

    resolution: str = option("512", 'Training resolution in pixels: "512" or "width,height".', on_resume="trajectory")
    enable_bucket: bool = option(
        False,
        "Keep each image's aspect ratio by grouping images into buckets of about the same area. Off: crop every "
        "image to resolution.",
        on_resume="trajectory",
    )
    min_bucket_reso: int = option(256, "Shortest side of a bucket, in pixels.", low=8, on_resume="trajectory")
    max_bucket_reso: int = option(1024, "Longest side of a bucket, in pixels.", low=8, on_resume="trajectory")
    bucket_reso_steps: int = option(
        64, "Bucket sides are multiples of this many pixels.", low=8, on_resume="trajectory", advanced=True
    )
    bucket_no_upscale: bool = option(
        False, "Never enlarge an image; buckets follow each image's own size.", on_resume="trajectory"
    )
    resize_interpolation: Interpolation = option(
        "lanczos", "How images are scaled to their bucket.", on_resume="trajectory", advanced=True
    )
    dataset_repeats: int = option(
        1,
        "How often an epoch uses each image that is not in a folder named <repeats>_<class>.",
        low=1,
        on_resume="trajectory",
        advanced=True,
    )
    prior_loss_weight: float = option(
        1.0, "Weight of regularisation images in the loss.", low=0, on_resume="trajectory", advanced=True
    )
    caption_extension: str = option(
        ".txt",
        "Extension of the caption files, or several separated by commas; the first one for which there is a file "
        "is used.",
        on_resume="trajectory",
    )
    caption_column: str = option(
        "text", "Name of the caption column or key in metadata files.", on_resume="trajectory", advanced=True
    )
    shuffle_caption: bool = option(
        False, "Shuffle the parts of a caption each time it is used.", on_resume="trajectory"
    )
    caption_separator: str = option(
        ",", "What separates the parts of a caption.", on_resume="trajectory", advanced=True
    )
    keep_tokens: int = option(0, "Leave the first n parts of a caption in place.", low=0, on_resume="trajectory")
    keep_tokens_separator: str = option(
        "",
        "Marker in captions, such as |||: what stands before the first one, or after a second one, stays in "
        "place. Where it appears, keep_tokens is ignored.",
        on_resume="trajectory",
        advanced=True,
    )
    secondary_separator: str = option(
        "",
        "Marker, such as ;;;, between parts that are shuffled and dropped as one; afterwards it is replaced by "
        "caption_separator.",
        on_resume="trajectory",
        advanced=True,
    )
    enable_wildcard: bool = option(
        False,
        "At every use, choose one line of the caption and one of each {a|b|c}; {{ and }} stand for braces.",
        on_resume="trajectory",
        advanced=True,
    )
    caption_prefix: str = option(
        "",
        "Text added before every caption; it takes part in shuffling and counts for keep_tokens.",
        on_resume="trajectory",
        advanced=True,
    )
    caption_suffix: str = option(
        "",
        "Text added after every caption; it takes part in shuffling and counts for keep_tokens.",
        on_resume="trajectory",
        advanced=True,
    )
    caption_dropout_rate: float = option(
        0.0, "Share of images trained with an empty caption.", low=0, high=1, on_resume="trajectory"
    )
    caption_dropout_every_n_epochs: int = option(
        0, "Train every n-th epoch with empty captions. 0: never.", low=0, on_resume="trajectory", advanced=True
    )
    caption_tag_dropout_rate: float = option(
        0.0,
        "Share of caption parts that are dropped (those held by keep_tokens stay).",
        low=0,
        high=1,
        on_resume="trajectory",
        advanced=True,
    )
    token_warmup_min: int = option(
        1,
        "Number of caption parts used at the start of token_warmup_step.",
        low=1,
        on_resume="trajectory",
        advanced=True,
    )
    token_warmup_step: float = option(
        0.0,
        "Steps over which captions grow to all their parts; below 1, a share of all steps. 0: whole from the start.",
        low=0,
        on_resume="trajectory",
        advanced=True,
    )
    weighted_captions: bool = option(
        False,
        "Treat (word:1.2), (word) and [word] in captions as emphasis instead of text.",
        on_resume="trajectory",
        advanced=True,
    )
    max_token_length: int = option(
        75,
        "Maximum number of tokens in a caption: 75, 150 or 225. The rest is cut off.",
        low=75,
        high=225,
        on_resume="trajectory",
        advanced=True,
    )
    flip_aug: bool = option(False, "Mirror images horizontally at random.", on_resume="trajectory")
    random_crop: bool = option(False, "Crop at a random place instead of the centre.", on_resume="trajectory")
    color_aug: bool = option(
        False, "Shift the hue or brightness slightly in a third of the uses.", on_resume="trajectory", advanced=True
    )
    face_crop_aug_range: str = option(
        "",
        'Crop around the face: the smallest and the largest side of the crop, in face sizes, like "2.0,4.0". Only '
        "for images whose names end with the face's centre x, centre y, width and height in pixels, like "
        "me_120_80_64_64.png, and only without buckets.",
        on_resume="trajectory",
        advanced=True,
    )
    alpha_mask: bool = option(
        False,
        "Weight the loss by the images' own transparency: transparent parts are not learned.",
        on_resume="trajectory",
    )
    masked_loss: bool = option(
        False, "Weight the loss by the masks in conditioning_data_dir.", on_resume="trajectory", advanced=True
    )
    cache_latents: bool = option(
        False, "Encode every image once and keep the latents; the VAE then leaves GPU memory.", on_resume="trajectory"
    )
    cache_latents_to_disk: bool = option(
        False, "Keep cached latents on disk for the next session and other runs.", on_resume="free"
    )
    vae_batch_size: int = option(
        1, "Images encoded at a time while caching.", low=1, on_resume="trajectory", advanced=True
    )
    cache_text_encoder_outputs: bool = option(
        False,
        "Encode every caption once; the text encoder then leaves GPU memory. Needs captions that do not vary.",
        on_resume="trajectory",
    )
    cache_text_encoder_outputs_to_disk: bool = option(
        False, "Keep cached text encoder outputs on disk.", on_resume="free", advanced=True
    )
    text_encoder_batch_size: int = option(
        16, "Captions encoded at a time while caching.", low=1, high=4096, on_resume="trajectory", advanced=True
    )
    cache_only: bool = option(
        False,
        "Fill the caches on disk and stop without training, so that a later run starts at once.",
        on_resume="free",
        advanced=True,
    )
    max_data_loader_n_workers: int = option(
        2,
        "Threads that prepare the next batches. 0: prepare them in the training thread.",
        low=0,
        high=64,
        on_resume="free",
        advanced=True,
    )


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
    )
    validation_data_dir: str = option(
        "",
        "Folder of images that are used only to measure progress, laid out like train_data_dir. Copies of them "
        "are left out of the training.",
        on_resume="trajectory",
        by_content=True,
    )
    validation_seed: int | None = option(
        None,
        "Seed of the split and of the noise that validation uses. Empty: seed.",
        low=0,
        high=2**63 - 1,
        on_resume="trajectory",
        advanced=True,
    )
    validate_every_n_steps: int = option(0, "Validate every n steps. 0: not by steps.", low=0, on_resume="free")
    validate_every_n_epochs: int = option(
        0,
        "Validate every n epochs. 0: every epoch, unless validate_every_n_steps is set.",
        low=0,
        on_resume="free",
    )
    max_validation_steps: int = option(
        0,
        "Maximum number of batches in a validation. 0: all of them.",
        low=0,
        on_resume="free",
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


@dataclass(frozen=True, kw_only=True)
class Network:
    """Network"""

    network_dim: int = option(16, "Rank of the LoRA layers.", low=1, high=1024, on_resume="locked")
    network_alpha: float = option(
        1.0,
        "The LoRA is scaled by alpha / rank. 0: alpha is the same as the rank.",
        low=0,
        high=4096,
        on_resume="locked",
    )
    network_dropout: float = option(
        0.0, "Share of LoRA channels left out at each step.", low=0, high=0.99, on_resume="trajectory"
    )
    conv_dim: int | None = option(
        None,
        "Rank of LoRA layers on the 3x3 convolutions. Empty: none there.",
        low=1,
        high=1024,
        on_resume="locked",
        advanced=True,
    )
    conv_alpha: float = option(
        1.0,
        "Alpha of the convolution layers. 0: the same as their rank.",
        low=0,
        high=4096,
        on_resume="locked",
        advanced=True,
    )
    network_train_unet_only: bool = option(False, "Train the U-Net, not the text encoder.", on_resume="locked")
    network_train_text_encoder_only: bool = option(
        False, "Train the text encoder, not the U-Net.", on_resume="locked", advanced=True
    )
    network_weights: str = option(
        "",
        "LoRA file to start from (weights only; the step count, optimizer and learning rate start anew).",
        on_resume="free",
        path=True,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training"""

    max_train_steps: int = option(
        1600, "Length of the run in steps. Raise it to extend a finished run.", low=1, on_resume="free"
    )
    max_train_epochs: int | None = option(
        None, "Length of the run in epochs; replaces max_train_steps.", low=1, on_resume="free"
    )
    train_batch_size: int = option(1, "Number of images each device trains at a time.", low=1, on_resume="trajectory")
    gradient_accumulation_steps: int = option(
        1, "Number of micro-batches accumulated into one step.", low=1, on_resume="trajectory"
    )
    learning_rate: float = option(
        1e-4, "Learning rate at the peak of its curve.", low=0, high=100, on_resume="trajectory"
    )
    unet_lr: float | None = option(
        None, "Learning rate of the U-Net. Empty: learning_rate.", low=0, high=100, on_resume="trajectory"
    )
    text_encoder_lr: float | None = option(
        None, "Learning rate of the text encoder. Empty: learning_rate.", low=0, high=100, on_resume="trajectory"
    )
    lr_scheduler: LrScheduler = option("constant", "Shape of the learning rate curve.", on_resume="trajectory")
    lr_warmup_steps: float = option(
        0.0, "Warm-up in steps, or below 1 as a share of all steps.", low=0, on_resume="trajectory"
    )
    lr_scheduler_num_cycles: int = option(
        1, "Cycles of cosine_with_restarts.", low=1, on_resume="trajectory", advanced=True
    )
    lr_scheduler_power: float = option(
        1.0, "Power of the polynomial curve.", low=0, on_resume="trajectory", advanced=True
    )
    optimizer_type: OptimizerType = option("AdamW", "Optimizer.", on_resume="locked")
    optimizer_args: tuple[str, ...] = option(
        (), "Additional arguments of the optimizer, as name=value.", on_resume="trajectory", advanced=True
    )
    max_grad_norm: float = option(1.0, "Clip the gradient to this norm. 0: no clipping.", low=0, on_resume="trajectory")
    seed: int = option(42, "Seed of every random draw.", low=0, high=2**63 - 1, on_resume="trajectory")
    mixed_precision: Literal["no", "fp16", "bf16"] = option(
        "no", "Precision of the forward and backward pass.", on_resume="trajectory"
    )
    no_half_vae: bool = option(
        False, "Run the VAE in fp32 under mixed precision.", on_resume="trajectory", advanced=True
    )
    gradient_checkpointing: bool = option(
        False, "Save memory by computing activations twice; slower.", on_resume="trajectory"
    )
    use_ema: bool = option(
        False, "Keep an exponential moving average of the weights and export it in their place.", on_resume="locked"
    )
    ema_decay: float = option(
        0.999, "Decay of the moving average.", low=0, high=1, on_resume="trajectory", advanced=True
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


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Loss and noise"""

    loss_type: Literal["l2", "l1", "huber", "smooth_l1"] = option("l2", "Loss function.", on_resume="trajectory")
    huber_schedule: Literal["constant", "exponential", "snr"] = option(
        "snr", "How huber_c follows the timestep.", on_resume="trajectory", advanced=True
    )
    huber_c: float = option(
        0.1, "Where huber and smooth_l1 turn from quadratic to linear.", low=1e-6, on_resume="trajectory", advanced=True
    )
    huber_scale: float = option(1.0, "Factor on huber_c.", low=1e-6, on_resume="trajectory", advanced=True)
    min_snr_gamma: float | None = option(
        None, "Min-SNR weighting of the loss; 5 is usual. Empty or 0: off.", low=0, on_resume="trajectory"
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False, "Weight the v-prediction loss like noise prediction.", on_resume="trajectory", advanced=True
    )
    v_pred_like_loss: float | None = option(
        None, "Add a v-prediction-like loss with this weight.", low=0, on_resume="trajectory", advanced=True
    )
    debiased_estimation_loss: bool = option(False, "Debiased estimation loss.", on_resume="trajectory", advanced=True)
    noise_offset: float | None = option(
        None,
        "Strength of a random offset of the noise in each channel, for darker and lighter images. Empty: off.",
        low=0,
        high=1,
        on_resume="trajectory",
    )
    noise_offset_random_strength: bool = option(
        False, "Draw the offset's strength at random between 0 and noise_offset.", on_resume="trajectory", advanced=True
    )
    adaptive_noise_scale: float | None = option(
        None, "Add the latents' absolute mean, times this, to noise_offset.", on_resume="trajectory", advanced=True
    )
    multires_noise_iterations: int = option(
        0, "Layers of multi-resolution noise. 0: off.", low=0, high=64, on_resume="trajectory", advanced=True
    )
    multires_noise_discount: float = option(
        0.3, "How fast those layers fade.", low=0, high=1, on_resume="trajectory", advanced=True
    )
    ip_noise_gamma: float | None = option(
        None, "Input perturbation noise; 0.1 is usual. Empty: off.", low=0, on_resume="trajectory", advanced=True
    )
    ip_noise_gamma_random_strength: bool = option(
        False,
        "Draw the perturbation's strength at random between 0 and ip_noise_gamma.",
        on_resume="trajectory",
        advanced=True,
    )
    zero_terminal_snr: bool = option(
        False,
        "Rescale the noise schedule so that its last timestep is pure noise; for v-prediction.",
        on_resume="trajectory",
    )
    min_timestep: int = option(0, "Lowest timestep to train.", low=0, high=999, on_resume="trajectory", advanced=True)
    max_timestep: int = option(
        1000, "Train only timesteps below this one.", low=1, high=1000, on_resume="trajectory", advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Saving"""

    save_every_n_steps: int = option(0, "Save every n steps. 0: not by steps.", low=0, on_resume="free")
    save_every_n_epochs: int = option(0, "Save every n epochs. 0: not by epochs.", low=0, on_resume="free")
    save_every_n_minutes: float = option(0.0, "Save every n minutes. 0: not by time.", low=0, on_resume="free")
    save_state: bool = option(
        True, "Write a checkpoint with every save, so that the run can be resumed there.", on_resume="free"
    )
    save_precision: Literal["float", "fp16", "bf16"] = option("fp16", "Precision of the model files.", on_resume="free")
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
        "Also keep the checkpoint with the lowest validation loss. Without validation images none counts as the "
        "best: the training loss depends more on the timesteps drawn than on the weights.",
        on_resume="free",
        advanced=True,
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
    no_metadata: bool = option(
        False, "Write only the necessary metadata to the model file.", on_resume="free", advanced=True
    )
    training_comment: str = option("", "Comment stored in the model file.", on_resume="free", advanced=True)
    metadata_title: str = option("", "Title in the model file. Empty: output_name.", on_resume="free", advanced=True)
    metadata_author: str = option("", "Author in the model file.", on_resume="free", advanced=True)
    metadata_description: str = option("", "Description in the model file.", on_resume="free", advanced=True)
    metadata_license: str = option("", "Licence in the model file.", on_resume="free", advanced=True)
    metadata_tags: str = option("", "Tags in the model file, comma-separated.", on_resume="free", advanced=True)


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


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples"""

    sample_every_n_steps: int = option(0, "Sample images every n steps. 0: not by steps.", low=0, on_resume="free")
    sample_every_n_epochs: int = option(0, "Sample images every n epochs. 0: not by epochs.", low=0, on_resume="free")
    sample_at_first: bool = option(False, "Sample images before the first step.", on_resume="free")
    sample_prompts: str = option(
        "",
        "A prompt file, or the prompts themselves, one per line: text, then --n negative prompt --w width --h "
        "height --d seed --l guidance scale --s steps.",
        on_resume="free",
    )
    sample_sampler: Sampler = option("ddim", "Sampler of the sample images.", on_resume="free")


SECTIONS = (Model, Folders, Dataset, Validation, Network, Training, Loss, Saving, Resume, Samples)


@dataclass(frozen=True, kw_only=True)
class Config(Samples, Resume, Saving, Loss, Training, Network, Validation, Dataset, Folders, Model):
    """The complete, checked set of options. Build it with `resolve`, which checks; the constructor does not."""

    @property
    def resolution_size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        parts = [int(part) for part in self.resolution.split(",")]
        return parts[0], parts[-1]

    @property
    def caption_extensions(self) -> tuple[str, ...]:
        """The extensions of caption files, the preferred first."""
        return tuple(part.strip() for part in self.caption_extension.split(","))

    @property
    def face_crop_range(self) -> tuple[float, float] | None:
        """The least and the most face sizes that a crop shows; None where face_crop_aug_range is no range."""
        return _face_range(self.face_crop_aug_range) if self.face_crop_aug_range else None

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.output_name

    @property
    def cache_path(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir else Path(self.output_dir) / ".cache"

    @property
    def trains_unet(self) -> bool:
        return not self.network_train_text_encoder_only

    @property
    def trains_text_encoder(self) -> bool:
        return not self.network_train_unet_only

    @property
    def peak_learning_rates(self) -> dict[str, float]:
        """The learning rate of each trained part at the top of the curve."""
        parts = {}
        if self.trains_unet:
            parts["unet"] = self.learning_rate if self.unet_lr is None else self.unet_lr
        if self.trains_text_encoder:
            parts["text_encoder"] = self.learning_rate if self.text_encoder_lr is None else self.text_encoder_lr
        return parts

    @property
    def optimizer_arguments(self) -> dict[str, Any]:
        """What optimizer_args says, as Python's values where it is one and as text where it is not."""
        arguments = {}
        for item in self.optimizer_args:
            name, _, text = item.partition("=")
            try:
                arguments[name.strip()] = ast.literal_eval(text.strip())
            except (ValueError, SyntaxError):
                arguments[name.strip()] = text.strip()
        return arguments

    def replace(self, **changes: Any) -> Config:
        return dataclasses.replace(self, **changes)


def _declared() -> dict[str, Option]:
    found: dict[str, Option] = {}
    for section in SECTIONS:
        hints = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            hint, optional = hints[field.name], False
            if isinstance(hint, types.UnionType):
                hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
                optional = True
            choices: tuple[str, ...] = ()
            kind: Any
            if typing.get_origin(hint) is Literal:
                kind, choices = "choice", typing.get_args(hint)
            elif typing.get_origin(hint) is tuple:
                kind = "list"
            else:
                kind = hint.__name__
            found[field.name] = Option(
                name=field.name,
                section=section.__doc__ or section.__name__,
                kind=kind,
                default=field.default,
                optional=optional,
                choices=choices,
                **field.metadata,
            )
    return found


OPTIONS: dict[str, Option] = _declared()

# --- problems ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the options: the option's name (or ""), what is wrong with the way out, and where."""

    key: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.key}: {self.message}{place}" if self.key else f"{self.message}{place}"


@dataclass(frozen=True)
class Given:
    """A value as it was given, and where."""

    value: Any
    where: str


Source = Mapping[str, Given]


class ConfigError(Refused):
    """All problems of the options at once. `read`: what could be read beside them, to be checked as well."""

    def __init__(self, problems: Sequence[Problem], read: Source | None = None) -> None:
        self.problems = tuple(problems)
        self.read = read or {}
        super().__init__("\n".join(str(problem) for problem in problems))


@dataclass(frozen=True)
class Checked:
    """The outcome of checking sources: the right values, what is wrong, and what the user should know."""

    values: dict[str, Any]
    problems: list[Problem]
    notices: list[str]


# --- reading -------------------------------------------------------------------------------------------------------

SWITCHES = {"true": True, "false": False}
_KEY_LINE = re.compile(r"""^\s*(?:"([^"]+)"|'([^']+)'|([A-Za-z0-9_-]+))\s*=""")


def _key_lines(text: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    in_block = False
    for number, line in enumerate(text.splitlines(), start=1):
        match = None if in_block else _KEY_LINE.match(line)
        if match:
            lines.setdefault(next(group for group in match.groups() if group), number)
        if (line.count('"""') + line.count("'''")) % 2:
            in_block = not in_block
    return lines


def read_toml_text(text: str, name: str) -> dict[str, Given]:
    """Read TOML, flat or in sections (sections are only headings).

    Raises ConfigError when it is not TOML or names an option twice with different values.
    """
    lines = _key_lines(text)
    source: dict[str, Given] = {}
    problems: list[Problem] = []

    def add(table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            if isinstance(value, dict) and key not in OPTIONS:
                add(value)
                continue
            where = f"{name}, line {lines[key]}" if key in lines else name
            if _oversized(value):
                problems.append(Problem(key, TOO_LARGE, where))
                continue
            if key in source and source[key].value != value:
                problems.append(Problem(key, f"given twice, as {source[key].value!r} and as {value!r}", where))
            source[key] = Given(value, where)

    try:
        add(tomllib.loads(text.removeprefix("\ufeff")))
    except RecursionError:
        raise ConfigError([Problem("", f"{name} is nested too deeply")]) from None
    except ValueError as error:  # tomllib's own, and that of a number with too many digits
        raise ConfigError([Problem("", f"{name} is not valid TOML: {error}")]) from error
    if problems:
        raise ConfigError(problems, source)
    return source


def read_toml(path: Path | str) -> dict[str, Given]:
    """Read a preset. Raises ConfigError when there is no such file or it is not TOML."""
    path = Path(path)
    try:
        text = files.read_text(path)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError([Problem("", f"there is no file {path}{hint}")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("", f"{path} cannot be read: {error}")]) from error
    return read_toml_text(text, str(path))


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir() if entry.suffix == ".toml"]
    except OSError:
        return []


def read_arguments(arguments: Sequence[str]) -> dict[str, Given]:
    """Read `--option value`, `--option=value`, `--flag` and `--no-flag`; lists are comma-separated.

    Raises ConfigError with everything that is not of this form; values are checked by `check`.
    """
    source: dict[str, Given] = {}
    problems: list[Problem] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        where = "command line"
        if not argument.startswith("--") or argument == "--":
            problems.append(Problem("", f"{argument!r} is not an option; options begin with --", where))
            continue
        name, has_value, text = argument[2:].partition("=")
        negated = name.removeprefix("no-") if name.startswith("no-") else None
        if negated in OPTIONS and OPTIONS[negated].kind == "bool" and not has_value:
            source[negated] = Given(False, where)
            continue
        known = OPTIONS.get(sd_scripts.RENAMED.get(name, name))
        following = arguments[position] if position < len(arguments) else None
        if known and known.kind == "bool" and not has_value:
            source[name] = Given(True, where)
            if following is not None and following.lower() in SWITCHES:
                position += 1
                switch = f"--{name}" if SWITCHES[following.lower()] else f"--no-{name}"
                problems.append(Problem(name, f"a switch takes no {following!r}; write {switch}", where))
        elif has_value:
            source[name] = Given(from_text(known, text), where)
        elif following is not None and not following.startswith("--"):
            position += 1
            source[name] = Given(from_text(known, following), where)
        elif known:
            problems.append(Problem(name, "needs a value", where))
        else:
            source[name] = Given(True, where)
    if problems:
        raise ConfigError(problems, source)
    return source


def from_text(known: Option | None, text: str) -> Any:
    """The value that a text means for an option's kind; the text itself where it means none, for `check` to refuse."""
    if known is None:
        return text
    if known.kind == "bool":
        return SWITCHES.get(text.lower(), text)
    if known.kind == "list":
        return [part.strip() for part in text.split(",") if part.strip()]
    if known.kind in ("int", "float"):
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                continue
    return text


# --- checking ------------------------------------------------------------------------------------------------------

TOO_LARGE = "holds a number that is too large"


def _oversized(value: Any) -> bool:
    """Whether there is a whole number in it beyond TOML's 64 bits: Python cannot even print every one of these."""
    if isinstance(value, Mapping):
        return any(map(_oversized, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_oversized, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _unwritable(text: str) -> bool:
    """Whether a text has half a surrogate pair: what Python makes of a byte on the command line that is not UTF-8."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _value_problem(known: Option, value: Any) -> tuple[Any, str | None]:
    """The value in its option's type, and what is wrong with it (None: nothing)."""
    if known.name == "resolution":
        return _check_resolution(value)
    if known.kind == "bool":
        return value, None if isinstance(value, bool) else f"{value!r} is not true or false"
    if known.kind in ("int", "float"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value, f"{value!r} is not a number"
        if value != value or value in (float("inf"), float("-inf")):
            return value, f"{value!r} is not a finite number"
        if known.kind == "int" and value != int(value):
            return value, f"{value!r} is not a whole number"
        value = int(value) if known.kind == "int" else float(value)
        if known.low is not None and value < known.low:
            return value, f"{value!r} is below {known.low:g}"
        if known.high is not None and value > known.high:
            return value, f"{value!r} is above {known.high:g}"
        return value, None
    if known.kind == "list":
        if isinstance(value, str):
            value = [part for part in value.split() if part]
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            return value, f"{value!r} is not a list of text values"
        if any("\0" in item or _unwritable(item) for item in value):
            return value, f"{value!r} has a character that cannot be written"
        return tuple(value), None
    if not isinstance(value, str):
        return value, f"{value!r} is not text"
    if "\0" in value or _unwritable(value):
        return value, f"{value!r} has a character that cannot be written (NUL, or one that is not UTF-8)"
    if known.kind == "choice" and value not in known.choices:
        return value, f"{value!r} is not one of {', '.join(known.choices)}{nearest(value, known.choices)}"
    return value, None


def _as_ours(known: Option, value: Any) -> Any:
    """What sd-scripts and kohya_ss write for the same thing; None where they mean "not given"."""
    if known.kind == "choice" and isinstance(value, str):
        value = {"fp32": "float"}.get(value, value) if known.name == "save_precision" else value
        value = value.removeprefix("k_") if known.name == "sample_sampler" else value
        if value == "":
            return None
        return next((choice for choice in known.choices if choice.lower() == value.lower()), value)
    if known.name in ("max_train_epochs", "max_token_length") and value == 0:
        return None
    if known.name in ("caption_extension", "face_crop_aug_range") and isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if known.name == "text_encoder_lr" and isinstance(value, list):  # one rate for each text encoder
        return value[0] if len(set(map(str, value))) == 1 else value or None
    return value


def check_value(name: str, value: Any) -> tuple[Any, str | None]:
    """A value for an option in the option's type, and what is wrong with it (None: nothing)."""
    if _oversized(value):
        return value, TOO_LARGE
    value = _as_ours(OPTIONS[name], value)
    return (OPTIONS[name].default, None) if value is None else _value_problem(OPTIONS[name], value)


def _check_resolution(value: Any) -> tuple[Any, str | None]:
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        sides = [int(str(part)) for part in parts]
    except ValueError:
        sides = []
    if isinstance(value, bool) or len(sides) not in (1, 2):
        return value, f'{value!r} is not a resolution; write "512" or "512,768"'
    if min(sides) < 8 or max(sides) > 8192:
        return value, f"{value!r}: each side must be between 8 and 8192 pixels"
    if any(side % 8 for side in sides):
        return value, f"{value!r}: each side must be a multiple of 8 pixels"
    return ",".join(str(side) for side in sides), None


def nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _foreign(key: str, given: Given, values: dict[str, Any]) -> tuple[Problem | None, str | None]:
    """What to say of an option that is not ours: a problem, or a notice. `network_*` may set values of ours."""
    value = given.value
    if key == "network_module":
        if value in sd_scripts.NETWORK_MODULES or value == "":
            return None, None
        return Problem(key, f"{value!r} is not supported; only networks.lora is", given.where), None
    if key == "network_args":
        for argument in value if isinstance(value, list) else str(value).split():
            name, _, text = str(argument).partition("=")
            if name not in sd_scripts.NETWORK_ARGS:
                return Problem(key, f"{argument!r} is not supported; remove it", given.where), None
            ours = sd_scripts.NETWORK_ARGS[name]
            values[ours], wrong = _value_problem(OPTIONS[ours], from_text(OPTIONS[ours], text))
            if wrong:
                return Problem(key, f"{name}: {wrong}", given.where), None
        return None, None
    if key == "save_model_as":
        if value in ("safetensors", ""):
            return None, None
        return Problem(key, f"{value!r} is not supported; model files are safetensors", given.where), None
    off = value in (False, 0, "", None) or value == []
    if (off or value in sd_scripts.HARMLESS.get(key, ())) and (
        key in sd_scripts.WITHOUT_EFFECT or key in sd_scripts.NOT_SUPPORTED
    ):
        return None, None
    if key in sd_scripts.WITHOUT_EFFECT:
        return None, f"{key} has no effect here: {sd_scripts.WITHOUT_EFFECT[key]} ({given.where})"
    if key in sd_scripts.NOT_SUPPORTED:
        return Problem(key, sd_scripts.NOT_SUPPORTED[key], given.where), None
    return Problem(key, f"there is no such option{nearest(key, OPTIONS)}", given.where), None


def _name_is_plain(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not re.search(r'[/\\\0:*?"<>|\n\r]', name)


def _face_range(text: str) -> tuple[float, float] | None:
    """The least and the most face sizes; None where the text is not a range."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        return None
    return (low, high) if 1 <= low <= high < float("inf") else None


VARY_CAPTIONS = ("shuffle_caption", "caption_tag_dropout_rate", "enable_wildcard", "token_warmup_step")


Conflict = tuple[str, str]  # the option to change, and what is wrong with the way out


def _name_conflicts(config: Config) -> Iterator[Conflict]:
    if not _name_is_plain(config.output_name):
        yield "output_name", f'{config.output_name!r} is not a plain name; leave out / \\ : * ? " < > |'
    if any(not extension.startswith(".") for extension in config.caption_extensions):
        yield (
            "caption_extension",
            f'{config.caption_extension!r}: each extension must begin with a dot, like ".txt" or ".txt,.caption"',
        )


def _caption_conflicts(config: Config) -> Iterator[Conflict]:
    if not config.caption_separator:
        yield "caption_separator", 'is empty; the parts of a caption are separated by something, "," as a rule'


def _range_conflicts(config: Config) -> Iterator[Conflict]:
    if config.enable_bucket and config.min_bucket_reso > config.max_bucket_reso:
        yield "min_bucket_reso", f"{config.min_bucket_reso} is above max_bucket_reso = {config.max_bucket_reso}"
    if config.bucket_reso_steps % 8 != 0:
        yield "bucket_reso_steps", f"{config.bucket_reso_steps} is not a multiple of 8"
    if config.min_timestep >= config.max_timestep:
        yield "min_timestep", f"{config.min_timestep} is not below max_timestep = {config.max_timestep}"
    if config.max_token_length not in (75, 150, 225):
        yield "max_token_length", f"{config.max_token_length} is not 75, 150 or 225"


def _picture_conflicts(config: Config) -> Iterator[Conflict]:
    for name in ("random_crop", "color_aug", "face_crop_aug_range"):
        if config.cache_latents and getattr(config, name):
            yield "cache_latents", f"cannot go with {name}, which makes every use another picture; choose one"
    if config.face_crop_aug_range and config.face_crop_range is None:
        yield (
            "face_crop_aug_range",
            f'{config.face_crop_aug_range!r} is not a range; write the least and the most face sizes, like "2.0,4.0"',
        )
    if config.face_crop_aug_range and config.enable_bucket:
        yield "face_crop_aug_range", "cannot go with enable_bucket, which keeps the whole picture; choose one"
    if config.masked_loss and not config.conditioning_data_dir and not config.dataset_config:
        yield (
            "masked_loss",
            "needs conditioning_data_dir, the folder of the masks; alpha_mask takes the images' own transparency",
        )
    if config.conditioning_data_dir and not config.masked_loss:
        yield "conditioning_data_dir", "has no effect without masked_loss = true; set it, or leave the folder out"


def _cache_conflicts(config: Config) -> Iterator[Conflict]:
    varying = [name for name in VARY_CAPTIONS if getattr(config, name)]
    if config.cache_text_encoder_outputs and config.trains_text_encoder:
        yield (
            "cache_text_encoder_outputs",
            "the text encoder is trained, so its outputs change; set network_train_unet_only = true or do not cache",
        )
    if config.cache_text_encoder_outputs and varying:
        yield (
            "cache_text_encoder_outputs",
            f"cannot go with {' and '.join(varying)}, which {'varies' if len(varying) == 1 else 'vary'} the caption; "
            "choose one",
        )
    if config.cache_latents_to_disk and not config.cache_latents:
        yield "cache_latents_to_disk", "needs cache_latents = true"
    if config.cache_text_encoder_outputs_to_disk and not config.cache_text_encoder_outputs:
        yield "cache_text_encoder_outputs_to_disk", "needs cache_text_encoder_outputs = true"
    if config.cache_only and not (config.cache_latents_to_disk or config.cache_text_encoder_outputs_to_disk):
        yield (
            "cache_only",
            "there is nothing to prepare on disk; set cache_latents_to_disk = true or "
            "cache_text_encoder_outputs_to_disk = true",
        )


def _training_conflicts(config: Config) -> Iterator[Conflict]:
    if config.network_train_unet_only and config.network_train_text_encoder_only:
        yield "network_train_unet_only", "cannot go with network_train_text_encoder_only; choose one"
    elif not any(config.peak_learning_rates.values()):
        yield "learning_rate", "is 0 for every trained part, so nothing would be trained; set one above 0"
    for argument in config.optimizer_args:
        if "=" not in argument:
            yield "optimizer_args", f"{argument!r} is not of the form name=value"
    if config.debiased_estimation_loss and config.min_snr_gamma:
        yield "debiased_estimation_loss", "cannot go with min_snr_gamma; choose one"
    if config.noise_offset and config.multires_noise_iterations:
        yield "noise_offset", "cannot go with multires_noise_iterations; choose one"


def _watching_conflicts(config: Config) -> Iterator[Conflict]:
    samples = config.sample_every_n_steps or config.sample_every_n_epochs or config.sample_at_first
    if samples and not config.sample_prompts.strip():
        yield (
            "sample_prompts",
            "is empty, but sample images are asked for; write a prompt, or turn sample_every_n_steps, "
            "sample_every_n_epochs and sample_at_first off",
        )
    validates = config.validation_split or config.validation_data_dir or config.dataset_config
    if config.early_stopping_patience and not validates:
        yield (
            "early_stopping_patience",
            "needs images to validate with: set validation_split or validation_data_dir",
        )


def _resume_conflicts(config: Config) -> Iterator[Conflict]:
    for name in config.resume_allow:
        if name in OPTIONS and OPTIONS[name].on_resume == "locked":
            yield "resume_allow", f"{name} cannot be allowed: a checkpoint fits only one value"
        elif name not in OPTIONS and name not in ("all", "dataset"):
            yield "resume_allow", f"{name!r} is not an option{nearest(name, OPTIONS)}"


CONFLICTS = (
    _name_conflicts,
    _caption_conflicts,
    _range_conflicts,
    _picture_conflicts,
    _cache_conflicts,
    _training_conflicts,
    _watching_conflicts,
    _resume_conflicts,
)


def combination_problems(config: Config) -> list[Conflict]:
    """Options whose values, right by themselves, do not go together."""
    return [conflict for conflicts in CONFLICTS for conflict in conflicts(config)]


# Options that only shape what another one turns on.
SHAPES = {
    "adaptive_noise_scale": "noise_offset",
    "noise_offset_random_strength": "noise_offset",
    "ip_noise_gamma_random_strength": "ip_noise_gamma",
    "multires_noise_discount": "multires_noise_iterations",
    "conv_alpha": "conv_dim",
    "ema_decay": "use_ema",
    "token_warmup_min": "token_warmup_step",
}


def _without_effect(config: Config) -> Iterator[str]:
    """Notices of options that were set, but do nothing as the others are."""
    if config.lr_scheduler == "constant" and config.lr_warmup_steps:
        yield "lr_warmup_steps has no effect with lr_scheduler = constant; constant_with_warmup warms up"
    for name, needed in SHAPES.items():
        if getattr(config, name) != OPTIONS[name].default and not getattr(config, needed):
            yield f"{name} has no effect without {needed}"


def check(*sources: Source) -> Checked:
    """Check sources together, later ones winning over earlier ones; wrong values are left at their defaults."""
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    problems: list[Problem] = []
    notices: list[str] = []
    merged: dict[str, Given] = {}
    for source in sources:
        for key, given in source.items():
            name = sd_scripts.RENAMED.get(key, key)
            if name not in merged and key == "network_args":
                merged = {name: given, **merged}  # options given by their own name win
            else:
                merged[name] = given
    for key, given in merged.items():
        known = OPTIONS.get(key)
        if known is None:
            problem, notice = _foreign(key, given, values)
            problems += [problem] if problem else []
            notices += [notice] if notice else []
            continue
        if _oversized(given.value):
            problems.append(Problem(key, TOO_LARGE, given.where))
            continue
        given = Given(_as_ours(known, given.value), given.where)
        if given.value is None:
            continue
        value, wrong = _value_problem(known, given.value)
        where[key] = given.where
        if wrong:
            problems.append(Problem(key, wrong, given.where))
        else:
            values[key] = value
    config = Config(**values)
    problems += [Problem(key, text, where.get(key, "")) for key, text in combination_problems(config)]
    return Checked(values, problems, [*notices, *_without_effect(config)])


def resolve(*sources: Source) -> tuple[Config, list[str]]:
    """The config that the sources describe, and notices for the user. Raises ConfigError with every problem."""
    checked = check(*sources)
    if checked.problems:
        raise ConfigError(checked.problems)
    return build(checked.values), checked.notices


def build(values: dict[str, Any]) -> Config:
    """The Config of checked values. A leading ~ in a path becomes the home folder here, so that presets keep it."""
    homes = {name: _at_home(value) for name, value in values.items() if OPTIONS[name].path}
    return Config(**values | homes)


def _at_home(path: str) -> str:
    if not path.startswith("~"):
        return path
    with contextlib.suppress(RuntimeError):  # ~nobody: there is no such user
        return str(Path(path).expanduser())
    return path


def reference() -> str:
    """Every option by section, for people: its kind, default and meaning, and what a change means on resume."""
    lines = []
    section = ""
    for known in OPTIONS.values():
        if known.section != section:
            section = known.section
            lines += ["", f"{section}:"]
        kind = "|".join(known.choices) or known.kind
        default = "" if known.default in (None, "", ()) else f", default {known.default}"
        switch = f"--{known.name} / --no-{known.name}" if known.kind == "bool" else f"--{known.name} ({kind}{default})"
        lines += textwrap.wrap(
            f"{switch}  {known.help} [{known.on_resume}]", 110, initial_indent="  ", subsequent_indent="      "
        )
    return "\n".join(lines)


# --- writing -------------------------------------------------------------------------------------------------------


def to_toml(values: Config | Mapping[str, Any], *, complete: bool = True) -> str:
    """TOML in sections. `complete`: every option; otherwise only what differs from its default (a preset)."""
    if isinstance(values, Config):
        values = {name: getattr(values, name) for name in OPTIONS}
    document: dict[str, dict[str, Any]] = {}
    for name, known in OPTIONS.items():
        value = values.get(name, known.default)
        if value is None or (not complete and value == known.default):
            continue
        section = known.section.lower().replace(" ", "_")
        document.setdefault(section, {})[name] = list(value) if isinstance(value, tuple) else value
    return toml.dumps(document, _Encoder())


class _Encoder(toml.TomlEncoder):
    """toml, but for its way to write texts, which fails for backslashes before some characters."""

    def __init__(self) -> None:
        super().__init__()
        self.dump_funcs[str] = _quoted


def _quoted(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's, which also wants one for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_config(path: Path) -> Config:
    """The config that `to_toml` wrote. Raises ConfigError."""
    return resolve(read_toml(path))[0]
