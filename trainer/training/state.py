"""Everything that a step changes, gathered for a checkpoint and put back from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoints import checkpoint_size
from trainer.checkpoints.checkpoint import Contents
from trainer.data.epochs import Origin
from trainer.models import adapters
from trainer.models.adapters.base import LimitsNorms
from trainer.models.model import Model
from trainer.options.config import Config
from trainer.recipe import loss_average, optimizers
from trainer.recipe.alarms import StepAlarms
from trainer.recipe.early_stopping import Record
from trainer.recipe.moving_average import MovingAverage
from trainer.recipe.plateau import Plateau
from trainer.recipe.rounding import RoundedSteps
from trainer.recipe.schedule import PLATEAU, LrCurve

STATE_VERSION = 1


class State:
    """The trained weights, the optimizer, the loss scaler, the moving average and the counters of a run."""

    def __init__(self, config: Config, model: Model, device: torch.device) -> None:
        self.config = config
        self.model = model
        self.weights: dict[str, nn.Parameter] = {}
        groups = []
        self._adapter = adapters.load(config)
        for target in model.targets:
            parameters = self._adapter.parameters(target)
            self.weights |= parameters
            reached = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
            groups += adapters.rate_groups(config, target.name, reached)
        self.peaks = {name: peak for name, _, peak in groups}
        self.parameters = list(self.weights.values())
        self._rounding = RoundedSteps(self.weights, config.seed) if config.full_bf16 else None
        stepped = self._rounding.shadows if self._rounding else self.weights
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in stepped.items()}
        if self._rounding:
            of = {parameter: stepped[name] for name, parameter in self.weights.items()}
            groups = [(name, [of[parameter] for parameter in parameters], peak) for name, parameters, peak in groups]
        self.optimizer = optimizers.build(config, groups)
        self.scaler = torch.amp.GradScaler(device.type) if config.mixed_precision == "fp16" else None
        whole = [parameter.detach().float() for parameter in self.parameters] if config.full_bf16 else self.parameters
        self.ema = MovingAverage(whole, decay=config.ema_decay, foreach=True) if config.use_ema else None
        self.global_step = 0
        self.origin = Origin()
        self.planned_steps = 0  # the run's length when it began, which options may name shares of
        self.loss_average: float | None = None
        self.loss_spread: float | None = None  # how far losses usually are from it
        self.nonfinite_in_a_row = 0
        self.validation = Record()
        self.alarms = StepAlarms(config)
        self.plateau = Plateau()
        self._averages = optimizers.averages(self.optimizer)
        self._skips_itself = optimizers.skips_nonfinite_itself(self.optimizer)

    # --- a step ----------------------------------------------------------------------------------------------------

    def set_learning_rate(self, curve: LrCurve) -> dict[str, float]:
        """Set the rates of the step that follows; returns them by trained part."""
        factor = curve.factor(self.global_step) * self.plateau.factor
        rates = {group: peak * factor for group, peak in self.peaks.items()}
        for group, rate in zip(self.optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate
        return {name: peak * factor for name, peak in self.config.peak_learning_rates.items()}

    def clip(self) -> Tensor:
        """Unscale and clip the gradients; returns their norm before clipping, on the device."""
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        self._leave_text_encoders()
        if self.config.full_bf16:
            return self._clip_in_fp32()
        if self.config.max_grad_norm > 0:
            return nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm, foreach=True)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients, foreach=True)

    def _clip_in_fp32(self) -> Tensor:
        """The same for gradients in bf16, whose norm would else have three digits."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        total = torch.linalg.vector_norm(torch.stack(norms))
        if self.config.max_grad_norm > 0:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, total, foreach=True)
        return total

    def _leave_text_encoders(self) -> None:
        """From the step on that stop_text_encoder_training names, drop the text encoders' gradients: without one a
        parameter stays as it is, and counts for nothing in the norm."""
        stop = self.config.stop_text_encoder_training
        if stop and self.global_step >= (stop if stop >= 1 else stop * self.planned_steps):
            for target in self.model.targets:
                for parameter in self._adapter.parameters(target).values() if target.part.tokenizer else ():
                    parameter.grad = None

    def zero_grad(self) -> None:
        """Let go of the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def _step(self) -> None:
        """One step of the optimizer."""
        if self._rounding:
            self._rounding.step(self.optimizer, self.global_step)
        else:
            self.optimizer.step()

    def update(self, finite: Tensor) -> None:
        """One step of the optimizer and the moving average, left out where `finite` (a bool on the device) is false.

        The host waits for the device only if the optimizer cannot leave a step out by itself.
        """
        if self.scaler:
            # Its own verdict is on the gradients alone; a norm or a loss that is not finite counts as well.
            for overflow in self.scaler._found_inf_per_device(self.optimizer).values():
                overflow.copy_(torch.maximum(overflow, (~finite).float()))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif self._skips_itself:
            # The way GradScaler tells fused optimizers: where found_inf is 1 the kernel changes nothing.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self._step()
        elif bool(finite):
            self._step()
        self.zero_grad()
        if self.config.scale_weight_norms and self.config.trains_network:
            for target in self.model.targets:
                assert isinstance(self._adapter, LimitsNorms), self.config.network_kind
                self._adapter.limit_norms(target, self.config.scale_weight_norms)
        if self.ema:
            self.ema.move(self.parameters, finite)
        self.global_step += 1

    def note_loss(self, step: int, loss: float, finite: bool) -> None:
        """Bring the counters up to date with a step's outcome; in the order of the steps, perhaps some steps late."""
        self.nonfinite_in_a_row = 0 if finite else self.nonfinite_in_a_row + 1
        if finite:
            average = loss if self.loss_average is None else self.loss_average
            spread, share = self.loss_spread or 0.0, loss_average.share_of(step)
            self.loss_spread = (1 - share) * spread + share * abs(loss - average)
            self.loss_average = loss_average.averaged(average, loss, step)

    def note_validation(self, loss: float, curve: LrCurve) -> None:
        """Bring the learning rate's plateau up to date with a validation."""
        if curve.scheduler == PLATEAU:
            self.plateau = self.plateau.after(loss, curve.own)

    @property
    def has_average(self) -> bool:
        """Whether model files hold other weights than those that are trained."""
        return self.ema is not None or self._averages

    @contextmanager
    def exported_weights(self) -> Iterator[None]:
        """Within, the model has the weights that a model file would hold: the average, if there is one."""
        if self.ema is None:
            with optimizers.averaged(self.optimizer) if self._averages else nullcontext():
                yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def contents(self, documents: Mapping[str, bytes], config: str, **more: Any) -> Contents:
        """What a checkpoint of now holds: the live tensors, which the writer copies. `more`: into state.json."""
        tensors, values = optimizers.state(self.optimizer, self.names)
        return Contents(
            weights=dict(self.weights),
            optimizer=tensors,
            ema=self._averaged_weights(),
            state={
                "version": STATE_VERSION,
                "global_step": self.global_step,
                "planned_steps": self.planned_steps,
                "epoch_origin": dataclasses.asdict(self.origin),
                "optimizer": values,
                "scaler": self.scaler.state_dict() if self.scaler else None,
                "loss_average": self.loss_average,
                "loss_spread": self.loss_spread,
                "nonfinite_in_a_row": self.nonfinite_in_a_row,
                "validation": dataclasses.asdict(self.validation),
                "alarms": self.alarms.as_dict() if self.config.alarms else {},
                **({"plateau": self.plateau.as_dict()} if self.plateau != Plateau() else {}),
                **more,
            },
            documents=documents,
            config=config,
        )

    def _averaged_weights(self) -> dict[str, Tensor]:
        """What model files hold, where it is not the weights that are trained."""
        if self.ema:
            return dict(zip(self.weights, self.ema.shadow_params, strict=True))
        if not self._averages:
            return {}
        with self.exported_weights():
            return {name: parameter.detach().clone() for name, parameter in self.weights.items()}

    def restore(self, loaded: Contents) -> None:
        """Take over what a checkpoint holds. Raises CheckpointDamaged or ValueError when it does not fit."""
        values = loaded.state
        optimizers.restore(self.optimizer, self.names, loaded.optimizer, values["optimizer"])
        with torch.no_grad():
            for name, parameter in self.weights.items():
                parameter.copy_(loaded.weights[name])
            if self.ema:
                for name, average in zip(self.weights, self.ema.shadow_params, strict=True):
                    average.copy_(loaded.ema[name])
                self.ema.optimization_step = values["global_step"]
        if self.scaler and values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        self.global_step = values["global_step"]
        self.origin = Origin(**values["epoch_origin"])
        self.loss_average = values["loss_average"]
        self.loss_spread = values.get("loss_spread")  # version 1 began without it
        self.nonfinite_in_a_row = values["nonfinite_in_a_row"]
        self.validation = Record(**values.get("validation", {}))  # version 1 began without it
        self.alarms.restore(values.get("alarms", {}))  # version 1 began without it
        self.plateau = Plateau(**values.get("plateau", {}))

    def checkpoint_bytes(self, images: int) -> int:
        """About what a checkpoint takes on the disk; `images`: how many the dataset has."""
        shapes = {name: tuple(parameter.shape) for name, parameter in self.weights.items()}
        return checkpoint_size.estimate(self.config, shapes, images)
