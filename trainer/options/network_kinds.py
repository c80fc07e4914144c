"""Every kind of network there is: what the options have to know of it. No torch here.

How a kind is put into a model and what its files hold stands in models/adapters, under the same names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_RANK = 1024  # of two thin matrices; more than any layer gains from
FULL = "full"  # the network_preset that trains every layer


@dataclass(frozen=True)
class NetworkKind:
    """What the options have to know of a kind of network."""

    title: str
    algo: str = ""  # LyCORIS' name of it; empty: sd-scripts' own networks.lora
    switches: Mapping[str, bool] = field(default_factory=dict)  # what LyCORIS is told besides
    dropouts: tuple[str, ...] = ()  # the options of this sort that it has
    arguments: tuple[str, ...] = ()  # its own options
    limits_norms: bool = False
    any_rank: bool = False  # a rank beyond a layer's width means whole matrices
    plus: str = ""  # what the names of a LoRA layer's second matrix end with: LoRA+ gives it a rate of its own
    extra: str = ""  # the optional dependency that brings it
    needs_weights: bool = False  # it computes with the base model's weights themselves
    folded: bool = False  # ComfyUI reads it under the paths of transformers too


_EVERY_DROPOUT = ("network_dropout", "rank_dropout", "module_dropout")
_OF_WEIGHTS = ("rank_dropout", "module_dropout")

NETWORK_KINDS: dict[str, NetworkKind] = {
    "lora": NetworkKind("LoRA", dropouts=_EVERY_DROPOUT, limits_norms=True, plus="lora_B.weight", folded=True),
    "rslora": NetworkKind(
        "rsLoRA", "locon", {"rs_lora": True}, _EVERY_DROPOUT, limits_norms=True, plus="lora_B.weight", folded=True
    ),
    "dora": NetworkKind(
        "DoRA", "locon", {"dora_wd": True}, limits_norms=True, plus="lora_B.weight", needs_weights=True, folded=True
    ),
    "loha": NetworkKind("LoHa", "loha", {}, _OF_WEIGHTS, ("use_tucker",), limits_norms=True, folded=True),
    "lokr": NetworkKind(
        "LoKr", "lokr", {}, _OF_WEIGHTS, ("factor", "decompose_both", "use_tucker"), limits_norms=True, any_rank=True,
        folded=True,
    ),
    "ia3": NetworkKind(
        "(IA)^3", "ia3", {}, ("module_dropout",), ("train_on_input",), any_rank=True, extra="lycoris",
        needs_weights=True,
    ),
    "glora": NetworkKind("GLoRA", "glora", {}, ("module_dropout",), extra="lycoris", needs_weights=True),
    "diag-oft": NetworkKind(
        "Diag-OFT", "diag-oft", {}, ("module_dropout",), ("constraint", "rescaled"), any_rank=True, extra="lycoris",
        needs_weights=True,
    ),
}  # fmt: skip

WHOLE_MODEL = NetworkKind("a fine-tune", any_rank=True, needs_weights=True)  # which trains the base model itself
NEW_WORD = NetworkKind("a textual inversion", any_rank=True)

# Layers by the ends of their paths, in diffusers' names and in those of single files; of LyCORIS' presets of that name.
ATTENTION = re.compile(r"(^|\.)(attn\d?|attention|self_attn|cross_attn)\.")
OF_IA3 = re.compile(r"(\.to_k|\.to_v|ff\.net\.2|k_proj|v_proj|mlp\.fc2|in_proj_weight\.[kv]|mlp\.c_proj(\.weight)?)$")
ON_INPUT = re.compile(r"(ff\.net\.2|mlp\.fc2|mlp\.c_proj(\.weight)?)$")  # where (IA)^3 scales what comes in

NETWORK_PRESETS = ("", FULL, "full-lin", "attn-mlp", "attn-only", "ia3")
# LyCORIS' presets that leave the text encoders out, and what they are of the U-Net.
UNET_ONLY = {"unet-only": FULL, "unet-transformer-only": "attn-mlp"}


# --- as kohya writes them ------------------------------------------------------------------------------------------

ALGOS = {"lora": "lora", "locon": "lora", **{kind.algo: name for name, kind in NETWORK_KINDS.items()}} | {
    "locon": "lora"
}
# LyCORIS' switches of its LoCon, and the kind that they make of it.
SWITCHES = {switch: name for name, kind in NETWORK_KINDS.items() for switch in kind.switches}
LYCORIS = "lycoris.kohya"
MODULES = ("networks.lora", LYCORIS)
# Those of other architectures in sd-scripts and musubi-tuner: the architecture is read from the model itself.
OF_ARCHITECTURES = tuple(
    f"networks.lora_{name}"
    for name in ("flux", "sd3", "lumina", "anima", "zimage", "flux_2", "qwen_image", "krea2", "ernie_image")
)
# Arguments of a network, and our option where it has another name.
ARGUMENTS = {
    **{
        name: name
        for name in (
            "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "loraplus_lr_ratio", "loraplus_unet_lr_ratio",
            "loraplus_text_encoder_lr_ratio", "factor", "decompose_both", "use_tucker", "train_on_input", "constraint",
            "rescaled", "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "down_lr_weight",
            "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold",
        )
    },
    "preset": "network_preset",
    "constrain": "constraint",
    "use_cp": "use_tucker",
    "use_conv_cp": "use_tucker",
    "dropout": "network_dropout",
}  # fmt: skip
# Without effect on what is trained: how it is computed, or what is said.
NO_EFFECT = ("bypass_mode", "verbose", "warn_on_unmatched", "wd_on_output")
# Not there: refused where they are on.
NOT_THERE = (
    "use_scalar", "train_norm", "rank_dropout_scale", "full_matrix", "unbalanced_factorization", "block_size", "unit",
    "train_lora_ggpo", "ggpo_sigma", "ggpo_beta", "train_t5xxl", "train_llm_adapter", "disable_conv_cp",
)  # fmt: skip
OFF = (None, False, 0, 0.0, "", "0", "False", "false", -1)


def is_on(value: Any) -> bool:
    """Whether a switch among network_args is on."""
    return str(value).strip().lower() in ("true", "1", "1.0")


def from_module(module: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What network_module and network_args of sd-scripts say, as options of ours, and what is wrong with them."""
    module = module or "networks.lora"
    if module not in (*MODULES, *OF_ARCHITECTURES):
        return {}, [f"{module!r} is not supported; there are {' and '.join(MODULES)}"]
    options: dict[str, Any] = {}
    problems: list[str] = []
    if module == LYCORIS:
        algo = str(arguments.get("algo") or "lora").lower()
        if algo not in ALGOS:
            return {}, [f"algo: there is no {algo!r} here; there are {', '.join(dict.fromkeys(ALGOS))}"]
        options = {"network_kind": ALGOS[algo], "network_preset": FULL}
    for name, value in arguments.items():
        if name in SWITCHES:
            if is_on(value):
                problems += with_switch(options, name)
        elif name in ARGUMENTS:
            options[ARGUMENTS[name]] = value
        elif name not in ("algo", *NO_EFFECT) and not (name in NOT_THERE and value in OFF):
            problems.append(f"{name!r} is not supported; remove it to train without")
    preset = options.get("network_preset")
    if preset in UNET_ONLY:
        options |= {"network_preset": UNET_ONLY[preset], "network_train_unet_only": True}
    return options, problems


def with_switch(options: dict[str, Any], switch: str) -> list[str]:
    """Make the kind that a switch asks for of LyCORIS' LoCon; returns what is wrong with that."""
    kind = options.get("network_kind", "lora")
    if kind != "lora":
        return [f"{switch} belongs to LoCon; there is no {NETWORK_KINDS[kind].title} with it"]
    options["network_kind"] = SWITCHES[switch]
    return []


def as_arguments(kind: str) -> dict[str, Any]:
    """LyCORIS' arguments for a kind, as ss_network_args tells them."""
    declared = NETWORK_KINDS[kind]
    return {"algo": declared.algo, **declared.switches} if declared.algo else {}
