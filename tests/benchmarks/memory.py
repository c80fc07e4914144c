"""Peak memory and start of Stable Diffusion 1.5 at real shapes, by the real command, against the estimate.

    python -m tests.benchmarks.memory [--trainer FOLDER ...] [--images 20] [--fresh] [--option value ...]

Random weights in fp32 in a diffusers folder, pictures of 512 pixels, LoRA of rank 16 of the U-Net; latents and captions
are cached before, unless the start is to be `--fresh`. Prints when what was said, the resident memory then (that of the
process, and of it what is mapped from files), the peak, and the estimate. That counts a GPU's memory; what a process
holds when torch and diffusers are imported is measured and added. `--trainer`: the checkout whose trainer runs.

Needs 5 GB of disk and as much memory as it measures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tests.support import tiny
from trainer.checkpoints.memory_size import OVERHEAD, Estimator
from trainer.models import base_model
from trainer.options.config import Config
from trainer.runs.events import read_events

ROOT = Path(__file__).parents[2]
GB = 1e9
CACHED = {
    "cache_latents": True,
    "cache_latents_to_disk": True,
    "cache_text_encoder_outputs": True,
    "cache_text_encoder_outputs_to_disk": True,
    "network_train_unet_only": True,
}


def make_model(folder: Path) -> Path:
    """Stable Diffusion 1.5 with random weights; about 4.3 GB."""
    tokenizer = tiny.make_tokenizer(folder / "tokenizer-source")
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408,
        bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1, pad_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


class Watched:
    """A process's resident memory while it runs, all of it and what is mapped from files."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = psutil.Process(process.pid)
        self.peak = self.peak_without_files = 0
        self.now = (0, 0)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
            try:
                memory = self._process.memory_info()._asdict()
            except psutil.Error:
                return
            resident, files = memory["rss"], memory.get("shared", 0)  # which Linux alone tells
            self.now = resident, files
            self.peak = max(self.peak, resident)
            self.peak_without_files = max(self.peak_without_files, resident - files)
            time.sleep(0.02)


def train(trainer: Path, preset: Path, options: list[str]) -> tuple[Watched, float]:
    """Run the command and print what it says, with seconds and memory; returns what was watched and when it began."""
    command = [sys.executable, "-u", "-m", "trainer", "train", "--config", str(preset), *options]
    started = time.time()
    environment = {**os.environ, "PYTHONPATH": str(trainer), "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, cwd=trainer, env=environment, stderr=subprocess.PIPE, text=True) as process:
        watched = Watched(process)
        assert process.stderr
        for line in process.stderr:
            rss, files = watched.now
            told = line.rstrip().partition(" ")[2][:90]
            print(f"{time.time() - started:6.1f} s {rss / GB:6.2f} GB ({files / GB:.2f} of files)  {told}", flush=True)
    if process.returncode:
        raise SystemExit(f"the training failed with {process.returncode}")
    return watched, started


def imports() -> int:
    """Bytes of a process that has imported what a training imports."""
    code = "import psutil, trainer.training.loop as _; import diffusers; diffusers.StableDiffusionPipeline; "
    code += "diffusers.UNet2DConditionModel; print(psutil.Process().memory_info().rss)"
    return int(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", type=Path, action="append", help="may be given more than once: side by side")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="measure a start that fills the caches as well")
    parser.add_argument("--model", type=Path, help="folder in which the model is made, or lies already")
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or folder / "model"
        if not (model / "model_index.json").exists():
            torch.manual_seed(0)
            make_model(model)
        images = tiny.make_images(folder / "images", count=arguments.images, sizes=((512, 512),))
        preset = folder / "preset.toml"
        common = {"resolution": 512, "network_dim": 16, "output_name": "run", "max_train_steps": arguments.steps}
        lines = {"pretrained_model_name_or_path": str(model), "train_data_dir": str(images), **common, **CACHED}
        preset.write_text("\n".join(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
                                    for key, value in lines.items()))  # fmt: skip
        config = base_model.settle(Config(**{**lines, "resolution": "512"}), model)
        told = Estimator(model).of(config)
        print(told.line())
        caches = arguments.model or folder
        if not arguments.fresh:
            filling = ["--output_dir", str(folder / "filled"), "--cache_dir", str(caches / "caches"), "--cache_only"]
            train(ROOT, preset, [*filling, *options])
        for number, trainer in enumerate(arguments.trainer or [ROOT]):
            output = folder / f"output{number}"
            cache = output / "caches" if arguments.fresh else caches / "caches"
            places = ["--output_dir", str(output), "--cache_dir", str(cache)]
            watched, started = train(trainer.resolve(), preset, [*places, *options])
            events, _ = read_events(output / "run" / "events.jsonl")
            steps = [event["time"] - started for event in events if event["event"] == "step"]
            own = imports()
            expected = told.peak - OVERHEAD + own
            print(f"{trainer}: first step after {steps[0]:.1f} s, peak {watched.peak / GB:.2f} GB, "
                  f"{watched.peak_without_files / GB:.2f} GB without what is mapped from files")  # fmt: skip
            print(f"estimated {expected / GB:.2f} GB with the {own / GB:.2f} GB of the imports: "
                  f"{watched.peak / expected:.3f} of it measured")  # fmt: skip


if __name__ == "__main__":
    main()
