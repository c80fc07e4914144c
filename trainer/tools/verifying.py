"""Whether a model file is sound: its bytes, its numbers, shapes that belong together, names that are known."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from trainer import files
from trainer.models import base_model, families, layer_names
from trainer.models.adapters import DORA, GLORA, OFT, PRODUCTS
from trainer.models.base_model import BaseModelMissing
from trainer.models.layer_names import LayersUnknown, Namer
from trainer.models.network_layers import ENTRIES
from trainer.tools import Arguments, Progress, Result
from trainer.tools.network import PAIRS
from trainer.tools.tensors import DTYPES, TensorSource

KINDS = (("DoRA", {DORA}), ("LoHa", {"hada_w1_a"}), ("LoKr", {"lokr_w1", "lokr_w1_a"}), ("whole difference", {"diff"}))
OTHER_ENTRIES = ("lora_mid.weight", "diff_b", "b_norm", "w_norm", "reshape_weight", "on_input", *GLORA, *OFT)


def verify(arguments: Arguments, progress: Progress) -> Result:
    """The tool; see tools.TOOLS. "problems" is empty where the file is sound. Raises Refused for any other file."""
    source = TensorSource(Path(arguments["file"]))
    problems: list[str] = []
    layers, others = layer_names.layers_of(source.entries, {*ENTRIES, *OTHER_ENTRIES})
    has_pairs = any(
        any(set(pair) & entries.keys() for pair in PAIRS) or entries.keys() & set(PRODUCTS)
        for entries in layers.values()
    )
    result: Result = {"file": str(source.path), "tensors": len(source.entries), "bytes": source.size}
    result["types"] = dict(Counter(entry.dtype for entry in source.entries.values()))
    if has_pairs:
        result |= _network(source, layers, others, arguments["family"], problems)
    else:
        result |= _model(source, arguments["family"], problems)
    digest, bad = _read_all(source, progress)
    problems += bad
    stated = source.metadata.get("sshs_model_hash")
    if stated and stated != digest:
        problems.append(
            "sshs_model_hash: the header names another hash than the tensors have: they are not those that were saved"
        )
    result |= {"sshs_model_hash": digest, "sha256": files.sha256_file(source.path), "problems": problems}
    return result


def _read_all(source: TensorSource, progress: Progress) -> tuple[str, list[str]]:
    """kohya's hash over all tensors in the file's order, and those with numbers that are none."""
    digest, bad, done, total = hashlib.sha256(), [], 0, source.size
    for name, entry in sorted(source.entries.items(), key=lambda item: item[1].start):
        dtype = DTYPES.get(entry.dtype)
        finite, rest = True, b""
        for part in source.chunks(name):
            digest.update(part)
            if dtype is not None and dtype.is_floating_point:
                usable = len(rest + part) // dtype.itemsize * dtype.itemsize
                whole, rest = (rest + part)[:usable], (rest + part)[usable:]
                values = torch.frombuffer(bytearray(whole), dtype=torch.uint8).view(dtype)
                finite = finite and bool(torch.isfinite(values.float()).all())
            done += len(part)
            progress(done, total)
        if not finite:
            bad.append(f"{name}: has NaN or infinite values")
    return digest.hexdigest(), bad


def _network(
    source: TensorSource, layers: Mapping[str, Mapping[str, str]], others: list[str], family: str, problems: list[str]
) -> Result:
    problems += [f"{name}: is not known of any network" for name in others]
    for layer, entries in layers.items():
        problems += [f"{layer}: {problem}" for problem in _misfits(source, entries)]
    kind = next((title for title, marks in KINDS if any(marks & entries.keys() for entries in layers.values())), "LoRA")
    try:
        detected = layer_names.family_of(list(layers), source.metadata, family)
    except LayersUnknown as error:
        problems.append(f"family: {error}")
        return {"kind": kind, "family": None, "layers": len(layers)}
    problems += [
        f"{name}: is no layer of {families.TABLE[detected].title}" for name in layers if not Namer(detected).fits(name)
    ]
    ranks = Counter(
        source.entries[entries[pair[0]]].shape[0] for entries in layers.values() for pair in PAIRS if pair[0] in entries
    )
    return {
        "kind": kind,
        "family": detected,
        "layers": len(layers),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
    }


def _misfits(source: TensorSource, entries: Mapping[str, str]) -> list[str]:
    """What does not belong together in a layer."""
    shapes = {entry: source.entries[name].shape for entry, name in entries.items()}
    problems = []
    for down, up in PAIRS:
        there = {down, up} & shapes.keys()
        if len(there) == 1:
            problems.append(f"has {min(there)} without {({down, up} - there).pop()}")
        elif there and (len(shapes[down]) < 2 or len(shapes[up]) < 2 or shapes[down][0] != shapes[up][1]):
            problems.append(f"{down} {shapes[down]} and {up} {shapes[up]} have different ranks")
    if "alpha" in shapes and shapes["alpha"] not in ((), (1,)):
        problems.append(f"alpha has the shape {shapes['alpha']} instead of one number")
    if shapes.keys() == {"alpha"}:
        problems.append("has an alpha and nothing that it is of")
    return problems


def _model(source: TensorSource, family: str, problems: list[str]) -> Result:
    try:
        detected = base_model.detect(source.path) if family == families.AUTO else family
    except BaseModelMissing as error:
        problems.append(str(error).removeprefix("pretrained_model_name_or_path: "))
        detected = None
    return {"kind": "model", "family": detected}
