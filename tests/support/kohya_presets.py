"""Presets as kohya_ss' page writes them, one of each sort that its users have: with its keys, and values of our own."""

from __future__ import annotations

from typing import Any

# What nearly every file of the LoRA tab holds, off or at rest.
RESTING: dict[str, Any] = {
    "LoRA_type": "Standard", "adaptive_noise_scale": 0, "additional_parameters": "", "block_alphas": "",
    "block_dims": "", "block_lr_zero_threshold": "", "bucket_no_upscale": True, "bucket_reso_steps": 64,
    "cache_latents": True, "cache_latents_to_disk": False, "caption_dropout_every_n_epochs": 0.0,
    "caption_dropout_rate": 0, "caption_extension": ".txt", "clip_skip": "1", "color_aug": False, "conv_alpha": 1,
    "conv_block_alphas": "", "conv_block_dims": "", "conv_dim": 1, "decompose_both": False, "dim_from_weights": False,
    "down_lr_weight": "", "enable_bucket": True, "epoch": 1, "factor": -1, "flip_aug": False, "full_bf16": False,
    "full_fp16": False, "gradient_accumulation_steps": 1.0, "gradient_checkpointing": True, "keep_tokens": "0",
    "learning_rate": 0.0002, "lora_network_weights": "", "lr_scheduler": "cosine", "lr_scheduler_num_cycles": "",
    "lr_scheduler_power": "", "lr_warmup": 0, "max_bucket_reso": 2048, "max_data_loader_n_workers": "0",
    "max_resolution": "512,512", "max_timestep": 1000, "max_token_length": "75", "max_train_epochs": "",
    "mem_eff_attn": False, "mid_lr_weight": "", "min_bucket_reso": 256, "min_snr_gamma": 0, "min_timestep": 0,
    "mixed_precision": "bf16", "module_dropout": 0, "multires_noise_discount": 0, "multires_noise_iterations": 0,
    "network_alpha": 8, "network_dim": 16, "network_dropout": 0, "no_token_padding": False, "noise_offset": 0,
    "noise_offset_type": "Original", "num_cpu_threads_per_process": 2, "optimizer": "AdamW8bit", "optimizer_args": "",
    "persistent_data_loader_workers": False, "prior_loss_weight": 1.0, "random_crop": False, "rank_dropout": 0,
    "save_every_n_epochs": 1, "save_every_n_steps": 0, "save_last_n_steps": 0, "save_last_n_steps_state": 0,
    "save_precision": "fp16", "scale_v_pred_loss_like_noise_pred": False, "scale_weight_norms": 0, "sdxl": False,
    "sdxl_cache_text_encoder_outputs": False, "sdxl_no_half_vae": True, "seed": "77", "shuffle_caption": False,
    "stop_text_encoder_training": 0, "text_encoder_lr": 0.0002, "train_batch_size": 2, "train_on_input": True,
    "training_comment": "", "unet_lr": 0.0002, "unit": 1, "up_lr_weight": "", "use_cp": False, "log_with": "",
    "v2": False, "v_parameterization": False, "vae_batch_size": 0, "weighted_captions": False, "xformers": True,
}  # fmt: skip
# What newer versions of the page add.
NEWER: dict[str, Any] = {
    "LyCORIS_preset": "full", "constrain": 0.0, "debiased_estimation_loss": False, "fp8_base": False, "gpu_ids": "",
    "lr_scheduler_args": "", "max_grad_norm": 1, "max_train_steps": "", "multi_gpu": False, "num_machines": 1,
    "num_processes": 1, "rank_dropout_scale": False, "rescaled": False, "train_norm": False, "use_scalar": False,
    "use_tucker": False, "v_pred_like_loss": 0, "vae": "",
}  # fmt: skip
NEWEST: dict[str, Any] = {
    "apply_t5_attn_mask": False, "async_upload": False, "bypass_mode": False, "dataset_config": "",
    "discrete_flow_shift": 3, "dora_wd": False, "dynamo_backend": "no", "dynamo_mode": "default",
    "dynamo_use_dynamic": False, "dynamo_use_fullgraph": False, "extra_accelerate_launch_args": "",
    "flux1_cache_text_encoder_outputs": False, "flux1_cache_text_encoder_outputs_to_disk": False,
    "flux1_checkbox": False, "guidance_scale": 3.5, "highvram": False, "huber_c": 0.1, "huber_schedule": "snr",
    "huggingface_path_in_repo": "", "huggingface_repo_id": "", "huggingface_repo_type": "",
    "huggingface_repo_visibility": "", "huggingface_token": "", "ip_noise_gamma": 0,
    "ip_noise_gamma_random_strength": False, "log_config": False, "log_tracker_config": "", "log_tracker_name": "",
    "logging_dir": "", "loraplus_lr_ratio": 0, "loraplus_text_encoder_lr_ratio": 0, "loraplus_unet_lr_ratio": 0,
    "loss_type": "l2", "lowvram": False, "lr_scheduler_type": "", "main_process_port": 0, "masked_loss": False,
    "mem_eff_save": False, "metadata_author": "", "metadata_description": "", "metadata_license": "",
    "metadata_tags": "", "metadata_title": "", "model_list": "custom", "model_prediction_type": "sigma_scaled",
    "network_weights": "", "noise_offset_random_strength": False, "output_dir": "", "output_name": "last",
    "pretrained_model_name_or_path": "", "reg_data_dir": "", "resume": "", "resume_from_huggingface": "",
    "sample_every_n_epochs": 0, "sample_every_n_steps": 0, "sample_prompts": "", "sample_sampler": "euler_a",
    "save_as_bool": False, "save_model_as": "safetensors", "save_state": False, "save_state_on_train_end": False,
    "save_state_to_huggingface": False, "split_mode": False, "t5xxl_max_token_length": 512,
    "timestep_sampling": "sigma", "train_blocks": "all", "train_data_dir": "", "wandb_api_key": "",
    "wandb_run_name": "",
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "SDXL, LoKr, Prodigy, torch's scheduler": RESTING | NEWER | {
        "LoRA_type": "LyCORIS/LoKr", "sdxl": True, "factor": 8, "network_dim": 900, "conv_dim": 900,
        "additional_parameters": '--lr_scheduler_type "CosineAnnealingLR" --lr_scheduler_args "T_max=500" "eta_min=0"',
        "optimizer": "Prodigy", "optimizer_args": '"d0=1e-5" "decouple=True" "safeguard_warmup=True"',
        "learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": 1.0, "debiased_estimation_loss": True,
        "min_snr_gamma": 5, "noise_offset_type": "Multires", "multires_noise_iterations": 6,
        "multires_noise_discount": 0.2, "max_train_steps": "200", "bucket_reso_steps": 32,
        "max_resolution": "1024,1024",
    },
    "SDXL, LoHa": RESTING | {
        "LoRA_type": "LyCORIS/LoHa", "sdxl": True, "scale_weight_norms": 2, "max_train_epochs": "20", "seed": "",
        "conv_dim": 8, "conv_alpha": 4, "lr_scheduler": "constant",
    },
    "SDXL, LoRA": RESTING | {
        "sdxl": True, "scale_weight_norms": 1, "additional_parameters": "--max_grad_norm=0", "noise_offset": 0.04,
        "optimizer": "Prodigy", "optimizer_args": "decouple=True betas=0.9,0.99", "unet_lr": 1.0,
        "text_encoder_lr": 1.0, "multires_noise_iterations": 5, "multires_noise_discount": 0.3,
    },
    "FLUX.1": RESTING | NEWER | NEWEST | {
        "LoRA_type": "Flux1", "flux1_checkbox": True, "ae": "ae.safetensors", "clip_l": "clip_l.safetensors",
        "t5xxl": "t5xxl.safetensors", "fp8_base": True, "full_bf16": True, "guidance_scale": 1,
        "model_prediction_type": "raw", "timestep_sampling": "sigmoid", "apply_t5_attn_mask": True,
        "flux1_cache_text_encoder_outputs": True, "flux1_cache_text_encoder_outputs_to_disk": True,
        "text_encoder_lr": 0, "max_train_steps": 700, "wandb_api_key": "not to be told", "logging_dir": "logs",
    },
    "fine-tune, Lion": {
        name: value for name, value in RESTING.items()
        if name in ("bucket_no_upscale", "cache_latents", "caption_extension", "clip_skip", "color_aug", "flip_aug",
                    "full_fp16", "gradient_checkpointing", "keep_tokens", "max_token_length", "mixed_precision",
                    "random_crop", "save_precision", "seed", "shuffle_caption", "train_batch_size", "v2", "xformers")
    } | {
        "batch_size": "1", "bucket_reso_steps": 1.0, "create_buckets": False, "create_caption": True,
        "dataset_repeats": "10", "epoch": "2", "full_path": True, "learning_rate": "0.00002", "lr_warmup": "10",
        "noise_offset": "", "optimizer": "Lion", "train_text_encoder": True, "use_8bit_adam": False,
        "use_latent_files": "No",
    },
    "SDXL, Adafactor": RESTING | {
        "sdxl": True, "optimizer": "Adafactor", "bucket_reso_steps": 1, "conv_alphas": "", "conv_dims": "",
        "optimizer_args": "scale_parameter=False relative_step=False warmup_init=False", "text_encoder_lr": 0.0,
        "lr_scheduler": "constant_with_warmup", "lr_warmup": 8, "caption_extension": ".none", "seed": "", "epoch": 4,
    },
    "SD, LoRA": {name: value for name, value in RESTING.items() if not name.startswith(("sdxl", "noise_offset_type"))}
    | {
        "clip_skip": 2, "enable_bucket": False, "max_resolution": "512,650", "mem_eff_attn": True,
        "noise_offset": "0.05", "learning_rate": "0.0001", "unet_lr": "0.0001", "text_encoder_lr": "5e-05",
        "lr_scheduler": "constant", "lr_warmup": "0", "gradient_checkpointing": False, "train_batch_size": 3,
    },
    "SD, LoKr": RESTING | NEWER | {
        "LoRA_type": "LyCORIS/LoKr", "factor": 6, "bucket_reso_steps": 1, "epoch": 15, "seed": "",
        "optimizer": "Prodigy", "unet_lr": 1.0, "text_encoder_lr": 1.0, "keep_tokens": 1, "shuffle_caption": True,
        "caption_dropout_rate": 0.1, "training_comment": "mine", "stop_text_encoder_training": 30,
    },
}  # fmt: skip
