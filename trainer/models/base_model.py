"""Where the base model's files are, and a digest of their content. No torch, no diffusers here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from trainer.data.folder_scan import Progress, nobody
from trainer.file_memory import sha256_of
from trainer.options.config import Config
from trainer.refusal import Refused

# Subfolders of a diffusers model that each family needs.
COMPONENTS = {"sd": ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}
WEIGHTS = (".safetensors",)
DESCRIPTIONS = (".json", ".txt", ".model")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class BaseModelMissing(Refused):
    """There is no such model; the message says where it was looked for and what to do."""


def locate(name: str, components: Sequence[str], *, download: bool = True) -> Path:
    """The local folder or file of a model: a path as it is, or a Hugging Face id, downloaded if necessary.

    `components`: the subfolders that are needed of a diffusers model. `download=False`: only what was downloaded
    before. Raises BaseModelMissing.
    """
    path = Path(name)
    if wrong := unusable(path):
        raise BaseModelMissing(f"pretrained_model_name_or_path: {wrong}")
    if path.exists():
        return path
    if path.is_absolute() or not HUB_ID.fullmatch(name):
        raise BaseModelMissing(f"pretrained_model_name_or_path: there is no folder or file {path}")
    return _from_hub(name, components, download)


def unusable(path: Path) -> str:
    """Why what is there cannot be a base model, as its names tell; empty where it may be one or nothing is there."""
    if path.is_dir() and not (path / "model_index.json").is_file():
        return f"{path} is not a diffusers model: it has no model_index.json"
    if path.is_file() and path.suffix != ".safetensors":
        return f"{path} is not a .safetensors file; other formats can run code when they are loaded, convert it first"
    return ""


def _from_hub(name: str, components: Sequence[str], download: bool) -> Path:
    from huggingface_hub import snapshot_download  # imports slowly, and only a hub model needs it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["model_index.json"]
    for component in components:
        wanted += [f"{component}/*{suffix}" for suffix in (*WEIGHTS, *DESCRIPTIONS)]
    try:
        folder = snapshot_download(
            name, allow_patterns=wanted, ignore_patterns=["*.fp16.*", "*.non_ema.*"], local_files_only=not download
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if not download:
            raise BaseModelMissing(f"pretrained_model_name_or_path: {name} is not downloaded yet") from error
        raise BaseModelMissing(
            f"pretrained_model_name_or_path: there is no folder or file {name} here, and it could not be had from "
            f"Hugging Face: {str(error).splitlines()[0]}"
        ) from error
    return Path(folder)


def digest(path: Path, components: Sequence[str], memory: Path, progress: Progress = nobody) -> str:
    """SHA-256 over the content of a model file, or of the weights and configs of a diffusers folder.

    `memory`: the folder that remembers the digests of unchanged files; `progress`: of the bytes to be read.
    """
    if path.is_file():
        return sha256_of([path], memory, progress)[path]
    parts = [path / "model_index.json"] if (path / "model_index.json").is_file() else []
    folders = [path / name for name in components if (path / name).is_dir()] or [path]
    for folder in folders:
        parts += [entry for entry in sorted(folder.iterdir()) if entry.suffix in WEIGHTS + DESCRIPTIONS]
    digests = sha256_of(parts, memory, progress)
    listing = "".join(f"{part.relative_to(path).as_posix()} {digests[part]}\n" for part in parts)
    return hashlib.sha256(listing.encode()).hexdigest()


def digests(config: Config, path: Path, components: Sequence[str], progress: Progress = nobody) -> dict[str, str]:
    """The digest of everything that makes up the base model, by the option that names it."""
    found = {"pretrained_model_name_or_path": digest(path, components, config.cache_path, progress)}
    for name in ("vae", "single_file_config"):
        value = getattr(config, name)
        if value:
            found[name] = digest(Path(value), components, config.cache_path, progress)
    return found
