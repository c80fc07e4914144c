"""The options of the section Samples. No torch here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from trainer.models.families.facts import DDPM, FLOW
from trainer.options.declaration import option

AUTO = "auto"


@dataclass(frozen=True)
class Sampler:
    """diffusers' class of a sampler and what it is set to; under `flow`, for models of rectified flow."""

    ddpm: tuple[str, dict[str, Any]] | None = None
    flow: tuple[str, dict[str, Any]] | None = None

    def fits(self, traits: Collection[str]) -> bool:
        """Whether a family of these traits can be sampled with it."""
        return bool((self.ddpm and DDPM in traits) or (self.flow and FLOW in traits))


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(("DDIMScheduler", {"clip_sample": False})),
    "pndm": Sampler(("PNDMScheduler", {"skip_prk_steps": True})),
    "lms": Sampler(("LMSDiscreteScheduler", {})),
    "euler": Sampler(("EulerDiscreteScheduler", {}), ("FlowMatchEulerDiscreteScheduler", {})),
    "euler_a": Sampler(("EulerAncestralDiscreteScheduler", {})),
    "heun": Sampler(("HeunDiscreteScheduler", {}), ("FlowMatchHeunDiscreteScheduler", {})),
    "dpm_2": Sampler(("KDPM2DiscreteScheduler", {})),
    "dpm_2_a": Sampler(("KDPM2AncestralDiscreteScheduler", {})),
    "dpmsolver": Sampler(
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"})
    ),
    "dpmsingle": Sampler(("DPMSolverSinglestepScheduler", {})),
    "dpmsolver++": Sampler(
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "dpmsolver++", "prediction_type": "flow_prediction", "use_flow_sigmas": True},
        ),
    ),
    "unipc": Sampler(
        ("UniPCMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples"""

    sample_every_n_steps: int = option(0, "Sample images every n steps. 0: not by steps.", low=0, on_resume="free")
    sample_every_n_epochs: int = option(0, "Sample images every n epochs. 0: not by epochs.", low=0, on_resume="free")
    sample_at_first: bool = option(False, "Sample images before the first step.", on_resume="free")
    sample_at_resume: bool = option(
        False,
        "Sample images right after a resume and, when a session is asked to stop, at its end, after it has saved, so "
        "that both can be compared: where the resume is exact, they are equal.",
        on_resume="free",
    )
    sample_weights: Literal["average", "raw", "both"] = option(
        "average",
        "Weights the sample images are made with: the moving average, as a model file holds it, the raw weights that "
        "are trained, or both. They are the same without use_ema and without an optimizer that averages.",
        on_resume="free",
        advanced=True,
    )
    sample_prompts: str = option(
        "",
        "A prompt file (.txt, .json or .toml, as in sd-scripts), or the prompts themselves, one per line: text, then "
        "--n negative prompt --w width --h height --d seed --l guidance scale --s steps, and --g for the guidance that "
        "FLUX.1 dev and FLUX.2 dev are told.",
        on_resume="free",
    )
    sample_sampler: str = option(
        AUTO,
        "Sampler of the sample images. auto: as usual for the model.",
        on_resume="free",
        choices=(AUTO, *SAMPLERS),
    )
