"""A state that sd-scripts saved (`...-state`): whether a run can begin with it, and the order of its parameters.

Its tensors are read by training/importing.py. No torch here; nothing that could run code is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoints import choosing
from trainer.checkpoints.choosing import ResumeRefused
from trainer.models import file_header
from trainer.models.file_header import HeaderUnreadable, Shape, Shapes
from trainer.models.keys import original_unet_path
from trainer.options.config import Config

(WEIGHTS, OPTIMIZER), SCHEDULE, PROGRESS = choosing.STATE_FILES, "scheduler.bin", "train_state.json"
OF_STEP = re.compile(r".*-step(\d{8})-state")
# What sd-scripts' optimizers keep of each parameter, of those whose state is theirs alone.
ADAM, BYTES = {"step", "exp_avg", "exp_avg_sq"}, {"step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"}
IMPORTED = {"AdamW": ADAM, "AdamW8bit": BYTES, "PagedAdamW8bit": BYTES, "Lion": {"exp_avg"}}
SLACK = 64 << 20  # bytes of optimizer.bin beside its tensors


@dataclass(frozen=True)
class KohyaState:
    """What a run begins with. `shapes`: of the tensors of its weights, by kohya's names."""

    path: Path
    step: int
    shapes: Shapes


def examine(config: Config, total_steps: int) -> KohyaState | None:
    """The state that a run of these options begins with; None where resume_from_checkpoint names none.

    Raises ResumeRefused with every reason why it cannot.
    """
    path = choosing.imported_state(config)
    if path is None:
        return None
    problems = [
        f"{name}: a state of sd-scripts is imported of a LoRA alone, and {what}"
        for name, what in (
            ("training_kind", "" if config.trains_network else f'this is "{config.training_kind}"'),
            ("network_kind", f'this is "{config.network_kind}"' if config.network_kind != "lora" else ""),
            ("conv_dim", "convolutions have another order there" if config.trains_convolutions else ""),
            ("block_dims", "blocks have an order of their own" if _has_blocks(config) else ""),
            (
                "loraplus_lr_ratio",
                "LoRA+ orders them otherwise" if any(r != 1 for r in config.plus_ratios.values()) else "",
            ),
        )
        if what
    ]
    if config.facts.keys not in ("kohya", "sai"):
        problems.append(
            f"family: states of {config.facts.title} cannot be imported; of Stable Diffusion 1.x, 2.x and XL"
        )
    if config.optimizer_type not in IMPORTED:
        problems.append(
            f"optimizer_type: the state of {config.optimizer_type} cannot be imported; of {', '.join(IMPORTED)}"
        )
    if config.use_ema:
        problems.append("use_ema: sd-scripts keeps no moving average; turn it off")
    step, shapes = 0, dict[str, Shape]()
    try:
        step = _step(path)
        shapes = dict(file_header.shapes(path / WEIGHTS))
    except (HeaderUnreadable, OSError, ValueError, TypeError, KeyError) as error:
        problems.append(f"resume_from_checkpoint: {path} cannot be read: {error}")
    if shapes and not any(name.endswith(".lora_down.weight") for name in shapes):
        problems.append(f"resume_from_checkpoint: {path / WEIGHTS} is no LoRA; only states of LoRA can be imported")
    if step >= total_steps and not problems:
        problems.append(f"max_train_steps: the state is of step {step}, and the run ends at {total_steps}; raise it")
    if problems:
        raise ResumeRefused(problems)
    return KohyaState(path, step, shapes)


def _has_blocks(config: Config) -> bool:
    return bool(config.block_dims or config.block_alphas or config.block_rates)


def _step(path: Path) -> int:
    """The steps completed: from train_state.json, or of older versions from the folder's name."""
    if (path / PROGRESS).is_file():
        answer = json.loads((path / PROGRESS).read_bytes())["current_step"]
        if not isinstance(answer, int) or answer < 0:
            raise ValueError(f"its {PROGRESS} says step {answer!r}")
        return answer
    match = OF_STEP.fullmatch(path.resolve().name)
    if match is None:
        raise ValueError(f"it has no {PROGRESS}, and its name does not end with the step (...-step00000500-state)")
    return int(match[1])


# --- the order of parameters ---------------------------------------------------------------------------------------

# What stands side by side in sd-scripts' models, in the order in which each has it. Its own U-Net of SD has the way up
# before the middle and the feed-forward part before the second attention; CLIP's keys come before its queries.
ORDER = (
    *("down_blocks", "up_blocks", "mid_block", "input_blocks", "middle_block", "output_blocks"),
    *("proj_in", "transformer_blocks", "proj_out"),
    *("attn1", "ff", "attn2", "to_q", "to_k", "to_v", "to_out"),
    *("self_attn", "mlp", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
)
_RANK = {word: place for place, word in enumerate(ORDER)}


def in_order(layers: Iterable[str], original: bool) -> list[str]:
    """The paths of a component's layers as sd-scripts' optimizer has them. `original`: SDXL's U-Net, whose blocks are
    ordered as in its original file."""

    def place(path: str) -> list[tuple[int, int]]:
        words = (original_unet_path(path) if original else path).split(".")
        return [(-1, int(word)) if word.isdecimal() else (_RANK.get(word, len(ORDER)), 0) for word in words]

    return sorted(layers, key=place)
