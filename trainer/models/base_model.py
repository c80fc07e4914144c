"""Where the base model's files are, what they are, and digests of their content. No torch, no diffusers here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from trainer import files
from trainer.data import addresses
from trainer.data.folder_scan import Progress, no_progress
from trainer.file_memory import sha256_of
from trainer.models import families, file_header
from trainer.models.families.facts import Facts
from trainer.models.file_header import HeaderUnreadable, Shapes
from trainer.models.network_file import with_ranks_of_file
from trainer.options.config import OPTIONS, Config
from trainer.refusal import Refused

WEIGHTS = (".safetensors",)
DESCRIPTIONS = (".json", ".txt", ".model")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
INDEXES = ("model_index.json", "modular_model_index.json")  # of a diffusers folder, one of them
# What else people have as a single file, by a tensor of it that no other has. To say what a file is.
OTHERS = (
    (
        "a LoRA, which network_weights takes",
        r"(\.lora_(down|A)\.|\.hada_|lokr_)",
    ),
    ("a model made like FLUX.1", r"(^|\.)double_blocks\.0\.img_attn\."),
    ("a text encoder alone, which text_encoder or t5xxl takes", r"^(model\.layers\.0\.self_attn|encoder\.block\.0)\."),
    ("the Stable Diffusion XL refiner", r"^conditioner\.embedders\.0\.model\.transformer\.resblocks\.31\."),
    ("Stable Diffusion XL", r"^conditioner\.embedders\.1\.model\.transformer\.resblocks\."),
    ("Stable Cascade or Würstchen", r"^(clip_txt_mapper|effnet_mapper)\."),
    ("PixArt or another transformer in diffusers' names", r"^(transformer_blocks|adaln_single)\."),
    ("a ControlNet", r"^(control_model|controlnet_cond_embedding)\."),
    ("a VAE alone; the option vae takes it", r"^(encoder|first_stage_model\.encoder)\.(down|down_blocks)\.0\."),
    ("a text encoder alone", r"^text_model\.encoder\.layers\.0\."),
)


# What tells in a file that its weights mean nothing without scales or tables: 8-bit floats with scales and others of
# ComfyUI, bitsandbytes, SVDQuant. Read as they are, they would be wrong without a word.
QUANTISED = re.compile(
    r"(^|\.)(scaled_fp8|scale_weight|weight_scale|comfy_quant|qweight|wscales|absmax)$|\.quant_state\."
)


class BaseModelMissing(Refused):
    """There is no such model; the message says where it was looked for and what to do."""


def locate(name: str, family: str = families.AUTO, *, download: bool = True) -> Path:
    """The local folder or file of a model: a path as it is; of an address, its copy here; a Hugging Face id,
    downloaded if necessary.

    `download=False`: only what was downloaded before. Raises BaseModelMissing.
    """
    try:
        path = addresses.fetched("pretrained_model_name_or_path", name) if download else addresses.local(name)
    except Refused as error:
        raise BaseModelMissing(str(error)) from error
    if wrong := unusable(path):
        raise BaseModelMissing(f"pretrained_model_name_or_path: {wrong}")
    if path.exists():
        return path
    if addresses.is_address(name):
        raise BaseModelMissing(f"pretrained_model_name_or_path: {name} is not copied to this machine yet")
    if path.is_absolute() or not HUB_ID.fullmatch(name):
        raise BaseModelMissing(f"pretrained_model_name_or_path: there is no folder or file {path}")
    return _from_hub(name, family, download)


def unusable(path: Path) -> str:
    """Why what is there cannot be a base model, as its names tell; empty where it may be one or nothing is there."""
    if path.is_dir() and not index_of(path).is_file():
        return f"{path} is not a diffusers model: it has no model_index.json"
    if path.is_file() and path.suffix == ".gguf":
        return f"{path} holds the denoiser alone: name it with base_gguf, and here a diffusers folder with the rest"
    if path.is_file() and path.suffix != ".safetensors":
        return f"{path} is not a .safetensors file; other formats can run code when they are loaded, convert it first"
    return ""


def index_of(folder: Path) -> Path:
    """What says which components a diffusers folder has."""
    return next((folder / name for name in INDEXES if (folder / name).is_file()), folder / INDEXES[0])


def _from_hub(name: str, family: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download  # imports slowly, and only a hub model needs it
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def fetch(wanted: Sequence[str]) -> Path:
        return Path(
            snapshot_download(
                name,
                allow_patterns=list(wanted),
                ignore_patterns=["*.fp16.*", "*.non_ema.*"],
                local_files_only=not download,
            )
        )

    try:
        if family == families.AUTO:
            family = detect(fetch(INDEXES)) or next(iter(families.TABLE))
        kinds = (*WEIGHTS, *DESCRIPTIONS)
        facts = families.TABLE[family]
        components = (*facts.components, *facts.optional)
        return fetch([*INDEXES, *(f"{component}/*{suffix}" for component in components for suffix in kinds)])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if not download:
            raise BaseModelMissing(f"pretrained_model_name_or_path: {name} is not downloaded yet") from error
        raise BaseModelMissing(
            f"pretrained_model_name_or_path: there is no folder or file {name} here, and it could not be had from "
            f"Hugging Face: {str(error).splitlines()[0]}"
        ) from error


# --- what they are -------------------------------------------------------------------------------------------------


def detect(path: Path) -> str | None:
    """The family of a model's files; None where they do not tell. Only a description or a header is read.

    Raises BaseModelMissing where they are of an architecture that is not in the table, or no base model at all.
    """
    if path.is_dir():
        return _family_of_folder(path)
    try:
        tensors = file_header.shapes(path)
    except HeaderUnreadable as error:
        raise BaseModelMissing(f"pretrained_model_name_or_path: {error}") from error
    _refuse_quantised("pretrained_model_name_or_path", path, tensors)
    for name, facts in families.TABLE.items():
        if facts.is_single_file(tensors):
            _refuse_inpainting(path, tensors, facts.denoiser.original, facts.channels)
            return name
    for title, pattern in OTHERS:
        if any(re.search(pattern, tensor) for tensor in tensors):
            raise BaseModelMissing(f"pretrained_model_name_or_path: {path} is {title}; {_supported()}")
    return None


def pipeline_of(folder: Path) -> str:
    """diffusers' class of a folder, as its index names it. Raises BaseModelMissing."""
    try:
        return str(json.loads(index_of(folder).read_bytes())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BaseModelMissing(f"pretrained_model_name_or_path: {index_of(folder)} cannot be read: {reason}") from error


def edits_pictures(config: Config, path: Path) -> bool:
    """Whether it is a model for making pictures of others, whose text encoder looks at them."""
    folder = path if path.is_dir() else Path(config.single_file_config) if config.single_file_config else None
    return bool(config.facts.edits) and folder is not None and pipeline_of(folder) in config.facts.edits


def _family_of_folder(path: Path) -> str | None:
    pipeline = pipeline_of(path)
    for name, facts in families.TABLE.items():
        if pipeline in facts.pipelines:
            return name
    if pipeline.endswith("Pipeline"):
        raise BaseModelMissing(f"pretrained_model_name_or_path: {path} is a {pipeline}; {_supported()}")
    return None


def _refuse_quantised(option: str, path: Path, tensors: Shapes) -> None:
    if scale := next(filter(QUANTISED.search, tensors), None):
        raise BaseModelMissing(
            f"{option}: {path} holds quantised weights ({scale}), which are not read from such a file; take the one in "
            "bf16 or fp16. To save memory set fp8_base or quantize, or name a GGUF file with base_gguf"
        )


def _refuse_inpainting(path: Path, tensors: Shapes, prefix: str, channels: int) -> None:
    first = tensors.get(f"{prefix}input_blocks.0.0.weight")
    if first and first[1:2] != (channels,):
        raise BaseModelMissing(
            f"pretrained_model_name_or_path: {path} takes {first[1]} channels instead of {channels}: it is a model for "
            "inpainting or editing, which cannot be trained here"
        )


def _supported() -> str:
    return "supported are " + ", ".join(facts.title for facts in families.TABLE.values())


def settle(config: Config, path: Path) -> Config:
    """The config with its family as the files tell, and what is left to the family as that has it.

    Raises BaseModelMissing where they tell of another family than the config, of none, or where a component is missing;
    RanksUnknown where dim_from_weights asks for what network_weights does not tell.
    """
    detected = detect(path)
    family = detected if config.family == families.AUTO else config.family
    if family is None:
        raise BaseModelMissing(
            f"family: the model type cannot be recognised from the files of {path}; set family to one of "
            f"{', '.join(families.TABLE)}"
        )
    if detected not in (None, family):
        raise BaseModelMissing(
            f"family: {path} is {families.TABLE[str(detected)].title}, not {families.TABLE[family].title}; set family "
            f'to "{detected}" or "{families.AUTO}"'
        )
    _require_whole(config, path, families.TABLE[family])
    for option in families.TABLE[family].overrides:
        override = Path(getattr(config, option))
        if override.is_file():
            with contextlib.suppress(HeaderUnreadable):  # which loading it says
                _refuse_quantised(option, override, file_header.shapes(override))
    for option in ("quantize", "base_gguf"):
        if path.is_file() and getattr(config, option) != OPTIONS[option].default:
            raise BaseModelMissing(
                f"{option}: needs a base model in a diffusers folder, and {path} is a single file; convert it first"
            )
    settled = with_family(config, family)
    if settled.fine_tunes and settled.save_model_as == "diffusers":
        require_folders(settled, path)
    return settled


def require_folders(config: Config, path: Path) -> None:
    """Raises BaseModelMissing where no diffusers folder can be made of a base model's files."""
    single = [option for option in config.facts.overrides if Path(getattr(config, option) or "/").is_file()]
    if path.is_file() and not config.facts.denoiser_alone:
        single.insert(0, "pretrained_model_name_or_path")
    if single:
        raise BaseModelMissing(
            f"save_model_as: a diffusers folder is made of folders, and {single[0]} is a single file; choose "
            "safetensors"
        )


def _require_whole(config: Config, path: Path, facts: Facts) -> None:
    """Raises BaseModelMissing where a component is missing."""
    given = {component for option, component in facts.overrides.items() if getattr(config, option)}
    option, folder = "pretrained_model_name_or_path", path
    if path.is_file():
        if not facts.denoiser_alone:
            return
        option, folder = "single_file_config", Path(config.single_file_config)
        given.add(facts.denoiser.component)
        if not config.single_file_config:
            raise BaseModelMissing(
                f"{option}: {path} holds the transformer of {facts.title} alone: name a diffusers folder that has the "
                f"other components ({', '.join(name for name in facts.components if name not in given)})"
            )
    missing = [name for name in facts.components if name not in given and not (folder / name).is_dir()]
    if missing:
        raise BaseModelMissing(f"{option}: {folder} is not a whole {facts.title} model: it has no {', '.join(missing)}")


def with_family(config: Config, family: str) -> Config:
    """The config with a family that is known, and what is left to it as it has that. Raises RanksUnknown."""
    defaults = families.TABLE[family].defaults
    left = {name: value for name, value in defaults.items() if getattr(config, name) in (None, families.AUTO)}
    return with_ranks_of_file(config.replace(family=family, **left))


# --- what they hold ------------------------------------------------------------------------------------------------


def digest(path: Path, components: Sequence[str], memory: Path, progress: Progress = no_progress) -> str:
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


def digests(config: Config, path: Path, progress: Progress = no_progress) -> dict[str, str]:
    """The digest of everything that makes up the base model, by the option that names it."""
    facts, memory = config.facts, config.cache_path
    components = (*facts.components, *facts.optional)
    result = {"pretrained_model_name_or_path": digest(path, components, memory, progress)}
    for name in (*facts.overrides, "single_file_config", "base_gguf"):
        if value := getattr(config, name):
            result[name] = digest(Path(value), components, memory, progress)
    if config.base_weights:
        result["base_weights"] = files.digest(
            [digest(Path(path), (), memory, progress) for path in config.base_weights]
        )
    return result


def identity_of(config: Config, path: Path, components: Collection[str]) -> str:
    """A digest of these components alone, so that what is computed with them outlives the change of another one; of
    the whole where it is a single file."""
    facts, memory = config.facts, config.cache_path
    options = {component: option for option, component in facts.overrides.items()}
    digests_of: dict[str, str] = {}
    for component in components:
        override = getattr(config, options[component]) if component in options else ""
        if not override and path.is_file() and facts.denoiser_alone and component != facts.denoiser.component:
            override = config.single_file_config
        source = Path(override) if override else path
        inner = source / component
        digests_of[component] = digest(inner if inner.is_dir() else source, (), memory)
        if source.is_file() and config.single_file_config:
            digests_of["single_file_config"] = digest(Path(config.single_file_config), facts.components, memory)
    if config.base_weights and "vae" not in components:  # they change the text encoders too
        for file, strength in zip(config.base_weights, config.base_weights_multipliers, strict=True):
            digests_of[f"base_weights {len(digests_of)}"] = f"{digest(Path(file), (), memory)} x {strength}"
    return files.digest(digests_of)


@contextlib.contextmanager
def read_ahead(config: Config) -> Iterator[None]:
    """Within, files of a base model on this machine are read for their digests, on a thread of its own. What is not
    done at the end is left to who needs it; so is what goes wrong."""
    path, over = Path(config.pretrained_model_name_or_path), threading.Event()

    class Over(Exception):
        pass

    def go_on(done: int, total: int) -> None:
        if over.is_set():
            raise Over

    def read() -> None:
        with contextlib.suppress(Over, OSError):
            for component in config.facts.components if path.is_dir() else ("",):
                if (path / component).exists():
                    digest(path / component, (), config.cache_path, go_on)

    thread = threading.Thread(target=read, name="read ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
