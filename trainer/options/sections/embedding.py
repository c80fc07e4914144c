"""The options of the section Textual inversion. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainer.models.families.facts import TRAINS_ENCODERS
from trainer.options.declaration import option
from trainer.options.sections.training import TEXTUAL_INVERSION


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Textual inversion"""

    KINDS: ClassVar = (TEXTUAL_INVERSION,)

    token_string: str = option(
        "",
        "The word that captions and prompts use for what is learnt; one that the tokenizer does not have.",
        on_resume="locked",
        traits=(TRAINS_ENCODERS,),
    )
    init_word: str = option(
        "",
        "Word or words that the learnt one begins as; with fewer tokens than vectors they are repeated. Empty: by "
        "chance.",
        on_resume="trajectory",
        traits=(TRAINS_ENCODERS,),
    )
    num_vectors_per_token: int = option(
        1,
        "How many of a caption's tokens the word takes.",
        low=1,
        high=75,
        on_resume="locked",
        traits=(TRAINS_ENCODERS,),
    )
    weights: str = option(
        "",
        "Embedding to start from, of kohya (emb_params; clip_l and clip_g) or diffusers, with as many vectors.",
        on_resume="free",
        path=True,
        advanced=True,
        must_exist=True,
        traits=(TRAINS_ENCODERS,),
    )
