"""Rebuilds the demo's base model from nothing: a tiny Stable Diffusion of coloured shapes, in diffusers' folder format.

It is small, but real: the classes, configuration fields and parameter names are those of Stable Diffusion 1.5, so
whatever loads, trains or converts the one does the same to the other. About 35 minutes on two idle CPU cores.
"""

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from pictures import COLOURS, GROUNDS, PICTURE_SIZE, SHAPES, draw_mixed_picture, random_shape_picture
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

log = logging.getLogger("build_model")

SEED = 20240229
CAPTION_DROPOUT = 0.1
PREVIEW_PROMPTS = [
    f"a {colour} {SHAPES[(index + turn) % len(SHAPES)]} on a {ground} ground"
    for turn, ground in enumerate(GROUNDS)
    for index, colour in enumerate(COLOURS)
]


@dataclass(frozen=True)
class Effort:
    """How much work goes into the model: steps are optimizer updates, pools are numbers of pictures."""

    vae_pool: int
    vae_steps: int
    denoiser_pool: int
    denoiser_steps: int


FULL = Effort(vae_pool=12_000, vae_steps=6_000, denoiser_pool=20_000, denoiser_steps=4_500)
QUICK = Effort(vae_pool=64, vae_steps=4, denoiser_pool=64, denoiser_steps=4)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebuild the demo's tiny Stable Diffusion from nothing.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "model", help="folder to write")
    parser.add_argument("--quick", action="store_true", help="a few steps only: a smoke test, not a usable model")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    effort = QUICK if args.quick else FULL
    torch.manual_seed(SEED)
    started = time.monotonic()
    vae = train_vae(effort)
    latents, captions = encode_pool(vae, effort.denoiser_pool)
    tokenizer = build_tokenizer()
    text_encoder, unet = train_denoiser(tokenizer, latents, captions, effort.denoiser_steps)
    pipeline = assemble(vae, tokenizer, text_encoder, unet)
    save(pipeline, args.output)
    log.info("%s written after %.1f minutes", args.output, (time.monotonic() - started) / 60)


def train_vae(effort: Effort) -> AutoencoderKL:
    """An autoencoder, 64x64 RGB to 4x8x8 latents, whose latent channels have mean 0 and one common deviation."""
    rng = random.Random(SEED)
    log.info("drawing %d pictures for the VAE", effort.vae_pool)
    pool = torch.stack(
        [
            to_bytes(draw_mixed_picture(rng) if index % 2 else random_shape_picture(rng).draw())
            for index in range(effort.vae_pool)
        ]
    )  # (pictures, 3, 64, 64) uint8
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,  # the ground's colour is lost if every few channels are normalised on their own
        sample_size=PICTURE_SIZE,
    )
    log.info("VAE: %.2f M parameters", count_parameters(vae) / 1e6)
    pass_colours_through(vae)

    def loss_at(step: int) -> torch.Tensor:
        pixels = to_pixels(pool[torch.randint(len(pool), (8,))])
        if step < 0.6 * effort.vae_steps:  # quarters of pictures first: four times as fast, and colours and edges show
            top, left = torch.randint(PICTURE_SIZE // 2 + 1, (2,)).tolist()
            pixels = pixels[:, :, top : top + PICTURE_SIZE // 2, left : left + PICTURE_SIZE // 2]
        with torch.autocast("cpu", torch.bfloat16):  # nearly twice as fast here; the small UNet gains nothing from it
            posterior = vae.encode(pixels).latent_dist
            rebuilt = vae.decode(posterior.sample()).sample.float()
        reconstruction = (rebuilt - pixels).abs().mean() + 2 * functional.mse_loss(rebuilt, pixels)
        kl = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).float().mean()
        return reconstruction + 2e-4 * kl

    optimize("VAE", list(vae.parameters()), loss_at, effort.vae_steps, peak_lr=6e-4)
    vae.eval().requires_grad_(False)
    deviation = centre_latents(vae, to_pixels(pool[0::2][:1024]))
    vae.register_to_config(scaling_factor=round(1 / deviation, 5))
    log.info("VAE: scaling_factor %.5f", vae.config.scaling_factor)
    return vae


@torch.no_grad()
def pass_colours_through(vae: AutoencoderKL) -> None:
    """Start the autoencoder as (nearly) a shrinking and enlarging of the picture, with little noise in its latents.

    From the usual initial weights it spends most of the time it has here on finding out about colours.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            if module.conv_shortcut is not None:
                add_identity(module.conv_shortcut)
        elif isinstance(module, Downsample2D):
            add_identity(module.conv, averaging=2)
        elif isinstance(module, Upsample2D):
            add_identity(module.conv)
    for half in (vae.encoder, vae.decoder):
        add_identity(half.conv_in)
        nn.init.normal_(half.conv_in.bias)
        nn.init.zeros_(half.mid_block.attentions[0].to_out[0].weight)
    vae.quant_conv.weight[4:].mul_(0.1)  # rows 4-7 are the log-variances
    vae.quant_conv.bias[4:].fill_(-4.0)


def add_identity(convolution: nn.Conv2d, averaging: int = 1) -> None:
    """Shrink the random weights and let output channel i carry input channel i, modulo the number of inputs.

    With `averaging` 2 (for a stride of 2) it carries the mean of 2x2 pixels.
    """
    outputs, inputs, height, _ = convolution.weight.shape
    corner = 0 if averaging > 1 else height // 2
    convolution.weight.mul_(0.3)
    for channel in range(outputs):
        taps = convolution.weight[channel, channel % inputs, corner : corner + averaging, corner : corner + averaging]
        taps.add_(1 / averaging**2)


@torch.no_grad()
def centre_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> float:
    """Give every latent channel mean 0 and the same deviation on `pixels`, decoding unchanged; return that deviation.

    Diffusion starts from noise of mean 0 and equal deviation in all channels, and the only constant the format has for
    getting there is `scaling_factor`. The rest can be folded, exactly, into the 1x1 convolutions around the latents.
    """
    moments = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(64)])  # (pictures, 4, 8, 8)
    mean = moments.mean(dim=(0, 2, 3))
    per_channel = moments.std(dim=(0, 2, 3))
    common = per_channel.mean()
    gain = common / per_channel  # (4,)

    decode_weight, decode_bias = vae.post_quant_conv.weight, vae.post_quant_conv.bias
    decode_bias.add_(decode_weight[:, :, 0, 0] @ mean)
    decode_weight.div_(gain[None, :, None, None])
    encode_weight, encode_bias = vae.quant_conv.weight, vae.quant_conv.bias  # rows: 4 means, then 4 log-variances
    encode_bias[:4].sub_(mean).mul_(gain)
    encode_weight[:4].mul_(gain[:, None, None, None])
    encode_bias[4:].add_(2 * gain.log())
    return common.item()


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, size: int) -> tuple[torch.Tensor, list[str]]:
    """Draw and encode `size` shape pictures: scaled latents (size, 4, 8, 8) and their captions."""
    log.info("drawing and encoding %d pictures for the UNet", size)
    rng = random.Random(SEED + 1)
    captions: list[str] = []
    latents: list[torch.Tensor] = []
    while len(captions) < size:
        batch = [random_shape_picture(rng) for _ in range(min(64, size - len(captions)))]
        captions.extend(picture.caption for picture in batch)
        pixels = to_pixels(torch.stack([to_bytes(picture.draw()) for picture in batch]))
        latents.append(vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor)
    return torch.cat(latents), captions


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of single bytes: any prompt can be written with it, one token a letter, 77 at most."""
    symbols = byte_symbols()
    vocabulary = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    token_ids = {token: index for index, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=token_ids, merges=[], model_max_length=77)


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for the byte values in GPT-2's and CLIP's vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return [chr(value) for value in printable] + [chr(256 + index) for index in range(len(others))]


def train_denoiser(
    tokenizer: CLIPTokenizer, latents: torch.Tensor, captions: list[str], steps: int
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Text encoder and UNet, trained together to predict the noise in `latents` (pictures, 4, 8, 8)."""
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=PICTURE_SIZE // 8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 192),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=8,
    )
    log.info("text encoder: %.2f M parameters", count_parameters(text_encoder) / 1e6)
    log.info("UNet: %.2f M parameters", count_parameters(unet) / 1e6)
    noise_scheduler = DDPMScheduler(**NOISE_SCHEDULE)
    different = sorted({"", *captions})
    input_ids = tokenizer(different, padding="max_length", max_length=77, return_tensors="pt").input_ids
    caption_rows = torch.tensor([different.index(caption) for caption in captions])
    text_encoder.train()
    unet.train()

    def loss_at(step: int) -> torch.Tensor:
        chosen = torch.randint(len(latents), (32,))
        rows = caption_rows[chosen].masked_fill(torch.rand(len(chosen)) < CAPTION_DROPOUT, different.index(""))
        encoder_hidden_states = text_encoder(input_ids[rows]).last_hidden_state  # (32, 77, 64)
        noise = torch.randn(len(chosen), *latents.shape[1:])
        timesteps = torch.randint(noise_scheduler.config.num_train_timesteps, (len(chosen),))
        noisy_latents = noise_scheduler.add_noise(latents[chosen], noise, timesteps)
        model_pred = unet(noisy_latents, timesteps, encoder_hidden_states).sample
        return functional.mse_loss(model_pred, noise)

    optimize("UNet", [*text_encoder.parameters(), *unet.parameters()], loss_at, steps, peak_lr=6e-4)
    return text_encoder.eval().requires_grad_(False), unet.eval().requires_grad_(False)


NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


def optimize(
    name: str, parameters: list[nn.Parameter], loss_at: Callable[[int], torch.Tensor], steps: int, peak_lr: float
) -> None:
    """Minimise `loss_at(step)` over `parameters` with AdamW, reporting progress about every fifteen seconds."""
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    started = reported = time.monotonic()
    mean_loss = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, peak_lr, warmup=min(100, steps // 10), total=steps)
        loss = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean_loss += (loss.item() - mean_loss) / min(step + 1, 100)
        now = time.monotonic()
        if now - reported > 15 or step + 1 == steps:
            reported = now
            left = (now - started) / (step + 1) * (steps - step - 1)
            log.info("%s step %d/%d loss %.4f, %.1f minutes left", name, step + 1, steps, mean_loss, left / 60)


def lr_at(step: int, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up to `peak`, then half a cosine down to zero at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def assemble(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The parts as one pipeline, in fp32."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(**NOISE_SCHEDULE, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the pipeline in fp16, load it again as a user would, and draw `preview.png` with what was loaded."""
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        model.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    write_as_published(pipeline, folder)
    loaded = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    contact_sheet(sample(loaded, PREVIEW_PROMPTS), columns=8).save(folder / "preview.png", optimize=True)


def write_as_published(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Bring text encoder and tokenizer to the layout in which Stable Diffusion 1.5 was published.

    Newer versions of transformers drop the prefix "text_model." from the names in the weights' file, put the file's
    precision into the configuration (and would load the text encoder in fp16 beside a UNet in fp32), and leave out
    the vocabulary files that older versions and other programs read. All versions read the published layout.
    """
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    configuration_file = weights.with_name("config.json")
    configuration = json.loads(configuration_file.read_text(encoding="utf-8"))
    configuration.pop("dtype", None)
    configuration["torch_dtype"] = "float32"
    configuration_file.write_text(json.dumps(configuration, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    vocabulary = sorted(pipeline.tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokenizer_folder = folder / "tokenizer"
    (tokenizer_folder / "vocab.json").write_text(json.dumps(dict(vocabulary), ensure_ascii=False), encoding="utf-8")
    (tokenizer_folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def sample(
    pipeline: StableDiffusionPipeline, prompts: list[str], steps: int = 25, guidance_scale: float = 4.0
) -> list[Image.Image]:
    """One 64x64 picture a prompt; the same prompts give the same pictures."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(index) for index in range(len(prompts))]
    return pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators).images


def contact_sheet(pictures: list[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """The pictures in rows of `columns`, on grey."""
    rows = math.ceil(len(pictures) / columns)
    pitch = PICTURE_SIZE + gap
    sheet = Image.new("RGB", (columns * pitch + gap, rows * pitch + gap), (128, 128, 128))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (gap + index % columns * pitch, gap + index // columns * pitch))
    return sheet


def to_bytes(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as (3, height, width) uint8."""
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)


def to_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 pictures (batch, 3, height, width) as floats from -1 to 1."""
    return pictures.float() / 127.5 - 1


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
