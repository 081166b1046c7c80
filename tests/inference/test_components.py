from __future__ import annotations

import numpy as np
import pytest

from medserve.imaging.geometry import Geometry
from medserve.inference.components import (
    Connectivity,
    drop_specks,
    fill_holes,
    largest_component,
    largest_union,
)

SHAPE = (12, 10, 8)


def _two_labels_in_pieces() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:4, 1:4, 1:4] = 1  # 27
    mask[8:10, 6:8, 5:7] = 1  # 8
    mask[5:7, 1:9, 1] = 2  # 16
    mask[11, 9, 7] = 2  # 1
    return mask


def test_of_each_label_only_the_largest_piece_stays() -> None:
    mask = _two_labels_in_pieces()
    before = mask.copy()
    kept = largest_component(mask)
    assert np.bincount(kept.ravel()).tolist()[1:] == [27, 16]
    assert (kept[kept > 0] == mask[kept > 0]).all()
    np.testing.assert_array_equal(mask, before)


def test_of_a_union_only_the_largest_piece_stays_group_after_group() -> None:
    mask = _two_labels_in_pieces()
    mask[1:4, 1:4, 4] = 2  # 9, touching the 27 of label 1
    before = mask.copy()
    kept = largest_union(mask, [(1, 2)])
    assert np.bincount(kept.ravel()).tolist()[1:] == [27, 9]
    kept = largest_union(mask, [(2,), (1, 2)])  # the 16 of label 2 first, then the 27 of label 1
    assert np.bincount(kept.ravel()).tolist()[1:] == [27]
    np.testing.assert_array_equal(largest_union(mask, [(1,), (2,)]), largest_component(mask))
    np.testing.assert_array_equal(mask, before)


def test_labels_that_were_not_named_keep_their_pieces() -> None:
    kept = largest_component(_two_labels_in_pieces(), labels=[2])
    assert np.bincount(kept.ravel()).tolist()[1:] == [35, 16]


def test_corners_join_pieces_only_where_they_count_as_neighbours() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:4, 2:4, 2:4] = 1
    mask[4, 4, 4] = 1
    assert largest_component(mask, connectivity=Connectivity.CORNERS).sum() == 9
    assert largest_component(mask, connectivity=Connectivity.EDGES).sum() == 8
    assert largest_component(mask, connectivity=Connectivity.FACES).sum() == 8


def test_specks_are_dropped_by_volume_not_by_voxels() -> None:
    mask = _two_labels_in_pieces()
    fine = Geometry.from_spacing(SHAPE, (1, 1, 1))  # a voxel is a microlitre
    coarse = Geometry.from_spacing(SHAPE, (2, 2, 2))
    assert np.bincount(drop_specks(mask, fine, 0.010).ravel()).tolist()[1:] == [27, 16]
    assert np.bincount(drop_specks(mask, coarse, 0.010).ravel()).tolist()[1:] == [35, 16]
    np.testing.assert_array_equal(drop_specks(mask, fine, 0.0), mask)


def test_an_enclosed_hole_is_filled_with_the_label_around_it() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:9, 2:9, 1:7] = 3
    mask[4:6, 4:6, 3:5] = 0
    filled = fill_holes(mask)
    assert (filled[2:9, 2:9, 1:7] == 3).all()
    assert np.count_nonzero(filled) == 7 * 7 * 6


def test_another_label_inside_is_not_overwritten() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:9, 2:9, 1:7] = 1
    mask[4:7, 4:7, 3:6] = 0
    mask[5, 5, 4] = 2
    filled = fill_holes(mask)
    assert filled[5, 5, 4] == 2
    assert filled[4, 4, 3] == 1


def test_an_open_hole_stays_open() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:9, 2:9, 1:7] = 1
    mask[5, 5, 3:7] = 0
    np.testing.assert_array_equal(fill_holes(mask), mask)


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_pass_unchanged(value: int) -> None:
    mask = np.full(SHAPE, value, np.uint8)
    geometry = Geometry.from_spacing(SHAPE, (1, 1, 1))
    for tidied in (largest_component(mask), fill_holes(mask), drop_specks(mask, geometry, 0.001)):
        np.testing.assert_array_equal(tidied, mask)
