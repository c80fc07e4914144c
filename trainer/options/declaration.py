"""How an option is declared: what it is, what bounds it, and what a change of it means on resume. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from trainer.models.families.facts import Facts

OnResume = Literal["locked", "trajectory", "free"]
Scope = Literal["run", "dataset", "subset"]  # the level of sd-scripts' dataset TOML that may set it


@dataclass(frozen=True)
class Option:
    """One option of the config, as declared by a field of a section."""

    name: str
    section: str  # the section's heading
    kind: Literal["bool", "int", "float", "str", "choice", "list"]
    default: Any
    help: str
    optional: bool  # None means "not given" and is only ever a default
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    on_resume: OnResume
    by_content: bool  # a path whose content, not its spelling, is compared on resume
    path: bool  # names a file or folder: a leading ~ means the user's home
    advanced: bool  # the form shows it in the advanced half of its section
    traits: tuple[str, ...]  # of families: it applies to those that have one of them; empty: to all
    scope: Scope
    decides_bucket: bool  # the bucket of an image follows from it
    varies: Literal["", "picture", "caption"]  # what it makes different from use to use of an image
    cacheable: bool  # it varies, but takes so few forms that each can be cached
    shapes: str  # the option without which it does nothing
    replaced_by: str  # the option that takes its place
    must_exist: bool  # the file or folder that it names has to be there before a start
    sets_speed: bool  # runs in which it differs need other times for a step
    in_header: bool  # a model file tells it, as ss_<name>
    pattern: str  # of texts that are right besides the choices
    address: bool  # may also be s3://, gs:// ..., which the start copies to this machine
    component: bool  # takes the place of one of the base model's components
    kinds: tuple[str, ...]  # of training: it does something in these; empty: in all

    def applies_to(self, facts: Facts) -> bool:
        """Whether a family has the option."""
        if self.component:
            return self.name in facts.overrides
        return not self.traits or any(trait in facts.traits for trait in self.traits)

    def serves(self, training_kind: str) -> bool:
        """Whether it does something in this kind of training."""
        return not self.kinds or training_kind in self.kinds


def option(
    default: Any,
    help: str,
    *,
    on_resume: OnResume,
    low: float | None = None,
    high: float | None = None,
    by_content: bool = False,
    path: bool = False,
    advanced: bool = False,
    traits: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    scope: Scope = "run",
    decides_bucket: bool = False,
    varies: Literal["", "picture", "caption"] = "",
    cacheable: bool = False,
    shapes: str = "",
    replaced_by: str = "",
    must_exist: bool = False,
    sets_speed: bool = False,
    in_header: bool = False,
    pattern: str = "",
    address: bool = False,
    component: bool = False,
    kinds: tuple[str, ...] = (),
) -> Any:
    """Declare an option; see `Option` for what each flag says.

    `on_resume` says what a changed value means for a checkpoint: locked (cannot be loaded), trajectory (loads, but the
    run would differ) or free (cannot change the training). `choices`: of a text that is one of several, where a table
    says which.
    """
    metadata = {
        "help": help,
        "low": low,
        "high": high,
        "on_resume": on_resume,
        "by_content": by_content,
        "path": path or by_content,
        "advanced": advanced,
        "traits": traits,
        "choices": choices,
        "scope": scope,
        "decides_bucket": decides_bucket,
        "varies": varies,
        "cacheable": cacheable,
        "shapes": shapes,
        "replaced_by": replaced_by,
        "must_exist": must_exist or by_content,
        "sets_speed": sets_speed,
        "in_header": in_header,
        "pattern": pattern,
        "address": address,
        "component": component,
        "kinds": kinds,
    }
    return dataclasses.field(default=default, metadata=metadata)
