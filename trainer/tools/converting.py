"""A network under another program's names, and a model as a single file or a diffusers folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from trainer import files
from trainer.models import base_model, families, full_model, tensor_files
from trainer.models.base_model import BaseModelMissing
from trainer.models.file_header import HeaderUnreadable
from trainer.models.tensor_files import Entry
from trainer.options.config import Config
from trainer.refusal import Refused
from trainer.tools import FORMS, Arguments, Progress, Result, folders, headers, model_layers, network
from trainer.tools.tensors import DTYPES, TensorSource, TensorWriter, refuse_existing


def convert(arguments: Arguments, progress: Progress) -> Result:
    """The tool; see tools.TOOLS. Raises Refused."""
    source, target = Path(arguments["file"]), Path(arguments["output"])
    refuse_existing(target)
    if arguments["to"] in FORMS:
        return _network(arguments, network.read(source), target, progress)
    if arguments["to"] == "folder":
        return _to_folder(arguments, source, target, progress)
    return _to_single(arguments, source, target, progress)


def _network(arguments: Arguments, source: network.Network, target: Path, progress: Progress) -> Result:
    named = network.named(source, arguments["family"])
    form, precision = arguments["to"], network.precision_of(arguments["save_precision"], source)
    names = sorted(named.members)
    planned = [
        tensor for name in names for tensor, _ in network.in_form(form, named.namer, name, named.entries(name))
    ]  # whatever cannot be converted is refused here
    metadata = headers.carried(source.source.metadata)
    with TensorWriter(target, planned, metadata, hashed=form != "diffusers") as writer:
        for number, name in enumerate(names):
            for tensor, values in sorted(network.in_form(form, named.namer, name, named.entries(name))):
                writer.add(tensor, values.to(precision))
            progress(number + 1, len(names))
    return {"output": str(target), "family": named.namer.family, "layers": len(names), "tensors": len(planned)}


# --- models --------------------------------------------------------------------------------------------------------


def _family(arguments: Arguments, path: Path) -> str:
    """Raises Refused."""
    if wrong := base_model.unusable(path):
        raise Refused(wrong)
    if not path.exists():
        raise Refused(f"there is no file or folder {path}")
    try:
        detected = base_model.detect(path) if arguments["family"] == families.AUTO else arguments["family"]
    except BaseModelMissing as error:
        raise Refused(str(error).removeprefix("pretrained_model_name_or_path: ")) from error
    if detected is None:
        raise Refused(f"it cannot be told what kind of model {path} is; say so with --family")
    return str(detected)


def _to_folder(arguments: Arguments, source: Path, target: Path, progress: Progress) -> Result:
    """A single file as a diffusers folder, by diffusers; its descriptions come from another folder, or from Hugging
    Face."""
    if not source.is_file():
        raise Refused(f"{source} is no single file; to makes a folder of one")
    family = _family(arguments, source)
    facts = families.TABLE[family]
    described_by = Path(arguments["config"]) if arguments["config"] else None
    if described_by and not base_model.index_of(described_by).is_file():
        raise Refused(f"config: {described_by} is not a diffusers model: it has no model_index.json")
    if facts.denoiser_alone and described_by is None:
        raise Refused(
            f"config: {source} holds the transformer of {facts.title} alone: name a diffusers folder that has "
            "the other components"
        )
    import diffusers  # seconds
    import torch

    asked = arguments["save_precision"]
    dtype = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(asked) or _commonest(source)
    given: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if described_by:
        given |= {"local_files_only": True}
    progress(0, 2)
    try:
        with folders.new_folder(target) as temporary:
            if facts.denoiser_alone and described_by:
                shutil.copytree(described_by, temporary, dirs_exist_ok=True, ignore=_without(facts.denoiser.component))
                index = json.loads(base_model.index_of(described_by).read_bytes())
                kind = getattr(diffusers, index[facts.denoiser.component][1])
                part = kind.from_single_file(source, config=str(described_by / facts.denoiser.component), **given)
                progress(1, 2)
                part.save_pretrained(temporary / facts.denoiser.component)
            else:
                kind = getattr(diffusers, facts.pipelines[0])
                config = str(described_by) if described_by else None
                without = {"safety_checker": None} if family == "sd" else {}
                pipeline = kind.from_single_file(source, config=config, **given, **without)
                progress(1, 2)
                pipeline.save_pretrained(temporary)
    except (ValueError, TypeError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refused(
            f"{source} cannot be read as {facts.title}: {first}; give --config a diffusers folder of the "
            "same architecture"
        ) from error
    progress(2, 2)
    return {"output": str(target), "family": family}


PRECISION_OF = {"float32": "float", "float16": "fp16", "bfloat16": "bf16"}


def _without(component: str) -> Any:
    return lambda folder, names: {component} & set(names)


def _commonest(source: Path) -> str:
    """The type that most of a file's numbers have, as torch calls it."""
    sizes: dict[str, int] = {}
    for entry in TensorSource(source).entries.values():
        if entry.dtype in ("F16", "BF16", "F32"):
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.start
    chosen = max(sizes, key=sizes.__getitem__, default="F32")
    return str(DTYPES[chosen]).removeprefix("torch.")


def _to_single(arguments: Arguments, source: Path, target: Path, progress: Progress) -> Result:
    """A diffusers folder as one file: of Stable Diffusion under its original names and whole, of others the transformer
    in diffusers' names."""
    if not source.is_dir():
        raise Refused(f"{source} is no diffusers folder; --to single makes one file of one")
    family = _family(arguments, source)
    facts = families.TABLE[family]
    denoiser = model_layers.weight_files(source / facts.denoiser.component)
    if not denoiser:
        raise Refused(f"{source / facts.denoiser.component} has no safetensors file")
    precision: Any = arguments["save_precision"] or PRECISION_OF[_commonest(denoiser[0])]
    config = Config(pretrained_model_name_or_path=str(source), family=family, save_precision=precision)
    try:
        tensors = full_model.single_file(config, source, {})
    except (HeaderUnreadable, ValueError, KeyError) as error:
        raise Refused(f"{source} cannot be written as one file: {error}") from error
    total, done = sum(entry.nbytes for entry in tensors.values()), 0

    def counted(entry: Entry) -> Entry:
        def read() -> Any:
            nonlocal done
            done += entry.nbytes
            progress(done, total)
            return entry.read()

        return Entry(entry.shape, entry.dtype, read)

    described = {"format": "pt", "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": facts.architecture}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".tmp-{target.name}-", dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        tensor_files.write(temporary, {name: counted(entry) for name, entry in tensors.items()}, described)
        refuse_existing(target)
        files.replace(temporary, target)
    files.fsync_folder(target.parent)
    return {"output": str(target), "family": family, "tensors": len(tensors), "bytes": total}
