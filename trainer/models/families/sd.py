"""Stable Diffusion 1.x and 2.x: U-Net, one CLIP text encoder, VAE; noise or v-prediction."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from trainer import devices, randomness
from trainer.data import prompt_weights
from trainer.models import network
from trainer.models.base_model import COMPONENTS, BaseModelMissing
from trainer.models.network import Target
from trainer.options.config import Config
from trainer.recipe import losses
from trainer.recipe.prompts import Prompt

logger = logging.getLogger(__name__)
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "lms": (LMSDiscreteScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpm_2": (KDPM2DiscreteScheduler, {}),
    "dpm_2_a": (KDPM2AncestralDiscreteScheduler, {}),
    "dpmsolver": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmsingle": (DPMSolverSinglestepScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
}
CHUNK = 75  # tokens of a caption that CLIP takes at a time
PROBE_SIDE = 16  # latents; small, so that a save costs little
UNET_CLASSES = frozenset({"Transformer2DModel"})
UNET_CONV_CLASSES = frozenset({"ResnetBlock2D", "Downsample2D", "Upsample2D"})
TEXT_CLASSES = frozenset({"CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"})


class StableDiffusion(nn.Module):
    """A loaded model; see `families.base.Model` for what its methods promise."""

    latent_channels = 4

    def __init__(
        self,
        config: Config,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        noise_scheduler: DDPMScheduler,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.noise_scheduler = noise_scheduler
        self.dtype = dtype
        self.prediction_type: str = noise_scheduler.config.prediction_type
        self.latent_factor = 2 ** (len(vae.config.block_out_channels) - 1)

        vae.requires_grad_(False)
        vae.eval()
        unet.to(memory_format=torch.channels_last)
        self.targets: list[Target] = []
        if config.trains_unet:
            self.targets.append(Target("unet", unet, "lora_unet", UNET_CLASSES, UNET_CONV_CLASSES))
        if config.trains_text_encoder:
            self.targets.append(
                Target("text_encoder", text_encoder, "lora_te", TEXT_CLASSES, path_prefix="text_model.")
            )
        unet.requires_grad_(False)
        text_encoder.requires_grad_(False)
        for target in self.targets:
            network.add_layers(target, config)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            if config.trains_text_encoder:
                text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
        self.unet = unet
        # What is not a submodule takes no part in DDP and in train(): it is frozen, and moved by `prepare`.
        self._aside: dict[str, nn.Module] = {"vae": vae}
        if config.trains_text_encoder:
            self.text_encoder: CLIPTextModel | None = text_encoder
        else:
            self.text_encoder = None
            self._aside["text_encoder"] = text_encoder.eval()

    # --- what it is ------------------------------------------------------------------------------------------------

    @property
    def is_v2(self) -> bool:
        return bool(self.unet.config.cross_attention_dim == 1024)

    @property
    def base_version(self) -> str:
        return ("sd_v2_v" if self.prediction_type == "v_prediction" else "sd_v2") if self.is_v2 else "sd_v1"

    @property
    def architecture(self) -> str:
        if not self.is_v2:
            return "stable-diffusion-v1"
        return "stable-diffusion-v2-768-v" if self.prediction_type == "v_prediction" else "stable-diffusion-v2-512"

    def module(self) -> nn.Module:
        return self

    @property
    def _text(self) -> CLIPTextModel:
        return self.text_encoder if self.text_encoder is not None else self._aside["text_encoder"]

    @property
    def _vae(self) -> AutoencoderKL:
        return self._aside["vae"]

    def image_identity(self) -> str:
        return f"{self._vae.dtype}"

    def text_identity(self) -> str:
        config = self.config
        settings = f"{self.dtype} clip_skip={config.clip_skip or 1}"
        if config.max_token_length > CHUNK:
            settings += f" tokens={config.max_token_length}"
        return f"{settings} weighted" if config.weighted_captions else settings

    # --- devices ---------------------------------------------------------------------------------------------------

    def prepare(self, device: torch.device, *, latents_cached: bool, text_cached: bool) -> None:
        self._aside["vae"].to("cpu" if latents_cached else device)
        if "text_encoder" in self._aside:
            self._aside["text_encoder"].to("cpu" if text_cached else device)
        devices.give_back_memory(device)

    # --- encoding --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _latent_distribution(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the scaled latents, (batch, 4, height / 8, width / 8), in fp32 on the device.

        The VAE computes in its own precision: the training's autocast would run it in half precision in spite of
        no_half_vae, and would give other latents than the cache has.
        """
        vae = self._vae
        with torch.autocast(vae.device.type, enabled=False):
            distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        return (distribution.mean.float() - shift) * scale, distribution.std.float() * scale

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self._latent_distribution(pixels)
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise ArithmeticError("the VAE gives values that are not finite in this precision; set no_half_vae = true")
        return mean.cpu(), std.cpu()

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """tokens, (captions, chunks * 77), and with weighted_captions token_weights of the same shape."""
        chunks = self.config.max_token_length // CHUNK
        if not self.config.weighted_captions:
            return {"tokens": self._plain_tokens(captions, chunks)}
        rows = [self._weighted_tokens(caption, chunks) for caption in captions]
        return {
            "tokens": torch.stack([tokens for tokens, _ in rows]),
            "token_weights": torch.stack([weights for _, weights in rows]),
        }

    def _plain_tokens(self, captions: Sequence[str], chunks: int = 1) -> Tensor:
        tokens: Tensor = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self._inner_length * chunks + 2,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return torch.stack([self._in_chunks(row, chunks) for row in tokens]) if chunks > 1 else tokens

    def _weighted_tokens(self, caption: str, chunks: int) -> tuple[Tensor, Tensor]:
        """A caption's tokens and their weights, cut off where there is no room for more."""
        room = self._inner_length * chunks
        tokens: list[int] = []
        weights: list[float] = []
        for text, weight in prompt_weights.parse(caption):
            found = self.tokenizer(text, add_special_tokens=False).input_ids
            tokens += found
            weights += [weight] * len(found)
        tokens, weights = tokens[:room], weights[:room]
        begin, end, pad = (
            self.tokenizer.bos_token_id,
            self.tokenizer.eos_token_id,
            self.tokenizer.pad_token_id,
        )
        padding = room - len(tokens)
        row = torch.tensor([begin, *tokens, end, *[pad] * padding])
        weighed = torch.tensor([1.0, *weights, 1.0, *[1.0] * padding])
        if chunks == 1:
            return row, weighed
        return self._in_chunks(row, chunks), self._split(weighed, chunks, weighed[-1])

    @property
    def _inner_length(self) -> int:
        """Tokens that the text encoder takes at a time, without those of begin and end."""
        return int(self.tokenizer.model_max_length) - 2

    def _split(self, row: Tensor, chunks: int, last: Tensor) -> Tensor:
        """(chunks * inner + 2,) -> (chunks * (inner + 2),): each chunk between the row's first value and `last`."""
        inner = self._inner_length
        parts = [row[1 + start : 1 + start + inner] for start in range(0, inner * chunks, inner)]
        return torch.cat([torch.cat([row[:1], part, last.view(1)]) for part in parts])

    def _in_chunks(self, tokens: Tensor, chunks: int) -> Tensor:
        """A long row of tokens as chunks that begin and end like a caption, as sd-scripts cuts them."""
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        parts = self._split(tokens, chunks, tokens[-1]).view(chunks, -1)
        if pad != end:  # SD 2.x: a chunk that is full ends with the end token, and an empty one begins with it
            full = (parts[:, -2] != end) & (parts[:, -2] != pad)
            parts[full, -1] = end
            parts[parts[:, 1] == pad, 1] = end
        return parts.reshape(-1)

    def _encode_tokens(self, tokens: Tensor, token_weights: Tensor | None = None) -> Tensor:
        """(batch, tokens, width), of the layer that clip_skip asks for, normalised.

        Of several chunks, the first begin, all that is between, and the last end are kept.
        """
        encoder = self._text
        skip = self.config.clip_skip or 1
        length = int(self.tokenizer.model_max_length)
        batch, chunks = len(tokens), tokens.shape[1] // length
        output = encoder(tokens.reshape(-1, length).to(encoder.device), output_hidden_states=skip > 1)
        if skip == 1:
            states = output.last_hidden_state
        else:
            inner = getattr(encoder, "text_model", encoder)
            states = inner.final_layer_norm(output.hidden_states[-skip])
        if token_weights is not None:
            states = states * token_weights.reshape(-1, length, 1).to(states.device, states.dtype)
        if chunks == 1:
            return states
        states = states.view(batch, chunks, length, -1)
        middle = states[:, :, 1:-1].flatten(1, 2)
        return torch.cat([states[:, 0, :1], middle, states[:, -1, -1:]], dim=1)

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        return self._encode_tokens(**self.tokenize(captions)).float().cpu()

    # --- training --------------------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        latents = self._latents(batch)  # (batch, 4, height / 8, width / 8)
        timesteps, noise = batch["timesteps"], self._noise(batch, latents)
        noised_by = noise + batch["input_noise"] if "input_noise" in batch else noise
        noisy_latents = self.noise_scheduler.add_noise(latents, noised_by, timesteps)
        if "text_states" in batch:
            encoder_hidden_states = batch["text_states"]
        elif self.text_encoder is not None:
            encoder_hidden_states = self._encode_tokens(batch["tokens"], batch.get("token_weights"))
        else:
            with torch.no_grad():
                encoder_hidden_states = self._encode_tokens(batch["tokens"], batch.get("token_weights"))
        model_pred = self.unet(
            noisy_latents.to(self.dtype), timesteps, encoder_hidden_states.to(self.dtype), return_dict=False
        )[0]
        v_prediction = self.prediction_type == "v_prediction"
        target = self.noise_scheduler.get_velocity(latents, noise, timesteps) if v_prediction else noise
        return self._weighted_losses(model_pred, target, timesteps, v_prediction, batch.get("mask"))

    def _latents(self, batch: dict[str, Tensor]) -> Tensor:
        if "latent_mean" in batch:
            mean, std = batch["latent_mean"], batch["latent_std"]
        else:
            mean, std = self._latent_distribution(batch["pixels"])
        return mean + std * batch["latent_noise"]

    def _noise(self, batch: dict[str, Tensor], latents: Tensor) -> Tensor:
        noise = batch["noise"]
        if "offset" not in batch:
            return noise
        strength = batch["offset_strength"]  # (batch, 1, 1, 1)
        if self.config.adaptive_noise_scale:
            mean = latents.mean(dim=(2, 3), keepdim=True).abs()
            strength = (strength + self.config.adaptive_noise_scale * mean).clamp(min=0)
        return noise + strength * batch["offset"]

    def _weighted_losses(
        self, model_pred: Tensor, target: Tensor, timesteps: Tensor, v_prediction: bool, mask: Tensor | None
    ) -> Tensor:
        config = self.config
        alphas_cumprod = self.noise_scheduler.alphas_cumprod.to(timesteps.device)
        threshold = None
        if config.loss_type in ("huber", "smooth_l1"):
            threshold = losses.huber_threshold(
                timesteps, alphas_cumprod, config.huber_schedule, config.huber_c, config.huber_scale
            )
        loss = losses.sample_losses(model_pred, target, config.loss_type, threshold, mask)
        if not (
            config.min_snr_gamma
            or config.scale_v_pred_loss_like_noise_pred
            or config.v_pred_like_loss
            or config.debiased_estimation_loss
        ):
            return loss
        return loss * losses.loss_weights(
            losses.signal_to_noise(alphas_cumprod, timesteps),
            v_prediction=v_prediction,
            min_snr_gamma=config.min_snr_gamma,
            scale_v_like_noise=config.scale_v_pred_loss_like_noise_pred,
            v_like_loss=config.v_pred_like_loss,
            debiased=config.debiased_estimation_loss,
        )

    @torch.no_grad()
    def probe(self) -> float:
        draw = randomness.generator(0, "probe")
        device = self.unet.device

        def normal(*size: int) -> Tensor:
            return torch.from_numpy(draw.standard_normal(size, dtype="float32")).to(device, self.dtype)

        latents, noise = (normal(2, self.latent_channels, PROBE_SIDE, PROBE_SIDE) for _ in range(2))
        states = normal(2, self.tokenizer.model_max_length, self.unet.config.cross_attention_dim)
        timesteps = torch.tensor([250, 750], device=device)
        training = self.training
        self.eval()
        with self._autocast():
            if self.text_encoder is not None:
                states = self._encode_tokens(self._plain_tokens(["a probe", ""])).to(self.dtype)
            noisy_latents = self.noise_scheduler.add_noise(latents, noise, timesteps)
            model_pred = self.unet(noisy_latents, timesteps, states, return_dict=False)[0]
        self.train(training)
        return float(losses.sample_losses(model_pred, noise, "l2").mean())

    # --- sampling --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], sampler: str, device: torch.device) -> list[Image.Image]:
        text_home, vae_home = self._text.device, self._vae.device
        kind, changes = SAMPLERS[sampler]
        # A schedule that ends in pure noise has to be sampled from its very end.
        spacing = "trailing" if self.config.zero_terminal_snr else "leading"
        common = {"timestep_spacing": spacing, "steps_offset": 1, "clip_sample": False}
        settings = {**self.noise_scheduler.config, **changes, **common}
        settings.pop("_class_name", None)
        pipeline = StableDiffusionPipeline(
            vae=self._vae,
            text_encoder=self._text,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=kind.from_config(settings),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        training = self.training
        self.eval()
        try:
            self._text.to(device)
            self._vae.to(device)
            return [self._one_sample(pipeline, prompt) for prompt in prompts]
        finally:
            self.train(training)
            self._text.to(text_home)
            self._vae.to(vae_home)

    def _one_sample(self, pipeline: StableDiffusionPipeline, prompt: Prompt) -> Image.Image:
        with self._autocast():
            latents = pipeline(
                prompt_embeds=self._encode_tokens(**self.tokenize([prompt.text])).to(self.dtype),
                negative_prompt_embeds=self._encode_tokens(**self.tokenize([prompt.negative])).to(self.dtype),
                width=prompt.width,
                height=prompt.height,
                num_inference_steps=prompt.steps,
                guidance_scale=prompt.guidance_scale,
                generator=torch.Generator("cpu").manual_seed(prompt.seed),
                output_type="latent",
            ).images
        latents = latents / self._vae.config.scaling_factor
        pixels = self._vae.decode(latents.to(self._vae.dtype)).sample  # not in autocast: see _latent_distribution
        images: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
        return images[0]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.unet.device.type, dtype=self.dtype)


# --- loading -------------------------------------------------------------------------------------------------------


class _Family:
    def load(self, config: Config, path: Path, dtype: torch.dtype, device: torch.device) -> StableDiffusion:
        vae_dtype = torch.float32 if config.no_half_vae else dtype
        parts = _from_file(path, config, dtype) if path.is_file() else _from_folder(path, dtype, vae_dtype)
        if path.is_file() and vae_dtype != dtype:
            parts["vae"].to(vae_dtype)
        if config.vae:
            try:
                parts["vae"] = _load_vae(Path(config.vae), vae_dtype)
            except (OSError, ValueError) as error:
                raise BaseModelMissing(f"vae: {config.vae} cannot be loaded: {error}") from error
        changes: dict[str, Any] = {}
        if config.v_parameterization:
            changes["prediction_type"] = "v_prediction"
        if config.zero_terminal_snr:
            changes["rescale_betas_zero_snr"] = True
        noise_scheduler = DDPMScheduler.from_config(parts.pop("scheduler").config, **changes)
        if noise_scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise BaseModelMissing(
                f"pretrained_model_name_or_path: {path} predicts {noise_scheduler.config.prediction_type}, "
                "which Stable Diffusion 1.x and 2.x do not"
            )
        if config.scale_v_pred_loss_like_noise_pred and noise_scheduler.config.prediction_type == "epsilon":
            logger.warning("scale_v_pred_loss_like_noise_pred has no effect: this model predicts noise, not v")
        return StableDiffusion(config, noise_scheduler=noise_scheduler, dtype=dtype, **parts)


FAMILY = _Family()


def _variant(folder: Path, stem: str) -> str | None:
    """diffusers' name for files that exist in half precision only."""
    if any(folder.glob(f"{stem}.safetensors*")) or any(folder.glob(f"{stem}-0*.safetensors")):
        return None
    return "fp16" if any(folder.glob(f"{stem}.fp16*.safetensors")) else None


def _from_folder(path: Path, dtype: torch.dtype, vae_dtype: torch.dtype) -> dict[str, Any]:
    missing = [name for name in COMPONENTS["sd"] if not (path / name).is_dir()]
    if missing:
        raise BaseModelMissing(
            f"pretrained_model_name_or_path: {path} is not a Stable Diffusion 1.x or 2.x model: "
            f"it has no {', '.join(missing)}"
        )
    common: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    disable_progress_bar()  # a bar a component says nothing, and fills the log
    try:
        return {
            "unet": UNet2DConditionModel.from_pretrained(
                path / "unet",
                dtype=dtype,
                variant=_variant(path / "unet", "diffusion_pytorch_model"),
                **common,
            ),
            "vae": _load_vae(path / "vae", vae_dtype),
            "text_encoder": CLIPTextModel.from_pretrained(
                path / "text_encoder", dtype=dtype, variant=_variant(path / "text_encoder", "model"), **common
            ),
            "tokenizer": CLIPTokenizer.from_pretrained(path / "tokenizer", local_files_only=True),
            "scheduler": DDPMScheduler.from_pretrained(path / "scheduler", local_files_only=True),
        }
    except (OSError, ValueError, TypeError) as error:
        raise BaseModelMissing(f"pretrained_model_name_or_path: {path} cannot be loaded: {error}") from error


def _load_vae(path: Path, dtype: torch.dtype) -> AutoencoderKL:
    if path.is_file():
        return AutoencoderKL.from_single_file(path, dtype=dtype)
    folder = path if (path / "config.json").is_file() else path / "vae"
    variant = _variant(folder, "diffusion_pytorch_model")
    return AutoencoderKL.from_pretrained(
        folder, dtype=dtype, variant=variant, local_files_only=True, use_safetensors=True
    )


def _from_file(path: Path, config: Config, dtype: torch.dtype) -> dict[str, Any]:
    described_by = Path(config.single_file_config) if config.single_file_config else None
    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            path,
            config=str(described_by) if described_by else None,
            local_files_only=described_by is not None,
            dtype=dtype,
            safety_checker=None,
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        way_out = (
            "check that single_file_config describes this model"
            if described_by
            else "its configs are taken from Hugging Face, which may be out of reach: set single_file_config to a "
            "diffusers folder of the same architecture"
        )
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise BaseModelMissing(
            f"pretrained_model_name_or_path: {path} cannot be loaded: {first[0]}; {way_out}"
        ) from error
    return {name: getattr(pipeline, name) for name in COMPONENTS["sd"]}
