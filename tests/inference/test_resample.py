from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow

from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.inference.resample import (
    linear,
    nearest,
    resample,
    resample_labels,
    restore,
    restore_labels,
    spaced_shape,
)
from tests.volume_phantoms import SHAPE, ball, centre_of_mass_mm, geometries, oblique, ramp

RNG = np.random.default_rng(0)


def _one_hot(mask: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([(mask == label).astype(np.float32) for label in range(classes)])


def test_the_new_grid_has_about_the_spacing_that_was_asked_for() -> None:
    volume = resample(ball(oblique((50, 60, 30), (0.5, 0.7, 2.0)), (0, 0, 0), 5), (1, 1, 1))
    assert volume.array.shape == (25, 42, 60)
    np.testing.assert_allclose(volume.geometry.spacing_mm, (1, 1, 1), rtol=0.01)


@pytest.mark.parametrize(
    ("shape", "tolerance_mm"),
    [((30, 45, 60), 1e-4), ((15, 10, 6), 1e-4), ((14, 11, 9), 0.08), ((20, 5, 13), 0.08)],
)
def test_a_linear_ramp_stays_the_same_ramp_in_the_world(
    shape: tuple[int, int, int], tolerance_mm: float
) -> None:
    """Away from the faces, where the widened triangle has nothing beyond to mix in.

    Exact where it grows or shrinks by whole numbers; between, the triangle is sampled unevenly.
    """
    geometry = Geometry.from_spacing((30, 30, 30), (1, 1, 1))
    world = geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))
    target = geometry.with_shape(shape)
    expected = target.to_world(np.moveaxis(np.indices(shape), 0, -1))
    for axis in range(3):
        found = linear(world[..., axis], shape)
        margin = -(-30 // shape[axis])
        inner = np.abs(expected[..., axis] - 14.5) < 14.5 - margin
        np.testing.assert_allclose(found[inner], expected[..., axis][inner], atol=tolerance_mm)


def test_growing_is_what_scipy_computes_for_the_same_rule() -> None:
    array = RNG.normal(size=SHAPE).astype(np.float32)
    shape = (21, 22, 27)
    zoom = [new / old for new, old in zip(shape, SHAPE, strict=True)]
    expected = scipy.ndimage.zoom(array, zoom, order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(linear(array, shape), expected, atol=1e-5)


def test_shrinking_is_what_pillow_computes_for_a_plane() -> None:
    plane = RNG.normal(size=(40, 30)).astype(np.float32)
    expected = np.asarray(pillow.fromarray(plane).resize((11, 17), pillow.Resampling.BILINEAR))
    np.testing.assert_allclose(linear(plane[..., None], (17, 11, 1))[..., 0], expected, atol=1e-5)


def test_the_same_shape_passes_unchanged() -> None:
    array = RNG.normal(size=SHAPE).astype(np.float32)
    np.testing.assert_array_equal(linear(array, SHAPE), array)


def test_a_constant_stays_constant_to_the_faces() -> None:
    np.testing.assert_allclose(linear(np.full(SHAPE, 3.0), (5, 30, 9)), 3.0, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(geometries(), st.tuples(*[st.floats(0.5, 5.0)] * 3))
def test_the_way_back_ends_exactly_on_the_sources_grid(
    geometry: Geometry, spacing_mm: tuple[float, float, float]
) -> None:
    small = resample(ramp(geometry), spacing_mm)
    assert small.geometry.shape == spaced_shape(geometry, spacing_mm)
    assert restore(small.array[None], geometry).shape == (1, *geometry.shape)
    # The grid that the scores came from, given the source's shape again, is the source's grid.
    assert small.geometry.with_shape(geometry.shape).matches(geometry, 1e-6)


@settings(deadline=None, max_examples=20)
@given(geometries(18, 24, spacing_mm=(0.8, 1.6)), st.floats(0.8, 1.4))
def test_a_balls_centre_stays_in_its_place_in_the_world(geometry: Geometry, factor: float) -> None:
    extent = np.array(geometry.shape) * geometry.spacing_mm
    centre = geometry.to_world((np.array(geometry.shape) - 1) * (0.55, 0.45, 0.5))
    volume = ball(geometry, centre, 0.33 * float(extent.min()))
    spacing = [mm * factor for mm in geometry.spacing_mm]
    small = resample(volume, spacing)
    back = restore(small.array[None], geometry)[0]
    before = centre_of_mass_mm(volume.array, geometry)
    tolerance = 0.05 * max(geometry.spacing_mm)
    for array, grid in ((small.array, small.geometry), (back, geometry)):
        assert np.linalg.norm(centre_of_mass_mm(array, grid) - before) < tolerance


def test_labels_return_to_where_they_were() -> None:
    geometry = oblique((40, 36, 20), (0.7, 0.8, 1.6))
    mask = (ball(geometry, geometry.centre_mm, 9).array > 0.5).astype(np.uint8)
    mask[20:][mask[20:] == 1] = 2
    small, grid = resample_labels(mask, geometry, (1.0, 1.0, 1.0))
    assert grid.shape == small.shape
    back = restore_labels(_one_hot(small, 3), geometry)
    for label in (1, 2):
        overlap = 2 * np.count_nonzero((back == label) & (mask == label))
        assert overlap / (np.count_nonzero(back == label) + np.count_nonzero(mask == label)) > 0.95


def test_no_label_appears_between_two_others() -> None:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[6:] = 4
    geometry = Geometry.from_spacing(mask.shape, (1, 1, 1))
    small, _ = resample_labels(mask, geometry, (0.7, 1.3, 1.9))
    assert set(np.unique(small)) == {0, 4}
    assert set(np.unique(nearest(mask, (17, 9, 6)))) == {0, 4}


def test_scores_on_the_sources_own_grid_are_plain_argmax() -> None:
    scores = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
    before = scores.copy()
    np.testing.assert_array_equal(restore_labels(scores, oblique()), scores.argmax(axis=0))
    np.testing.assert_array_equal(scores, before)
    ties = np.zeros((3, *SHAPE), np.float32)
    assert not restore_labels(ties, oblique()).any()


def test_restored_labels_are_the_argmax_of_restored_scores() -> None:
    scores = RNG.normal(size=(3, 7, 6, 5)).astype(np.float32)
    np.testing.assert_array_equal(
        restore_labels(scores, oblique()), restore(scores, oblique()).argmax(axis=0)
    )


def test_nearest_takes_the_voxel_that_holds_the_centre() -> None:
    mask = np.arange(4, dtype=np.uint8).reshape(4, 1, 1)
    np.testing.assert_array_equal(nearest(mask, (8, 1, 1)).ravel(), [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(nearest(nearest(mask, (8, 1, 1)), (4, 1, 1)), mask)


def test_a_volume_keeps_its_axes_and_place() -> None:
    volume = Volume(RNG.normal(size=SHAPE), oblique())
    small = resample(volume, (1.6, 2.2, 4.6))
    assert small.geometry.codes == volume.geometry.codes
    np.testing.assert_allclose(
        small.geometry.to_world(np.full(3, -0.5)), volume.geometry.to_world(np.full(3, -0.5))
    )
