from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings

from medserve.errors import ServerFailedError
from medserve.imaging.geometry import Geometry
from medserve.results.measure import measure
from medserve.tasks.volumes import LabelMeasure
from tests.volume_phantoms import SHAPE, ball, centre_of_mass_mm, geometries, oblique


def test_a_balls_volume_is_four_thirds_pi_r_cubed() -> None:
    geometry = oblique(shape=(60, 50, 30), spacing_mm=(0.5, 0.6, 1.1))
    mask = (ball(geometry, geometry.centre_mm, 9.0).array > 0.5).astype(np.uint8)
    found = measure(mask, geometry, ("background", "ball"))[0]
    assert found.volume_ml == pytest.approx(4 / 3 * math.pi * 0.9**3, rel=0.01)
    np.testing.assert_allclose(found.centroid_mm or (), geometry.centre_mm, atol=0.05)
    assert not found.touches_border


@settings(deadline=None)
@given(geometries())
def test_the_centroid_is_the_mean_of_the_world_positions(geometry: Geometry) -> None:
    mask = np.zeros(geometry.shape, np.uint8)
    mask[1:, 0, 2:] = 2
    found = measure(mask, geometry, ("background", "a", "b"))[1]
    expected = centre_of_mass_mm(mask == 2, geometry)
    np.testing.assert_allclose(found.centroid_mm or (), expected, atol=1e-6)


def test_the_box_begins_at_the_first_and_ends_behind_the_last_voxel() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:7, 2, 4:6] = 1
    found = measure(mask, oblique(), ("background", "a"))[0]
    assert (found.box_start, found.box_stop) == ((3, 2, 4), (7, 3, 6))
    assert found.voxels == 8
    assert found.volume_ml == pytest.approx(8 * 0.8 * 1.1 * 2.3 / 1000)


@pytest.mark.parametrize("index", [(0, 5, 5), (5, 10, 5), (5, 5, 8)])
def test_a_label_at_the_edge_of_the_grid_is_marked(index: tuple[int, int, int]) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[index] = 1
    assert measure(mask, oblique(), ("background", "a"))[0].touches_border


def test_an_absent_label_has_no_place() -> None:
    found = measure(np.zeros(SHAPE, np.uint8), oblique(), ("background", "a"))[0]
    assert found == LabelMeasure("a", 1, 0, 0.0, None, None, None, touches_border=False)


def test_measures_survive_json() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:7, 2, 4:6] = 1
    for each in measure(mask, oblique(), ("background", "a", "b")):
        assert LabelMeasure.from_json(json.loads(json.dumps(each.to_json()))) == each
    with pytest.raises(ServerFailedError):
        LabelMeasure.from_json({"label": "a"})
