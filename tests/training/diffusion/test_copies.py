from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from training.diffusion.copies import check_copies, copy_threshold, nearest, nearest_pixels
from training.diffusion.distances import mean_similarity


def pictures(count: int, seed: int, side: int = 24) -> npt.NDArray[np.uint8]:
    """Smooth random pictures uint8 (N, 1, side, side), none like another."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 1, side // 4, side // 4))
    return coarse.repeat(4, axis=2).repeat(4, axis=3).astype(np.uint8)


def test_the_nearest_training_image_is_found_by_its_difference_in_grey_levels() -> None:
    training = pictures(20, seed=1)
    asked = np.stack([training[7], training[3]]).astype(np.int16)
    asked[0] += np.where(asked[0] < 128, 3, -3)
    distances, which = nearest_pixels(asked.astype(np.uint8), training)
    assert which.tolist() == [7, 3]
    np.testing.assert_allclose(distances, [3.0, 0.0], atol=1e-6)


def test_a_mirrored_copy_is_as_near_as_the_copy() -> None:
    training = pictures(20, seed=2)
    distances, which = nearest_pixels(training[5:6, ..., ::-1], training)
    assert (which[0], distances[0]) == (5, 0.0)


def test_neighbours_in_features_are_euclidean() -> None:
    distances, which = nearest(np.array([[3.0, 4.0], [10.0, 0.0]]), np.array([[0.0, 0], [9, 0]]))
    assert which.tolist() == [0, 1]
    np.testing.assert_allclose(distances, [5.0, 1.0])


def test_one_in_a_hundred_unseen_real_images_lies_below_the_threshold() -> None:
    calibration = np.linspace(1.0, 2.0, 1001)
    assert (calibration < copy_threshold(calibration)).mean() == pytest.approx(0.01, abs=0.001)


def test_a_generator_that_repeats_its_training_images_is_called_a_copier() -> None:
    training, unseen, other = (pictures(200, seed=seed) for seed in (3, 4, 5))
    repeated = training[:50].copy()
    repeated[..., 0, 0] ^= 4  # a grain that no one sees
    synthetic = np.concatenate([repeated, pictures(150, seed=6)])
    check = check_copies(
        nearest_pixels(synthetic, training),
        nearest_pixels(unseen, training)[0],
        nearest_pixels(other, training)[0],
    )
    assert check.copies[:50].all()
    assert check.rate == pytest.approx(0.25, abs=0.02)
    assert check.unseen_rate < 0.05
    assert check.neighbours[:50].tolist() == list(range(50))


@pytest.mark.cpu  # torchmetrics is slow the first time
def test_a_generator_with_one_picture_is_less_diverse_than_one_with_many() -> None:
    many = pictures(40, seed=7, side=64)
    one = np.repeat(many[:1], 40, axis=0)
    label_ids = np.zeros(40, dtype=np.int64)
    assert mean_similarity(one, label_ids, pairs=50) == pytest.approx(1.0, abs=1e-4)
    assert mean_similarity(many, label_ids, pairs=50) < 0.5


def test_diversity_is_measured_within_a_class() -> None:
    dark, light = pictures(2, seed=8, side=64)
    images = np.stack([dark, light] * 10)
    by_picture = np.arange(20) % 2
    assert mean_similarity(images, by_picture, pairs=30) == pytest.approx(1.0, abs=1e-4)
    assert mean_similarity(images, np.zeros(20, dtype=np.int64), pairs=30) < 0.9


def test_diversity_of_classes_with_one_image_each_is_undefined() -> None:
    images = pictures(2, seed=9)
    assert np.isnan(mean_similarity(images, np.array([0, 1])))


@pytest.mark.parametrize("side", [8, 28, 64])
def test_diversity_is_defined_at_small_sizes(side: int) -> None:
    images = pictures(6, seed=10, side=side)
    found = mean_similarity(images, np.zeros(6, dtype=np.int64), pairs=10)
    assert 0.0 <= found <= 1.0
