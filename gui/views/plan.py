"""What the form's training would amount to: steps, epochs, time, disk. Folders are listed, no picture is opened."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from gui import look
from gui.forms import form as forms
from gui.places import Places, placed
from trainer import files, quantities
from trainer.checkpoints import budget, checkpoint_size, memory_size, preflight, remaining
from trainer.checkpoints.checkpoint_size import SizeUnknown
from trainer.checkpoints.memory_size import Estimator
from trainer.checkpoints.remaining import Amount
from trainer.data.subsets import DatasetError
from trainer.models import base_model
from trainer.models.base_model import BaseModelMissing
from trainer.models.network_file import RanksUnknown
from trainer.options import checks
from trainer.options.config import Config
from trainer.options.problems import ConfigError
from trainer.recipe import schedule

CURVE_POINTS, CURVE_WIDTH, CURVE_HEIGHT = 161, 240, 40


def shown(places: Places, values: Mapping[str, Any]) -> str:
    """The sentences and the curve of the learning rate, in HTML."""
    described = _described(places, values)
    if described is None or isinstance(described, str):
        return look.line("", [described] if described else [])
    return look.line("", _sentences(places, *described)) + rate_curve(*described)


def told(places: Places, values: Mapping[str, Any]) -> list[str]:
    """Sentences about the training that the form describes; empty while its options are wrong or name no images."""
    described = _described(places, values)
    if described is None or isinstance(described, str):
        return [described] if described else []
    return _sentences(places, *described)


def _described(places: Places, values: Mapping[str, Any]) -> tuple[Config, Amount] | str | None:
    """The training's options and how much it does, or why that is not known."""
    checked = forms.check_values(values)
    if forms.wrong_values(values, checked) or not checked.values["train_data_dir"] or checked.values["dataset_config"]:
        return None
    settings = checks.build(checked.values)
    try:
        return settings, remaining.amount(settings, places.home)
    except (DatasetError, OSError) as error:
        return str(error)


def _sentences(places: Places, settings: Config, amount: Amount) -> list[str]:
    seconds, time_line = _time(places, settings, amount)
    at_stake = budget.at_stake(settings, 0, amount.steps, amount.steps_per_epoch, seconds)
    told = [_arithmetic(settings, amount), *time_line, *filter(None, [at_stake]), _disk(places, settings, amount)]
    return told + _memory(placed(places, settings))


def rate_curve(settings: Config, amount: Amount) -> str:
    """The learning rate of the part that is trained first over the steps of the training, as a small picture in HTML;
    nothing where the options of the curve do not fit together."""
    try:
        curve = schedule.new_curve(settings, amount.steps)
        factors = [
            curve.factor(round(place * (amount.steps - 1) / (CURVE_POINTS - 1))) for place in range(CURVE_POINTS)
        ]
    except (ConfigError, ValueError, ArithmeticError):
        return ""
    peak = next(iter(settings.peak_learning_rates.values()), 0.0)
    most = max(*factors, 1e-12)
    points = " ".join(
        f"{place * CURVE_WIDTH / (CURVE_POINTS - 1):.1f},{CURVE_HEIGHT * (1 - factor / most):.1f}"
        for place, factor in enumerate(factors)
    )
    words = (
        f"Learning rate ({curve.scheduler}): {peak * factors[0]:.3g} at first, {peak * max(factors):.3g} at most, "
        f"{peak * factors[-1]:.3g} in step {amount.steps:,}"
    )
    return (
        f'<figure class="rate"><svg viewBox="-2 -2 {CURVE_WIDTH + 4} {CURVE_HEIGHT + 4}" role="img" '
        f'aria-label="{escape(words)}"><polyline points="{points}"/></svg>'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _arithmetic(settings: Config, amount: Amount) -> str:
    """20 images × 10 repeats / batch 4 = 50 steps an epoch."""
    if len(amount.folders) == 1:
        count, repeats = amount.folders[0]
        images = f"{count:,} images × {quantities.counted(repeats, 'repeat')}"
    else:
        images = f"{amount.images:,} images in {len(amount.folders)} folders, repeated {amount.samples:,} times"
    regularised = " + as many of regularisation" if settings.reg_data_dir else ""
    held_out = ", fewer without the images held out for validation" if settings.validation_split else ""
    accumulated = settings.gradient_accumulation_steps
    whole = f" ({settings.train_batch_size} × {accumulated} accumulated)" if accumulated > 1 else ""
    each, total = amount.steps_per_epoch, amount.steps
    return (
        f"{images}{regularised} / batch {amount.batch}{whole} = {quantities.counted(each, 'step')} an epoch{held_out}; "
        f"{quantities.counted(total, 'step')} = {_epochs(total / each)}"
    )


def _epochs(number: float) -> str:
    return "1 epoch" if number == 1 else f"{number:,.0f} epochs" if number >= 10 else f"{number:.3g} epochs"


def _time(places: Places, settings: Config, amount: Amount) -> tuple[float | None, list[str]]:
    """Seconds of a step, and a sentence; None and none where no earlier run tells."""
    alike = remaining.pace(settings, places.known_runs()[: remaining.MOST_RUNS])
    if alike is None:
        return None, []
    run, seconds = alike
    return seconds, [f"about {quantities.brief_duration(seconds * amount.steps)} at the speed of {run.path.name}"]


def _disk(places: Places, settings: Config, amount: Amount) -> str:
    folder = places.home / settings.output_dir
    free = f"{quantities.size(files.free_bytes(folder))} free"
    try:
        size = checkpoint_size.of_fresh_start(placed(places, settings), amount.images)
    except (SizeUnknown, BaseModelMissing):
        return f"{free}; what a checkpoint takes is known when the base model is here"
    saves = budget.planned(settings, 0, amount.steps, amount.steps_per_epoch, size, None).saves
    kept = budget.kept(settings, saves, amount.steps, amount.steps_per_epoch)
    room = quantities.size(kept * size)
    return f"{quantities.counted(kept, 'checkpoint')} of about {quantities.size(size)} kept: {room}, {free}"


def _memory(settings: Config) -> list[str]:
    """What a GPU would hold, and what to do where that is too much; nothing where the model is not here."""
    try:
        model = base_model.locate(settings.pretrained_model_name_or_path, settings.family, download=False)
        settled = base_model.settle(settings, model)
        estimator = Estimator(model)
        memory, room = estimator.of(settled), preflight.smallest_gpu()
        advice = memory_size.advice(settled, estimator, room) if room else ""
    except (SizeUnknown, BaseModelMissing, RanksUnknown):
        return []
    line = f"about {quantities.size(memory.peak)} of GPU memory"
    return [f"{line}; {advice}" if advice else line]
