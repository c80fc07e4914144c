"""The table of architectures: what each is, without torch; and one file each, imported only to load a model.

This module and `facts` import nothing but the standard library, so every room may read them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from trainer.models.families.facts import (
    BLOCKS,
    CLIP_SKIP,
    CLIP_TEXT,
    CONTROLS,
    CONVOLUTIONAL,
    DDPM,
    FLOW,
    GUIDANCE,
    PADS_TEXT,
    TRAINS_ENCODERS,
    TWO_ENCODERS,
    UPCASTS_VAE,
    Blocks,
    Facts,
    Part,
)

if TYPE_CHECKING:
    from trainer.models.families.base import Family

AUTO = "auto"  # the family that the base model's files show

UNET_LAYERS = r"(^|\.)attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.)"
UNET_CONVOLUTIONS = r"\.(resnets\.\d+\.(conv[12]|conv_shortcut|time_emb_proj)|(down|up)samplers\.\d+\.conv)$"
UNET_KERNELS = r"\.(conv[12]|(down|up)samplers\.\d+\.conv)$|^conv_(in|out)$"
ORIGINAL_UNET = "model.diffusion_model."
ORIGINAL_UNET_LAYERS = r"\.transformer_blocks\.|(blocks\.\d+|middle_block)\.1\.proj_(in|out)$"
ORIGINAL_UNET_CONVOLUTIONS = r"\.(in_layers\.2|out_layers\.3|emb_layers\.1|skip_connection|op|conv)$"
CLIP_LAYERS = r"(^|\.)(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$"

TRANSFORMER_COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
FLUX_LAYERS = (
    r"^(single_)?transformer_blocks\.\d+\.(attn\.(to|add)_|ff(_context)?\.net\.|proj_(mlp|out)$)"  # no modulation
)

TABLE: dict[str, Facts] = {
    "sd": Facts(
        title="Stable Diffusion 1.x or 2.x",
        module="trainer.models.families.sd",
        pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
        signature=(r"^model\.diffusion_model\.input_blocks\.0\.0\.weight$", r"^cond_stage_model\."),
        components=("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
        denoiser=Part(
            "unet",
            "lora_unet",
            UNET_LAYERS,
            UNET_CONVOLUTIONS,
            outer=r"^(conv_in|conv_out|time_embedding\.linear_[12])$",
            kernels=UNET_KERNELS,
            original=ORIGINAL_UNET,
            original_layers=ORIGINAL_UNET_LAYERS,
            original_convolutions=ORIGINAL_UNET_CONVOLUTIONS,
            original_outer=r"^(input_blocks\.0\.0|out\.2|time_embed\.[02])$",
        ),
        encoders=(
            Part(
                "text_encoder",
                "lora_te",
                CLIP_LAYERS,
                path_prefix="text_model.",
                tokenizer="tokenizer",
                original="cond_stage_model.",
                original_layers=CLIP_LAYERS,
                drops_last=True,
            ),
        ),
        channels=4,
        factor=8,
        granularity=8,
        traits=frozenset({DDPM, CLIP_TEXT, CLIP_SKIP, TRAINS_ENCODERS, CONVOLUTIONAL, BLOCKS}),
        blocks=Blocks(0, 12, 1, 12, 0),
        version="sd_v1",
        architecture="stable-diffusion-v1",
        defaults={"sample_sampler": "ddim"},
    ),
    "sdxl": Facts(
        title="Stable Diffusion XL",
        module="trainer.models.families.sdxl",
        pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
        signature=(r"^model\.diffusion_model\.input_blocks\.0\.0\.weight$", r"^conditioner\.embedders\.1\."),
        components=("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
        denoiser=Part(
            "unet",
            "lora_unet",
            UNET_LAYERS,
            UNET_CONVOLUTIONS,
            kernels=UNET_KERNELS,
            original=ORIGINAL_UNET,
            original_layers=ORIGINAL_UNET_LAYERS,
            original_convolutions=ORIGINAL_UNET_CONVOLUTIONS,
        ),
        encoders=(
            Part(
                "text_encoder",
                "lora_te1",
                CLIP_LAYERS,
                path_prefix="text_model.",
                tokenizer="tokenizer",
                original="conditioner.embedders.0.",
                original_layers=CLIP_LAYERS,
                idle=r"\.layers\.{last}\.",
            ),
            Part(
                "text_encoder_2",
                "lora_te2",
                CLIP_LAYERS,
                path_prefix="text_model.",
                tokenizer="tokenizer_2",
                original="conditioner.embedders.1.",
                original_layers=CLIP_LAYERS,
            ),
        ),
        channels=4,
        factor=8,
        granularity=8,
        traits=frozenset({DDPM, CLIP_TEXT, TRAINS_ENCODERS, TWO_ENCODERS, UPCASTS_VAE, CONVOLUTIONAL, BLOCKS}),
        blocks=Blocks(1, 9, 3, 9, 1),
        version="sdxl_base_v1-0",
        architecture="stable-diffusion-xl-v1-base",
        keys="sai",
        defaults={"sample_sampler": "euler_a"},
    ),
    "z_image": Facts(
        title="Z-Image",
        module="trainer.models.families.z_image",
        pipelines=("ZImagePipeline", "ZImageImg2ImgPipeline"),
        signature=(r"(^|\.)noise_refiner\.0\.", r"(^|\.)layers\.0\.adaLN_modulation\.0\.weight$"),
        components=TRANSFORMER_COMPONENTS,
        denoiser=Part("transformer", "lora_unet", r"^layers\.\d+\.(attention|feed_forward)\."),
        encoders=(Part("text_encoder", "", "", tokenizer="tokenizer"),),
        channels=16,
        factor=8,
        granularity=16,
        traits=frozenset({FLOW}),
        version="zimage",
        architecture="Z-Image",
        keys="folded",
        # musubi-tuner's document of Z-Image: discrete_flow_shift 2.0; diffusers' page of it: guidance 3 to 5
        defaults={"sample_sampler": "euler", "timestep_sampling": "shift", "discrete_flow_shift": 2.0},
        guidance=4.0,
        overrides={"vae": "vae", "text_encoder": "text_encoder"},
        trained_instead="Z-Image",
        denoiser_alone=True,
    ),
    "flux2": Facts(
        title="FLUX.2",
        module="trainer.models.families.flux2",
        pipelines=("Flux2KleinPipeline", "Flux2Pipeline"),
        signature=(r"(^|\.)double_stream_modulation_img\.lin(ear)?\.weight$",),
        components=TRANSFORMER_COMPONENTS,
        denoiser=Part(
            "transformer",
            "lora_unet",
            r"^(single_)?transformer_blocks\.\d+\.(attn\.(to|add)_|ff(_context)?\.linear_)",
        ),
        encoders=(Part("text_encoder", "", "", tokenizer="tokenizer"),),
        channels=128,
        factor=16,
        granularity=16,
        traits=frozenset({FLOW, GUIDANCE, CONTROLS}),
        version="flux2_dev",
        architecture="Flux.2-dev",
        keys="folded",
        # musubi-tuner's document of FLUX.2: flux2_shift, guidance 1.0; diffusers' pipelines: guidance 4.0
        defaults={"sample_sampler": "euler", "timestep_sampling": "flux2_shift", "guidance_scale": 1.0},
        guidance=4.0,
        embedded_guidance=4.0,
        overrides={"vae": "vae", "text_encoder": "text_encoder"},
        trained_instead="FLUX.2 klein base",
        denoiser_alone=True,
    ),
    "flux": Facts(
        title="FLUX.1",
        module="trainer.models.families.flux",
        pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxKontextPipeline"),
        signature=(
            r"(^|\.)(double_blocks\.0\.img_mod\.lin|transformer_blocks\.0\.norm1_context\.linear)\.weight$",
            r"(^|\.)(single_blocks\.0\.linear1|single_transformer_blocks\.0\.proj_mlp)\.weight$",
        ),
        components=(
            "transformer",
            "vae",
            "text_encoder",
            "text_encoder_2",
            "tokenizer",
            "tokenizer_2",
            "scheduler",
        ),
        denoiser=Part("transformer", "lora_unet", FLUX_LAYERS),
        encoders=(
            Part("text_encoder", "", "", tokenizer="tokenizer"),
            Part("text_encoder_2", "", "", tokenizer="tokenizer_2"),
        ),
        channels=16,
        factor=8,
        granularity=16,
        traits=frozenset({FLOW, GUIDANCE, PADS_TEXT, CONTROLS}),
        version="flux1",
        architecture="flux-1-dev",
        keys="fused",
        # sd-scripts' document of FLUX.1: a shift of 3.1582 at 1024 pixels, which is flux_shift there, and guidance 1.0
        defaults={"sample_sampler": "euler", "timestep_sampling": "flux_shift", "guidance_scale": 1.0},
        guidance=1.0,
        overrides={"vae": "vae", "clip_l": "text_encoder", "t5xxl": "text_encoder_2"},
        trained_instead="FLUX.1 dev",
        denoiser_alone=True,
    ),
    "qwen_image": Facts(
        title="Qwen-Image",
        module="trainer.models.families.qwen_image",
        pipelines=(
            "QwenImagePipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageEditPlusPipeline",
            "QwenImageEditPipeline",
        ),
        edits=("QwenImageEditPlusPipeline", "QwenImageEditPipeline"),
        optional=("processor",),
        signature=(r"(^|\.)transformer_blocks\.0\.img_mod\.1\.weight$", r"(^|\.)txt_in\.weight$"),
        components=TRANSFORMER_COMPONENTS,
        denoiser=Part(
            "transformer",
            "lora_unet",
            r"^transformer_blocks\.\d+\.(attn\.(to|add)_|(img|txt)_mlp\.net\.)",
            idle=r"\.transformer_blocks\.{last}\.(attn\.(to_add_out|add_q_proj)|txt_mlp)\.",
        ),
        encoders=(Part("text_encoder", "", "", tokenizer="tokenizer"),),
        channels=16,
        factor=8,
        granularity=16,
        traits=frozenset({FLOW, CONTROLS}),
        version="qwen_image",
        architecture="Qwen-Image",
        keys="folded",
        # musubi-tuner's document of Qwen-Image: discrete_flow_shift 2.2; diffusers' page of it: true_cfg_scale 4.0
        defaults={"sample_sampler": "euler", "timestep_sampling": "shift", "discrete_flow_shift": 2.2},
        guidance=4.0,
        overrides={"vae": "vae", "text_encoder": "text_encoder"},
        denoiser_alone=True,
    ),
    "anima": Facts(
        title="Anima",
        module="trainer.models.families.anima",
        pipelines=("AnimaModularPipeline",),
        signature=(
            r"(^|\.)(llm_adapter\.|transformer_blocks\.0\.norm3\.linear_1\.weight$)",
            r"(^|\.)(blocks\.0\.cross_attn\.q_proj|transformer_blocks\.0\.attn2\.to_q)\.weight$",
        ),
        components=(*TRANSFORMER_COMPONENTS, "text_conditioner", "t5_tokenizer"),
        denoiser=Part("transformer", "lora_unet", r"^transformer_blocks\.\d+\.(attn1\.to_|attn2\.to_|ff\.net\.)"),
        encoders=(
            Part("text_encoder", "", "", tokenizer="tokenizer"),
            Part("text_conditioner", "", "", tokenizer="t5_tokenizer"),
        ),
        channels=16,
        factor=8,
        granularity=16,
        traits=frozenset({FLOW}),
        version="anima",
        architecture="anima-preview",
        keys="cosmos",
        # sd-scripts' document of Anima: sigmoid with a shift of 1.0; diffusers' pipeline: guidance 4.0
        defaults={"sample_sampler": "euler", "timestep_sampling": "sigmoid"},
        guidance=4.0,
        overrides={"vae": "vae", "text_encoder": "text_encoder"},
        denoiser_alone=True,
    ),
    "krea2": Facts(
        title="Krea 2",
        module="trainer.models.families.krea2",
        pipelines=("Krea2Pipeline",),
        signature=(r"(^|\.)(txtfusion\.projector|text_fusion\.projector)\.weight$",),
        components=TRANSFORMER_COMPONENTS,
        denoiser=Part("transformer", "lora_unet", r"^transformer_blocks\.\d+\.(attn|ff)\."),
        encoders=(Part("text_encoder", "", "", tokenizer="tokenizer"),),
        channels=16,
        factor=8,
        granularity=16,
        traits=frozenset({FLOW}),
        version="krea2",
        architecture="Krea-2",
        keys="folded",
        # musubi-tuner's document of Krea 2: discrete_flow_shift 2.5; guidance of diffusers' pipeline
        defaults={"sample_sampler": "euler", "timestep_sampling": "shift", "discrete_flow_shift": 2.5},
        guidance=4.5,
        overrides={"vae": "vae", "text_encoder": "text_encoder"},
        trained_instead="Krea 2 Raw",
        denoiser_alone=True,
    ),
    "chroma": Facts(
        title="Chroma",
        module="trainer.models.families.chroma",
        pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline"),
        signature=(r"(^|\.)distilled_guidance_layer\.in_proj\.weight$",),
        components=TRANSFORMER_COMPONENTS,
        denoiser=Part("transformer", "lora_unet", FLUX_LAYERS),
        encoders=(Part("text_encoder", "", "", tokenizer="tokenizer"),),
        channels=16,
        factor=8,
        granularity=16,
        traits=frozenset({FLOW}),
        version="chroma",
        architecture="chroma",
        keys="folded",
        # sd-scripts' document of Chroma: timestep_sampling sigmoid, guidance 0; diffusers' pipeline: guidance 5.0
        defaults={"sample_sampler": "euler", "timestep_sampling": "sigmoid"},
        guidance=5.0,
        overrides={"vae": "vae", "t5xxl": "text_encoder", "text_encoder": "text_encoder"},
        denoiser_alone=True,
    ),
    "sd3": Facts(
        title="Stable Diffusion 3",
        module="trainer.models.families.sd3",
        pipelines=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
        signature=(
            r"(^|\.)(joint_blocks\.0\.context_block\.adaLN_modulation\.1|transformer_blocks\.0\.norm1_context\.linear)\.bias$",
            r"(^|\.)(x_embedder\.proj|pos_embed\.proj)\.weight$",
        ),
        components=(
            *TRANSFORMER_COMPONENTS,
            "text_encoder_2",
            "text_encoder_3",
            "tokenizer_2",
            "tokenizer_3",
        ),
        denoiser=Part(
            "transformer",
            "lora_unet",
            r"^transformer_blocks\.\d+\.(attn2?\.(to|add)_|ff(_context)?\.net\.)",
            idle=r"\.transformer_blocks\.{last}\.attn\.add_q_proj\.",
        ),
        encoders=(
            Part("text_encoder", "", "", tokenizer="tokenizer"),
            Part("text_encoder_2", "", "", tokenizer="tokenizer_2"),
            Part("text_encoder_3", "", "", tokenizer="tokenizer_3"),
        ),
        channels=16,
        factor=8,
        granularity=16,
        traits=frozenset({FLOW}),
        version="sd3",
        architecture="stable-diffusion-3",
        keys="folded",
        # https://arxiv.org/abs/2403.03206 and OneTrainer: logit-normal; diffusers' pipeline: guidance 7.0
        defaults={"sample_sampler": "euler", "timestep_sampling": "sigmoid"},
        guidance=7.0,
        overrides={"vae": "vae", "clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"},
        denoiser_alone=True,
    ),
    "ernie": Facts(
        title="ERNIE-Image",
        module="trainer.models.families.ernie",
        pipelines=("ErnieImagePipeline",),
        signature=(
            r"(^|\.)layers\.0\.adaLN_sa_ln\.weight$",
            r"(^|\.)layers\.0\.mlp\.gate_proj\.weight$",
        ),
        components=TRANSFORMER_COMPONENTS,
        denoiser=Part("transformer", "lora_unet", r"^layers\.\d+\.(self_attention|mlp)\."),
        encoders=(Part("text_encoder", "", "", tokenizer="tokenizer"),),
        channels=128,
        factor=16,
        granularity=16,
        traits=frozenset({FLOW}),
        version="ernie_image",
        architecture="Ernie-Image",
        keys="folded",
        # OneTrainer's preset of ERNIE-Image: logit-normal; diffusers' pipeline: guidance 4.0
        defaults={"sample_sampler": "euler", "timestep_sampling": "sigmoid"},
        guidance=4.0,
        overrides={"vae": "vae", "text_encoder": "text_encoder"},
        denoiser_alone=True,
    ),
    "lumina2": Facts(
        title="Lumina Image 2.0",
        module="trainer.models.families.lumina2",
        pipelines=("Lumina2Pipeline", "Lumina2Text2ImgPipeline"),
        signature=(
            r"(^|\.)noise_refiner\.0\.",
            r"(^|\.)layers\.0\.(adaLN_modulation\.1|norm1\.linear)\.weight$",
        ),
        components=TRANSFORMER_COMPONENTS,
        denoiser=Part("transformer", "lora_unet", r"^layers\.\d+\.(attn|feed_forward)\."),
        encoders=(Part("text_encoder", "", "", tokenizer="tokenizer"),),
        channels=16,
        factor=8,
        granularity=16,
        traits=frozenset({FLOW}),
        version="lumina2",
        architecture="lumina-2",
        keys="folded",
        # the shift with which the model is sampled; guidance of diffusers' pipeline
        defaults={"sample_sampler": "euler", "timestep_sampling": "shift", "discrete_flow_shift": 6.0},
        guidance=4.0,
        overrides={"vae": "vae", "text_encoder": "text_encoder"},
        denoiser_alone=True,
    ),
}


def choices() -> tuple[str, ...]:
    """The values of the option `family`."""
    return (AUTO, *TABLE)


def get(name: str) -> Family:
    """The family of this name; only its own module is imported."""
    family: Family = importlib.import_module(TABLE[name].module).FAMILY
    return family
