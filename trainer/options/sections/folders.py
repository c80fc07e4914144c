"""The options of the section Folders. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.options.declaration import option


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Folders"""

    train_data_dir: str = option(
        "",
        "Folder of training images with their caption files: either subfolders named <repeats>_<class>, or images "
        "directly inside. May be an address (s3://, gs://, ssh:// ...), which is copied to this machine.",
        on_resume="trajectory",
        by_content=True,
        address=True,
        replaced_by="dataset_config",
    )
    reg_data_dir: str = option(
        "",
        "Regularisation images of the class in general, laid out like train_data_dir. Each epoch uses as many of "
        "them as there are training samples.",
        on_resume="trajectory",
        by_content=True,
        address=True,
        replaced_by="dataset_config",
    )
    num_class_images: int = option(
        0,
        "DreamBooth: let the base model draw this many regularisation images of class_prompt into reg_data_dir before "
        "the training, as far as they are not there yet. 0: none.",
        low=0,
        high=999_999,
        on_resume="free",
        advanced=True,
    )
    class_prompt: str = option(
        "",
        'What num_class_images show: "a photo of a dog". Takes --n, --w, --h, --l and --s, as sample_prompts does.',
        on_resume="free",
        advanced=True,
        shapes="num_class_images",
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
        "Folder of pictures with the names of the images. With masked_loss they are masks: white where the image is to "
        "be learned, black where it is not. Without, they are control pictures, of which a model that edits is to make "
        "the images.",
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
        replaced_by="dataset_config",
    )
    output_dir: str = option("output", "Where model files and run folders are written.", on_resume="free", path=True)
    output_name: str = option(
        "last",
        "Name of the run and of its model files (no path, no extension).",
        on_resume="free",
        in_header=True,
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
