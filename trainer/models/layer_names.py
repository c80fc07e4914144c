"""What other programs call the layers of a network, read back: the inverse of the forms in keys.py. No torch here.

A layer is (component, path): the path is diffusers', or, of FLUX.1, also that of the original file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from trainer.models import families, keys
from trainer.models.families.facts import Facts, Part
from trainer.models.keys import Naming
from trainer.refusal import Refused

ORIGINAL_FLUX = re.compile(r"(double|single)_blocks\.\d+\.")
LYCORIS = "lycoris_"  # what LyCORIS alone, without kohya's trainer, puts before the denoiser's flattened paths
TRANSFORMER = "lora_transformer_"  # OneTrainer's, before those of transformers
PEFT = "base_model.model."  # before every path in peft's own files
MOST_LEVELS = 5  # of resolution that a U-Net may have; Stable Diffusion has four, SDXL three
# Layers that tell the two families of U-Nets apart: the one does not have them, the other does.
NOT_OF = {
    "sd": r"\.transformer_blocks\.[1-9]",
    "sdxl": r"^(down_blocks\.(0\.attentions|3\.)|up_blocks\.(2\.attentions|3\.))",
}
# The words of diffusers' paths that have an underscore: all others in a flattened path stand for dots.
WORDS = (
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "single_transformer_blocks", "text_model"),
    *("time_embedding", "time_emb_proj", "add_embedding", "linear_1", "linear_2", "linear_3", "conv_in", "conv_out"),
    *("conv_shortcut", "proj_in", "proj_out", "proj_mlp", "to_q", "to_k", "to_v", "to_out", "to_add_out", "to_gate"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "o_proj"),
    *("ff_context", "linear_in", "linear_out", "img_mlp", "txt_mlp", "img_mod", "txt_mod", "feed_forward"),
    *("noise_refiner", "context_refiner", "self_attention", "gate_proj", "up_proj", "down_proj", "linear_fc1"),
    *("linear_fc2", "norm1_context", "norm2_context", "to_qkv_mlp_proj", "adaLN_modulation", "norm_out", "x_embedder"),
    *("context_embedder", "time_text_embed", "timestep_embedder", "text_embedder", "guidance_embedder", "img_in"),
    *("txt_in", "to_qkv", "all_x_embedder", "cap_embedder", "t_embedder", "text_fusion", "fc_in", "fc_out"),
)
_WORD = re.compile(rf"(?:{'|'.join(sorted(map(re.escape, WORDS), key=len, reverse=True))})(?=_|$)|[^_]+")


class LayersUnknown(Refused):
    """A file's layers cannot be told; the message says which and what to do."""


def unflattened(flat: str) -> str:
    """diffusers' path of a layer from kohya's flattened one: "mid_block_attentions_0_proj_in" is
    "mid_block.attentions.0.proj_in"."""
    return ".".join(_WORD.findall(flat))


@functools.cache
def unet_prefixes(layers: int, levels: int = MOST_LEVELS) -> dict[str, str]:
    """What a layer's path begins with in an original U-Net file -> diffusers' beginning. `layers`: resnets of a down
    block; `levels`: of resolution. A sampler's path is there whole, in either column that it can have."""
    table = {original: path for path, original in keys.OUTER_ORIGINAL.items()}
    for level in range(levels):
        row = (layers + 1) * level
        for number in range(layers + 1):
            if number < layers:
                table |= _block(f"input_blocks.{row + number + 1}", f"down_blocks.{level}", number)
            table |= _block(f"output_blocks.{row + number}", f"up_blocks.{level}", number)
        table[f"input_blocks.{row + layers + 1}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for column in (1, 2):
            table[f"output_blocks.{row + layers}.{column}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    table |= {f"middle_block.{2 * number}.": f"mid_block.resnets.{number}." for number in (0, 1)}
    return table | {"middle_block.1.": "mid_block.attentions.0."}


def _block(original: str, block: str, number: int) -> dict[str, str]:
    return {f"{original}.0.": f"{block}.resnets.{number}.", f"{original}.1.": f"{block}.attentions.{number}."}


def diffusers_unet_path(original: str, layers: int = keys.LAYERS_A_BLOCK) -> str | None:
    """diffusers' path of a layer from that in the original file; None where a U-Net has no such layer."""
    table = unet_prefixes(layers)
    if original in table:
        return table[original]
    match = re.match(r"((?:input|output)_blocks\.\d+\.\d+\.|middle_block\.\d\.)(.+)", original)
    if not match or match[1] not in table:
        return None
    begin, inner = table[match[1]], match[2]
    if ".resnets." in begin:
        inner = keys.ORIGINAL_RESNET.get(inner, "")
    return begin + inner if inner else None


@functools.cache
def _flat_sai() -> tuple[Mapping[str, str], re.Pattern[str]]:
    """SDXL's original beginnings as kohya flattens them -> diffusers' paths."""
    table: dict[str, str] = {}
    for original, path in unet_prefixes(keys.LAYERS_A_BLOCK).items():
        if ".resnets." in path:
            table |= {
                f"{original}{inner}".replace(".", "_"): path + ours for inner, ours in keys.ORIGINAL_RESNET.items()
            }
        else:
            table[original.replace(".", "_")] = path
    ordered = sorted(map(re.escape, table), key=len, reverse=True)
    return table, re.compile(rf"({'|'.join(ordered)})(.*)")


def _unet_path_of_flat(flat: str) -> str:
    table, pattern = _flat_sai()
    match = pattern.fullmatch(flat)
    if match and (match[1].endswith("_") or not match[2]):
        return table[match[1]] + (unflattened(match[2]) if match[2] else "")
    return unflattened(flat)


def _flux_path_of_flat(flat: str) -> str:
    match = re.fullmatch(r"(double|single)_blocks_(\d+)_(\w+)", flat)
    if not match:
        return unflattened(flat)
    inner = keys.FLUX_INNER.get(match[3])
    if inner is None:
        raise LayersUnknown(f"{flat} is no layer of FLUX.1")
    return f"{match[1]}_blocks.{match[2]}.{inner}"


def _cosmos_path_of_flat(flat: str) -> str:
    match = re.fullmatch(r"blocks_(\d+)_(\w+)", flat)
    if not match:
        return unflattened(flat)
    inner = {theirs.replace(".", "_"): ours for ours, theirs in keys.COSMOS.items()}.get(match[2])
    if inner is None:
        raise LayersUnknown(f"{flat} is no layer of Cosmos")
    return f"transformer_blocks.{match[1]}.{inner}"


_OF_FLAT = {"sai": _unet_path_of_flat, "fused": _flux_path_of_flat, "cosmos": _cosmos_path_of_flat}


@dataclass(frozen=True)
class Namer:
    """The names of one family's layers, in every form."""

    family: str

    @property
    def facts(self) -> Facts:
        return families.TABLE[self.family]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The denoiser, and the text encoders that kohya's files can have."""
        return (self.facts.denoiser, *(part for part in self.facts.encoders if part.prefix))

    @property
    def naming(self) -> Naming:
        return Naming(self.facts.keys, {part.component: (part.prefix, part.path_prefix) for part in self.parts})

    def layer(self, name: str) -> tuple[str, str]:
        """Component and path of a layer that a file calls so. Raises LayersUnknown."""
        denoiser = self.facts.denoiser.component
        for prefix in (LYCORIS, TRANSFORMER):
            if name.startswith(prefix):
                return denoiser, self._of_flat(self.facts.denoiser, name.removeprefix(prefix))
        for part in sorted(self.parts, key=lambda part: len(part.prefix), reverse=True):
            if name.startswith(f"{part.prefix}_"):
                return part.component, self._of_flat(part, name.removeprefix(f"{part.prefix}_"))
            if name.startswith(f"{part.component}."):
                return part.component, name.removeprefix(f"{part.component}.")
        for prefix in (PEFT, keys.ORIGINAL):
            if name.startswith(prefix):
                return denoiser, self._of_original(name.removeprefix(prefix))
        raise LayersUnknown(f"{name} is no layer of {self.facts.title}")

    def _of_flat(self, part: Part, flat: str) -> str:
        read = _OF_FLAT.get(self.facts.keys) if part is self.facts.denoiser else None
        path = read(flat) if read else unflattened(flat)
        if path.replace(".", "_") != flat and read is None:
            raise LayersUnknown(f"{flat} is no layer of {self.facts.title}")
        return path

    def _of_original(self, path: str) -> str:
        if self.facts.keys == "sai":
            return diffusers_unet_path(path) or path
        if self.facts.keys == "cosmos" and path.startswith("blocks."):
            return _cosmos_path_of_flat(path.replace(".", "_"))
        return path

    def kohya(self, component: str, path: str) -> str:
        """kohya's name of a layer; of FLUX.1's denoiser, of the joined layer that it is in. Raises LayersUnknown."""
        prefix = self.naming.targets[component][0]
        try:
            if self.facts.keys == "fused" and component == self.facts.denoiser.component:
                path = path if ORIGINAL_FLUX.match(path) else keys.flux_place(path)[0]
                return f"{prefix}_{path}".replace(".", "_")
            return self.naming.kohya(component, path)
        except (ValueError, KeyError) as error:
            raise LayersUnknown(f"{path} is no layer of {self.facts.title}: {error}") from error

    def fits(self, name: str) -> bool:
        """Whether the family can have a layer of this name."""
        try:
            component, path = self.layer(name)
            self.kohya(component, path)
        except LayersUnknown:
            return False
        part = next(part for part in self.parts if part.component == component)
        if ORIGINAL_FLUX.match(path):
            return self.family == "flux"
        if re.search(NOT_OF.get(self.family, "$^"), path):
            return False
        return part.trains(path, convolutions=True, outer=True)


def family_of(names: Collection[str], metadata: Mapping[str, str], asked: str = families.AUTO) -> str:
    """The family of a network's file: as asked, as its header says, or the one that can have all of its layers.

    Raises LayersUnknown where none or several can, whose names differ.
    """
    if asked != families.AUTO:
        return asked
    version = metadata.get("ss_base_model_version", "")
    for name, facts in families.TABLE.items():
        if version and (version == facts.version or (name == "sd" and version.startswith("sd_v"))):
            return name
    able = [name for name in families.TABLE if all(map(Namer(name).fits, names))]
    if not able:
        strange = next(iter(names), "nothing")
        raise LayersUnknown(
            f"its layers ({strange} ...) are of no family that is known; say which with --family "
            f"({', '.join(families.TABLE)})"
        )
    schemes = {families.TABLE[name].keys for name in able}
    if len(schemes) > 1:
        raise LayersUnknown(f"its layers can be of {', '.join(able)}; say which with --family")
    return able[0]


def layers_of(names: Iterable[str], entries: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """A file's tensors as layer -> what comes after its name -> tensor, and those that end otherwise."""
    ends = sorted(entries, key=len, reverse=True)
    layers: dict[str, dict[str, str]] = {}
    others = []
    for name in names:
        entry = next((end for end in ends if name.endswith(f".{end}")), None)
        if entry is None:
            others.append(name)
        else:
            layers.setdefault(name.removesuffix(f".{entry}"), {})[entry] = name
    return layers, others
