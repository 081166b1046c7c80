from __future__ import annotations

import math

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import InvalidImageError
from medserve.imaging.geometry import Geometry
from tests.volume_phantoms import SHAPE, SPACING_MM, geometries, oblique, ramp


def test_spacing_of_a_rotated_grid_is_the_one_it_was_built_with() -> None:
    np.testing.assert_allclose(oblique().spacing_mm, SPACING_MM)


def test_voxel_volume_is_the_product_of_the_spacings() -> None:
    assert oblique().voxel_volume_ml == pytest.approx(0.8 * 1.1 * 2.3 / 1000)


def test_a_sheared_voxel_keeps_its_volume() -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[0, 2] = 1.5
    geometry = Geometry(SHAPE, affine)
    assert geometry.is_sheared
    assert geometry.voxel_volume_ml == pytest.approx(0.024)


def test_mirrored_and_straight_grids_differ_in_handedness() -> None:
    assert Geometry.from_spacing(SHAPE, SPACING_MM).handedness == 1
    assert oblique().handedness == -1


def test_only_an_inclined_grid_is_oblique() -> None:
    assert oblique().is_oblique
    assert not Geometry.from_spacing(SHAPE, SPACING_MM).is_oblique
    swapped = np.zeros((4, 4))
    swapped[[2, 0, 1, 3], [0, 1, 2, 3]] = (1, -2, 3, 1)
    assert not Geometry(SHAPE, swapped).is_oblique


@settings(deadline=None)
@given(geometries())
def test_codes_are_those_that_nibabel_names(geometry: Geometry) -> None:
    named = nibabel.orientations.aff2axcodes(geometry.affine)  # type: ignore[no-untyped-call]
    assert geometry.codes == "".join(named)


@settings(deadline=None)
@given(geometries())
def test_world_and_index_are_inverse(geometry: Geometry) -> None:
    index = np.array([1.25, -3.0, 7.5])
    np.testing.assert_allclose(geometry.to_index(geometry.to_world(index)), index, atol=1e-9)


@settings(deadline=None)
@given(geometries(), st.sampled_from(("RAS", "LPS", "SAR", "PIL")))
def test_a_reordered_voxel_stays_where_it_was_in_the_patient(
    geometry: Geometry, codes: str
) -> None:
    volume = ramp(geometry)
    moved, order = volume.reoriented(codes)
    assert moved.geometry.codes == codes
    marked = np.argwhere(moved.array == 5)[0]
    original = np.argwhere(volume.array == 5)[0]
    np.testing.assert_allclose(
        moved.geometry.to_world(marked), geometry.to_world(original), atol=1e-9
    )
    np.testing.assert_array_equal(order.undo(moved.array), volume.array)


def test_axis_order_acts_on_the_last_axes_of_a_stack_of_channels() -> None:
    geometry = oblique()
    order = geometry.axis_order("SLP")
    stack = np.arange(2 * math.prod(SHAPE)).reshape(2, *SHAPE)
    np.testing.assert_array_equal(order.apply(stack)[1], order.apply(stack[1]))
    np.testing.assert_array_equal(order.undo(order.apply(stack)), stack)


def test_cropping_moves_the_origin_to_the_first_voxel_kept() -> None:
    geometry = oblique()
    part = geometry.crop((2, 3, 4), (5, 4, 3))
    assert part.shape == (5, 4, 3)
    np.testing.assert_allclose(part.to_world((1, 1, 1)), geometry.to_world((3, 4, 5)))


@settings(deadline=None)
@given(geometries(), st.tuples(*[st.integers(1, 30)] * 3))
def test_another_number_of_voxels_fills_the_same_block(
    geometry: Geometry, shape: tuple[int, int, int]
) -> None:
    other = geometry.with_shape(shape)
    first = np.full(3, -0.5)
    np.testing.assert_allclose(other.to_world(first), geometry.to_world(first), atol=1e-9)
    np.testing.assert_allclose(
        other.to_world(np.array(shape) - 0.5),
        geometry.to_world(np.array(geometry.shape) - 0.5),
        atol=1e-9,
    )


def test_grids_match_within_the_tolerance_but_are_equal_only_exactly() -> None:
    geometry = oblique()
    affine = geometry.affine.copy()
    affine[0, 3] += 1e-4
    near = Geometry(SHAPE, affine)
    assert geometry.matches(near)
    assert geometry != near
    affine[0, 3] += 0.01
    assert not geometry.matches(Geometry(SHAPE, affine))
    assert geometry == Geometry(SHAPE, geometry.affine)
    assert hash(geometry) == hash(Geometry(SHAPE, geometry.affine))


def test_a_small_rotation_does_not_match_where_the_grid_is_wide() -> None:
    wide = Geometry.from_spacing((400, 400, 4), (1, 1, 1))
    affine = wide.affine.copy()
    affine[1, 0] = 1e-4  # 0.04 mm at the far end
    assert not wide.matches(Geometry(wide.shape, affine))


def test_the_affine_cannot_be_changed_from_outside() -> None:
    affine = np.eye(4)
    geometry = Geometry(SHAPE, affine)
    affine[0, 0] = 9
    assert geometry.spacing_mm[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 9


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ((0, 0), math.nan, "finite affine"),
        ((1, 3), math.inf, "finite affine"),
        ((0, 0), 0.0, "spacings between"),
        ((2, 2), 1e9, "spacings between"),
        ((3, 0), 1.0, "last row"),
    ],
)
def test_an_unusable_affine_is_refused(entry: tuple[int, int], value: float, message: str) -> None:
    affine = np.eye(4)
    affine[entry] = value
    with pytest.raises(InvalidImageError, match=message):
        Geometry(SHAPE, affine)


def test_two_axes_in_one_direction_are_refused_as_singular() -> None:
    affine = np.eye(4)
    affine[:3, 1] = affine[:3, 0]
    with pytest.raises(InvalidImageError, match="singular"):
        Geometry(SHAPE, affine)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 0), (4, 4, -1), (4, 4, 4, 4)])
def test_anything_but_three_positive_axes_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidImageError, match="3 axes"):
        Geometry(shape, np.eye(4))


@settings(deadline=None)
@given(geometry=geometries(), codes=st.sampled_from(["ijk", "kji", "jki"]))
def test_axes_of_the_file_are_permuted_whatever_they_point_to(
    geometry: Geometry, codes: str
) -> None:
    order = geometry.axis_order(codes)
    assert [("ijk")[axis] for axis in order.axes] == list(codes)
    assert order.flips == (False, False, False)
    assert geometry.reordered(order).shape == tuple(geometry.shape[axis] for axis in order.axes)
