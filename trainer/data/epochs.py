"""Where epochs are counted from, and what their order hangs on. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Epochs are counted from here: at `step` completed steps, epoch `epoch` (from 0) begins.

    It moves when a resume changes the order of the batches. The epoch that was under way ends there, whatever of it was
    not trained yet, and one with a new number begins over all images. So each use of an epoch is trained once at most,
    all of them in an epoch that is not cut short, and no draw, whose address has the epoch's number, comes again.
    """

    step: int = 0
    epoch: int = 0


def order_changed(
    then: Mapping[str, Any], now: Mapping[str, Any], seeds: tuple[int, int], batches: tuple[int, int]
) -> bool:
    """Whether `Plan` deals out other uses in the steps of an epoch than it did.

    `then`, `now`: what dataset.json keeps; `seeds`, `batches`: then and now. A batch is how many images a step trains
    of those without a batch size of their own.
    """
    if seeds[0] != seeds[1]:
        return True
    if then["digest"] == now["digest"] and batches[0] == batches[1]:
        return False
    own_sizes = all("subset" in record.get("treatment", ()) for record in (then, now))  # the first records had none
    return _order(then, batches[0], own_sizes) != _order(now, batches[1], own_sizes)


def _order(record: Mapping[str, Any], global_batch: int, own_sizes: bool) -> list[tuple[str, int, int, int]]:
    """All that the order of the batches hangs on besides the seed.

    Buckets count by their rank alone: a larger resolution that groups the images as before leaves their order.
    """
    trained = sorted((key, image) for key, image in record["images"].items() if not image.get("validation"))
    ranks = {size: rank for rank, size in enumerate(sorted({tuple(image["bucket"]) for _, image in trained}))}
    sizes = {name: options.get("global_batch") for name, options in record.get("subsets", {}).items() if own_sizes}
    return [
        (key, image["repeats"], ranks[tuple(image["bucket"])], sizes.get(image.get("subset")) or global_batch)
        for key, image in trained
    ]


def origin_after(then: Origin, step: int, epoch: int, place: int, *, moved: bool) -> Origin:
    """The origin after a resume at `step`, which is `place` steps into `epoch` as epochs were counted `then`."""
    return Origin(step, epoch + (place > 0)) if moved else then


def last_step(max_train_steps: int, max_train_epochs: int | None, steps_per_epoch: int, origin: Origin) -> int:
    """How many steps a run has in the end. Epochs count, also the one that an origin cut short."""
    if max_train_epochs is None:
        return max_train_steps
    return origin.step + max(0, max_train_epochs - origin.epoch) * steps_per_epoch
