from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.inference.roi import Box, crop, otsu_threshold, threshold_box
from tests.volume_phantoms import SHAPE, ball, geometries, oblique, ramp

RNG = np.random.default_rng(0)


def _bright_block(geometry: Geometry) -> Volume:
    array = RNG.normal(10, 1, geometry.shape).astype(np.float32)
    array[4:9, 3:5, 2:7] += 100
    return Volume(array, geometry)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
def test_otsus_threshold_divides_as_scikit_images_does(dtype: type[np.generic]) -> None:
    array = np.concatenate([RNG.normal(40, 9, 4000), RNG.normal(150, 20, 2000)]).astype(dtype)
    expected = threshold_otsu(array.astype(np.float64))  # type: ignore[no-untyped-call]
    brighter = np.count_nonzero(array > otsu_threshold(array))
    assert brighter == pytest.approx(np.count_nonzero(array > expected), abs=6)  # one bin


def test_a_threshold_between_two_separate_classes_lies_in_the_middle() -> None:
    assert otsu_threshold(np.array([0, 0, 0, 100, 100])) == pytest.approx(50, abs=1)


def test_a_constant_image_has_no_region_and_keeps_all_of_it() -> None:
    volume = Volume(np.full(SHAPE, 7, np.uint8), oblique())
    assert otsu_threshold(volume.array) == 7
    assert threshold_box(volume) == Box.whole(SHAPE)


def test_the_box_holds_exactly_what_is_bright() -> None:
    volume = _bright_block(oblique())
    assert threshold_box(volume) == Box((4, 3, 2), (9, 5, 7))
    assert threshold_box(volume, threshold=50.0) == Box((4, 3, 2), (9, 5, 7))


def test_a_margin_is_in_millimetres_and_ends_at_the_grid() -> None:
    volume = _bright_block(Geometry.from_spacing(SHAPE, (0.5, 1.0, 4.0)))
    assert threshold_box(volume, margin_mm=1.0) == Box((2, 2, 1), (11, 6, 8))
    assert threshold_box(volume, margin_mm=100.0) == Box.whole(SHAPE)


def test_a_speck_far_away_widens_the_box_only_when_it_may() -> None:
    volume = _bright_block(oblique())
    volume.array[0, 0, 0] = 200
    assert threshold_box(volume).start == (0, 0, 0)
    assert threshold_box(volume, largest_only=True) == Box((4, 3, 2), (9, 5, 7))


@settings(deadline=None)
@given(geometries(smallest=4), st.data())
def test_a_part_goes_back_to_where_it_was_cut_from(geometry: Geometry, data: st.DataObject) -> None:
    start = [data.draw(st.integers(0, size - 1)) for size in geometry.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, geometry.shape, strict=True)]
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    volume = ramp(geometry, np.int32)
    part = crop(volume, box)
    np.testing.assert_allclose(
        part.geometry.to_world((0, 0, 0)), geometry.to_world(start), atol=1e-9
    )
    full = box.paste(part.array, geometry.shape, fill=-1)
    inside = full >= 0
    assert np.count_nonzero(inside) == part.array.size
    np.testing.assert_array_equal(full[inside], volume.array[inside])


def test_channels_are_cut_and_pasted_together() -> None:
    scores = RNG.normal(size=(3, *SHAPE))
    box = Box((1, 2, 3), (7, 8, 9))
    full = box.paste(box.cut(scores), SHAPE)
    np.testing.assert_array_equal(box.cut(full), box.cut(scores))
    assert full.shape == scores.shape


def test_a_mask_found_inside_the_box_lies_right_in_the_whole_volume() -> None:
    geometry = oblique((40, 36, 24), (1.0, 1.1, 2.0))
    volume = ball(geometry, geometry.to_world((26, 12, 9)), 8.0)
    box = threshold_box(volume, margin_mm=3.0)
    inside = (crop(volume, box).array > 0.5).astype(np.uint8)
    np.testing.assert_array_equal(box.paste(inside, geometry.shape), volume.array > 0.5)


@pytest.mark.parametrize(("start", "stop"), [((0, 0, 0), (0, 1, 1)), ((-1, 0, 0), (1, 1, 1))])
def test_a_box_without_voxels_is_a_mistake_of_the_code(
    start: tuple[int, int, int], stop: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match="start < stop"):
        Box(start, stop)


def test_pasting_a_part_of_another_size_is_a_mistake_of_the_code() -> None:
    with pytest.raises(ValueError, match="part of shape"):
        Box((0, 0, 0), (2, 2, 2)).paste(np.zeros((3, 2, 2)), SHAPE)
    with pytest.raises(ValueError, match="outside of a grid"):
        Box((0, 0, 0), (2, 2, 2)).paste(np.zeros((2, 2, 2)), (1, 4, 4))
