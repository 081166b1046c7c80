from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.imaging.geometry import Geometry
from medserve.inference.slices import restack, slices, through_plane_axis
from tests.volume_phantoms import SHAPE, geometries, oblique, ramp


@settings(deadline=None)
@given(geometries(), st.sampled_from([None, 0, 1, 2]))
def test_planes_stacked_again_are_the_volume(geometry: Geometry, axis: int | None) -> None:
    volume = ramp(geometry)
    planes = [plane.array for plane in slices(volume, axis)]
    np.testing.assert_array_equal(restack(planes, geometry, axis), volume.array)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scores_of_several_classes_are_stacked_class_by_class(axis: int) -> None:
    volume = ramp(oblique())
    scores = (np.stack([plane.array, -plane.array]) for plane in slices(volume, axis))
    stacked = restack(scores, volume.geometry, axis)
    assert stacked.shape == (2, *SHAPE)
    np.testing.assert_array_equal(stacked[1], -volume.array)


def test_planes_lie_across_the_widest_spacing_and_state_their_own() -> None:
    volume = ramp(Geometry.from_spacing((5, 6, 7), (3.0, 0.5, 0.8)))
    assert through_plane_axis(volume.geometry) == 0
    planes = list(slices(volume))
    assert [plane.index for plane in planes] == [0, 1, 2, 3, 4]
    assert planes[0].array.shape == (6, 7)
    assert planes[0].spacing_mm == (0.5, 0.8)


def test_isotropic_volumes_are_cut_across_the_last_axis() -> None:
    assert through_plane_axis(Geometry.from_spacing(SHAPE, (1, 1, 1))) == 2


@pytest.mark.parametrize(
    "planes",
    [
        [],
        [np.zeros((14, 11))] * 8,
        [np.zeros((14, 11))] * 10,
        [np.zeros((11, 14))] * 9,
    ],
)
def test_planes_that_do_not_make_the_volume_are_a_mistake_of_the_code(
    planes: list[np.ndarray],
) -> None:
    with pytest.raises(ValueError, match="expected 9 planes"):
        restack(planes, oblique(), 2)
