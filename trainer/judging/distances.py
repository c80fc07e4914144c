"""Figures from the features of two sets of pictures, one generated and one real. No torch here.

Features are (pictures, width) arrays; all arithmetic is in float64. The figures are torch-fidelity's: equal features
give equal values, but for the random choice of KID's subsets and IS's parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.special
from numpy.typing import NDArray

from trainer import randomness

Features = NDArray[np.floating]
Array = NDArray[np.float64]
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
INCEPTION_SPLITS = 10
NEIGHBOURS = 3  # precision and recall


def frechet_distance(generated: Features, real: Features) -> float:
    """FID on Inception's features: the Fréchet distance of two normal distributions with the sets' means and
    covariances (Heusel et al. 2017, https://arxiv.org/abs/1706.08500). Lower is better.

    Of n pictures and d features, the rank of a covariance is at most n - 1: below d pictures the value is biased.
    Raises ValueError for fewer than two pictures in a set.
    """
    (mean, spread), (real_mean, real_spread) = _moments(generated), _moments(real)
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are real and not negative.
    eigenvalues = scipy.linalg.eigvals(spread @ real_spread)
    trace = np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    distance = np.square(mean - real_mean).sum() + np.trace(spread) + np.trace(real_spread) - 2 * trace
    return float(max(distance, 0.0))


def _moments(features: Features) -> tuple[Array, Array]:
    if len(features) < 2:
        raise ValueError("a covariance needs two pictures at least")
    values = features.astype(np.float64)
    return values.mean(axis=0), np.atleast_2d(np.cov(values, rowvar=False))


def kernel_distance(generated: Features, real: Features, seed: int) -> tuple[float, float]:
    """KID: the unbiased squared maximum mean discrepancy under the kernel (x y / d + 1)^3, mean and deviation over
    subsets (Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401). Lower is better; about 0 for equal distributions.

    With fewer than KID_SUBSET_SIZE pictures, the subsets are as large as the smaller set. Raises ValueError for fewer
    than two pictures in a set.
    """
    size = min(len(generated), len(real), KID_SUBSET_SIZE)
    if size < 2:
        raise ValueError("the discrepancy needs two pictures at least")
    draw = randomness.generator(seed, "kid")
    subsets = KID_SUBSETS if max(len(generated), len(real)) > size else 1  # all are the same one
    values = [
        _discrepancy(
            generated[draw.choice(len(generated), size, replace=False)].astype(np.float64),
            real[draw.choice(len(real), size, replace=False)].astype(np.float64),
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _discrepancy(left: Array, right: Array) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of two sets of the same size."""
    count, width = left.shape

    def cubed(products: Array) -> Array:
        values = products / width + 1
        return np.asarray(values * values * values)

    within = sum(float(cubed(side @ side.T).sum() - cubed(np.square(side).sum(axis=1)).sum()) for side in (left, right))
    return within / (count * (count - 1)) - 2 * float(cubed(left @ right.T).mean())


def inception_score(logits: Features, seed: int) -> tuple[float, float]:
    """IS: exp of the mean divergence of a picture's classes from those of all, mean and deviation over parts
    (Salimans et al. 2016, https://arxiv.org/abs/1606.03498). Higher is better; 1 is the least. There are ten parts, or
    as many as have ten pictures each.

    Raises ValueError for no picture.
    """
    if not len(logits):
        raise ValueError("there is no picture")
    values = logits.astype(np.float64)[randomness.generator(seed, "inception score").permutation(len(logits))]
    logarithms = values - scipy.special.logsumexp(values, axis=1, keepdims=True)
    scores = []
    for part in np.array_split(logarithms, min(INCEPTION_SPLITS, max(1, len(logarithms) // 10))):
        together = scipy.special.logsumexp(part, axis=0, keepdims=True) - np.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - together)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(generated: Features, real: Features, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Share of generated pictures inside the real ones' manifold, and of real ones inside the generated ones'
    (Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991): a manifold is the union of balls around its points,
    each as wide as the distance to the `neighbours`-th nearest other point.

    Raises ValueError where a set has not more pictures than `neighbours`.
    """
    if min(len(generated), len(real)) <= neighbours:
        raise ValueError(f"the manifold needs more than {neighbours} pictures in each set")
    across = _distances(generated, real)

    def radius(points: Features) -> Array:
        return np.asarray(np.partition(_distances(points, points), neighbours, axis=1)[:, neighbours])

    precision = (across <= radius(real)[None, :]).any(axis=1).mean()
    recall = (across <= radius(generated)[:, None]).any(axis=0).mean()
    return float(precision), float(recall)


def _distances(left: Features, right: Features) -> Array:
    """Euclidean, (left, right)."""
    first, second = left.astype(np.float64), right.astype(np.float64)
    squares = np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1)[None, :] - 2 * first @ second.T
    if left is right:
        np.fill_diagonal(squares, 0)
    return np.sqrt(np.maximum(squares, 0))


# --- by direction --------------------------------------------------------------------------------------------------


def cosines(left: Features, right: Features) -> Array:
    """Cosine similarities, (left, right)."""
    first, second = (side.astype(np.float64) for side in (left, right))
    return np.asarray(
        first
        / np.linalg.norm(first, axis=1, keepdims=True)
        @ (second / np.linalg.norm(second, axis=1, keepdims=True)).T
    )


def clip_score(pictures: Features, texts: Features) -> float:
    """100 x the mean of max(cosine, 0) of each picture and its own text, whose rows are the pictures' (Hessel et al.
    2021, https://arxiv.org/abs/2104.08718, who scale by 2.5 instead)."""
    return float(100 * np.maximum(np.diagonal(cosines(pictures, texts)), 0).mean())


def text_retrieval(pictures: Features, texts: Features, own: NDArray[np.integer]) -> float:
    """Share of pictures whose own text, row `own` of `texts`, is the most similar of all different texts: R-precision
    by CLIP (Park et al. 2021, https://openreview.net/forum?id=bKBhQhPeKaF). By chance it is 1 / texts.

    Raises ValueError for fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError("there is one prompt only, so nothing to tell it from")
    return float((cosines(pictures, texts).argmax(axis=1) == own).mean())


@dataclass(frozen=True)
class Nearest:
    """A generated picture, the real one that is most like it, and their cosine similarity. Both are places in the
    sets."""

    generated: int
    real: int
    similarity: float


def nearest(generated: Features, real: Features) -> list[Nearest]:
    """Each generated picture with the real one that is nearest to it, the most alike first."""
    similar = cosines(generated, real)
    places = similar.argmax(axis=1)
    result = [Nearest(row, int(place), float(similar[row, place])) for row, place in enumerate(places)]
    return sorted(result, key=lambda pair: -pair.similarity)


def memorised_share(generated: Features, real: Features) -> float:
    """Share of generated pictures that are nearer to a real one than that is to any other real one: 1 - authenticity
    (Alaa et al. 2022, https://arxiv.org/abs/2102.08921). Raises ValueError for fewer than two real pictures."""
    if len(real) < 2:
        raise ValueError("there is one training picture only, so nothing to compare its neighbours with")
    among = cosines(real, real)
    np.fill_diagonal(among, -np.inf)
    closest = among.max(axis=1)
    return float(np.mean([pair.similarity > closest[pair.real] for pair in nearest(generated, real)]))
