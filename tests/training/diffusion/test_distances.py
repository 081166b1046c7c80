from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from training.diffusion.distances import coverage, frechet_distance, kernel_distance


def normal(
    count: int, mean: float, deviation: float, seed: int, size: int = 4
) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).normal(mean, deviation, (count, size))


def test_frechet_distance_of_two_normals_is_its_closed_form() -> None:
    # Independent axes: sum over axes of (m1 - m2)^2 + (s1 - s2)^2.
    first, second = normal(200_000, 0.0, 1.0, seed=1), normal(200_000, 0.5, 2.0, seed=2)
    assert frechet_distance(first, second) == pytest.approx(4 * (0.5**2 + 1.0**2), rel=0.02)


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    features = normal(500, 3.0, 1.0, seed=3)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_stands_singular_covariances() -> None:
    flat = np.repeat(normal(100, 0.0, 1.0, seed=4, size=1), 4, axis=1)
    assert frechet_distance(flat, flat + 1.0) == pytest.approx(4.0, abs=1e-6)


def test_kernel_distance_is_about_zero_for_one_distribution_and_not_for_two() -> None:
    first, second = normal(800, 0.0, 1.0, seed=5), normal(800, 0.0, 1.0, seed=6)
    shifted = normal(800, 0.5, 1.0, seed=7)
    same, other = kernel_distance(first, second), kernel_distance(first, shifted)
    assert abs(same) < 0.05
    assert other > 10 * abs(same)


def test_images_from_one_half_of_the_real_ones_are_precise_but_miss_the_other_half() -> None:
    left, right = normal(300, 0.0, 0.1, seed=8), normal(300, 5.0, 0.1, seed=9)
    found = coverage(np.concatenate([left, right]), normal(600, 0.0, 0.1, seed=10))
    assert found.precision > 0.9
    assert 0.4 < found.recall < 0.55


def test_images_far_from_all_real_ones_are_neither() -> None:
    found = coverage(normal(200, 0.0, 1.0, seed=11), normal(200, 40.0, 1.0, seed=12))
    assert (found.precision, found.recall) == (0.0, 0.0)
