from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as pillow

from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.results.files.overlay import COLOURS, Plane, SheetLayout, blend, layers, montage
from medserve.results.segmentation import Segmentation
from tests.volume_phantoms import SHAPE, ball, oblique, ramp

ONE = SheetLayout(slices=1, side=200, alpha=1.0)
GRID = Geometry.from_spacing((48, 40, 16), (1.0, 1.2, 3.0))


def _sheet(
    volume: Volume, mask: npt.NDArray[np.uint8], plane: Plane | None, layout: SheetLayout = ONE
) -> npt.NDArray[np.uint8]:
    segmentation = Segmentation(mask, volume.geometry, ("background", "gland", "tumour"))
    picture = pillow.open(io.BytesIO(montage(volume, segmentation, plane, layout)))
    assert picture.format == "PNG"
    return np.asarray(picture.convert("RGB"))


def _coloured(sheet: npt.NDArray[np.uint8], label_id: int = 1) -> npt.NDArray[np.intp]:
    """(row, column) of pixels in a label's colour, above the legend."""
    return np.argwhere((sheet[:-22] == COLOURS[label_id - 1]).all(axis=-1))


@pytest.mark.parametrize("plane", list(Plane))
def test_a_ball_is_round_in_every_plane_of_an_anisotropic_volume(plane: Plane) -> None:
    volume = ball(GRID, GRID.centre_mm, 14.0)
    pixels = _coloured(_sheet(volume, (volume.array > 0.5).astype(np.uint8), plane))
    height, width = np.ptp(pixels, axis=0) + 1
    assert height / width == pytest.approx(1.0, abs=0.12)  # a voxel of 3 mm is a tenth of it


def test_the_right_side_of_the_patient_is_on_the_left_and_the_front_above() -> None:
    volume = ball(GRID, np.add(GRID.centre_mm, (12, 10, 0)), 6.0)  # to the right, to the front
    sheet = _sheet(volume, (volume.array > 0.5).astype(np.uint8), Plane.AXIAL)
    row, column = _coloured(sheet).mean(axis=0)
    assert column < sheet.shape[1] * 0.35
    assert row < (sheet.shape[0] - 22) * 0.35


def test_the_feet_are_below_and_the_front_is_on_the_left_of_a_sagittal_slice() -> None:
    volume = ball(GRID, np.add(GRID.centre_mm, (0, 12, -14)), 6.0)
    sheet = _sheet(volume, (volume.array > 0.5).astype(np.uint8), Plane.SAGITTAL)
    row, column = _coloured(sheet).mean(axis=0)
    assert column < sheet.shape[1] * 0.35
    assert row > (sheet.shape[0] - 22) * 0.65


def test_storage_order_does_not_change_the_picture() -> None:
    volume = ball(GRID, np.add(GRID.centre_mm, (5, 4, 3)), 9.0)
    mask = (volume.array > 0.5).astype(np.uint8)
    moved, order = volume.reoriented("SPL")
    np.testing.assert_array_equal(
        _sheet(volume, mask, None), _sheet(moved, order.apply(mask), None)
    )


def test_the_layers_of_a_sheet_lie_pixel_by_pixel_where_the_sheet_has_them() -> None:
    volume = ball(GRID, np.add(GRID.centre_mm, (5, 4, 3)), 9.0)
    mask = (volume.array > 0.5).astype(np.uint8)
    mask[20:] *= 2
    bare, ids = (np.asarray(pillow.open(io.BytesIO(each))) for each in layers(volume, mask))
    sheet = _sheet(volume, mask, None, SheetLayout(alpha=1.0))[: len(bare)]
    for label in (1, 2):
        np.testing.assert_array_equal(
            (sheet == COLOURS[label - 1]).all(axis=-1), (ids == label).all(axis=-1)
        )
    outside = (ids == 0).all(axis=-1)
    np.testing.assert_array_equal(sheet[outside], bare[outside])


def test_slices_are_spread_over_the_mask_alone() -> None:
    mask = np.zeros(GRID.shape, np.uint8)
    mask[10:30, 10:30, 6:8] = 2  # two slices
    sheet = _sheet(ramp(GRID), mask, Plane.AXIAL, SheetLayout(slices=12, columns=4, side=100))
    assert sheet.shape[:2] == (100 + 4 + 22, 2 * 104 - 4)


def test_an_empty_mask_shows_the_whole_volume() -> None:
    sheet = _sheet(ramp(GRID), np.zeros(GRID.shape, np.uint8), Plane.AXIAL)
    assert sheet.std() > 0


def test_pixels_without_label_stay_grey() -> None:
    grey = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    mask = np.zeros((3, 4), np.uint8)
    mask[1, 1] = 1
    picture = blend(grey, mask)
    outside = picture[mask == 0]
    np.testing.assert_array_equal(outside, np.rint(grey[mask == 0, None] * 255).repeat(3, axis=1))
    np.testing.assert_array_equal(picture[1, 1], COLOURS[0])


def test_every_one_of_many_labels_has_a_colour() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = blend(np.zeros((16, 16), np.float32), mask, alpha=1.0)
    assert (picture.reshape(-1, 3)[1:].max(axis=1) > 0).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 2), (40, 1, 1)])
def test_flat_and_tiny_volumes_have_pictures_too(shape: tuple[int, int, int]) -> None:
    geometry = Geometry(shape, oblique().affine)
    assert _sheet(ramp(geometry), np.ones(shape, np.uint8), None).size > 0


def test_a_mask_of_another_grid_is_a_mistake_of_the_code() -> None:
    other = Segmentation(np.zeros(SHAPE, np.uint8), oblique(), ("background",))
    with pytest.raises(ValueError, match="another grid"):
        montage(ramp(Geometry.from_spacing(SHAPE, (1, 1, 1))), other)
