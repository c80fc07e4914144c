"""What a set of weights is worth: pictures made by address, compared with the training's, every figure with its source.

The pictures are written one by one, whole or not at all, under a name that says what made them: an evaluation that was
killed goes on where it was. Figures are computed from the files, so that both ways give the same.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trainer import files, randomness
from trainer.data.dataset import Entry
from trainer.data.pictures import open_picture
from trainer.judging import distances, encoders
from trainer.judging.encoders import Array, ClipEncoder, DinoEncoder, InceptionEncoder, Missing, Pictures, Weights
from trainer.judging.subjects import Painter, Subject
from trainer.recipe.prompts import Prompt
from trainer.runs.events import EventWriter

logger = logging.getLogger(__name__)
EVALUATION_VERSION = 1
MOST_ALIKE = 5  # pairs of a generated and a training picture that are named
FEWEST = {"fid": 2048, "kid": 100, "inception_score": 1000, "precision_recall": 1000, "clip_score": 50}
FEW = {
    "fid": "below 2,048 its covariance has not full rank, and the value is far too high",
    "kid": "its value is unbiased, but scatters widely",
    "inception_score": "its value is too low",
    "precision_recall": "its balls are wide, and the values too high",
    "clip_score": "its mean scatters",
}
METRICS = {
    "fid": "FID: lower is better",
    "kid": "KID: lower is better, 0 is equal",
    "kid_std": "deviation of KID over subsets",
    "inception_score": "Inception score: higher is better",
    "inception_score_std": "deviation of the Inception score over parts",
    "precision": "share of pictures that look like real ones",
    "recall": "share of the real ones' variety that is reached",
    "clip_score": "agreement of picture and prompt, 0 to 100",
    "clip_retrieval": "share of pictures whose own prompt fits best of all",
    "clip_similarity": "mean CLIP similarity to the training pictures",
    "dino_similarity": "mean DINO similarity to the training pictures",
    "memorised": "share of pictures nearer to a training picture than that is to any other",
    "nearest": "highest similarity of a picture to a training picture",
}  # in the order of the table


@dataclass(frozen=True)
class Networks:
    """The names of the networks' weights; "" for none. See `encoders.find`."""

    inception: str = ""
    clip: str = ""
    dino: str = ""


@dataclass(frozen=True)
class Settings:
    """What an evaluation does besides its subjects."""

    networks: Networks
    batch_size: int = 8
    seed: int = 0  # of KID's subsets and the like; the pictures have seeds of their own


@dataclass
class Result:
    """The figures of a subject by METRICS' names, and why others are not there."""

    subject: Subject
    pictures: int
    real: int
    figures: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # network or figure -> why
    warnings: list[str] = field(default_factory=list)
    nearest: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "version": EVALUATION_VERSION,
            "time": time.time(),
            "path": str(self.subject.path),
            "step": self.subject.step,
            "digest": self.subject.digest,
            "pictures": self.pictures,
            "real": self.real,
            "figures": self.figures,
            "skipped": self.skipped,
            "warnings": self.warnings,
            "nearest": self.nearest,
            "weights": self.weights,
            "seconds": self.seconds,
        }


# --- pictures ------------------------------------------------------------------------------------------------------


def prompts_of(asked: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """So many prompts, those asked for in turn, each with a seed of its own address."""
    return [
        dataclasses.replace(asked[number % len(asked)], seed=randomness.torch_seed(seed, "evaluation", number))
        for number in range(count)
    ]


def picture_paths(subject: Subject, prompts: Sequence[Prompt]) -> list[Path]:
    """Where each picture is or will be: the folder's name stands for the weights, the file's for the prompt."""
    config = subject.config
    made_with = [subject.digest, config.pretrained_model_name_or_path, config.mixed_precision, config.sample_sampler]
    folder = subject.results / f"pictures-{files.digest(made_with)[:12]}"
    return [folder / f"{hashlib.sha256(repr(prompt).encode()).hexdigest()[:16]}.png" for prompt in prompts]


def make_pictures(painter: Painter, subject: Subject, prompts: Sequence[Prompt], batch_size: int) -> list[Path]:
    """Make those pictures that are not there yet; returns the paths of all. Raises Refused and OSError."""
    paths = picture_paths(subject, prompts)
    if paths:
        files.remove_temporary(paths[0].parent)
    missing = [place for place, path in enumerate(paths) if not path.exists()]
    if missing and len(missing) < len(paths):
        logger.info("%s: %d of %d pictures are there already", subject.name, len(paths) - len(missing), len(paths))
    for start in range(0, len(missing), batch_size):
        part = missing[start : start + batch_size]
        made = painter.paint(subject, [prompts[place] for place in part])
        for place, picture in zip(part, made, strict=True):
            data = io.BytesIO()
            picture.save(data, "PNG")
            files.write_bytes(paths[place], data.getvalue(), durable=False)
        logger.info("%s: picture %d of %d", subject.name, start + len(part) + len(paths) - len(missing), len(paths))
    return paths


def opened(paths: Sequence[Path]) -> Pictures:
    return [functools.partial(open_picture, path) for path in paths]


def training_pictures(entries: Sequence[Entry], width: int, height: int) -> Pictures:
    """The training's pictures as the generated ones are: the middle of that shape, scaled (Lanczos)."""

    def fitted(path: Path) -> Image.Image:
        return ImageOps.fit(open_picture(path), (width, height), Image.Resampling.LANCZOS)

    return [functools.partial(fitted, entry.path) for entry in entries]


# --- figures -------------------------------------------------------------------------------------------------------


class Judge:
    """Judges one subject after another against the same training pictures, whose features are computed once."""

    def __init__(self, settings: Settings, real: Pictures, names: Sequence[str], device: torch.device) -> None:
        """`names`: of the training pictures."""
        self._settings = settings
        self._real = real
        self._names = names
        self._device = device
        self._ready: dict[str, tuple[Any, Weights]] = {}
        self._missing: dict[str, str] = {}
        self._features: dict[str, Any] = {}
        kinds: dict[str, Callable[[Weights, torch.device, int], Any]]
        kinds = {"inception": InceptionEncoder, "clip": ClipEncoder, "dino": DinoEncoder}
        for name, kind in kinds.items():
            try:
                weights = encoders.find(getattr(settings.networks, name), name)
                self._ready[name] = kind(weights, device, settings.batch_size), weights
            except Missing as missing:
                self._missing[name] = str(missing)
                logger.warning("Left out: %s", missing)

    def judge(self, subject: Subject, prompts: Sequence[Prompt], pictures: Pictures) -> Result:
        """The figures of the subject's pictures, which were made from these prompts."""
        started = time.perf_counter()
        result = Result(subject, len(pictures), len(self._real), skipped=dict(self._missing))
        result.weights = {name: weights.as_json() for name, (_, weights) in self._ready.items()}
        if "inception" in self._ready:
            self._distributions(result, pictures)
        if "clip" in self._ready:
            self._texts(result, prompts, self._ready["clip"][0].pictures(pictures))
        if "dino" in self._ready or "clip" in self._ready:
            self._likeness(result, pictures)
        for name, fewest in FEWEST.items():
            text = "precision" if name == "precision_recall" else name
            if text in result.figures and min(len(pictures), len(self._real)) < fewest:
                few = f"{len(pictures)} generated and {len(self._real)} training pictures"
                result.warnings.append(f"{name}: {few} are few: {FEW[name]}")
        result.seconds = time.perf_counter() - started
        return result

    def _real_features(self, name: str) -> Any:
        if name not in self._features:
            logger.info("%s: looking at %d training pictures", name, len(self._real))
            encoder = self._ready[name][0]
            look = encoder.features_and_logits if name == "inception" else encoder.pictures
            self._features[name] = look(self._real)
        return self._features[name]

    def _distributions(self, result: Result, pictures: Pictures) -> None:
        features, logits = self._ready["inception"][0].features_and_logits(pictures)
        real, seed = self._real_features("inception")[0], self._settings.seed
        self._take(result, ("fid",), lambda: (distances.frechet_distance(features, real),))
        self._take(result, ("kid", "kid_std"), lambda: distances.kernel_distance(features, real, seed))
        both = ("inception_score", "inception_score_std")
        self._take(result, both, lambda: distances.inception_score(logits, seed))
        self._take(result, ("precision", "recall"), lambda: distances.precision_recall(features, real))

    def _texts(self, result: Result, prompts: Sequence[Prompt], pictures: Array) -> None:
        different = list(dict.fromkeys(prompt.text for prompt in prompts))
        places = {text: place for place, text in enumerate(different)}
        own: NDArray[np.integer] = np.array([places[prompt.text] for prompt in prompts])
        texts = self._ready["clip"][0].texts(different)
        self._take(result, ("clip_score",), lambda: (distances.clip_score(pictures, texts[own]),))
        self._take(result, ("clip_retrieval",), lambda: (distances.text_retrieval(pictures, texts, own),))

    def _likeness(self, result: Result, pictures: Pictures) -> None:
        """Similarity to the training pictures; memorisation by DINO where it is there, by CLIP otherwise."""
        for name in ("clip", "dino"):
            if name not in self._ready:
                continue
            features, real = self._ready[name][0].pictures(pictures), self._real_features(name)
            result.figures[f"{name}_similarity"] = float(distances.cosines(features, real).mean())
        pairs = distances.nearest(features, real)  # of the last of them
        result.figures["nearest"] = pairs[0].similarity
        self._take(result, ("memorised",), lambda: (distances.memorised_share(features, real),))
        result.nearest = [
            {"picture": pair.generated, "training": self._names[pair.real], "similarity": pair.similarity}
            for pair in pairs[:MOST_ALIKE]
        ]

    def _take(self, result: Result, names: tuple[str, ...], figure: Callable[[], tuple[float, ...]]) -> None:
        """Note a figure, or why it is not there."""
        try:
            result.figures |= dict(zip(names, figure(), strict=True))
        except ValueError as error:
            result.skipped[names[0]] = str(error)


# --- results -------------------------------------------------------------------------------------------------------


def record(result: Result) -> Path:
    """Write the result into its folder, and an event into the run's; returns the file."""
    subject = result.subject
    path = subject.results / "result.json"
    files.write_bytes(path, files.json_bytes(result.as_json()))
    if subject.run:
        EventWriter(subject.run.events_file).write(
            "evaluation",
            subject.step or 0,
            path=str(path.relative_to(subject.run.path.resolve())),
            figures=result.figures,
            pictures=result.pictures,
        )
    return path


def table(results: Sequence[Result]) -> str:
    """The figures of all subjects, one line each figure, one column each subject."""
    names = [name for name in METRICS if any(name in result.figures for result in results)]
    heads = ["", *(result.subject.name for result in results)]
    rows = [
        [name, *(f"{result.figures[name]:.4g}" if name in result.figures else "-" for result in results)]
        for name in names
    ]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [heads, *rows]
    ]
    return "\n".join([lines[0], *(f"{line}  {METRICS[name]}" for name, line in zip(names, lines[1:], strict=True))])
