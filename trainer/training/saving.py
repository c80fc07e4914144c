"""When a save is due, what it writes, what it reports, and which older checkpoints and model files then go."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import files
from trainer.checkpoints import resume, retention
from trainer.checkpoints.checkpoint import Contents, Save, Saved, Writer, as_entry
from trainer.checkpoints.mirror import Mirroring
from trainer.checkpoints.preflight import Inputs
from trainer.models import adapters, file_metadata, full_model, keys
from trainer.models.keys import Stored
from trainer.options.config import Config
from trainer.options.writing import to_toml
from trainer.recipe import optimizers
from trainer.recipe.conditions import SlowSaves
from trainer.recipe.schedule import LrCurve
from trainer.runs import branches
from trainer.runs.branches import epoch_file, step_file
from trainer.runs.events import EventWriter
from trainer.runs.run_folder import RunFolder
from trainer.training import watching
from trainer.training.loader import Plan
from trainer.training.session import Session
from trainer.training.state import State

logger = logging.getLogger(__name__)


class Saver:
    """Writes a run's checkpoints and model files. Every process has one, but only the main process saves with it."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        state: State,
        plan: Plan,
        curve: LrCurve,
        inputs: Inputs,
        this_session: Session,
        here: dict[str, Any],
        mirroring: Mirroring | None = None,
    ) -> None:
        self._config = config
        self._run = run
        self._state = state
        self._plan = plan
        self._curve = curve
        self._inputs = inputs
        self._session = this_session
        self._mirroring = mirroring
        self._events: EventWriter = this_session.events
        self._documents = {  # encoded once, not while the training waits for the interpreter
            "dataset.json": files.compact_json_bytes(dict(inputs.images)),
            "environment.json": files.json_bytes(here),
        }
        self._total_steps = inputs.total_steps
        self._writer = Writer(self._report)
        self._kept_step = this_session.resumed_from
        self._saved_at = time.monotonic()
        self._slow = SlowSaves(config)
        self.last_step = self._kept_step
        self.last_error = ""
        self._constant = file_metadata.constant(
            config,
            inputs.scan,
            state.model,
            total_steps=inputs.total_steps,
            steps_per_epoch=inputs.steps_per_epoch,
        ) | file_metadata.model_hashes(inputs.model_path, inputs.base_model["pretrained_model_name_or_path"])
        self._constant["ss_total_batch_size"] = resume.global_batch(config, int(here["processes"]))
        if config.vae:
            digest = inputs.base_model["vae"]
            self._constant |= file_metadata.model_hashes(Path(config.vae), digest, file_metadata.VAE_HASHES)

    def _export_record(self) -> dict[str, Any]:
        """What `export` needs to write a checkpoint's model file without the model."""
        config, model = self._config, self._state.model
        values = {name: value for name, value in self._constant.items() if name != "ss_tag_frequency"}
        values |= {"ss_session_id": self._session.run_id, "ss_training_started_at": self._session.record["created"]}
        described = file_metadata.as_text(file_metadata.necessary(values) if config.no_metadata else values)
        if not config.no_metadata:
            described |= file_metadata.modelspec(config, model, self._session.record["created"])
        return {**adapters.naming_of(config).record(), "metadata": described}

    # --- when ------------------------------------------------------------------------------------------------------

    def due_files(self) -> list[Path]:
        """The model files that the steps and epochs completed just now call for."""
        step, (epoch, place) = self._state.global_step, self._plan.place(self._state.global_step)
        due = []
        if self._config.save_every_n_steps and step % self._config.save_every_n_steps == 0:
            due.append(step_file(self._config, step))
        every = self._config.save_every_n_epochs
        if every and place == 0 and epoch % every == 0 and step < self._total_steps:
            due.append(epoch_file(self._config, epoch))
        return due

    @property
    def due_by_time(self) -> bool:
        minutes = self._config.save_every_n_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= minutes * 60

    # --- what ------------------------------------------------------------------------------------------------------

    def save(self, files: list[Path], *, checkpoint: bool) -> None:
        """Begin to write these model files and, if wanted, a checkpoint; older saves are waited for.

        Does nothing in a process that does not hold the run's lock.
        """
        if not self._session.writes:
            return
        state, validated = self._state, self._state.validation
        epoch, place = self._plan.place(state.global_step)
        started = time.perf_counter()
        more = {
            "epoch": epoch,
            "place": place,
            "lr_curve": self._curve.as_dict(),
            "base_model": dict(self._inputs.base_model),
            "probe_loss": state.model.probe() if checkpoint else None,
            **self._session.for_checkpoints(),
            "export": self._export_record(),
        }
        probe_seconds = time.perf_counter() - started
        options = to_toml(self._session.config_to_keep())
        fine_tunes = self._config.fine_tunes
        contents = state.contents(self._documents, options, **more, probe_seconds=probe_seconds)
        self._writer.save(
            Save(
                folder=self._run.checkpoints if checkpoint else None,
                step=state.global_step,
                epoch=epoch,
                loss=state.loss_average,
                run_id=self._session.run_id,
                contents=contents,
                validation=(validated.loss, validated.images) if validated.loss is not None else None,
                exports={} if fine_tunes else dict.fromkeys(files, self._export),
                models=dict.fromkeys(files, self._export_model) if fine_tunes else {},
                streamed=fine_tunes,
            )
        )
        if checkpoint:
            self.last_step = state.global_step
            self._saved_at = time.monotonic()

    def _export_model(self, path: Path, contents: Contents) -> None:
        """Write the whole model, as it is averaged where it is."""
        tensors = {
            f"{target.name}.{name}": tensor
            for target in self._state.model.targets
            for name, tensor in target.module.state_dict().items()
        }
        tensors |= contents.ema or contents.weights
        entries = {name: as_entry(tensor) for name, tensor in tensors.items()}
        full_model.write(path, self._config, self._inputs.model_path, entries, self._metadata(contents))

    def _export(self, contents: Contents) -> tuple[dict[str, Any], dict[str, str]]:
        config = self._config
        weights = {name: tensor.float().numpy() for name, tensor in (contents.ema or contents.weights).items()}
        tensors = adapters.tensors_of_file(weights, adapters.naming_of(config), config)
        described = self._metadata(contents)
        described |= keys.hashes(tensors, described)
        return {name: _as_torch(tensor) for name, tensor in tensors.items()}, described

    def _metadata(self, contents: Contents) -> dict[str, str]:
        """What a model file says of itself."""
        config, state = self._config, contents.state
        values = {
            **self._constant,
            "ss_session_id": self._session.run_id,
            "ss_training_started_at": self._session.record["created"],
            "ss_training_finished_at": time.time(),
            "ss_steps": state["global_step"],
            "ss_epoch": state["epoch"],
            "ss_optimizer": optimizers.describe(self._state.optimizer, config),
        }
        described = file_metadata.as_text(file_metadata.necessary(values) if config.no_metadata else values)
        if not config.no_metadata:
            described |= file_metadata.modelspec(config, self._state.model, values["ss_training_finished_at"])
        return described

    def close(self) -> None:
        """Return when everything is written, or has failed."""
        self._writer.close()

    # --- afterwards, on the writer's thread ------------------------------------------------------------------------

    def _report(self, saved: Saved) -> None:
        step = saved.save.step
        self.last_error = saved.error
        if saved.error:
            what = "The checkpoint" if saved.save.folder else "The model file"
            message = f"{what} of step {step} could not be written: {saved.error}. Earlier ones are intact."
            logger.warning("%s Training goes on, and the next save tries again.", message)
            self._events.write("checkpoint_failed", step, error=saved.error)
            self._events.write("warning", step, kind="checkpoint_failed", message=message)
            return
        for path in saved.save.files:
            logger.info("Saved %s", path)
        if saved.path:
            logger.info("Saved the checkpoint %s (%.1f MB)", saved.path, saved.bytes / 1e6)
            self._events.write(
                "checkpoint_saved",
                step,
                path=f"{self._run.checkpoints.name}/{saved.path.name}",
                bytes=saved.bytes,
                blocking_seconds=saved.blocking_seconds,
                write_seconds=saved.write_seconds,
                verify_seconds=saved.verify_seconds,
                probe_seconds=saved.save.contents.state["probe_seconds"],
            )
            slow = self._slow.add(time.monotonic(), saved.write_seconds, saved.bytes) if self._config.alarms else None
            watching.tell(self._events, step, filter(None, [slow]))
        try:
            if saved.path:
                retention.prune(self._run, self._config, self._kept_step)
            self._prune_model_files(step)
        except OSError as error:
            logger.warning("Older files could not be deleted: %s. It is tried again after the next save.", error)
        if self._mirroring:
            self._mirroring.wake()

    def _prune_model_files(self, step: int) -> None:
        config, epoch = self._config, self._plan.place(step)[0]
        for path, file_step, file_epoch in branches.model_files(config):
            old_step = (
                config.save_last_n_steps and file_step is not None and file_step < step - config.save_last_n_steps
            )
            old_epoch = (
                config.save_last_n_epochs and file_epoch is not None and file_epoch <= epoch - config.save_last_n_epochs
            )
            if old_step or old_epoch:
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else files.unlink(path)


def _as_torch(tensor: Stored) -> Tensor:
    """The same memory as a tensor; of bfloat16 the bits."""
    values = torch.from_numpy(tensor.array)
    return values.view(torch.bfloat16) if tensor.dtype == "bfloat16" else values
