"""Facts about kohya_ss' presets: trainers, families, network kinds, defaults, and keys that are not options of ours.

What a preset may need and is not there yet is one entry here: as soon as the option it names takes the value it names,
presets that need it are imported. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Need:
    """What a preset asks for as a whole. `options`: what says so here; without a value, it cannot be trained here."""

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    possible: bool = True


# --- trainers ------------------------------------------------------------------------------------------------------

TRAINERS: dict[str, Need] = {
    "lora": Need("a LoRA"),
    "finetune": Need("a full fine-tune", {"training_kind": "finetune"}),
    "dreambooth": Need("a DreamBooth training of the whole model", {"training_kind": "finetune"}),
    "textual_inversion": Need("a textual inversion", {"training_kind": "textual_inversion"}),
    "leco": Need("a LECO training (concepts from prompts, without images)", possible=False),
    "lllite": Need("a ControlNet-LLLite training", possible=False),
}
# Keys that only one of the trainers has. The first trainer with a key in the file is its trainer.
TRAINER_KEYS: dict[str, frozenset[str]] = {
    "textual_inversion": frozenset(
        {"token_string", "init_word", "num_vectors_per_token", "num_vectors", "template", "weights",
         "use_object_template", "use_style_template"}
    ),
    "leco": frozenset({"prompts_file", "max_denoising_steps", "leco_denoise_guidance_scale"}),
    "lllite": frozenset(
        {"cond_emb_dim", "lllite_mlp_dim", "lllite_cond_dim", "lllite_cond_resblocks", "lllite_target_layers",
         "lllite_use_aspp", "lllite_dropout", "lllite_multiplier", "lllite_cond_in_channels",
         "lllite_inpaint_masked_input"}
    ),
    "lora": frozenset(
        {"LoRA_type", "network_module", "network_args", "network_dim", "network_alpha", "network_dropout", "unet_lr",
         "text_encoder_lr", "network_train_unet_only", "network_train_text_encoder_only"}
    ),
    "finetune": frozenset(
        {"create_caption", "create_buckets", "use_latent_files", "caption_metadata_filename",
         "latent_metadata_filename", "full_path", "train_text_encoder", "image_folder", "block_lr", "batch_size",
         "learning_rate_te1", "learning_rate_te2", "learning_rate_te3", "diffusers_xformers"}
    ),
    "dreambooth": frozenset({"learning_rate_te"}),
}  # fmt: skip
# What the page's fine-tune tab prepares pictures with, before sd-scripts is started.
PREPARATION = {
    "create_caption": "captions are read from files beside the pictures",
    "create_buckets": "every run sorts its pictures into buckets",
    "use_latent_files": "cache_latents_to_disk keeps latents",
    "caption_metadata_filename": "in_json names a file of captions",
    "latent_metadata_filename": "cache_latents_to_disk keeps latents",
    "full_path": "in_json takes names with and without folders",
    "batch_size": "vae_batch_size is how many pictures are encoded at a time",
}
TEXT_ENCODER_RATES = ("learning_rate_te", "learning_rate_te1", "learning_rate_te2")
WHOLE_MODEL_RATE = 1e-5  # of the pages for whole models

# --- families ------------------------------------------------------------------------------------------------------

FAMILIES: dict[str, Need] = {
    "sd": Need("Stable Diffusion 1.x or 2.x", {"family": "sd"}),
    "sdxl": Need("Stable Diffusion XL", {"family": "sdxl"}),
    "sd3": Need("Stable Diffusion 3", {"family": "sd3"}),
    "flux": Need("FLUX.1", {"family": "flux"}),
    "chroma": Need("Chroma", {"family": "chroma"}),
    "lumina": Need("Lumina Image 2.0", {"family": "lumina2"}),
    "hunyuan_image": Need("HunyuanImage 2.1", {"family": "hunyuan_image"}),
    "anima": Need("Anima", {"family": "anima"}),
}
# A key that is true, or a network module, means a family.
FAMILY_SWITCHES: dict[str, str] = {
    "sdxl": "sdxl",
    "sdxl_checkbox": "sdxl",
    "sd3_checkbox": "sd3",
    "flux1_checkbox": "flux",
    "hunyuan_image_checkbox": "hunyuan_image",
    "anima_checkbox": "anima",
    "lumina_checkbox": "lumina",
}
FAMILY_MODULES: dict[str, str] = {
    "networks.lora_flux": "flux",
    "networks.oft_flux": "flux",
    "networks.lora_sd3": "sd3",
    "networks.lora_lumina": "lumina",
    "networks.lora_hunyuan_image": "hunyuan_image",
    "networks.lora_anima": "anima",
}
# Keys that only some families have. In a TOML, where there are no switches, the first of them that is set tells.
SWAP = ("blocks_to_swap", "single_blocks_to_swap", "double_blocks_to_swap", "cpu_offload_checkpointing")
_FLUX = (
    "model_type", "ae", "clip_l", "t5xxl", "discrete_flow_shift", "model_prediction_type", "timestep_sampling",
    "sigmoid_scale", "split_mode", "train_blocks", "t5xxl_max_token_length", "t5xxl_lr", "enable_all_linear",
    "guidance_scale", "mem_eff_save", "apply_t5_attn_mask", "split_qkv", "train_t5xxl", "img_attn_dim", "img_mlp_dim",
    "img_mod_dim", "single_dim", "txt_attn_dim", "txt_mlp_dim", "txt_mod_dim", "single_mod_dim", "in_dims",
    "train_double_block_indices", "train_single_block_indices", "flux1_cache_text_encoder_outputs",
    "flux1_cache_text_encoder_outputs_to_disk", "flux_fused_backward_pass", "blockwise_fused_optimizers",
)  # fmt: skip
_SD3 = (
    "clip_l", "clip_g", "t5xxl", "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "save_clip", "save_t5xxl",
    "t5xxl_device", "t5xxl_dtype", "t5xxl_max_token_length", "clip_l_dropout_rate", "clip_g_dropout_rate",
    "t5_dropout_rate", "pos_emb_random_crop_rate", "enable_scaled_pos_embed", "training_shift", "apply_lg_attn_mask",
    "apply_t5_attn_mask", "train_t5xxl", "t5xxl_lr", "sd3_text_encoder_batch_size", "sd3_cache_text_encoder_outputs",
    "sd3_cache_text_encoder_outputs_to_disk", "sd3_fused_backward_pass", "sd3_clip_l", "sd3_clip_l_dropout_rate",
    "sd3_disable_mmap_load_safetensors", "sd3_enable_scaled_pos_embed", "sd3_t5_dropout_rate", "sd3_t5xxl",
)  # fmt: skip
FAMILY_KEYS: dict[str, tuple[str, ...]] = {
    "sdxl": ("sdxl_cache_text_encoder_outputs", "sdxl_no_half_vae"),
    "flux": (*_FLUX, *SWAP),
    "chroma": (*_FLUX, *SWAP),
    "sd3": (*_SD3, *SWAP),
    "lumina": ("gemma2", "gemma2_max_token_length", "system_prompt", "use_flash_attn", "use_sage_attn", "ae",
               "discrete_flow_shift", "timestep_sampling", "sigmoid_scale", "model_prediction_type", *SWAP),
    "hunyuan_image": ("text_encoder", "byt5", "fp8_scaled", "fp8_vl", "text_encoder_cpu", "vae_chunk_size", "attn_mode",
                      "split_attn", "discrete_flow_shift", "timestep_sampling", "sigmoid_scale",
                      "model_prediction_type", *SWAP),
    "anima": ("qwen3", "llm_adapter_path", "llm_adapter_lr", "t5_tokenizer_path", "qwen3_max_token_length",
              "t5_max_token_length", "qwen_image_vae_2d", "vae_disable_cache", "unsloth_offload_checkpointing",
              "self_attn_lr", "cross_attn_lr", "mlp_lr", "mod_lr", "compile", "compile_backend", "compile_mode",
              "compile_dynamic", "compile_fullgraph", "compile_cache_size_limit", "vae_chunk_size", "attn_mode",
              "split_attn", "discrete_flow_shift", "timestep_sampling", "sigmoid_scale", *SWAP),
}  # fmt: skip
# What a family's keys of the page begin with; the rest is the trainer's name.
FAMILY_PREFIXES = {
    "hunyuan_image_": "hunyuan_image",
    "hunyuan_": "hunyuan_image",
    "anima_": "anima",
    "lumina_": "lumina",
    "sd3_": "sd3",
    "flux1_": "flux",
    "sdxl_": "sdxl",
}
TOML_SIGNS = {"qwen3": "anima", "gemma2": "lumina", "byt5": "hunyuan_image", "clip_g": "sd3", "t5xxl": "flux"}
# What sd-scripts' trainers of all other architectures than these two take and leave alone.
OF_NOISE_SCHEDULES = ("sd", "sdxl")
IGNORED_BY_FLOW = (
    "noise_offset", "noise_offset_random_strength", "adaptive_noise_scale", "multires_noise_iterations",
    "multires_noise_discount", "min_snr_gamma", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss",
    "debiased_estimation_loss", "zero_terminal_snr", "v_parameterization", "clip_skip",
)  # fmt: skip
BUCKET_STEPS = {"sd": 64}  # what sd-scripts wants multiples of; 32 of all others

# --- network kinds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkKind:
    """A LoRA_type of kohya_ss, or what a network module and its algo mean.

    `arguments`: the keys that kohya_ss makes network_args of; `options`: what says so here.
    """

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    possible: bool = True


_BLOCKS = (
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_dims", "block_alphas",
    "conv_block_dims", "conv_block_alphas",
)  # fmt: skip
_DROPOUTS = ("rank_dropout", "module_dropout")
_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_GGPO = ("train_lora_ggpo", "ggpo_sigma", "ggpo_beta")
_CONV = ("conv_dim", "conv_alpha")
_LYCORIS = ("LyCORIS_preset", *_CONV, *_DROPOUTS, "rank_dropout_scale", "train_norm")
_TUCKER = ("use_tucker", "use_cp", "use_scalar", "bypass_mode", "dora_wd", "wd_on_output", "rs_lora")


def _lycoris(algo: str, *arguments: str, **options: Any) -> NetworkKind:
    return NetworkKind(f"LyCORIS' {algo}", "lycoris.kohya", (*_LYCORIS, *arguments), options, possible=bool(options))


KINDS: dict[str, NetworkKind] = {
    "Standard": NetworkKind("LoRA", "networks.lora", (*_BLOCKS, *_DROPOUTS, *_PLUS, *_GGPO)),
    "Kohya LoCon": NetworkKind("LoCon", "networks.lora", (*_CONV, *_BLOCKS, *_DROPOUTS, *_PLUS, *_GGPO)),
    "Flux1": NetworkKind("LoRA of FLUX.1", "networks.lora_flux", (*_DROPOUTS, *_PLUS, *_GGPO)),
    "LoRA-FA": NetworkKind("LoRA-FA", "networks.lora_fa", possible=False),
    "Kohya DyLoRA": NetworkKind("DyLoRA", "networks.dylora", ("unit", *_CONV, *_BLOCKS, *_DROPOUTS), possible=False),
    "LyCORIS/LoCon": _lycoris("LoCon", *_TUCKER, *_PLUS, network_kind="lora"),
    "LyCORIS/LoHa": _lycoris("LoHa", *_TUCKER, network_kind="loha"),
    "LyCORIS/LoKr": _lycoris("LoKr", "factor", "decompose_both", "full_matrix", *_TUCKER, network_kind="lokr"),
    "LyCORIS/iA3": _lycoris("(IA)^3", "train_on_input", network_kind="ia3"),
    "LyCORIS/GLoRA": _lycoris("GLoRA", network_kind="glora"),
    "LyCORIS/Diag-OFT": _lycoris("Diag-OFT", "constrain", "rescaled", *_TUCKER, network_kind="diag-oft"),
    "LyCORIS/BOFT": _lycoris("BOFT", "constrain", "rescaled", *_TUCKER),
    "LyCORIS/DyLoRA": _lycoris("DyLoRA", "unit", "use_tucker"),
    "LyCORIS/Native Fine-Tuning": _lycoris("full difference", *_TUCKER),
}
ALGOS = {
    "lora": "LyCORIS/LoCon", "locon": "LyCORIS/LoCon", "loha": "LyCORIS/LoHa", "lokr": "LyCORIS/LoKr",
    "ia3": "LyCORIS/iA3", "glora": "LyCORIS/GLoRA", "diag-oft": "LyCORIS/Diag-OFT", "boft": "LyCORIS/BOFT",
    "dylora": "LyCORIS/DyLoRA", "full": "LyCORIS/Native Fine-Tuning",
}  # fmt: skip
# The page's names of network_args, where they are others.
ARGUMENT_NAMES = {"LyCORIS_preset": "preset", "unit": "block_size", "constrain": "constraint"}
# With these, an argument of a network does nothing (besides false, 0 and "").
OFF_ARGUMENTS = {
    "factor": (-1,),
    "unit": (1,),
    "conv_dim": (),
    "ggpo_sigma": (0.03,),
    "ggpo_beta": (0.01,),
}
ALL_ARGUMENTS = frozenset(name for kind in KINDS.values() for name in kind.arguments)

# --- keys ----------------------------------------------------------------------------------------------------------

# The page's name -> the trainer's.
RENAMED = {
    "optimizer": "optimizer_type",
    "max_resolution": "resolution",
    "lora_network_weights": "network_weights",
    "stop_text_encoder_training_pct": "stop_text_encoder_training",
    "caption_extention": "caption_extension",
    "conv_dims": "conv_block_dims",
    "conv_alphas": "conv_block_alphas",
    "sdxl_checkbox": "sdxl",
}
SECRETS = ("huggingface_token", "wandb_api_key")
LAUNCH = (
    "num_cpu_threads_per_process", "num_processes", "num_machines", "multi_gpu", "gpu_ids", "main_process_port",
    "dynamo_backend", "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic", "extra_accelerate_launch_args",
)  # fmt: skip
OF_THE_PAGE = (
    "model_list",
    "save_as_bool",
    "training_preset",
    "config_file_name",
    "file_path",
    "train_inpainting_info",
)
OPTIMIZERS = {"dadaptation": "DAdaptAdamPreprint"}  # sd-scripts' own names for classes

# kohya_ss' page fills what a JSON leaves out with these (its LoRA tab). The base model is left for the user to choose:
# the one that the page begins with is no longer to be had.
PAGE_DEFAULTS: dict[str, Any] = {
    "LoRA_type": "Standard",
    "learning_rate": 1e-4,
    "unet_lr": 1e-4,
    "text_encoder_lr": 1e-4,
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "lr_scheduler_num_cycles": 1,
    "optimizer": "AdamW8bit",
    "max_grad_norm": 1.0,
    "train_batch_size": 1,
    "epoch": 1,
    "max_train_epochs": 0,
    "max_train_steps": 1600,
    "save_every_n_epochs": 1,
    "caption_extension": ".txt",
    "seed": 0,
    "cache_latents": True,
    "max_resolution": "512,512",
    "enable_bucket": True,
    "min_bucket_reso": 256,
    "max_bucket_reso": 2048,
    "bucket_no_upscale": True,
    "bucket_reso_steps": 64,
    "mixed_precision": "fp16",
    "save_precision": "fp16",
    "network_dim": 8,
    "network_alpha": 1,
    "conv_dim": 1,
    "conv_alpha": 1,
    "noise_offset_type": "Original",
    "huber_schedule": "snr",
    "sample_sampler": "euler_a",
    "max_data_loader_n_workers": 0,
}
# What sd-scripts' trainer takes for an argument that a TOML leaves out, where ours is another.
TRAINER_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-6,
    "network_dim": 4,
    "caption_extension": ".caption",
    "save_precision": "float",
    "seed": None,
    "optimizer_type": "AdamW",
    "max_data_loader_n_workers": 8,
}
