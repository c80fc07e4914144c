"""Options of sd-scripts and kohya_ss that are not ours, and what becomes of each. Facts only; no torch here."""

from __future__ import annotations

RENAMED = {
    "caption_extention": "caption_extension",
    "fp8_base_unet": "fp8_base",
    "ae": "vae",
    "resume": "resume_from_checkpoint",
    "training_shift": "discrete_flow_shift",
    **dict.fromkeys(("learning_rate_te", "learning_rate_te1"), "text_encoder_lr"),
    "learning_rate_te2": "text_encoder_lr2",
    **dict.fromkeys(("qwen3", "gemma2"), "text_encoder"),
    **dict.fromkeys(
        ("t5xxl_max_token_length", "qwen3_max_token_length", "gemma2_max_token_length"), "max_sequence_length"
    ),
}

# They cannot change what is trained: accepted, with a notice.
WITHOUT_EFFECT = {
    **dict.fromkeys(
        ("xformers", "sdpa", "mem_eff_attn", "diffusers_xformers"), "PyTorch's own attention kernels are always used"
    ),
    **dict.fromkeys(("lowram", "highvram", "lowvram"), "models leave GPU memory once their outputs are cached"),
    **dict.fromkeys(
        ("persistent_data_loader_workers", "cache_info", "skip_cache_check"), "the loader and the caches always do so"
    ),
    **dict.fromkeys(
        ("log_tracker_config", "log_config", "console_log_level", "console_log_file", "console_log_simple"),
        "the run folder's events.jsonl and console.log record the run",
    ),
    **dict.fromkeys(
        ("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_repo_visibility",
         "save_state_to_huggingface", "async_upload"),
        'nothing is uploaded by it: checkpoint_mirror = "hf://owner/name" copies checkpoints and model files there',
    ),
    **dict.fromkeys(("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph"), "accelerate decides"),
    "save_n_epoch_ratio": "save_every_n_epochs and keep_last_n_checkpoints decide what is saved and kept",
    **dict.fromkeys(
        ("metadata_usage_hint", "metadata_thumbnail", "metadata_merged_from", "metadata_trigger_phrase",
         "metadata_preprocessor", "metadata_is_negative_embedding"),
        "not written to the model file",
    ),
    **dict.fromkeys(
        ("zero_stage", "offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device",
         "offload_param_nvme_path", "zero3_init_flag", "zero3_save_16bit_model", "fp16_master_weights_and_gradients"),
        "it belongs to deepspeed",
    ),
    **dict.fromkeys(
        ("fused_optimizer_groups", "blockwise_fused_optimizers", "skip_latents_validity_check", "mem_eff_save",
         "cond_emb_dim"),
        "it belongs to sd-scripts' other trainings",
    ),
    **dict.fromkeys(
        ("split_mode", "double_blocks_to_swap", "single_blocks_to_swap", "controlnet_model_name_or_path",
         "model_type", "use_t5xxl_cache_only", "save_clip", "save_t5xxl", "t5xxl_device", "t5xxl_dtype",
         "use_flash_attn", "use_sage_attn", "sample_batch_size", "t5_tokenizer_path", "t5_max_token_length",
         "attn_mode", "split_attn", "vae_chunk_size", "vae_disable_cache", "qwen_image_vae_2d",
         "unsloth_offload_checkpointing", "byt5", "fp8_scaled", "fp8_vl", "text_encoder_cpu", "show_timesteps",
         "show_timesteps_resolution", "compile", "compile_backend", "compile_cache_size_limit", "compile_dynamic",
         "compile_fullgraph", "compile_mode"),
        "it belongs to another architecture",
    ),
    "config_file": "this is the config file",
    **dict.fromkeys(("v2", "sdxl"), "the architecture is read from the model itself"),
    "save_state_on_train_end": "the last step always writes a checkpoint",
    "output_config": "the run folder's config.toml holds the complete config",
    "use_safetensors": "model files are always safetensors",
    "disable_mmap_load_safetensors": "not needed",
    "tokenizer_cache_dir": "the tokenizer comes with the model",
    "epoch": "the length is max_train_steps or max_train_epochs",
    "noise_offset_type": "noise_offset or multires_noise_iterations choose the type",
    "num_cpu_threads_per_process": "set by accelerate launch or OMP_NUM_THREADS",
}  # fmt: skip

# They would change the training, or where it continues: refused by name, with the way out.
NOT_SUPPORTED = {
    "resume_from_huggingface": (
        'resume_from_checkpoint = "latest" with checkpoint_mirror = "hf://owner/name" continues there a run of ours; '
        "download a state of sd-scripts first"
    ),
    "skip_until_initial_step": "not needed: a resume continues at its step by itself",
    "initial_step": "not needed: a resume continues at its step by itself",
    "initial_epoch": "not needed: a resume continues at its step by itself",
    "huggingface_token": "secrets do not belong in a preset; set the environment variable HF_TOKEN",
    "wandb_api_key": "secrets do not belong in a preset",
    "use_8bit_adam": 'use optimizer_type = "AdamW8bit"',
    "use_lion_optimizer": 'use optimizer_type = "Lion"',
    "train_inpainting": "inpainting models are not supported",
    **dict.fromkeys(
        ("block_lr", "num_last_block_to_freeze", "learning_rate_te3", "apply_lg_attn_mask", "model_prediction_type",
         "train_t5xxl", "clip_l_dropout_rate", "clip_g_dropout_rate", "t5_dropout_rate", "pos_emb_random_crop_rate",
         "enable_scaled_pos_embed", "system_prompt", "llm_adapter_path", "llm_adapter_lr", "self_attn_lr",
         "cross_attn_lr", "mlp_lr", "mod_lr"),
        "it would change the training and is not supported; leave it out",
    ),
    **dict.fromkeys(
        ("dataset_class", "debug_dataset", "deepspeed", "no_token_padding", "additional_parameters"),
        "not supported yet; remove it to train without",
    ),
    **dict.fromkeys(
        ("use_object_template", "use_style_template"),
        "captions are not made of templates: write a caption with token_string beside each picture",
    ),
    "full_fp16": "fp16 loses small updates and overflows; full_bf16 takes as little memory and does neither",
    "fused_backward_pass": (
        "weights would change before it is known whether the whole step is finite, and without gradients to clip; "
        "full_bf16 and gradient_checkpointing save memory"
    ),
}  # fmt: skip

# Values with which even an unsupported option changes nothing (besides false, 0, "" and an empty list).
HARMLESS = {
    "model_prediction_type": ("raw",),
    "train_blocks": ("all",),
}
ONE_FOR_EACH_ENCODER = {"text_encoder_lr": "text_encoder_lr2"}  # two values there; here the second has its own name
