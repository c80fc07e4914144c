"""Figures from features, against values computed another way or known from theory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats

from trainer.judging import distances

DRAW = np.random.default_rng(5)
LEFT = DRAW.normal(0.0, 1.0, (60, 8))
RIGHT = DRAW.normal(0.4, 1.3, (50, 8))


def test_fid_is_the_closed_form_with_a_matrix_root() -> None:
    root = scipy.linalg.sqrtm(np.cov(LEFT, rowvar=False) @ np.cov(RIGHT, rowvar=False)).real
    spread = np.trace(np.cov(LEFT, rowvar=False) + np.cov(RIGHT, rowvar=False) - 2 * root)
    expected = ((LEFT.mean(0) - RIGHT.mean(0)) ** 2).sum() + spread
    assert distances.frechet_distance(LEFT, RIGHT) == pytest.approx(expected, rel=1e-9)


def test_fid_of_a_set_with_itself_is_zero_and_of_a_shifted_one_the_square_of_the_shift() -> None:
    assert distances.frechet_distance(LEFT, LEFT) == pytest.approx(0, abs=1e-6)
    assert distances.frechet_distance(LEFT, LEFT + 2.0) == pytest.approx(8 * 4.0, rel=1e-6)


def test_fid_of_fewer_pictures_than_features_is_finite() -> None:
    few = np.random.default_rng(1).normal(size=(5, 40))
    assert np.isfinite(distances.frechet_distance(few, few[:3]))


def test_kid_is_the_unbiased_sum_over_pairs() -> None:
    left, right = LEFT[:6], RIGHT[:6]

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 8 + 1) ** 3)

    among = [kernel(s[i], s[j]) for s in (left, right) for i in range(6) for j in range(6) if i != j]
    across = [kernel(x, y) for x in left for y in right]
    mean, deviation = distances.kernel_distance(left, right, seed=0)
    assert mean == pytest.approx(sum(among) / 30 - 2 * sum(across) / 36) and deviation == 0


def test_kid_of_two_draws_of_one_distribution_is_about_zero_and_the_same_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distances, "KID_SUBSET_SIZE", 200)
    draw = np.random.default_rng(3)
    one, other = draw.normal(size=(400, 8)), draw.normal(size=(300, 8))
    mean, deviation = distances.kernel_distance(one, other, seed=4)
    assert abs(mean) < 0.03 and 0 < deviation < 0.1
    assert (mean, deviation) == distances.kernel_distance(one, other, seed=4)


def test_the_inception_score_is_one_for_equal_and_the_number_of_classes_for_certain_different_pictures() -> None:
    assert distances.inception_score(np.ones((20, 4)), seed=0)[0] == pytest.approx(1)
    certain = np.tile(np.eye(4) * 1000, (3, 1))  # 12 pictures, one part
    assert distances.inception_score(certain, seed=0) == (pytest.approx(4), pytest.approx(0))


def test_the_inception_score_is_the_mean_divergence_from_the_mean_class() -> None:
    logits = np.random.default_rng(2).normal(size=(15, 5))  # one part
    classes = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    divergence = [scipy.stats.entropy(row, classes.mean(axis=0)) for row in classes]
    assert distances.inception_score(logits, seed=0)[0] == pytest.approx(np.exp(np.mean(divergence)))


def test_precision_and_recall_count_pictures_inside_balls_around_the_others() -> None:
    def share(points: np.ndarray, centres: np.ndarray) -> float:
        radii = np.sort(scipy.spatial.distance.cdist(centres, centres), axis=1)[:, 3]
        return float(np.mean([(np.linalg.norm(centres - point, axis=1) <= radii).any() for point in points]))

    assert distances.precision_recall(LEFT, RIGHT) == (share(LEFT, RIGHT), share(RIGHT, LEFT))
    assert distances.precision_recall(LEFT, LEFT) == (1, 1)
    assert distances.precision_recall(LEFT, LEFT + 1000) == (0, 0)


def test_one_mode_of_two_has_precision_but_half_the_recall() -> None:
    near, far = LEFT[:30], LEFT[30:] + 100
    precision, recall = distances.precision_recall(near, np.concatenate([near, far]))
    assert precision == 1 and recall == pytest.approx(0.5)


def test_the_clip_score_is_a_hundred_times_the_mean_cosine_below_zero_left_out() -> None:
    pictures, texts = np.array([[1.0, 0], [0, 2], [1, 0]]), np.array([[3.0, 0], [0, 1], [-1, 0]])
    assert distances.clip_score(pictures, texts) == pytest.approx(100 * 2 / 3)


def test_retrieval_counts_pictures_whose_own_text_fits_best() -> None:
    pictures, texts = np.array([[1.0, 0.1], [0.9, 0.2], [0.1, 1]]), np.array([[1.0, 0], [0, 1.0]])
    assert distances.text_retrieval(pictures, texts, np.array([0, 1, 1])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="one prompt only"):
        distances.text_retrieval(pictures, texts[:1], np.array([0, 0, 0]))


def test_a_copy_of_a_training_picture_is_memorised_and_its_pair_the_nearest() -> None:
    real = np.eye(4) + 0.01
    generated = np.array([[0.01, 0.01, 1.02, 0.02], [1.0, 1.0, 1.0, 1.0]])
    assert distances.nearest(generated, real)[0].real == 2
    assert distances.memorised_share(generated[:1], real) == 1
    close = np.array([[1.0, 0.01], [1.0, -0.01]])  # real pictures nearer to each other than the generated one is
    assert distances.memorised_share(np.array([[1.0, 0.5]]), close) == 0


@pytest.mark.parametrize(
    ("figure", "count"),
    [
        (lambda few: distances.frechet_distance(few, RIGHT), 1),
        (lambda few: distances.kernel_distance(few, RIGHT, 0), 1),
        (lambda few: distances.precision_recall(few, RIGHT), 3),
        (lambda few: distances.memorised_share(RIGHT, few), 1),
    ],
)
def test_too_few_pictures_are_said_to_be_so(figure: Callable[[np.ndarray], object], count: int) -> None:
    with pytest.raises(ValueError, match="picture"):
        figure(LEFT[:count])
