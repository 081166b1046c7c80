from __future__ import annotations

import numpy as np
import pytest

from medserve.errors import InvalidImageError, PayloadTooLargeError
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits, check_shape
from tests.volume_phantoms import SHAPE, oblique, ramp


def test_integers_stay_integers() -> None:
    assert ramp(oblique(), np.int16).array.dtype == np.int16


def test_an_array_of_another_shape_than_its_geometry_is_refused() -> None:
    with pytest.raises(InvalidImageError, match="geometry's shape"):
        Volume(np.zeros((3, 4, 5)), oblique())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite_is_refused(bad: float) -> None:
    array = np.zeros(SHAPE, dtype=np.float32)
    array[3, 2, 1] = bad
    with pytest.raises(InvalidImageError, match=r"NaN or infinity in 0.07%"):
        Volume(array, oblique())


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(InvalidImageError, match="complex64"):
        Volume(np.zeros(SHAPE, dtype=np.complex64), oblique())


def test_a_flat_image_is_refused_where_the_model_needs_depth() -> None:
    with pytest.raises(InvalidImageError, match=r"at least 8 voxels .* got 64 x 64 x 1"):
        check_shape((64, 64, 1), VolumeLimits(min_side=8))


def test_a_grid_of_eight_thousand_million_voxels_is_refused() -> None:
    with pytest.raises(PayloadTooLargeError, match="2000 x 2000 x 2000"):
        check_shape((2000, 2000, 2000), VolumeLimits())


def test_reorienting_a_straight_volume_changes_nothing() -> None:
    volume = ramp(Geometry.from_spacing(SHAPE, (1, 2, 3)))
    same, _ = volume.reoriented("RAS")
    assert same.geometry == volume.geometry
    np.testing.assert_array_equal(same.array, volume.array)
