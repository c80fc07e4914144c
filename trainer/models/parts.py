"""The components of a base model, each loaded when it is first asked for: from a folder, a single file, an override."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import logging
import threading
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
from diffusers import DDPMScheduler
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from trainer.models import base_model, looking, quantising
from trainer.models.base_model import BaseModelMissing, index_of
from trainer.models.families.facts import CLIP_TEXT, DDPM, UPCASTS_VAE
from trainer.options.config import Config

logger = logging.getLogger(__name__)
LIBRARIES = ("diffusers", "transformers")  # of the classes that a model_index.json may name
LOADING = (OSError, ValueError, TypeError, KeyError)  # what these raise for files that they cannot use


class Parts:
    """A base model's components by the names of their folders. Safe to use from several threads."""

    def __init__(self, config: Config, path: Path, dtype: torch.dtype) -> None:
        """`dtype`: of the weights; no_half_vae keeps those of the VAE in fp32."""
        self._config = config
        self.facts = config.facts
        self.path = path
        self._dtype = dtype
        self._trained = {part.component for part in config.trained_parts}
        self._loaded: dict[str, Any] = {}
        self._lock = threading.RLock()
        self.alone = True  # whether no other thread prepares batches
        self._overrides = {
            component: (option, Path(getattr(config, option)))
            for option, component in config.facts.overrides.items()
            if getattr(config, option)
        }

    def dtype_of(self, component: str) -> torch.dtype:
        """The precision in which a component is held: whole where it is trained itself, unless full_bf16 rounds it."""
        if self._config.fine_tunes and component in self._trained:
            return torch.bfloat16 if self._config.full_bf16 else torch.float32
        if component == "vae" and (self._config.no_half_vae or self._overflows):
            return torch.float32
        encoders = {part.component for part in self.facts.encoders}
        if self._dtype == torch.float16 and component in encoders and CLIP_TEXT not in self.facts.traits:
            return torch.bfloat16  # language models overflow in fp16
        return self._dtype

    @property
    def _folder(self) -> Path | None:
        """The diffusers folder of the model, or the one that describes a single file."""
        described_by = self._config.single_file_config
        return self.path if self.path.is_dir() else Path(described_by) if described_by else None

    @functools.cached_property
    def _overflows(self) -> bool:
        """Whether the VAE overflows in this precision: its config says so, or, of a single file, the family."""
        if self._dtype != torch.float16 or UPCASTS_VAE not in self.facts.traits:
            return False
        path = self._overrides["vae"][1] if "vae" in self._overrides else self.path
        for folder in (path / "vae", path):
            with contextlib.suppress(OSError, ValueError):
                return bool(json.loads((folder / "config.json").read_bytes()).get("force_upcast", True))
        return True

    @functools.cached_property
    def pipeline_name(self) -> str:
        """diffusers' class that model_index.json names; empty for a single file that nothing describes."""
        return base_model.pipeline_of(self._folder) if self._folder else ""

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What model_index.json says besides the components."""
        if self._folder is None:
            return {}
        components = (*self.facts.components, *self.facts.optional)
        index: dict[str, Any] = json.loads(index_of(self._folder).read_bytes())
        return {
            name: value
            for name, value in index.items()
            if not name.startswith("_") and name not in components and value != [None, None]
        }

    def __getitem__(self, component: str) -> Any:
        """The component. Raises BaseModelMissing where its files are missing or cannot be used."""
        with self._lock:
            if component not in self._loaded:
                self._loaded |= self._load(component)
                self._to_precision()
            return self._loaded[component]

    @property
    def _load_dtype(self) -> torch.dtype | None:
        """The precision to load in. Beside other threads it is torch's own default, since loading in another one
        changes that default for a moment, also for what they compute; the cast follows."""
        is_main = threading.current_thread() is threading.main_thread()
        return None if is_main and self.alone else torch.float32

    def _to_precision(self) -> None:
        for name, module in self._loaded.items():
            if self._is_quantised(name):
                continue
            if isinstance(module, nn.Module) and module.dtype != self.dtype_of(name):
                module.to(self.dtype_of(name))

    def forget(self, component: str) -> None:
        """Give its memory back; it is loaded again when it is asked for."""
        with self._lock:
            self._loaded.pop(component, None)

    def _load(self, component: str) -> dict[str, Any]:
        disable_progress_bar()  # a bar a component says nothing, and fills the log
        if component in self._overrides:
            return {component: self._override(component)}
        if component == self.facts.denoiser.component and self._config.base_gguf:
            return {component: self._from_gguf(component, Path(self._config.base_gguf))}
        folder = self._folder
        if folder and (self.path.is_dir() or self.facts.denoiser_alone):
            try:
                if self.path.is_file() and component == self.facts.denoiser.component:
                    return {component: self._from_weights(self._class_of(component), component, self.path)}
                return {component: self._from_folder(component, folder / component)}
            except LOADING as error:
                option = "pretrained_model_name_or_path" if folder == self.path else "single_file_config"
                raise BaseModelMissing(f"{option}: {folder} cannot be loaded: {error}") from error
        return {name: module for name, module in self._from_file().items() if name not in self._loaded}

    # --- folders ---------------------------------------------------------------------------------------------------

    def _class_of(self, component: str) -> Any:
        """The class that model_index.json names; a DDPM's schedule is always trained as one."""
        if component == "scheduler" and DDPM in self._config.facts.traits:
            return DDPMScheduler
        library, name, *_ = json.loads(index_of(self._folder or self.path).read_bytes())[component]
        if library not in LIBRARIES:
            raise ValueError(f"its {component} is of {library}, which is not supported")
        return looking.CLASSES.get(name) or getattr(importlib.import_module(library), name)

    def _from_folder(self, component: str, folder: Path) -> Any:
        kind = self._class_of(component)
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(folder, local_files_only=True)
        return kind.from_pretrained(
            folder,
            dtype=self._load_dtype or self.dtype_of(component),
            variant=variant_in(folder),
            local_files_only=True,
            use_safetensors=True,
            **(quantising.for_loading(self._config, self._dtype) if self._is_quantised(component) else {}),
        )

    def _is_quantised(self, component: str) -> bool:
        return component == self.facts.denoiser.component and bool(quantising.package_of(self._config))

    def _from_gguf(self, component: str, path: Path) -> Any:
        """The denoiser from a file in the names of its first publishers; what it is made of stands in the folder."""
        try:
            return self._class_of(component).from_single_file(
                path,
                config=str(self.path),
                subfolder=component,
                local_files_only=True,
                quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=self._dtype),
                dtype=self._dtype,
            )
        except LOADING as error:
            raise BaseModelMissing(f"base_gguf: {path} cannot be loaded: {error}") from error

    # --- overrides -------------------------------------------------------------------------------------------------

    def _override(self, component: str) -> Any:
        option, path = self._overrides[component]
        try:
            if path.is_file():
                kind = self._class_of(component) if self._folder else diffusers.AutoencoderKL
                return self._from_weights(kind, component, path)
            inner = path if (path / "config.json").is_file() else path / component
            name = json.loads((inner / "config.json").read_bytes()).get("_class_name")
            kind = getattr(diffusers, name) if name else self._class_of(component)
            return kind.from_pretrained(
                inner,
                dtype=self._load_dtype or self.dtype_of(component),
                variant=variant_in(inner),
                local_files_only=True,
                use_safetensors=True,
            )
        except LOADING as error:
            raise BaseModelMissing(f"{option}: {path} cannot be loaded: {error}") from error

    def _from_weights(self, kind: Any, component: str, path: Path) -> Any:
        """A component from a single file of its weights."""
        dtype, folder = self._load_dtype or self.dtype_of(component), self._folder
        if kind.__name__ in SINGLE_FILE_LOADABLE_CLASSES:
            described: dict[str, Any] = {}
            if folder and (folder / component).is_dir():
                described = {"config": str(folder / component), "local_files_only": True}
            return kind.from_single_file(path, dtype=dtype, **described)
        if folder is None:
            raise ValueError("set single_file_config to a diffusers folder, which describes what the file holds")
        weights = safetensors.torch.load_file(path)
        if issubclass(kind, PreTrainedModel):
            settings = kind.config_class.from_pretrained(folder / component, local_files_only=True)
            return kind.from_pretrained(None, config=settings, state_dict=weights, dtype=dtype)
        model = kind.from_config(kind.load_config(folder / component, local_files_only=True))
        model.load_state_dict(weights)
        return model.to(dtype).eval()

    # --- single files ----------------------------------------------------------------------------------------------

    def _from_file(self) -> dict[str, Any]:
        facts, config = self._config.facts, self._config
        described_by = Path(config.single_file_config) if config.single_file_config else None
        kind = getattr(diffusers, facts.pipelines[0])
        without = {name: None for name in ("safety_checker",) if name in inspect.signature(kind.__init__).parameters}
        try:
            pipeline = kind.from_single_file(
                self.path,
                config=str(described_by) if described_by else None,
                local_files_only=described_by is not None,
                dtype=self._load_dtype or self._dtype,
                **without,
            )
        except LOADING as error:
            way_out = (
                "check that single_file_config describes this model"
                if described_by
                else "its configs are taken from Hugging Face, which may be out of reach: set single_file_config to a "
                "diffusers folder of the same architecture"
            )
            first = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise BaseModelMissing(
                f"pretrained_model_name_or_path: {self.path} cannot be loaded: {first[0]}; {way_out}"
            ) from error
        return {name: getattr(pipeline, name) for name in facts.components}


def variant_in(folder: Path) -> str | None:
    """diffusers' name for files that exist in half precision only."""
    stems = ("diffusion_pytorch_model", "model")
    if any(any(folder.glob(f"{stem}.safetensors*")) or any(folder.glob(f"{stem}-0*.safetensors")) for stem in stems):
        return None
    return "fp16" if any(any(folder.glob(f"{stem}.fp16*.safetensors")) for stem in stems) else None
