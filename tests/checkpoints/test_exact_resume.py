"""A run that was interrupted ends bit-equal to one that was not: the promise, at zero tolerance."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support import exactness, tiny
from tests.support.exactness import RATE_DECISIONS, check_every_resume, check_restarts, copy_at
from tests.support.runs_at_tiny_size import STEPS, assert_bit_equal, config_for, run, steps_of, tensors_of
from trainer.checkpoints.resume import ResumeRefused

# Every value of every dimension appears, most pairs of them too.
COMBINATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "text encoder frozen": {"network_train_unet_only": True},
    "text encoder only": {"network_train_text_encoder_only": True, "max_data_loader_n_workers": 0},
    "accumulation": {"gradient_accumulation_steps": 4, "train_batch_size": 1},
    "no workers, cosine, warmup": {
        "max_data_loader_n_workers": 0,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2.0,
        "noise_offset": 0.1,
    },
    "cached latents, flip": {"cache_latents": True, "flip_aug": True, "vae_batch_size": 2},
    "everything cached on disk": {
        **tiny.CACHED,
        "caption_dropout_rate": 0.3,
    },
    "moving average": {"use_ema": True, "ema_decay": 0.9, "lr_scheduler": "linear"},
    "bf16": {"mixed_precision": "bf16", "gradient_accumulation_steps": 2},
    "bf16, checkpointing, dropout": {
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "network_dropout": 0.3,
        "use_ema": True,
    },
    "Lion, restarts, shuffled captions": {
        "optimizer_type": "Lion",
        "lr_scheduler": "cosine_with_restarts",
        "lr_scheduler_num_cycles": 2,
        "shuffle_caption": True,
        "keep_tokens": 1,
        "caption_tag_dropout_rate": 0.2,
    },
    "Prodigy": {"optimizer_type": "Prodigy", "learning_rate": 1.0, "optimizer_args": ("safeguard_warmup=True",)},
    "Adafactor, polynomial": {"optimizer_type": "Adafactor", "lr_scheduler": "polynomial", "lr_scheduler_power": 2.0},
    "Adafactor that follows the step": {
        "optimizer_type": "Adafactor",
        "optimizer_args": ("relative_step=True", "scale_parameter=True", "warmup_init=True"),
        "lr_scheduler": "adafactor",
    },
    "schedule-free, validation": {
        "optimizer_type": "AdamWScheduleFree",
        "optimizer_args": ("warmup_steps=3",),
        "validation_split": 0.3,
        "validate_every_n_steps": 2,
    },
    "8 bits": {"optimizer_type": "AdamW8bit", "optimizer_args": ("min_8bit_size=64",), "lr_scheduler": "inverse_sqrt"},
    "D-adaptation, a rate that falls where validation does not": {
        "optimizer_type": "DAdaptAdam",
        "learning_rate": 1.0,
        "lr_scheduler": "reduce_lr_on_plateau",
        "lr_scheduler_args": ("patience=0", "threshold=0.5"),
        "validation_split": 0.3,
        "validate_every_n_steps": 1,
    },
    "LoRA+, every dropout, limited norms, both noises": {
        "loraplus_lr_ratio": 4.0,
        "network_dropout": 0.1,
        "rank_dropout": 0.2,
        "module_dropout": 0.2,
        "scale_weight_norms": 0.001,
        "noise_offset": 0.1,
        "multires_noise_iterations": 3,
        "gradient_checkpointing": True,
    },
    "SGD, real clipping": {"optimizer_type": "SGDNesterov", "max_grad_norm": 0.001},
    "buckets, random crop": {
        "enable_bucket": True,
        "min_bucket_reso": 32,
        "max_bucket_reso": 128,
        "bucket_reso_steps": 16,
        "random_crop": True,
        "gradient_accumulation_steps": 2,
        "conv_dim": 2,
    },
    "captions of every kind, colours, masks, validation": {
        "enable_wildcard": True,
        "token_warmup_step": 0.5,
        "shuffle_caption": True,
        "weighted_captions": True,
        "max_token_length": 150,
        "color_aug": True,
        "alpha_mask": True,
        "validation_split": 0.3,
        "validate_every_n_steps": 3,
    },
    "losses": {
        "loss_type": "huber",
        "min_snr_gamma": 5.0,
        "multires_noise_iterations": 4,
        "ip_noise_gamma": 0.1,
        "clip_skip": 2,
        "max_grad_norm": 0.0,
    },
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_run_resumed_after_any_step_ends_bit_equal_to_a_straight_one(
    name: str, tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    assert check_every_resume(tiny_model, tiny_images, tmp_path, COMBINATIONS[name]) == STEPS - 1


def test_a_run_over_a_dataset_file_is_resumed_bit_equal_at_any_step(
    tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    (images,) = tiny_images.iterdir()
    masks, regularisation = tmp_path / "masks", tmp_path / "regularisation"
    for folder in (masks, regularisation):
        folder.mkdir()
    for number, path in enumerate(sorted(images.glob("*.png"))):
        with Image.open(path) as picture:
            picture.convert("L").save(masks / path.name)
            if number < 2:
                picture.transpose(Image.Transpose.ROTATE_180).save(regularisation / path.name)
    path = tmp_path / "dataset.toml"
    path.write_text(
        f"""
        [[datasets]]
        resolution = 64
        [[datasets.subsets]]
        image_dir = "{images}"
        flip_aug = true
        conditioning_data_dir = "{masks}"
        [[datasets.subsets]]
        image_dir = "{regularisation}"
        class_tokens = "thing"
        is_reg = true
        [[datasets]]
        resolution = 32
        batch_size = 1
        [[datasets.subsets]]
        image_dir = "{images}"
        shuffle_caption = true
        random_crop = true
        """
    )
    options = {"dataset_config": str(path), "prior_loss_weight": 0.5, "gradient_accumulation_steps": 2}
    assert check_every_resume(tiny_model, tmp_path / "nowhere", tmp_path, options, steps=5) == 4


def test_two_resumes_in_a_row_end_bit_equal(tiny_model: Path, tiny_images: Path, tmp_path: Path) -> None:
    straight = config_for(tiny_model, tiny_images, tmp_path / "straight", network_dropout=0.2, flip_aug=True)
    run(straight)
    once = copy_at(straight, tmp_path / "once", 3)
    run(once.replace(max_train_steps=5))
    twice = copy_at(once, tmp_path / "twice", 5)
    run(twice)
    assert steps_of(twice) == steps_of(straight)
    assert_bit_equal(tensors_of(twice), tensors_of(straight))


@pytest.mark.parametrize("at", [(3, 5), (2, 4, 6)], ids=["twice", "three times"])
@pytest.mark.parametrize("name", RATE_DECISIONS)
def test_a_run_restarted_again_and_again_by_one_command_ends_bit_equal_to_one_restarted_once(
    name: str, at: tuple[int, ...], tiny_model: Path, tiny_images: Path, tmp_path: Path
) -> None:
    check_restarts(tiny_model, tiny_images, tmp_path, RATE_DECISIONS[name], at)


def test_pictures_whose_names_are_not_utf8_are_trained_and_resumed(
    tiny_images: Path, tiny_model: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(tiny_images, images)
    picture = next(images.rglob("picture0.png"))
    for suffix in (".png", ".txt"):
        picture.with_suffix(suffix).rename(picture.with_name(os.fsdecode(b"bild\xe4") + suffix))
    straight = config_for(tiny_model, images, tmp_path / "straight")
    assert run(straight) == "finished"
    resumed = copy_at(straight, tmp_path / "resumed", 3)
    next(images.rglob("picture1.txt")).write_text("another caption")
    next(images.rglob("bild*.txt")).write_text("another caption")
    with pytest.raises(ResumeRefused, match="caption changed \\(2\\): "):
        run(resumed)
    assert run(resumed.replace(resume_allow=("dataset",))) == "finished"


def test_the_combinations_of_the_long_form_meet_every_pair_of_values() -> None:
    met = {pair for combination in exactness.combinations(40) for pair in exactness.pairs_of(combination)}
    assert exactness.all_pairs() <= met
