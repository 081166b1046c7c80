"""Example pictures are means that show no single image."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import pytest

from training.classification.exemplars import computed_picture, mean_picture


def noisy(count: int, spread: float, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Images (N, 16, 16) around one ramp."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(60, 180, 256).reshape(16, 16)
    return np.clip(ramp + generator.normal(0, spread, (count, 16, 16)), 0, 255).astype(np.uint8)


def sure(_: npt.NDArray[np.uint8]) -> float:
    return 1.0


def test_the_mean_keeps_what_is_common() -> None:
    mean = mean_picture(noisy(100, spread=20.0), sure, enough=0.9)
    assert mean is not None
    ramp = np.linspace(60, 180, 256).reshape(16, 16)
    assert np.abs(mean - ramp).mean() < 5.0


def test_no_image_comes_back_as_it_was() -> None:
    images = noisy(100, spread=20.0)
    mean = mean_picture(images, sure, enough=0.9)
    assert mean is not None
    distances = np.sqrt(np.square(images - mean.astype(np.float64)).mean(axis=(1, 2)))
    assert distances.min() > 10.0


def test_images_that_are_nearly_alike_do_not_make_a_mean() -> None:
    assert mean_picture(noisy(100, spread=1.0), sure, enough=0.9) is None


def test_too_few_images_do_not_make_a_mean() -> None:
    assert mean_picture(noisy(15, spread=20.0), sure, enough=0.9) is None


@pytest.mark.parametrize("shape", [(28, 40), (64, 64, 3)])
def test_a_computed_picture_is_smooth_and_the_same_each_time(shape: tuple[int, ...]) -> None:
    picture = computed_picture(shape)
    assert (picture.shape, picture.min(), picture.max()) == (shape, 0, 255)
    assert np.abs(np.diff(picture.astype(int), axis=0)).mean() < 30
    np.testing.assert_array_equal(picture, computed_picture(shape))


def test_the_first_mean_that_is_good_enough_is_taken() -> None:
    scores = iter((0.1, 0.95, 0.99))
    asked: list[npt.NDArray[np.uint8]] = []

    def score(picture: npt.NDArray[np.uint8]) -> float:
        asked.append(picture)
        return next(scores)

    mean = mean_picture(noisy(100, spread=20.0), score, enough=0.9)
    assert len(asked) == 2
    np.testing.assert_array_equal(mean, asked[1])


def test_the_best_is_taken_with_a_warning_where_none_is_good_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def brightness(picture: npt.NDArray[np.uint8]) -> float:
        return float(picture.mean()) / 1000.0

    with caplog.at_level(logging.WARNING):
        mean_picture(noisy(100, spread=20.0), brightness, enough=0.9)
    assert "below 0.900" in caplog.text
