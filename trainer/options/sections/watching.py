"""The options of the section Watching. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.options.declaration import option


@dataclass(frozen=True, kw_only=True)
class Watching:
    """Watching"""

    alarms: bool = option(
        True,
        "Watch losses, gradients, learning rate, speed, disk and GPU, and warn when something is wrong with them. It "
        "never changes the training.",
        on_resume="free",
    )
    alarm_window: int = option(
        50,
        "Steps that are taken together for an alarm. More: fewer false alarms, later ones.",
        low=10,
        high=10_000,
        on_resume="free",
        advanced=True,
    )
    alarm_divergence: float = option(
        1.5,
        "Warn when the loss is this many times its lowest level, and further above it than chance brings it.",
        low=1.01,
        high=1000,
        on_resume="free",
        advanced=True,
    )
    max_rollbacks: int = option(
        0,
        "When the training diverges, or has no finite loss any more, go back to the last checkpoint from before that "
        "and go on at a lower learning rate, at most n times a run. What was trained meanwhile is kept as an abandoned "
        "branch. 0: never.",
        low=0,
        high=100,
        on_resume="free",
    )
    rollback_lr_scale: float = option(
        0.5,
        "Factor applied to the learning rate by each return to an earlier checkpoint (max_rollbacks).",
        low=0.001,
        high=1,
        on_resume="free",
        advanced=True,
    )
    alarm_resume_drift: float = option(
        0.15,
        "Warn when the loss of the first steps after a resume is higher than before by more than this share, and by "
        "more than chance brings.",
        low=0.01,
        high=100,
        on_resume="free",
        advanced=True,
    )
    alarm_plateau: float = option(
        0.03,
        "Say that the loss has settled when, over the last half of the run so far, it fell by less than this share "
        "for certain. 0: never.",
        low=0,
        high=0.5,
        on_resume="free",
        advanced=True,
    )
    alarm_plateau_steps: int = option(
        1000,
        "Fewest steps over which the loss can be said to have settled.",
        low=100,
        on_resume="free",
        advanced=True,
    )
    alarm_gradient: float = option(
        10.0,
        "Warn when gradients are this many times larger or smaller than they were.",
        low=1.5,
        high=1e6,
        on_resume="free",
        advanced=True,
    )
    alarm_low_rate: float = option(
        0.01,
        "Warn when the learning rate stays below this share of its peak while much of the run is still to come.",
        low=0,
        high=0.5,
        on_resume="free",
        advanced=True,
    )
    alarm_slowdown: float = option(
        1.5,
        "Warn when a step takes this many times as long as at the beginning of the session.",
        low=1.05,
        high=1000,
        on_resume="free",
        advanced=True,
    )
    alarm_storage: float = option(
        0.5,
        "Warn when reading images takes this share of the time that the loader's threads have, or writing a checkpoint "
        "this share of the time between two: the disk is about to hold the training up. 0: never.",
        low=0,
        high=1,
        on_resume="free",
        advanced=True,
    )
    alarm_disk_saves: int = option(
        2, "Warn when the disk has room for fewer saves than this. 0: never.", low=0, on_resume="free", advanced=True
    )
    alarm_disk_hours: float = option(
        2.0,
        "Warn when the disk will be full within this many hours at the pace at which it fills. 0: never.",
        low=0,
        on_resume="free",
        advanced=True,
    )
    alarm_text_encoder_drift: float = option(
        0.15,
        "Warn when what a trained text encoder makes of fixed captions is further than this from what it made before "
        "the training (1 - cosine similarity). 0: never.",
        low=0,
        high=2,
        on_resume="free",
        advanced=True,
    )
    alarm_gpu_temperature: int = option(
        87,
        "Warn when the GPU stays at this temperature or above, in degrees Celsius. 0: never.",
        low=0,
        high=120,
        on_resume="free",
        advanced=True,
    )
    dataset_portrait: bool = option(
        True,
        "Keep what the images are like as a whole (folders, tags, sizes, brightness, colours of up to 512 of them) "
        "with the run, on a thread beside the first steps; tell a resume with other images how far they have moved.",
        on_resume="free",
        advanced=True,
    )
    resources_every_n_seconds: float = option(
        10.0,
        "Record the load, temperature, power and memory of GPU and CPU this often. 0: never.",
        low=0,
        on_resume="free",
        advanced=True,
    )
    max_gpu_temperature: int = option(
        0,
        "Pause between two steps while a GPU is at this temperature or above, in degrees Celsius, until it is 5 "
        "degrees below. It changes nothing in the result. 0: never.",
        low=0,
        high=120,
        on_resume="free",
        advanced=True,
    )
    electricity_price: float = option(
        0.0,
        "Price of a kilowatt-hour in any currency, to show what the GPU's energy costs. 0: no cost is shown.",
        low=0,
        on_resume="free",
        advanced=True,
    )
