"""The options of the section Dataset. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.models.families.facts import CLIP_TEXT, CONTROLS
from trainer.options.declaration import option

Interpolation = Literal["automatic", "lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Dataset"""

    resolution: str = option(
        "512",
        'Training resolution in pixels: "512" or "width,height".',
        on_resume="trajectory",
        scope="dataset",
        decides_bucket=True,
        sets_speed=True,
    )
    enable_bucket: bool = option(
        False,
        "Keep each image's aspect ratio by grouping images into buckets of about the same area. Off: crop every "
        "image to resolution.",
        on_resume="trajectory",
        scope="dataset",
        decides_bucket=True,
        in_header=True,
    )
    min_bucket_reso: int = option(
        256,
        "Shortest side of a bucket, in pixels.",
        low=8,
        on_resume="trajectory",
        scope="dataset",
        decides_bucket=True,
        in_header=True,
    )
    max_bucket_reso: int = option(
        1024,
        "Longest side of a bucket, in pixels.",
        low=8,
        on_resume="trajectory",
        scope="dataset",
        decides_bucket=True,
        in_header=True,
    )
    bucket_reso_steps: int = option(
        64,
        "Bucket sides are multiples of this many pixels.",
        low=8,
        on_resume="trajectory",
        advanced=True,
        scope="dataset",
        decides_bucket=True,
    )
    bucket_no_upscale: bool = option(
        False,
        "Never enlarge an image; buckets follow each image's own size.",
        on_resume="trajectory",
        scope="dataset",
        decides_bucket=True,
        in_header=True,
    )
    bucket_rules: Literal["cover", "sd-scripts"] = option(
        "cover",
        "How images are scaled and cut. cover: the whole image is scaled to just cover its bucket. sd-scripts: rounded "
        "as it does; bucket_no_upscale takes its buckets, and random_crop without buckets cuts the unscaled image.",
        on_resume="trajectory",
        advanced=True,
    )
    control_resolution: str = option(
        "",
        'Area of control pictures in pixels, like "1024,1024"; each keeps its shape. Empty: each is scaled and cut '
        "like its image.",
        on_resume="trajectory",
        advanced=True,
        traits=(CONTROLS,),
        scope="dataset",
        decides_bucket=True,
        sets_speed=True,
    )
    resize_interpolation: Interpolation = option(
        "lanczos",
        "How images are scaled to their bucket; automatic: area for smaller, lanczos for larger.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
        in_header=True,
    )
    dataset_repeats: int = option(
        1,
        "How often an epoch uses each image that is not in a folder named <repeats>_<class>.",
        low=1,
        on_resume="trajectory",
        advanced=True,
        scope="subset",
    )
    prior_loss_weight: float = option(
        1.0,
        "Weight of regularisation images in the loss.",
        low=0,
        on_resume="trajectory",
        advanced=True,
        in_header=True,
    )
    caption_extension: str = option(
        ".txt",
        "Extension of the caption files, or several separated by commas; the first one for which there is a file "
        "is used.",
        on_resume="trajectory",
        scope="subset",
    )
    caption_column: str = option(
        "text",
        "Name of the caption column or key in metadata files.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
    )
    shuffle_caption: bool = option(
        False,
        "Shuffle the parts of a caption each time it is used.",
        on_resume="trajectory",
        scope="subset",
        varies="caption",
        in_header=True,
    )
    caption_separator: str = option(
        ",",
        "What separates the parts of a caption.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
    )
    keep_tokens: int = option(
        0,
        "Leave the first n parts of a caption in place.",
        low=0,
        on_resume="trajectory",
        scope="subset",
        in_header=True,
    )
    keep_tokens_separator: str = option(
        "",
        "Marker in captions, such as |||: what stands before the first one, or after a second one, stays in "
        "place. Where it appears, keep_tokens is ignored.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
    )
    secondary_separator: str = option(
        "",
        "Marker, such as ;;;, between parts that are shuffled and dropped as one; afterwards it is replaced by "
        "caption_separator.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
    )
    enable_wildcard: bool = option(
        False,
        "At every use, choose one line of the caption and one of each {a|b|c}; {{ and }} stand for braces.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
        varies="caption",
    )
    caption_prefix: str = option(
        "",
        "Text added before every caption; it takes part in shuffling and counts for keep_tokens.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
    )
    caption_suffix: str = option(
        "",
        "Text added after every caption; it takes part in shuffling and counts for keep_tokens.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
    )
    caption_dropout_rate: float = option(
        0.0,
        "Share of images trained with an empty caption.",
        low=0,
        high=1,
        on_resume="trajectory",
        scope="subset",
        varies="caption",
        cacheable=True,
        in_header=True,
    )
    caption_dropout_every_n_epochs: int = option(
        0,
        "Train every n-th epoch with empty captions. 0: never.",
        low=0,
        on_resume="trajectory",
        advanced=True,
        scope="subset",
        varies="caption",
        cacheable=True,
        in_header=True,
    )
    caption_tag_dropout_rate: float = option(
        0.0,
        "Share of caption parts that are dropped (those held by keep_tokens stay).",
        low=0,
        high=1,
        on_resume="trajectory",
        advanced=True,
        scope="subset",
        varies="caption",
        in_header=True,
    )
    token_warmup_min: int = option(
        1,
        "Number of caption parts used at the start of token_warmup_step.",
        low=1,
        on_resume="trajectory",
        advanced=True,
        scope="subset",
        shapes="token_warmup_step",
    )
    token_warmup_step: float = option(
        0.0,
        "Steps over which captions grow to all their parts; below 1, a share of all steps. 0: whole from the start.",
        low=0,
        on_resume="trajectory",
        advanced=True,
        scope="subset",
        varies="caption",
    )
    weighted_captions: bool = option(
        False,
        "Treat (word:1.2), (word) and [word] in captions as emphasis instead of text.",
        on_resume="trajectory",
        advanced=True,
        traits=(CLIP_TEXT,),
    )
    max_token_length: int = option(
        75,
        "Maximum number of tokens in a caption: 75, 150 or 225. The rest is cut off.",
        low=75,
        high=225,
        on_resume="trajectory",
        advanced=True,
        in_header=True,
        traits=(CLIP_TEXT,),
    )
    flip_aug: bool = option(
        False,
        "Mirror images horizontally at random.",
        on_resume="trajectory",
        scope="subset",
        varies="picture",
        cacheable=True,
        in_header=True,
    )
    random_crop: bool = option(
        False,
        "Crop at a random place instead of the centre.",
        on_resume="trajectory",
        scope="subset",
        varies="picture",
        in_header=True,
    )
    color_aug: bool = option(
        False,
        "Shift the hue or brightness slightly in a third of the uses.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
        varies="picture",
        in_header=True,
    )
    face_crop_aug_range: str = option(
        "",
        'Crop around the face: the smallest and the largest side of the crop, in face sizes, like "2.0,4.0". Only '
        "for images whose names end with the face's centre x, centre y, width and height in pixels, like "
        "me_120_80_64_64.png, and only without buckets.",
        on_resume="trajectory",
        advanced=True,
        scope="subset",
        varies="picture",
        in_header=True,
    )
    alpha_mask: bool = option(
        False,
        "Weight the loss by the images' own transparency: transparent parts are not learned.",
        on_resume="trajectory",
        scope="subset",
    )
    masked_loss: bool = option(
        False, "Weight the loss by the masks in conditioning_data_dir.", on_resume="trajectory", advanced=True
    )
    cache_latents: bool = option(
        False,
        "Encode every image once and keep the latents; the VAE then leaves GPU memory.",
        on_resume="trajectory",
        sets_speed=True,
        in_header=True,
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
        sets_speed=True,
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
