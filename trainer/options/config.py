"""The complete set of options and the table of their declarations, both made from the sections. No torch here."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.models.families import TABLE
from trainer.models.families.facts import TRAINS_ENCODERS, Facts, Part
from trainer.options import blocks
from trainer.options.declaration import Option
from trainer.options.network_kinds import NETWORK_KINDS, NEW_WORD, WHOLE_MODEL, NetworkKind
from trainer.options.optimizer_table import Optimizer, optimizer_of
from trainer.options.sections.dataset import Dataset
from trainer.options.sections.embedding import Embedding
from trainer.options.sections.folders import Folders
from trainer.options.sections.logging import Logging
from trainer.options.sections.loss import Loss
from trainer.options.sections.memory import Memory
from trainer.options.sections.model import Model
from trainer.options.sections.network import Network
from trainer.options.sections.resume import Resume
from trainer.options.sections.samples import Samples
from trainer.options.sections.saving import Saving
from trainer.options.sections.training import FINETUNE, NETWORK, TEXTUAL_INVERSION, Training
from trainer.options.sections.validation import Validation
from trainer.options.sections.watching import Watching

SECTIONS = (
    *(Model, Folders, Dataset, Validation, Network, Embedding, Training, Memory),
    *(Loss, Saving, Resume, Samples, Watching, Logging),
)


@dataclass(frozen=True, kw_only=True)
class Config(
    Logging,
    Watching,
    Samples,
    Resume,
    Saving,
    Loss,
    Memory,
    Training,
    Embedding,
    Network,
    Validation,
    Dataset,
    Folders,
    Model,
):
    """The complete, checked set of options. Build it with `resolve`, which checks; the constructor does not."""

    @property
    def resolution_size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        parts = [int(part) for part in self.resolution.split(",")]
        return parts[0], parts[-1]

    @property
    def has_controls(self) -> bool:
        """Whether the pictures of conditioning_data_dir are control pictures; else they are masks, if there are any."""
        return bool(self.conditioning_data_dir) and not self.masked_loss

    @property
    def control_area(self) -> int | None:
        """Of control pictures, in pixels; None where each is as large as its image."""
        if not self.control_resolution:
            return None
        sides = [int(part) for part in self.control_resolution.split(",")]
        return sides[0] * sides[-1]

    @property
    def caption_extensions(self) -> tuple[str, ...]:
        """The extensions of caption files, the preferred first."""
        return tuple(part.strip() for part in self.caption_extension.split(","))

    @property
    def face_crop_range(self) -> tuple[float, float] | None:
        """The least and the most face sizes that a crop shows; None where face_crop_aug_range is no range."""
        return face_range(self.face_crop_aug_range) if self.face_crop_aug_range else None

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.output_name

    @property
    def cache_path(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir else Path(self.output_dir) / ".cache"

    @property
    def facts(self) -> Facts:
        """What is known of the family; while it is still to be found out, those of the first in the table."""
        return TABLE[self.family] if self.family in TABLE else next(iter(TABLE.values()))

    @property
    def fine_tunes(self) -> bool:
        """Whether the base model's own weights are trained."""
        return self.training_kind == FINETUNE

    @property
    def trains_network(self) -> bool:
        """Whether something beside the base model's weights is trained."""
        return self.training_kind == NETWORK

    @property
    def token_strings(self) -> tuple[str, ...]:
        """The tokens that stand for token_string, by sd-scripts' names."""
        more = (f"{self.token_string}{number + 1}" for number in range(self.num_vectors_per_token - 1))
        return (self.token_string, *more)

    @property
    def trains_denoiser(self) -> bool:
        if self.training_kind == TEXTUAL_INVERSION:
            return False
        return self.fine_tunes or not self.network_train_text_encoder_only

    @property
    def trains_text_encoder(self) -> bool:
        wanted = {
            NETWORK: not self.network_train_unet_only,
            FINETUNE: self.train_text_encoder,
            TEXTUAL_INVERSION: True,
        }
        return wanted[self.training_kind] and TRAINS_ENCODERS in self.facts.traits

    @property
    def trained_parts(self) -> tuple[Part, ...]:
        """The denoiser and the text encoders, as far as they are trained."""
        facts = self.facts
        return (
            *((facts.denoiser,) if self.trains_denoiser else ()),
            *(facts.encoders if self.trains_text_encoder else ()),
        )

    @property
    def peak_learning_rates(self) -> dict[str, float]:
        """The learning rate of each trained part at the top of the curve: 1 where the curve is itself the rate."""
        given = {self.facts.denoiser.component: self.unet_lr}
        own = (self.text_encoder_lr, self.text_encoder_lr if self.text_encoder_lr2 is None else self.text_encoder_lr2)
        given |= {part.component: own[place > 0] for place, part in enumerate(self.facts.encoders)}
        rates = {part.component: given[part.component] for part in self.trained_parts}
        peaks = {name: self.learning_rate if rate is None else rate for name, rate in rates.items()}
        return {name: float(peak > 0) for name, peak in peaks.items()} if self.lr_curve == "adafactor" else peaks

    @property
    def kind(self) -> NetworkKind:
        """What is known of the kind of network, or of what is trained in place of one."""
        others = {FINETUNE: WHOLE_MODEL, TEXTUAL_INVERSION: NEW_WORD}
        return others.get(self.training_kind) or NETWORK_KINDS[self.network_kind]

    @property
    def base_weights_multipliers(self) -> tuple[float, ...]:
        """The strength of each of base_weights; 1 where none is given."""
        given = [float(text) for text in self.base_weights_multiplier]
        return tuple([*given, *[1.0] * len(self.base_weights)][: len(self.base_weights)])

    @property
    def block_rates(self) -> tuple[float, ...] | None:
        """Every block's factor of the denoiser's learning rate; None where none is given."""
        return blocks.rates(self) if self.trains_network else None

    @property
    def trains_convolutions(self) -> bool:
        """Whether the layers that come with conv_dim are trained."""
        return bool(self.conv_dim or self.conv_block_dims)

    @property
    def lr_curve(self) -> str:
        """The learning rate's curve: one of PyTorch's takes the place of lr_scheduler."""
        return self.lr_scheduler_type or self.lr_scheduler

    @property
    def plus_ratios(self) -> dict[str, float]:
        """How many times its part's learning rate each layer's second matrix gets; of the parts where it is another."""
        if not self.kind.plus:
            return {}
        own = {self.facts.denoiser.component: self.loraplus_unet_lr_ratio}
        own |= {part.component: self.loraplus_text_encoder_lr_ratio for part in self.facts.encoders}
        ratios = {part.component: own[part.component] or self.loraplus_lr_ratio for part in self.trained_parts}
        return {name: ratio for name, ratio in ratios.items() if ratio}

    @property
    def optimizer(self) -> Optimizer:
        """What is known of the optimizer."""
        return optimizer_of(self.optimizer_type)

    @property
    def optimizer_arguments(self) -> dict[str, Any]:
        """What optimizer_args says."""
        return arguments_of(self.optimizer_args)

    @property
    def lr_scheduler_arguments(self) -> dict[str, Any]:
        """What lr_scheduler_args says."""
        return arguments_of(self.lr_scheduler_args)

    def replace(self, **changes: Any) -> Config:
        return dataclasses.replace(self, **changes)


def _declared() -> dict[str, Option]:
    result: dict[str, Option] = {}
    for section in SECTIONS:
        hints = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            hint, optional = hints[field.name], False
            if isinstance(hint, types.UnionType):
                hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
                optional = True
            declared = dict(field.metadata)
            declared["kinds"] = declared["kinds"] or getattr(section, "KINDS", ())
            choices: tuple[str, ...] = declared.pop("choices")
            kind: Any
            if typing.get_origin(hint) is Literal:
                kind, choices = "choice", typing.get_args(hint)
            elif choices:
                kind = "choice"
            elif typing.get_origin(hint) is tuple:
                kind = "list"
            else:
                kind = hint.__name__
            result[field.name] = Option(
                name=field.name,
                section=section.__doc__ or section.__name__,
                kind=kind,
                default=field.default,
                optional=optional,
                choices=choices,
                **declared,
            )
    return result


OPTIONS: dict[str, Option] = _declared()


def arguments_of(items: Iterable[str]) -> dict[str, Any]:
    """What texts like "name=value" say: Python's values where it is one and text where it is not."""
    arguments = {}
    for item in items:
        name, _, text = item.partition("=")
        try:
            arguments[name.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            arguments[name.strip()] = text.strip()
    return arguments


def face_range(text: str) -> tuple[float, float] | None:
    """The least and the most face sizes; None where the text is not a range."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        return None
    return (low, high) if 1 <= low <= high < float("inf") else None
