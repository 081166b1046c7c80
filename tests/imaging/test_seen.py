from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import ConfigError
from medserve.results.seen import (
    doubts_about_image,
    doubts_about_volumes,
    image_quantiles,
    image_texture,
)
from medserve.spec import ModelSpec
from medserve.spec.seen import SeenSpec
from medserve.tasks.result import DoubtReason

SHAPE = (12, 14, 10)
GRID = np.indices(SHAPE) / np.reshape(SHAPE, (3, 1, 1, 1))
IMAGE = (0.5 + 0.5 * np.sin(5.0 * GRID.sum(axis=0))).astype(np.float32)
SIZE_MM = (12.0, 14.0, 10.0)
SEEN = SeenSpec(
    size_mm=((10.0, 14.0), (12.0, 16.0), (8.0, 12.0)),
    quantiles=tuple(image_quantiles(IMAGE, 19).tolist()),
    quantile_distance=0.05,
    texture=(0.9 * image_texture(IMAGE), 1.1 * image_texture(IMAGE)),
    label_ml={"anterior": (1.0, 2.0)},
)


def reasons(image: np.ndarray, size_mm: tuple[float, ...] = SIZE_MM) -> list[DoubtReason]:
    doubts = doubts_about_image(SEEN, image.astype(np.float32), size_mm)
    return [each.reason for each in doubts]


def test_what_training_saw_raises_no_doubt() -> None:
    assert reasons(IMAGE) == []
    assert doubts_about_volumes(SEEN, {"anterior": 1.5}) == ()


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_another_size_along_any_axis_is_told_with_both_sizes(axis: int, factor: float) -> None:
    size = list(SIZE_MM)
    size[axis] *= factor
    [doubt] = doubts_about_image(SEEN, IMAGE, size)
    assert doubt.reason is DoubtReason.SIZE
    assert f"{size[axis]:.0f}" in doubt.message
    assert "10 to 14 x 12 to 16 x 8 to 12 mm" in doubt.message


@pytest.mark.parametrize("image", [1.0 - IMAGE**3, np.zeros(SHAPE), np.ones(SHAPE), IMAGE**3])
def test_intensities_far_from_the_histogram_are_told(image: np.ndarray) -> None:
    assert DoubtReason.INTENSITIES in reasons(image)


def test_noise_of_the_same_histogram_is_told_by_its_texture() -> None:
    shuffled = np.random.default_rng(0).permutation(IMAGE.ravel()).reshape(SHAPE)
    assert reasons(shuffled) == [DoubtReason.TEXTURE]


@pytest.mark.parametrize("volume_ml", [0.0, 0.7, 2.6])
def test_a_label_of_another_volume_is_told(volume_ml: float) -> None:
    [doubt] = doubts_about_volumes(SEEN, {"anterior": volume_ml, "posterior": 1.0})
    assert doubt.reason is DoubtReason.LABEL_VOLUME
    assert not doubt.is_about_input
    assert doubt.message == f"anterior: {volume_ml:.2f} ml, in the training data 1.00 to 2.00 ml"


def test_a_description_that_says_nothing_judges_nothing() -> None:
    assert doubts_about_image(SeenSpec(), np.zeros(SHAPE, np.float32), (1.0, 1.0, 1.0)) == ()
    assert doubts_about_volumes(SeenSpec(), {"anterior": 0.0}) == ()


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.integers(3, 150)] * 3))
def test_numbers_of_large_volumes_are_those_of_all_their_voxels_nearly(
    shape: tuple[int, int, int],
) -> None:
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    expected = np.arange(1, 4) / 4
    tolerance = 4.0 / np.sqrt(image.size) + 0.01
    np.testing.assert_allclose(image_quantiles(image, 3), expected, atol=tolerance)
    # Two independent numbers of [0, 1] differ by 1/3, the deviation is the root of 1/12.
    assert image_texture(image) == pytest.approx(np.sqrt(12) / 3, abs=8 * tolerance)


def test_a_constant_image_has_no_texture() -> None:
    assert image_texture(np.full(SHAPE, 0.3, np.float32)) == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [({"texture": (0.4, 0.2)}, "low <= high"), ({"size_mm": ((1.0, 2.0),)}, "3 ranges")],
)
def test_ranges_that_make_no_sense_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SeenSpec(**content)  # type: ignore[arg-type]


def test_the_shipped_description_says_what_training_saw() -> None:
    path = Path(__file__).parents[2] / "models/segmentation_3d/model-config.yaml"
    volume = ModelSpec.from_file(path).volume
    assert volume is not None
    assert volume.seen is not None
    assert set(volume.seen.label_ml) == {"anterior", "posterior"}
