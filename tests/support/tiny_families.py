"""Each family's real classes at a tiny size, for the test that every family passes; and its real size, on paper.

A new family adds its entry here and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AnimaTextConditioner,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    ClassifierFreeGuidance,
    CosmosTransformer3DModel,
    DiffusionPipeline,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    ModularPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.modular_pipelines.anima import before_denoise
from diffusers.modular_pipelines.anima.modular_blocks_anima import AnimaAutoBlocks
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Mistral3Model,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.support import tiny


@dataclass(frozen=True)
class Tiny:
    """How a family is tried.

    `make`: writes its tiny model, always the same, as a diffusers folder. `denoiser`: makes the real one, whose layers
    are counted on the meta device: `layers`, and `with_convolutions` when conv_dim is given. `call`: what the official
    pipeline is called with so that it asks the denoiser once a step, without guidance; `guided`: with a guidance of 2
    and this `negative` prompt. `same`: makes the arguments that it gives the denoiser those of ours that mean the same.
    `official`: the official pipeline of a folder.
    """

    make: Callable[[Path], Path]
    denoiser: Callable[[], nn.Module]
    layers: int
    with_convolutions: int
    call: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    guided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 2.0})
    negative: str = ""
    same: Callable[[dict[str, Any]], dict[str, Any]] = dict
    official: Callable[[Path], Any] = lambda folder: DiffusionPipeline.from_pretrained(folder, local_files_only=True)


def make_sdxl(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = tiny.make_tokenizer(folder / "tokenizer-source")
        second = tiny.make_tokenizer(folder / "tokenizer-source")
        second.pad_token = "!"
        larger = tiny.text_config(
            first, hidden_size=48, projection_dim=32
        )  # a single file tells the two by their widths
        pipeline = StableDiffusionXLPipeline(
            vae=tiny.make_vae(),
            text_encoder=CLIPTextModel(tiny.text_config(first)),
            text_encoder_2=CLIPTextModelWithProjection(larger),
            tokenizer=first,
            tokenizer_2=second,
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 32, 64),
                layers_per_block=2,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 1, 2),
                attention_head_dim=(2, 2, 4),
                cross_attention_dim=32 + 48,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
                norm_num_groups=8,
            ),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
            ),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def real_sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def written(kind: Any, folder: Path, make: Callable[[], Mapping[str, Any]], **settings: Any) -> Path:
    """A pipeline of this kind, its components made from the same random numbers each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(**make(), **settings).save_pretrained(folder)
    return folder


def flux_vae() -> AutoencoderKL:
    return tiny.make_vae(
        latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
    )


def qwen3(**changes: Any) -> Qwen3Config:
    """A language model of a few layers."""
    small = {
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    return Qwen3Config(**small | changes)


def make_z_image(folder: Path) -> Path:
    def parts() -> dict[str, Any]:
        return {
            "transformer": ZImageTransformer2DModel(
                dim=48, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32, axes_dims=[8, 8, 8]
            ),
            "vae": flux_vae(),
            "text_encoder": Qwen3Model(qwen3()),
            "tokenizer": tiny.make_chat_tokenizer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        }

    return written(ZImagePipeline, folder, parts)


def flux2_vae() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=32,
        norm_num_groups=8,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def flux2_transformer(text_width: int, **changes: Any) -> Flux2Transformer2DModel:
    small = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "axes_dims_rope": (4, 4, 4, 4),
        "timestep_guidance_channels": 32,
        "joint_attention_dim": text_width,
    }
    return Flux2Transformer2DModel(**small | changes)


def make_flux2_klein(folder: Path) -> Path:
    def parts() -> dict[str, Any]:
        return {
            "transformer": flux2_transformer(3 * 16, guidance_embeds=False),
            "vae": flux2_vae(),
            "text_encoder": Qwen3ForCausalLM(
                qwen3(num_hidden_layers=27, hidden_size=16, intermediate_size=16, head_dim=8)
            ),
            "tokenizer": tiny.make_chat_tokenizer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        }

    return written(Flux2KleinPipeline, folder, parts)


def make_flux2_dev(folder: Path) -> Path:
    def parts() -> dict[str, Any]:
        return {
            "transformer": flux2_transformer(3 * 16),
            "vae": flux2_vae(),
            "text_encoder": Mistral3ForConditionalGeneration(mistral3()),
            "tokenizer": tiny.make_chat_tokenizer("left"),
            "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        }

    return written(Flux2Pipeline, folder, parts)


def t5(**changes: Any) -> T5EncoderModel:
    small = {"vocab_size": 260, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(**small | changes))


def make_flux(folder: Path) -> Path:
    def parts() -> dict[str, Any]:
        tokenizer = tiny.make_tokenizer(folder / "tokenizer-source")
        return {
            "transformer": FluxTransformer2DModel(
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                guidance_embeds=True,
                axes_dims_rope=(4, 4, 8),
            ),
            "vae": flux_vae(),
            "text_encoder": CLIPTextModel(tiny.text_config(tokenizer)),
            "text_encoder_2": t5(),
            "tokenizer": tokenizer,
            "tokenizer_2": tiny.make_chat_tokenizer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        }

    return written(FluxPipeline, folder, parts)


def qwen_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1)


def qwen_parts(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    """A Qwen-Image. `changes`: of its transformer."""
    text = {
        "vocab_size": 270,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return {
        "transformer": QwenImageTransformer2DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            **changes,
        ),
        "vae": qwen_vae(),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=sight, image_token_id=261)
        ),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
    }


def make_qwen_image(folder: Path) -> Path:
    return written(QwenImagePipeline, folder, lambda: qwen_parts(tiny.make_chat_tokenizer()))


def make_qwen_edit(folder: Path, kind: str = "QwenImageEditPlusPipeline") -> Path:
    """Its tokenizer knows where pictures go; as Edit-2511, its control pictures are never noisy."""
    tokenizer = tiny.make_chat_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]}
    )
    written(QwenImagePipeline, folder, lambda: qwen_parts(tokenizer, zero_cond_t=True))
    tokenizer.save_pretrained(folder / "processor")
    Qwen2VLImageProcessorPil(patch_size=14, min_pixels=56 * 56, max_pixels=10**7).save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": kind, "processor": ["transformers", "Qwen2VLProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_krea2(folder: Path) -> Path:
    def parts() -> dict[str, Any]:
        text = {
            "vocab_size": 260,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True},
        }
        sight = {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
        }
        return {
            "transformer": Krea2Transformer2DModel(
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=48,
                timestep_embed_dim=16,
                text_hidden_dim=32,
                num_text_layers=2,
                text_num_attention_heads=2,
                text_num_key_value_heads=2,
                text_intermediate_size=48,
                num_layerwise_text_blocks=1,
                num_refiner_text_blocks=1,
                axes_dims_rope=(4, 6, 6),
            ),
            "vae": qwen_vae(),
            "text_encoder": Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=sight)),
            "tokenizer": tiny.make_chat_tokenizer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
        }

    return written(Krea2Pipeline, folder, parts, text_encoder_select_layers=(1, 2))


def make_chroma(folder: Path) -> Path:
    def parts() -> dict[str, Any]:
        return {
            "transformer": ChromaTransformer2DModel(
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=(4, 4, 8),
                approximator_num_channels=16,
                approximator_hidden_dim=32,
                approximator_layers=1,
            ),
            "vae": flux_vae(),
            "text_encoder": t5(),
            "tokenizer": tiny.make_chat_tokenizer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(),
        }

    return written(ChromaPipeline, folder, parts)


def make_sd3(folder: Path) -> Path:
    def parts() -> dict[str, Any]:
        tokenizer = tiny.make_tokenizer(folder / "tokenizer-source")
        return {
            "transformer": SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=96,
                caption_projection_dim=32,
                pooled_projection_dim=64,
                pos_embed_max_size=16,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ),
            "vae": flux_vae(),
            "text_encoder": CLIPTextModelWithProjection(tiny.text_config(tokenizer, projection_dim=32)),
            "text_encoder_2": CLIPTextModelWithProjection(tiny.text_config(tokenizer, projection_dim=32)),
            "text_encoder_3": t5(d_model=96),
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer,
            "tokenizer_3": tiny.make_chat_tokenizer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        }

    return written(StableDiffusion3Pipeline, folder, parts)


def make_anima(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = AnimaAutoBlocks().init_pipeline()
        pipeline.update_components(
            transformer=CosmosTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                text_embed_dim=32,
                adaln_lora_dim=8,
                max_size=(4, 32, 32),
                extra_pos_embed_type=None,
                rope_scale=(1.0, 4.0, 4.0),
            ),
            text_conditioner=AnimaTextConditioner(
                source_dim=32,
                target_dim=32,
                model_dim=32,
                num_layers=1,
                num_attention_heads=2,
                target_vocab_size=260,
                min_sequence_length=16,
            ),
            vae=qwen_vae(),
            text_encoder=Qwen3Model(qwen3()),
            tokenizer=tiny.make_chat_tokenizer(),
            t5_tokenizer=tiny.make_chat_tokenizer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


class OfficialAnima:
    """The modular pipeline, called as others are."""

    draws = before_denoise  # the module that draws its noise

    def __init__(self, folder: Path) -> None:
        self._pipeline = ModularPipeline.from_pretrained(str(folder))
        self._pipeline.load_components()
        self.load_lora_weights = self._pipeline.load_lora_weights
        self.set_progress_bar_config = self._pipeline.set_progress_bar_config

    @property
    def transformer(self) -> Any:
        return self._pipeline.transformer

    @property
    def scheduler(self) -> Any:
        return self._pipeline.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._pipeline.update_components(scheduler=scheduler)

    def __call__(
        self, guidance_scale: float, negative_prompt: str = "", output_type: str = "pil", **arguments: Any
    ) -> Any:
        self._pipeline.update_components(guider=ClassifierFreeGuidance(guidance_scale=guidance_scale))
        output = "latents" if output_type == "latent" else "images"
        return SimpleNamespace(images=self._pipeline(negative_prompt=negative_prompt, **arguments, output=output))


def mistral3() -> Mistral3Config:
    text = {
        "vocab_size": 260,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 30,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Mistral3Config(
        text_config=MistralConfig(**text), vision_config=PixtralVisionConfig(**sight), image_token_index=259
    )


def make_ernie(folder: Path) -> Path:
    def parts() -> dict[str, Any]:
        transformer = ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=48,
            text_in_dim=16,
            rope_axes_dim=(4, 6, 6),
        )
        for layer in (transformer.adaLN_modulation[-1], transformer.final_linear):  # which begin as zeros
            torch.nn.init.normal_(layer.weight, std=0.1)
        return {
            "transformer": transformer,
            "vae": flux2_vae(),
            "text_encoder": Mistral3Model(mistral3()),
            "tokenizer": tiny.make_chat_tokenizer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        }

    return written(ErnieImagePipeline, folder, parts)


def make_lumina2(folder: Path) -> Path:
    def parts() -> dict[str, Any]:
        text = Gemma2Config(
            vocab_size=260,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=16,
        )
        return {
            "transformer": Lumina2Transformer2DModel(
                sample_size=8,
                hidden_size=32,
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=2,
                num_kv_heads=1,
                multiple_of=8,
                axes_dim_rope=(4, 6, 6),
                axes_lens=(300, 32, 32),
                cap_feat_dim=32,
            ),
            "vae": flux_vae(),
            "text_encoder": Gemma2Model(text),
            "tokenizer": tiny.make_chat_tokenizer(begins=True),
            "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
        }

    return written(Lumina2Pipeline, folder, parts)


def with_the_text_that_counts(arguments: dict[str, Any]) -> dict[str, Any]:
    """A denoiser's arguments without the padding behind the text."""
    mask = arguments["encoder_attention_mask"]
    states = arguments["encoder_hidden_states"][:, mask[0].bool()]
    return arguments | {"encoder_hidden_states": states, "encoder_attention_mask": mask[:, mask[0].bool()]}


def without_masked_text(arguments: dict[str, Any]) -> dict[str, Any]:
    """A denoiser's arguments without the text that its mask hides, where the text's order says nothing."""
    arguments = dict(arguments)
    states = arguments["encoder_hidden_states"]
    mask = arguments.pop("encoder_attention_mask")[0].bool()
    hidden = int((~mask).sum())
    return arguments | {"encoder_hidden_states": states[:, mask], "position_ids": arguments["position_ids"][hidden:]}


def without_mask(arguments: dict[str, Any]) -> dict[str, Any]:
    """A denoiser's arguments without a mask that hides nothing."""
    arguments = dict(arguments)
    assert arguments.pop("attention_mask").all()
    return arguments


FAMILIES: dict[str, Tiny] = {
    "sd": Tiny(tiny.make_model, lambda: UNet2DConditionModel(cross_attention_dim=768), 192, 278),
    "sdxl": Tiny(make_sdxl, real_sdxl, 722, 788),
    "z_image": Tiny(make_z_image, ZImageTransformer2DModel, 210, 210, call={"guidance_scale": 0.0}),
    "flux2": Tiny(
        make_flux2_klein,
        lambda: Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        ),
        100,
        100,
    ),
    "flux2 dev": Tiny(make_flux2_dev, Flux2Transformer2DModel, 192, 192, guided={"guidance_scale": 3.5}),
    "flux": Tiny(
        make_flux,
        FluxTransformer2DModel,
        418,
        418,
        guided={"guidance_scale": 3.5, "true_cfg_scale": 2.0},
    ),
    "qwen_image": Tiny(make_qwen_image, QwenImageTransformer2DModel, 720, 720, call={}, guided={"true_cfg_scale": 2.0}),
    "anima": Tiny(
        make_anima,
        lambda: CosmosTransformer3DModel(num_attention_heads=16, extra_pos_embed_type=None),
        280,
        280,
        official=OfficialAnima,
    ),
    "krea2": Tiny(
        make_krea2, Krea2Transformer2DModel, 224, 224, call={"guidance_scale": 0.0}, same=without_masked_text
    ),
    # its pipeline adds its mask of text to the attention instead of hiding anything; without padding that is nothing
    "chroma": Tiny(
        make_chroma,
        ChromaTransformer2DModel,
        418,
        418,
        call={"guidance_scale": 1.0, "max_sequence_length": 12},
        guided={"guidance_scale": 2.0, "max_sequence_length": 12},
        negative="a bad thing",
        same=without_mask,
    ),
    "sd3": Tiny(
        make_sd3,
        lambda: SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, dual_attention_layers=tuple(range(13))
        ),
        337,
        337,
    ),
    "ernie": Tiny(make_ernie, lambda: ErnieImageTransformer2DModel(num_layers=36), 252, 252),
    "lumina2": Tiny(
        make_lumina2,
        lambda: Lumina2Transformer2DModel(cap_feat_dim=2304),
        182,
        182,
        same=with_the_text_that_counts,
    ),
}
