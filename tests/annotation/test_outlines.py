"""Masks of outlines against geometry and against an encoding that another program wrote."""

from __future__ import annotations

import numpy as np
import pytest

from annotation.outlines import decode_runs, fill, outside_by
from annotation.simulated_annotator import outline
from tests import phantoms


def test_pixels_belong_to_a_polygon_when_their_centre_does() -> None:
    square = np.array([[2.0, 1.0], [5.0, 1.0], [5.0, 3.4], [2.0, 3.4]])
    expected = np.zeros((6, 8), dtype=bool)
    expected[1:3, 2:5] = True  # the row from 3 to 4 has its centre at 3.5
    np.testing.assert_array_equal(fill([square], (6, 8)), expected)


def test_polygon_is_cut_at_the_border() -> None:
    mask = fill([np.array([[-3.0, -3.0], [4.0, -3.0], [4.0, 2.0], [-3.0, 2.0]])], (5, 7))
    assert mask[:2, :4].all()
    assert mask.sum() == 8


def test_several_polygons_are_joined() -> None:
    squares = [np.array([[x, 0.0], [x + 2, 0.0], [x + 2, 2.0], [x, 2.0]]) for x in (0.0, 4.0)]
    assert fill(squares, (4, 8)).sum() == 8


def test_outline_of_a_mask_fills_to_the_same_mask() -> None:
    mask = phantoms.disc(31, 45) > 100
    mask[0:4, 40:45] = True  # a second piece, at the border
    np.testing.assert_array_equal(fill(outline(mask), mask.shape), mask)


@pytest.mark.parametrize(("point", "distance"), [
    ((3.0, 2.0), 0.0), ((-1.5, 2.0), 1.5), ((9.0, 2.0), 1.0), ((3.0, 7.5), 2.5),
])  # fmt: skip
def test_distance_outside_the_picture_is_known(point: tuple[float, float], distance: float) -> None:
    assert outside_by(np.array([point, (1.0, 1.0)]), (5, 8)) == pytest.approx(distance)


def test_compressed_runs_are_read_as_pycocotools_writes_them() -> None:
    expected = np.zeros((20, 31), dtype=bool)
    expected[3:15, 4:25] = True
    expected[6:9, 8:12] = False
    expected[17, 29] = True
    # pycocotools.mask.encode of that array, version 2.0.
    counts = "c2<8000000GK35MK35MK35MK356000000000000000000000000n2E`M"
    np.testing.assert_array_equal(decode_runs(counts, (20, 31)), expected)


def test_plain_runs_go_down_the_columns_and_begin_with_ground() -> None:
    expected = np.array([[0, 1, 0], [1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(decode_runs([1, 3, 2], (2, 3)), expected)


@pytest.mark.parametrize("counts", [[1, 2], [10], [3, -1, 4], "c2<", "\x01", "o"])
def test_runs_that_do_not_fill_the_picture_are_refused(counts: str | list[int]) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        decode_runs(counts, (2, 3))
