"""Steps of a denoiser at its real shapes in bf16 on the CPU, by the real command, and its peak against the estimate.

    python -m tests.benchmarks.real_step sdxl | z_image [--steps 1] [--size 512] [--model FOLDER] [--option value ...]

Random weights; text encoders of one layer and a narrow VAE, whose outputs have their real widths and are cached before.
`z_image` streams all its blocks, unless --blocks_to_swap says otherwise. On a CPU the host's memory holds what a GPU
would not: it is counted with the estimate. Needs as much disk as the model has: 5.2 and 12.4 GB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel, ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, Qwen3Model

from tests.benchmarks.memory import CACHED, GB, ROOT, imports, train
from tests.support import tiny, tiny_families
from trainer.checkpoints.memory_size import OVERHEAD, Estimator
from trainer.models import base_model
from trainer.options.config import Config
from trainer.runs.events import read_events

SHARD = 1 << 30  # bytes
SPREAD = 0.02  # of random weights


def write_weights(folder: Path, network: nn.Module) -> None:
    """Random weights of a network on the meta device, a shard at a time, so that they are never in memory together."""
    draw = torch.Generator().manual_seed(0)
    shard: dict[str, Tensor] = {}
    names: dict[str, str] = {}

    def shards() -> Iterator[dict[str, Tensor]]:
        for name, like in network.state_dict().items():
            shard[name] = (torch.randn(like.shape, generator=draw) * SPREAD).to(torch.bfloat16)
            if sum(tensor.nbytes for tensor in shard.values()) > SHARD:
                yield shard
                shard.clear()
        yield shard

    for number, tensors in enumerate(shards()):
        file = f"diffusion_pytorch_model-{number + 1:05}.safetensors"
        save_file(tensors, folder / file)
        names |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": names}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def make_sdxl(folder: Path) -> Path:
    first, second = (tiny.make_tokenizer(folder / "tokenizer-source") for _ in range(2))
    second.pad_token = "!"
    wide = {"intermediate_size": 64, "num_hidden_layers": 2}
    with torch.device("meta"):
        unet: Any = tiny_families.real_sdxl()
    pipeline = StableDiffusionXLPipeline(
        vae=tiny.make_vae(),
        text_encoder=CLIPTextModel(tiny.text_config(first, hidden_size=768, **wide)),
        text_encoder_2=CLIPTextModelWithProjection(
            tiny.text_config(second, hidden_size=1280, projection_dim=1280, **wide)
        ),
        tokenizer=first,
        tokenizer_2=second,
        unet=tiny_unet(),
        scheduler=tiny_families.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )
    return with_denoiser(folder, pipeline, "unet", unet)


def tiny_unet() -> UNet2DConditionModel:
    """Any of the class; another one takes its place on the disk."""
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DConditionModel(block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, **kinds)


def make_z_image(folder: Path) -> Path:
    with torch.device("meta"):
        transformer: Any = ZImageTransformer2DModel()
    pipeline = ZImagePipeline(
        transformer=ZImageTransformer2DModel(dim=48, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
                                             cap_feat_dim=32, axes_dims=[8, 8, 8]),
        vae=tiny_families.flux_vae(),
        text_encoder=Qwen3Model(tiny_families.qwen3(hidden_size=2560)),
        tokenizer=tiny.make_chat_tokenizer(),
        scheduler=tiny_families.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    return with_denoiser(folder, pipeline, "transformer", transformer)


def with_denoiser(folder: Path, pipeline: Any, name: str, network: Any) -> Path:
    """Write a pipeline with another denoiser than the one that it has."""
    pipeline.save_pretrained(folder)
    for old in (folder / name).glob("*.safetensors"):
        old.unlink()
    network.save_config(folder / name)
    write_weights(folder / name, network)
    return folder


MODELS = {"sdxl": (make_sdxl, {}), "z_image": (make_z_image, {"blocks_to_swap": 34})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=MODELS)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--model", type=Path, help="folder in which the model is made, or lies already")
    arguments, options = parser.parse_known_args()
    make, own = MODELS[arguments.family]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or folder / "model"
        if not (model / "model_index.json").exists():
            make(model)
        images = tiny.make_images(folder / "images", count=2, sizes=((arguments.size, arguments.size),))
        lines: dict[str, Any] = {
            "pretrained_model_name_or_path": str(model), "train_data_dir": str(images), "output_name": "run",
            "resolution": str(arguments.size), "network_dim": 16, "max_train_steps": arguments.steps,
            "mixed_precision": "bf16", "gradient_checkpointing": True, "output_dir": str(folder / "output"),
            **CACHED, **own,
        }  # fmt: skip
        preset = folder / "preset.toml"
        preset.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
        told = Estimator(model).of(base_model.settle(Config(**lines), model))
        print(told.line(), flush=True)
        watched, started = train(ROOT, preset, options)
        events, _ = read_events(folder / "output" / "run" / "events.jsonl")
        seconds = [event["time"] - started for event in events if event["event"] == "step"]
        own_bytes = imports()
        expected = told.steps - OVERHEAD + told.host + own_bytes
        print(f"first step after {seconds[0]:.1f} s, peak {watched.peak / GB:.2f} GB; estimated {expected / GB:.2f} GB "
              f"with the {own_bytes / GB:.2f} GB of the imports and {told.host / GB:.2f} GB that a GPU leaves to the "
              f"host: {watched.peak / expected:.3f} of it measured")  # fmt: skip


if __name__ == "__main__":
    main()
