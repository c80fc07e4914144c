"""The options of the section Samples. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.options.declaration import option

Sampler = Literal[
    "ddim",
    "pndm",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "dpm_2",
    "dpm_2_a",
    "dpmsolver",
    "dpmsolver++",
    "dpmsingle",
    "unipc",
]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples"""

    sample_every_n_steps: int = option(0, "Sample images every n steps. 0: not by steps.", low=0, on_resume="free")
    sample_every_n_epochs: int = option(0, "Sample images every n epochs. 0: not by epochs.", low=0, on_resume="free")
    sample_at_first: bool = option(False, "Sample images before the first step.", on_resume="free")
    sample_prompts: str = option(
        "",
        "A prompt file (.txt, .json or .toml, as in sd-scripts), or the prompts themselves, one per line: text, then "
        "--n negative prompt --w width --h height --d seed --l guidance scale --s steps.",
        on_resume="free",
    )
    sample_sampler: Sampler = option("ddim", "Sampler of the sample images.", on_resume="free")
