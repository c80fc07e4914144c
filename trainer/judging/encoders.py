"""The networks that pictures and prompts are judged with: found, checked by digest, loaded, asked in batches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainer import files
from trainer.judging.inception import Inception

Array = NDArray[np.float32]
Pictures = Sequence[Callable[[], Image.Image]]  # each is opened when its turn comes
DIGEST = re.compile(r"@sha256:([0-9a-fA-F]{64})$")
CONVERTING = (
    "torch-fidelity's weights-inception-2015-12-05-6726825d.pth is converted once by: python -c \"import torch, "
    "safetensors.torch as s; s.save_file(torch.load('IN.pth', weights_only=True), 'OUT.safetensors')\""
)


class Missing(Exception):
    """A network cannot be had; the message says why and what to do. Only its figures are left out."""


@dataclass(frozen=True)
class Weights:
    """Weights that were found. `digest`: SHA-256 of the file that holds them; "" for what is fetched by a hub id."""

    name: str
    path: Path | None
    digest: str

    def as_json(self) -> dict[str, str]:
        return {"name": self.name, "sha256": self.digest}


def find(name: str, what: str) -> Weights:
    """What a name means: a file, a folder with model.safetensors, or a hub id, each with @sha256:DIGEST after it to
    have it checked. `what`: the network, for messages. Raises Missing."""
    if not name:
        raise Missing(f"no weights were named for {what}")
    match = DIGEST.search(name)
    plain, wanted = (name[: match.start()], match[1].lower()) if match else (name, "")
    path = Path(plain).expanduser()
    if not files.exists(path):
        if plain.count("/") != 1 or plain.startswith((".", "/", "~")):
            raise Missing(f"{what}: there is no {plain}")
        path = _fetched(plain, what)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise Missing(f"{what}: {path} has no model.safetensors")
    if file.suffix != ".safetensors":
        raise Missing(f"{what}: {file} is not a .safetensors file. {CONVERTING}")
    digest = files.sha256_file(file)
    if wanted and digest != wanted:
        raise Missing(f"{what}: {file} has the SHA-256 {digest}, not {wanted}")
    return Weights(plain, path, digest)


def _fetched(name: str, what: str) -> Path:
    """The folder of a hub id, from the hub's own cache or fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.txt", "model.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise Missing(f"{what}: {name} cannot be fetched: {str(error).splitlines()[0]}") from error


# --- what they are asked -------------------------------------------------------------------------------------------


class PictureEncoder(Protocol):
    """Something that turns pictures into vectors."""

    def pictures(self, pictures: Pictures) -> Array:
        """(pictures, width)"""
        ...


class InceptionEncoder:
    """InceptionV3's features and logits."""

    def __init__(self, weights: Weights, device: torch.device, batch_size: int) -> None:
        """Raises Missing when the weights are of another network."""
        self._device, self._batch_size = device, batch_size
        assert weights.path is not None
        file = weights.path / "model.safetensors" if weights.path.is_dir() else weights.path
        network = Inception()
        try:
            network.load_state_dict(safetensors.torch.load_file(file))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise Missing(f"{file} does not hold torch-fidelity's InceptionV3. {CONVERTING}") from error
        self._network = network.to(device)

    @torch.no_grad()
    def features_and_logits(self, pictures: Pictures) -> tuple[Array, Array]:
        """(pictures, 2048) and (pictures, 1008)"""
        features, logits = [], []
        for opened in _batches(pictures, self._batch_size):
            for group in _of_one_size(opened):
                stacked = np.stack([np.asarray(picture) for picture in group])  # (batch, height, width, 3)
                pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).to(self._device)
                outputs = self._network(pixels)
                features.append(outputs[0].cpu().numpy())
                logits.append(outputs[1].cpu().numpy())
        return np.concatenate(features), np.concatenate(logits)


def _of_one_size(pictures: Sequence[Image.Image]) -> Iterator[list[Image.Image]]:
    """Runs of pictures of one size, in their order."""
    group: list[Image.Image] = []
    for picture in pictures:
        if group and picture.size != group[0].size:
            yield group
            group = []
        group.append(picture)
    if group:
        yield group


class ClipEncoder:
    """CLIP's embeddings of pictures and texts, before they are set to one length."""

    def __init__(self, weights: Weights, device: torch.device, batch_size: int) -> None:
        """Raises Missing."""
        from transformers import CLIPModel, CLIPTokenizer

        self._device, self._batch_size = device, batch_size
        self._model: Any = _pretrained(CLIPModel, weights).to(device)
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(weights.path)
        except (OSError, ValueError, TypeError) as error:
            raise Missing(f"{weights.name} has no tokenizer of CLIP beside its weights: {error}") from error
        size = self._model.config.vision_config.image_size
        self._preparation = Preparation.read(weights.path, CLIP_PREPARATION | {"side": size, "crop": size})

    @torch.no_grad()
    def pictures(self, pictures: Pictures) -> Array:
        def embed(pixels: Tensor) -> Tensor:
            pooled = self._model.vision_model(pixel_values=pixels).pooler_output
            embedded: Tensor = self._model.visual_projection(pooled)
            return embedded

        return _in_batches(pictures, self._preparation, embed, self._device, self._batch_size)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Array:
        """(texts, width); what is longer than CLIP reads is cut off."""
        most = self._model.config.text_config.max_position_embeddings
        rows = []
        for start in range(0, len(texts), self._batch_size):
            part = list(texts[start : start + self._batch_size])
            read = self._tokenizer(part, padding=True, truncation=True, max_length=most, return_tensors="pt")
            read = {name: values.to(self._device) for name, values in read.items()}
            pooled = self._model.text_model(**read).pooler_output
            rows.append(self._model.text_projection(pooled).float().cpu().numpy())
        return np.concatenate(rows)


class DinoEncoder:
    """DINOv2's class token after its last normalisation."""

    def __init__(self, weights: Weights, device: torch.device, batch_size: int) -> None:
        """Raises Missing."""
        from transformers import Dinov2Model

        self._device, self._batch_size = device, batch_size
        self._model: Any = _pretrained(Dinov2Model, weights).to(device)
        self._preparation = Preparation.read(weights.path, DINO_PREPARATION)

    @torch.no_grad()
    def pictures(self, pictures: Pictures) -> Array:
        def embed(pixels: Tensor) -> Tensor:
            token: Tensor = self._model(pixel_values=pixels).pooler_output
            return token

        return _in_batches(pictures, self._preparation, embed, self._device, self._batch_size)


def _pretrained(kind: Any, weights: Weights) -> Any:
    """The network in fp32. Raises Missing where the folder holds something else."""
    try:
        model, report = kind.from_pretrained(
            weights.path, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Missing(f"{weights.name} cannot be loaded as {kind.__name__}: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise Missing(f"{weights.name} is not {kind.__name__}: it lacks {missing[0]} and {len(missing) - 1} others")
    return model.eval().requires_grad_(False)


# --- pictures ------------------------------------------------------------------------------------------------------

CLIP_PREPARATION: dict[str, Any] = {
    "side": 224,
    "crop": 224,
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
DINO_PREPARATION: dict[str, Any] = {
    "side": 256,
    "crop": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@dataclass(frozen=True)
class Preparation:
    """How a network wants its pictures: the shorter side scaled to `side` (bicubic), the middle of `crop` pixels a
    side, then (value / 255 - mean) / std by channel."""

    side: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def read(folder: Path | None, usual: dict[str, Any]) -> Preparation:
        """What preprocessor_config.json beside the weights says, and the usual where it says nothing."""
        values = dict(usual)
        try:
            said = json.loads(files.read_text(folder / "preprocessor_config.json")) if folder else {}
        except (OSError, ValueError):
            said = {}
        size, crop = said.get("size"), said.get("crop_size")
        values["side"] = size.get("shortest_edge", values["side"]) if isinstance(size, dict) else size or values["side"]
        values["crop"] = crop.get("height", values["crop"]) if isinstance(crop, dict) else crop or values["crop"]
        values["mean"] = tuple(said.get("image_mean", values["mean"]))
        values["std"] = tuple(said.get("image_std", values["std"]))
        return Preparation(**values)

    def apply(self, picture: Image.Image) -> Array:
        """(3, crop, crop)"""
        factor = self.side / min(picture.size)
        size = [max(self.crop, int(edge * factor)) for edge in picture.size]
        scaled = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        left, top = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        middle = scaled.crop((left, top, left + self.crop, top + self.crop))
        values = np.asarray(middle, dtype=np.float32) / 255
        prepared = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.asarray(prepared.transpose(2, 0, 1), dtype=np.float32)


def _batches(pictures: Pictures, size: int) -> Iterator[list[Image.Image]]:
    for start in range(0, len(pictures), size):
        yield [opened() for opened in pictures[start : start + size]]


def _in_batches(
    pictures: Pictures,
    preparation: Preparation,
    embed: Callable[[Tensor], Tensor],
    device: torch.device,
    batch_size: int,
) -> Array:
    rows = []
    for opened in _batches(pictures, batch_size):
        pixels = np.stack([preparation.apply(picture) for picture in opened])
        rows.append(embed(torch.from_numpy(pixels).to(device)).float().cpu().numpy())
    return np.concatenate(rows)
