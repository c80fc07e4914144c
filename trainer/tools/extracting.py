"""What a model has learnt over another one, as a LoRA: the differences of weights, by their singular values."""

from __future__ import annotations

from pathlib import Path

from trainer.refusal import Refused
from trainer.tools import Arguments, Progress, Result, headers, model_layers, network, ranks
from trainer.tools.model_layers import ModelLayers
from trainer.tools.tensors import PRECISIONS, TensorWriter, refuse_existing


def extract(arguments: Arguments, progress: Progress) -> Result:
    """The tool; see tools.TOOLS. Layers that are equal in both models get none. Raises Refused."""
    wanted, target = ranks.cutting(arguments), Path(arguments["output"])
    refuse_existing(target)
    original = model_layers.read(Path(arguments["original"]), arguments["family"])
    tuned = model_layers.read(Path(arguments["tuned"]), arguments["family"])
    names = _common(original, tuned)
    if wanted.conv_rank is not None and arguments["conv_rank"] is None:
        names = [name for name in names if not original.is_larger(name)]
    facts = original.namer.facts
    form = "diffusers" if facts.keys == "folded" else "kohya"
    precision = PRECISIONS[arguments["save_precision"] or "fp16"]
    account = ranks.Account()
    metadata = {
        "ss_base_model_version": facts.version,
        "ss_network_module": "networks.lora",
        "ss_training_comment": f"extracted: {tuned.path.name} - {original.path.name}",
        "modelspec.architecture": f"{facts.architecture}/lora",
    }
    planned = [f"{name}.{'x' * 80}" for name in names for _ in range(3)]
    with TensorWriter(target, planned, metadata, hashed=form == "kohya") as writer:
        for number, name in enumerate(names):
            delta = tuned.weight(name) - original.weight(name)
            if bool(delta.any()):
                factors = network.factors_of(delta.to(arguments["device"]))
                rank = wanted.chosen(factors.values, larger=original.is_larger(name))
                account.note(name, factors.values, rank, 1.0)
                down, up = factors.cut(rank)
                layer = network.as_kohya(down, up, float(rank))
                for tensor, values in sorted(network.in_form(form, original.namer, name, layer)):
                    writer.add(tensor, values.to(precision))
            progress(number + 1, len(names))
        if not account.ranks:
            raise Refused(f"{tuned.path} and {original.path} have equal weights: there is nothing to extract")
        dims = list(account.ranks.values())
        writer.metadata |= headers.ranks(dims, [float(dim) for dim in dims])
    return {"output": str(target), **account.as_json()}


def _common(original: ModelLayers, tuned: ModelLayers) -> list[str]:
    """The layers of both models. Raises Refused where they are of different architectures or sizes."""
    if original.namer.family != tuned.namer.family:
        raise Refused(
            f"{original.path} is {original.namer.facts.title}, {tuned.path} is {tuned.namer.facts.title}: no LoRA is "
            "between them"
        )
    names = sorted(original.pieces.keys() & tuned.pieces.keys())
    misfits = [name for name in names if original.shape(name) != tuned.shape(name)]
    if misfits or not names:
        what = f"{network.some(misfits)} have other shapes" if misfits else "they have no layer in common"
        raise Refused(f"{original.path} and {tuned.path} do not belong together: {what}")
    return names
