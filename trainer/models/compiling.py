"""The denoiser's repeated blocks, compiled."""

from __future__ import annotations

from typing import Any

import torch

from trainer.options.config import Config
from trainer.refusal import Refused

MOST_GRAPHS = 10_000  # of one piece of code; there are as many as widths of blocks, times buckets


def compile_blocks(denoiser: Any, config: Config) -> None:
    """Compile the blocks that the model's class declares. Raises Refused where it declares none.

    Each size gets code of its own, so that what is computed does not depend on which sizes came before: a resumed run
    meets them in another order. Buckets bound how many there are; running out would be an error, not slower code.
    """
    if not getattr(denoiser, "_repeated_blocks", None):
        raise Refused(f"torch_compile: {type(denoiser).__name__} declares no repeated blocks; turn it off")
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = MOST_GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    mode = {"mode": config.dynamo_mode} if config.dynamo_backend == "inductor" else {}
    denoiser.compile_repeated_blocks(backend=config.dynamo_backend, dynamic=False, **mode)
