"""The figures of appearance move with what they are named after, and with nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from training.diffusion.appearance import appearance


def _noise(spread: float, channels: int = 1) -> np.ndarray:
    draws = np.random.default_rng(0).normal(128.0, spread, (16, 1, 64, 64))
    return np.repeat(draws.round().clip(0, 255).astype(np.uint8), channels, axis=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_white_noise_has_its_own_standard_deviation_as_contrast_and_as_detail(
    channels: int,
) -> None:
    measured = appearance(_noise(20.0, channels))
    assert measured.contrast == pytest.approx(20.0, rel=0.02)
    assert measured.detail == pytest.approx(20.0, rel=0.02)


def test_half_the_contrast_is_half_of_both() -> None:
    whole, half = appearance(_noise(40.0)), appearance(_noise(20.0))
    assert half.contrast / whole.contrast == pytest.approx(0.5, rel=0.02)
    assert half.detail / whole.detail == pytest.approx(0.5, rel=0.02)


def test_a_blur_takes_detail_first() -> None:
    images = _noise(40.0)
    blurred = gaussian_filter(images.astype(float), (0, 0, 1, 1)).round().astype(np.uint8)
    sharp, soft = appearance(images), appearance(blurred)
    assert soft.detail / sharp.detail < 0.2 < soft.contrast / sharp.contrast


def test_the_ground_is_judged_in_the_corners_alone() -> None:
    images = np.zeros((4, 1, 64, 64), np.uint8)
    images[:, :, 8:-8] = 200
    assert appearance(images).bright_corners == 0.0
    images[:, :, -8:, -8:] = 4  # one of four corners, one grey level too bright
    assert appearance(images).bright_corners == 0.25
    images[:, :, -8:, -8:] = 3
    assert appearance(images).bright_corners == 0.0


def test_tiny_images_have_corners_of_a_pixel() -> None:
    assert appearance(np.full((1, 1, 4, 4), 9, np.uint8)).bright_corners == 1.0
