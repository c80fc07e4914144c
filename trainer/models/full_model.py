"""A whole model as others read it: one .safetensors file, or a diffusers folder. No torch here.

What was trained comes from a checkpoint or from the trainer, everything else from the base model's files, a tensor at a
time. Stable Diffusion becomes one file with all components under its original names; a transformer a file of its own
in diffusers' names, which `from_single_file` and ComfyUI read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from trainer import files
from trainer.models import base_model, original_names, tensor_files
from trainer.models.families.facts import Part
from trainer.models.file_header import HeaderUnreadable
from trainer.models.tensor_files import Entries, Entry
from trainer.options.config import Config
from trainer.refusal import Refused

OPEN_CLIP_WIDTH = 1024  # of SD 2.x, whose text encoder is OpenCLIP's
AVERAGE = "model_ema."  # what a training of the first publishers left in some files
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model.safetensors", "model.safetensors"
WEIGHTS = re.compile(r".*\.(safetensors|bin|index\.json|msgpack|onnx|pb|h5)")


class ExportImpossible(Refused):
    """A whole model cannot be made of these weights and files; the message says why and what to do."""


def write(path: Path, config: Config, model: Path, trained: Entries, metadata: Mapping[str, str]) -> None:
    """Write the model as save_model_as says, whole or not at all; what was there under this name is replaced.

    `model`: the base model's folder or file; `trained`: by "<component>.<path>"; what is missing of a component comes
    from the base model. Raises ExportImpossible, or OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        if config.save_model_as == "diffusers":
            _write_folder(temporary, config, model, trained)
            _replace_folder(temporary, path)
        else:
            tensor_files.write(temporary / path.name, single_file(config, model, trained), metadata)
            files.replace(temporary / path.name, path)
        files.fsync_folder(path.parent)
    except HeaderUnreadable as error:
        raise ExportImpossible(str(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Give a folder its name; what had it goes once the new one is whole."""
    if not path.exists():
        files.rename(temporary, path)
        return
    old = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
    files.rename(path, old)
    files.rename(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def _of(component: str, tensors: Entries) -> dict[str, Entry]:
    """A component's tensors, by their paths in it."""
    prefix = f"{component}."
    return {name.removeprefix(prefix): entry for name, entry in tensors.items() if name.startswith(prefix)}


def _base(config: Config, model: Path, component: str) -> dict[str, Entry]:
    """A component of the base model, from its folder or from what replaces it. Raises HeaderUnreadable."""
    option = next((option for option, name in config.facts.overrides.items() if name == component), "")
    source = Path(getattr(config, option)) if option and getattr(config, option) else model / component
    if source.is_file():
        return tensor_files.entries(source)
    return tensor_files.in_folder(source / component if (source / component).is_dir() else source)


def _whole(base: Entries, trained: Entries) -> dict[str, Entry]:
    """A component's tensors with those that were trained in their places; transformers' names go both ways, with and
    without the text model's own."""
    names = {name.removeprefix("text_model."): name for name in base}
    return {**base, **{names.get(name.removeprefix("text_model."), name): entry for name, entry in trained.items()}}


# --- one file ------------------------------------------------------------------------------------------------------


def single_file(config: Config, model: Path, trained: Entries) -> dict[str, Entry]:
    """The tensors of a single file of the whole model. Raises ExportImpossible or HeaderUnreadable."""
    facts = config.facts
    if facts.denoiser_alone:
        denoiser = facts.denoiser.component
        tensors = _of(denoiser, trained)
        base = tensor_files.entries(model) if model.is_file() else _base(config, model, denoiser)
        if model.is_dir() or tensors.keys() <= base.keys():
            tensors = _whole(base, tensors)
    elif model.is_file():
        tensors = _changed_file(config, tensor_files.entries(model), trained)
    else:
        tensors = {}
        for part in (facts.denoiser, *facts.encoders):
            whole = _whole(_base(config, model, part.component), _of(part.component, trained))
            tensors |= _original(config, part, whole)
        tensors |= original_names.vae(_base(config, model, "vae"))
    return {name: entry.in_precision(config.save_precision) for name, entry in tensors.items()}


def _changed_file(config: Config, base: Entries, trained: Entries) -> dict[str, Entry]:
    """The tensors of a single file with those that were trained in their places."""
    facts = config.facts
    tensors = {name: entry for name, entry in base.items() if not name.startswith(AVERAGE)}
    for part in (facts.denoiser, *facts.encoders):
        if changed := _of(part.component, trained):
            named = _original(config, part, changed, open_clip=f"{part.original}model.ln_final.weight" in base)
            if missing := sorted(named.keys() - base.keys()):
                raise ExportImpossible(
                    f"pretrained_model_name_or_path: the base model's file has no {missing[0]} (and others of "
                    f"{len(missing)}), so what was trained has no place in it"
                )
            tensors |= named
    if config.vae:
        tensors |= original_names.vae(_base(config, Path(), "vae"))
    return tensors


def _original(config: Config, part: Part, tensors: Entries, *, open_clip: bool | None = None) -> dict[str, Entry]:
    """A component under its original names. `open_clip`: whether a text encoder is named so; None: as it is usual."""
    if not part.tokenizer:
        return original_names.unet(tensors)
    usual, is_sd = part is not config.facts.encoders[0], len(config.facts.encoders) == 1
    if is_sd:
        widths = {entry.shape[1] for name, entry in tensors.items() if name.endswith("token_embedding.weight")}
        usual = OPEN_CLIP_WIDTH in widths
    if usual if open_clip is None else open_clip:
        return original_names.open_clip(tensors, part.original, last_again=is_sd and open_clip is None)
    return original_names.clip(tensors, part.original)


# --- a diffusers folder --------------------------------------------------------------------------------------------


def _write_folder(target: Path, config: Config, model: Path, trained: Entries) -> None:
    base_model.require_folders(config, model)
    facts = config.facts
    source = model if model.is_dir() else Path(config.single_file_config)
    options = {component: getattr(config, option) for option, component in facts.overrides.items()}
    for component in facts.components:
        given = Path(options.get(component) or source)
        inner = given / component if (given / component).is_dir() else given
        changed = _of(component, trained)
        _link(inner, target / component, weights=not changed)
        if changed:
            base = {} if model.is_file() else _base(config, model, component)
            tensors = {name: entry.in_precision(config.save_precision) for name, entry in _whole(base, changed).items()}
            is_text = any(part.component == component for part in facts.encoders)
            described = {"format": "pt"}  # transformers asks for it
            tensor_files.write(target / component / (TRANSFORMERS if is_text else DIFFUSERS), tensors, described)
    index = base_model.index_of(source)
    document = json.loads(index.read_bytes())
    for name, value in document.items():
        if isinstance(value, list) and not (target / name).is_dir():
            document[name] = [None, None]  # such as a safety checker that was not downloaded
    files.write_bytes(target / index.name, files.json_bytes(document))


def _link(source: Path, target: Path, *, weights: bool) -> None:
    """The files of a folder under another one, without a copy where the disk allows that. `weights`: these as well."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if not path.is_file() or (not weights and WEIGHTS.fullmatch(path.name)):
            continue
        with contextlib.suppress(OSError):
            os.link(path.resolve(), target / path.name)
            continue
        shutil.copyfile(path, target / path.name)
