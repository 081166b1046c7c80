"""Agreement of masks, against what geometry says it must be."""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt
import pytest

from medserve.imaging.geometry import Geometry
from tests.volume_phantoms import ball, oblique
from training.core.means import bootstrap_interval
from training.volumes.metrics import LabelScore, compare_masks, summarise

SPACING_MM = (0.5, 1.0, 2.0)
SHAPE = (60, 40, 24)
LABELS = ("background", "box")
GRID = Geometry.from_spacing(SHAPE, SPACING_MM)
EMPTY = np.zeros(SHAPE, dtype=np.uint8)


def box(start: tuple[int, int, int], stop: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    mask = EMPTY.copy()
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 1
    return mask


REFERENCE = box((10, 10, 6), (30, 26, 14))  # 20 x 16 x 8 voxels: 10 x 16 x 16 mm


def score(mask: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]) -> LabelScore:
    (only,) = compare_masks(mask, reference, GRID, LABELS)
    return only


def test_a_mask_agrees_fully_with_itself() -> None:
    same = score(REFERENCE, REFERENCE)
    assert (same.dice, same.hd95_mm, same.surface_dice, same.volume_error_ml) == (1.0, 0.0, 1.0, 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_by_two_voxels_costs_its_share_of_the_overlap(axis: int) -> None:
    moved = np.roll(REFERENCE, 2, axis=axis)
    side = (20, 16, 8)[axis]
    assert score(moved, REFERENCE).dice == pytest.approx((side - 2) / side)


@pytest.mark.parametrize(("axis", "millimetres"), [(0, 1.0), (1, 2.0), (2, 4.0)])
def test_a_shifted_box_is_as_far_away_as_it_was_moved_in_millimetres(
    axis: int, millimetres: float
) -> None:
    moved = np.roll(REFERENCE, 2, axis=axis)
    # The two faces across the shift are more than 5 % of the surface.
    assert score(moved, REFERENCE).hd95_mm == pytest.approx(millimetres)


def test_a_lone_distant_voxel_is_below_the_95th_percentile() -> None:
    mask = REFERENCE.copy()
    mask[59, 39, 23] = 1
    assert score(mask, REFERENCE).hd95_mm == 0.0


def test_a_shift_within_the_tolerance_costs_no_surface_dice() -> None:
    assert score(np.roll(REFERENCE, 2, axis=0), REFERENCE).surface_dice == 1.0  # 1 mm
    assert score(np.roll(REFERENCE, 1, axis=2), REFERENCE).surface_dice < 1.0  # 2 mm


def test_of_a_thick_slab_only_the_faces_beyond_the_tolerance_are_missed() -> None:
    grid = Geometry.from_spacing((12, 12, 40), (1.0, 1.0, 1.0))
    reference, mask = np.zeros((2, 12, 12, 40), dtype=np.uint8)
    reference[..., 10:20] = mask[..., 10:23] = 1  # one face three voxels further
    (slab,) = compare_masks(mask, reference, grid, LABELS)
    face, rim, next_to_rim = 144, 44, 36  # voxels of a layer, of its edge, and of the ring inside
    surfaces = (2 * face + 8 * rim) + (2 * face + 11 * rim)
    # Of the reference, the inside of its far face; of the mask, its far face and one rim before.
    missed = (face - rim - next_to_rim) + (face + rim)
    assert slab.surface_dice == pytest.approx(1 - missed / surfaces)


def test_distances_agree_with_monai() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own deprecations
        import torch
        from monai.metrics.hausdorff_distance import compute_hausdorff_distance
        from monai.metrics.surface_dice import compute_surface_dice

        geometry = Geometry.from_spacing((30, 40, 20), (1.0, 0.7, 1.9))
        first = ball(geometry, (14.0, 13.0, 18.0), 9.0).array > 0.5
        second = ball(geometry, (16.0, 14.0, 17.0), 8.0).array > 0.5
        one, two = (torch.from_numpy(each)[None, None].float() for each in (first, second))
        spacing = list(geometry.spacing_mm)
        hd95 = compute_hausdorff_distance(
            one, two, include_background=True, percentile=95, spacing=spacing
        )
        surface = compute_surface_dice(one, two, [1.0], include_background=True, spacing=spacing)
    (mine,) = compare_masks(first.astype(np.uint8), second.astype(np.uint8), geometry, LABELS)
    assert mine.hd95_mm == pytest.approx(float(hd95), rel=1e-5)
    assert mine.surface_dice == pytest.approx(float(surface), rel=1e-5)


def test_volumes_are_those_of_balls() -> None:
    geometry = oblique((40, 40, 30), (0.6, 0.6, 0.8))
    centre = geometry.to_world((19.5, 19.5, 14.5))
    large, small = (
        (ball(geometry, centre, radius).array > 0.5).astype(np.uint8) for radius in (9.0, 7.0)
    )
    (only,) = compare_masks(large, small, geometry, LABELS)
    sphere = [4.0 / 3.0 * math.pi * radius**3 / 1000.0 for radius in (9.0, 7.0)]
    assert only.volume_error_ml == pytest.approx(sphere[0] - sphere[1], rel=0.02)
    assert only.volume_error_percent == pytest.approx(100 * ((9 / 7) ** 3 - 1), rel=0.02)
    assert only.dice == pytest.approx(2 * 7**3 / (7**3 + 9**3), rel=0.01)
    assert only.hd95_mm == pytest.approx(2.0, abs=0.4)


def test_a_label_in_neither_mask_is_full_agreement() -> None:
    none = score(EMPTY, EMPTY)
    assert (none.dice, none.hd95_mm, none.surface_dice) == (1.0, 0.0, 1.0)
    assert (none.volume_error_ml, none.volume_error_percent) == (0.0, 0.0)


@pytest.mark.parametrize("missed", [True, False])
def test_a_label_in_one_mask_alone_is_the_worst_that_can_be(missed: bool) -> None:
    one = score(EMPTY, REFERENCE) if missed else score(REFERENCE, EMPTY)
    assert (one.dice, one.surface_dice) == (0.0, 0.0)
    assert one.hd95_mm == pytest.approx(math.sqrt(30**2 + 40**2 + 48**2))
    assert abs(one.volume_error_ml) == pytest.approx(20 * 16 * 8 / 1000)
    assert one.volume_error_percent == 100.0 if missed else math.isnan(one.volume_error_percent)


def test_labels_are_compared_one_by_one() -> None:
    mask, reference = REFERENCE.copy(), 2 * REFERENCE
    mask[10:20] *= 2
    first, second = compare_masks(mask, reference, GRID, ("background", "head", "tail"))
    assert [first.label, second.label] == ["head", "tail"]
    assert first.dice == 0.0
    assert second.dice == pytest.approx(2 / 3)


def test_masks_of_two_grids_are_a_bug() -> None:
    with pytest.raises(ValueError, match="one shape"):
        compare_masks(EMPTY, EMPTY[:-1], GRID, LABELS)


def row(case: str, label: str, dice: float, subject: str = "") -> LabelScore:
    return LabelScore(case, subject or case, label, dice, 1.0, dice, 1.0, 1.0)


def test_a_summary_has_each_label_and_their_mean() -> None:
    rows = [row("a", "head", 0.8), row("a", "tail", 0.6), row("b", "head", 0.9),
            row("b", "tail", 0.7)]  # fmt: skip
    content = summarise(rows).to_json()
    assert content["n"] == 2
    assert content["dice"] == {"head": 0.85, "tail": 0.65, "mean": 0.75}
    low, high = content["intervals"]["dice"]["head"]
    assert (low, high) == (0.8, 0.9)  # of two cases the bootstrap draws either, or both


def test_an_undefined_percentage_is_left_out_and_never_a_number() -> None:
    undefined = LabelScore("a", "a", "head", 0.0, 9.0, 0.0, reference_ml=0.0, found_ml=1.0)
    assert undefined.to_json()["volume_error_percent"] is None
    assert summarise([undefined]).to_json()["volume_error_percent"] == {"head": None, "mean": None}
    both = summarise([undefined, row("b", "head", 0.9)]).to_json()
    assert both["volume_error_percent"]["head"] == 0.0
    assert both["dice"]["head"] == 0.45


def test_the_interval_is_that_of_the_normal_law_where_there_are_many_cases() -> None:
    values = np.random.default_rng(3).normal(0.9, 0.04, 400)
    low, high = bootstrap_interval(values, [str(n) for n in range(400)])
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.0005)
    assert high == pytest.approx(values.mean() + half, abs=0.0005)


def test_cases_of_one_subject_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(3).normal(0.9, 0.04, 50), 8)
    alone = bootstrap_interval(values, [str(n) for n in range(400)])
    together = bootstrap_interval(values, [str(n // 8) for n in range(400)])
    # Copies add no knowledge: the interval of 50 subjects is sqrt(8) times that of 400.
    ratio = (together[1] - together[0]) / (alone[1] - alone[0])
    assert ratio == pytest.approx(math.sqrt(8), rel=0.1)
