"""Areas, diameters and volumes against figures from outside the code."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from medserve.errors import ServerFailedError
from medserve.imaging.frames import FrameGrid
from medserve.imaging.geometry import Geometry
from medserve.results.frame_measure import ellipsoid_ml, measure_frame, measure_label, measure_stack
from medserve.results.measure import measure
from medserve.tasks.frames import FrameMeasure, StackMeasure

GRID = FrameGrid((120, 160), 40, (0.5, 0.4), 1.5)
SEMI_MM = (20.0, 15.0, 22.0)  # along columns, rows, frames: a prostate of 27.6 ml


def ellipsoid() -> npt.NDArray[np.bool_]:
    """An ellipsoid (N, H, W) of those semi-axes in the middle of the grid."""
    k, row, column = np.mgrid[:40, :120, :160].astype(float)
    x = (column - 79.5) * 0.4 / SEMI_MM[0]
    y = (row - 59.5) * 0.5 / SEMI_MM[1]
    z = (k - 19.5) * 1.5 / SEMI_MM[2]
    return np.asarray(x**2 + y**2 + z**2 <= 1.0)


def test_an_ellipsoid_has_its_analytic_volume_by_both_ways() -> None:
    exact = 4 / 3 * math.pi * math.prod(SEMI_MM) / 1000
    measured = measure_stack([measure_frame(each, GRID) for each in ellipsoid()], GRID)
    assert measured.volume_ml == pytest.approx(exact, rel=0.01)
    assert measured.ellipsoid_ml == pytest.approx(exact, rel=0.06)  # whole pixels and frames
    assert measured.width_mm == pytest.approx(2 * SEMI_MM[0], abs=0.8)
    assert measured.height_mm == pytest.approx(2 * SEMI_MM[1], abs=1.0)
    assert measured.length_mm == pytest.approx(2 * SEMI_MM[2], abs=3.0)
    assert measured.area_cm2 == pytest.approx(math.pi * 20.0 * 15.0 / 100, rel=0.01)
    assert measured.largest_frame in (19, 20)
    assert measured.frames_found == 30  # 44 mm in steps of 1.5 mm


def test_the_ellipsoid_s_formula_is_that_of_the_textbook() -> None:
    assert ellipsoid_ml(50.0, 30.0, 45.0) == pytest.approx(0.5236 * 5.0 * 3.0 * 4.5, rel=1e-4)


def test_a_length_that_somebody_measured_replaces_that_of_the_stack() -> None:
    frames = [measure_frame(each, GRID) for each in ellipsoid()]
    measured = measure_stack(frames, GRID, length_mm=40.0)
    assert measured.length_mm == 40.0
    assert measured.ellipsoid_ml == pytest.approx(
        ellipsoid_ml(measured.width_mm or 0, measured.height_mm or 0, 40.0)
    )


def test_a_frame_without_an_answer_leaves_no_sum() -> None:
    frames: list[FrameMeasure | None] = [measure_frame(each, GRID) for each in ellipsoid()]
    frames[15] = None
    measured = measure_stack(frames, GRID)
    assert measured.volume_ml is None
    assert measured.ellipsoid_ml is not None  # three diameters do not need it


def test_nothing_found_is_no_volume_of_zero_where_lengths_are_unknown() -> None:
    empty = np.zeros((8, 9), dtype=np.uint8)
    known = FrameGrid((8, 9), 2, (1.0, 1.0), 1.0)
    unknown = FrameGrid((8, 9), 2)
    for grid, volume, area in ((known, 0.0, 0.0), (unknown, None, None)):
        frame = measure_frame(empty, grid)
        assert (frame.pixels, frame.area_cm2, frame.width_mm) == (0, area, None)
        assert frame.box_start is None
        assert frame.centroid is None
        stack = measure_stack([frame, frame], grid)
        assert (stack.frames_found, stack.largest_frame, stack.volume_ml) == (0, None, volume)


@pytest.mark.parametrize(
    ("box", "seen", "touches"),
    [
        ((2, 3, 6, 7), None, False),
        ((0, 3, 6, 7), None, True),
        ((2, 0, 6, 7), None, True),
        ((2, 3, 8, 7), None, True),
        ((2, 3, 6, 9), None, True),
        ((2, 3, 6, 7), (2, 0, 8, 9), True),  # the crop that the model saw
        ((2, 3, 6, 7), (1, 2, 7, 8), False),
    ],
)
def test_what_reaches_the_edge_of_what_was_seen_is_told(
    box: tuple[int, int, int, int], seen: tuple[int, int, int, int] | None, touches: bool
) -> None:
    mask = np.zeros((8, 9), dtype=np.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 1
    measured = measure_frame(mask, FrameGrid((8, 9)), seen)
    assert measured.touches_border is touches
    assert measured.box_start == box[:2]
    assert measured.box_stop == box[2:]
    assert measured.centroid == ((box[0] + box[2] - 1) / 2, (box[1] + box[3] - 1) / 2)


def test_a_stack_measures_as_the_volume_that_it_is() -> None:
    masks = ellipsoid()
    masks[:, 40:60, 100:] = False  # asymmetric in every direction
    affine = np.array([[0, 0.5, 0, 5], [-0.4, 0, 0.1, -7], [0, 0, 1.5, 1], [0, 0, 0, 1.0]])
    geometry = Geometry((160, 120, 40), affine)
    frames = [measure_frame(each, GRID) for each in masks]
    found = measure_label(frames, geometry, "prostate")
    volume = masks.transpose(2, 1, 0).astype(np.uint8)
    [known] = measure(volume, geometry, ("background", "prostate"))
    assert found.centroid_mm == pytest.approx(known.centroid_mm)
    assert replace(found, centroid_mm=None) == replace(known, centroid_mm=None)
    empty = [measure_frame(np.zeros((120, 160), np.uint8), GRID)] * 40
    nothing = measure_label(empty, geometry, "prostate")
    assert nothing == measure(volume * 0, geometry, ("background", "prostate"))[0]


def test_measurements_survive_their_json() -> None:
    frames = [measure_frame(each, GRID) for each in ellipsoid()]
    for each in (frames[0], frames[19]):
        assert FrameMeasure.from_json(each.to_json()) == each
    stack = measure_stack(frames, GRID)
    assert StackMeasure.from_json(stack.to_json()) == stack
    with pytest.raises(ServerFailedError):
        FrameMeasure.from_json({"pixels": 3})
    with pytest.raises(ServerFailedError):
        StackMeasure.from_json({"frames_found": 3})
