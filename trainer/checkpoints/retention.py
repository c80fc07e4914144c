"""Which checkpoints may go: one rule, applied to what a folder, or a mirror, really holds. No torch here."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from trainer.options.config import Config
from trainer.runs import evaluations, manifest, rollbacks
from trainer.runs.manifest import Found
from trainer.runs.run_folder import RunFolder


def prune(run: RunFolder, config: Config, resumed_from: int | None) -> None:
    """Delete what no rule keeps; what cannot be deleted now is tried again after the next save."""
    checkpoints = manifest.listing(run.checkpoints)
    for step in steps_to_delete(run, checkpoints, config, resumed_from):
        with contextlib.suppress(OSError):
            manifest.delete(run.checkpoints / manifest.folder_name(step))


def steps_to_delete(
    run: RunFolder, checkpoints: Sequence[Found], config: Config, resumed_from: int | None
) -> list[int]:
    """The steps of checkpoints that no rule keeps. Pinned and damaged ones stay, the best one where that is wanted, and
    the one that this session was resumed from; and, with max_rollbacks, those that a divergence goes back to."""
    protected = {item.step for item in checkpoints if item.pinned or item.manifest is None}
    if config.keep_best_checkpoint:
        best = evaluations.best(checkpoints, config.best_checkpoint_by, run)
        protected |= {best} if best is not None else set()
    if config.save_last_n_epochs_state and (epochs := [item.manifest.epoch for item in checkpoints if item.manifest]):
        newest = max(epochs) - config.save_last_n_epochs_state
        protected |= {item.step for item in checkpoints if item.manifest and item.manifest.epoch > newest}
    if resumed_from is not None:
        protected.add(resumed_from)
    if config.max_rollbacks:
        protected |= rollbacks.kept_for([item.step for item in checkpoints if item.manifest], config.alarm_window)
    return manifest.to_prune(
        [item.step for item in checkpoints if item.manifest],
        keep_last=config.keep_last_n_checkpoints,
        keep_every=config.keep_every_n_steps,
        within_last_steps=config.save_last_n_steps_state,
        protected=protected,
    )
