"""Files of frames: what is read of them, and what their headers say of lengths."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import JPEGBaseline8Bit, RLELossless

from medserve.errors import InvalidImageError, InvalidRequestError, PayloadTooLargeError
from medserve.imaging.codecs import dicom, dicom_regions, frame_file, nifti
from medserve.imaging.codecs.frame_file import FrameReading
from medserve.imaging.frames import FrameGrid, FrameLimits, FrameStack, GivenSpacing
from medserve.imaging.packed_masks import PackedMasks
from medserve.results.frame_measure import measure_frame, measure_stack
from medserve.spec import InputKind, InputSpec
from medserve.tasks.frames import View
from tests.frame_phantoms import as_nifti, cine, region, saved, scan, ultrasound
from tests.phantoms import raster_bytes

_KINDS = (InputKind.RASTER, InputKind.DICOM, InputKind.NIFTI)
LIMITS = FrameLimits(InputSpec(_KINDS, (48, 64), max_pixels=100_000), max_frames=50)


def read_all(stack: FrameStack) -> npt.NDArray[np.float32]:
    return np.stack([stack.read(index).array for index in range(stack.grid.count)])


@pytest.mark.parametrize("syntax", [None, RLELossless], ids=["raw", "RLE"])
def test_frames_of_a_loop_are_those_that_were_stored(syntax: Any) -> None:
    frames = cine(5)
    dataset = ultrasound(frames)
    if syntax is not None:
        dataset.compress(syntax)
    stack = frame_file.decode(saved(dataset), LIMITS)
    assert stack.grid == FrameGrid((48, 64), 5)
    assert stack.is_stack
    np.testing.assert_array_equal(read_all(stack), frames / np.float32(255))


def test_colour_loops_keep_their_colour() -> None:
    colour = np.stack([cine(3)] * 3, axis=-1)
    colour[..., 2] //= 2
    stack = frame_file.decode(saved(ultrasound(colour)), LIMITS)
    np.testing.assert_array_equal(read_all(stack), colour / np.float32(255))


def test_a_single_dicom_frame_is_no_stack() -> None:
    stack = frame_file.decode(saved(ultrasound(scan()[np.newaxis])), LIMITS)
    assert not stack.is_stack
    assert stack.grid.step_mm is None


def test_frames_are_decoded_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    decode = dicom.frame_image

    def counted(dataset: Dataset, index: int = 0) -> Any:
        read.append(index)
        return decode(dataset, index)

    monkeypatch.setattr(dicom, "frame_image", counted)
    stack = frame_file.decode(saved(ultrasound(cine(5))), LIMITS)
    assert read == []
    stack.read(3)
    assert read == [3]


@pytest.mark.parametrize(
    ("regions", "elements", "expected"),
    [
        ([region((0.02, 0.03))], {}, (0.2, 0.3)),
        ([region((-0.02, 0.03))], {}, (0.2, 0.3)),  # the sign is a direction
        ([region((0.02, 0.03)), region((0.02, 0.03), kind=2)], {}, (0.2, 0.3)),
        ([region((0.02, 0.03)), region((0.05, 0.05))], {}, None),  # which of them?
        ([region((0.02, 0.03), RegionLocationMaxX1=64, RegionLocationMaxY1=48)], {}, (0.2, 0.3)),
        ([region((0.02, 0.03), RegionLocationMaxX1=127)], {}, None),  # somebody shrank the image
        ([region((0.02, 0.03), RegionLocationMaxY1=95)], {"PixelSpacing": [0.5, 0.6]}, None),
        ([region((0.02, 0.03)), region((1.0, 1.0), kind=3)], {}, (0.2, 0.3)),  # a Doppler curve
        ([region((0.02, 0.03), PhysicalUnitsXDirection=4)], {"PixelSpacing": [0.5, 0.6]},
         (0.5, 0.6)),  # seconds: M-mode
        ([region((0.0, 0.03))], {"PixelSpacing": [0.5, 0.6]}, None),
        ([], {"PixelSpacing": [0.5, 0.6]}, (0.5, 0.6)),
        ([], {"PixelSpacing": [0.5]}, None),
        ([], {}, None),
    ],
)  # fmt: skip
def test_pixel_spacing_is_what_calibrated_tissue_states(
    regions: Sequence[Dataset],
    elements: dict[str, Any],
    expected: tuple[float, float] | None,
) -> None:
    dataset = ultrasound(cine(3), **elements)
    if regions:
        dataset.SequenceOfUltrasoundRegions = list(regions)
    grid = frame_file.decode(saved(dataset), LIMITS).grid
    if expected is None:
        assert grid.spacing_mm is None
    else:
        assert grid.spacing_mm == pytest.approx(expected)


def test_the_step_between_frames_is_read_where_it_stands() -> None:
    plain = frame_file.decode(saved(ultrasound(cine(3), SpacingBetweenSlices=2.5)), LIMITS)
    assert plain.grid.step_mm == 2.5
    enhanced = ultrasound(cine(3))
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SpacingBetweenSlices = [0.4, 0.5], 1.5
    shared.PixelMeasuresSequence = [measures]
    enhanced.SharedFunctionalGroupsSequence = [shared]
    grid = frame_file.decode(saved(enhanced), LIMITS).grid
    assert (grid.spacing_mm, grid.step_mm) == ((0.4, 0.5), 1.5)
    assert dicom_regions.step_mm(Dataset()) is None


def test_a_caller_adds_the_lengths_that_a_file_lacks() -> None:
    reading = FrameReading(GivenSpacing((0.2, 0.3), 5.0))
    grid = frame_file.decode(saved(ultrasound(cine(3))), LIMITS, reading).grid
    assert (grid.spacing_mm, grid.step_mm) == ((0.2, 0.3), 5.0)
    assert grid.voxel_ml == pytest.approx(0.2 * 0.3 * 5.0 / 1000)
    with pytest.raises(InvalidRequestError, match="lengths from"):
        GivenSpacing(step_mm=0.0)


def test_a_nifti_header_without_form_and_unit_states_no_lengths() -> None:
    kind: Any = nibabel.Nifti1Image
    silent = kind(cine(3).transpose(2, 1, 0), None)
    silent.header["qform_code"] = silent.header["sform_code"] = 0
    assert frame_file.decode(silent.to_bytes(), LIMITS).grid.spacing_mm is None
    silent.header.set_xyzt_units("mm")
    silent.header["pixdim"][1:4] = (0.3, 0.2, 5.0)
    grid = frame_file.decode(silent.to_bytes(), LIMITS).grid
    assert grid.spacing_mm == pytest.approx((0.2, 0.3))
    assert grid.step_mm == 5.0


def test_planes_of_bytes_are_display_values_and_others_share_one_range() -> None:
    frames = cine(4)
    as_bytes = frame_file.decode(as_nifti(frames.transpose(2, 1, 0)), LIMITS)
    np.testing.assert_array_equal(read_all(as_bytes), frames / np.float32(255))
    measured = frames.astype(np.int16) * 10 - 500
    planes = read_all(frame_file.decode(as_nifti(measured.transpose(2, 1, 0)), LIMITS))
    inside = (planes > 0) & (planes < 1)
    slope, offset = np.polyfit(measured[inside], planes[inside], 1)
    np.testing.assert_allclose(planes[inside], measured[inside] * slope + offset, atol=1e-5)
    assert planes.min() == 0.0
    assert planes.max() == 1.0


def test_a_constant_stack_is_black_and_no_division_by_zero() -> None:
    stack = frame_file.decode(as_nifti(np.full((64, 48, 2), 7.0, np.float32)), LIMITS)
    assert not read_all(stack).any()


def test_a_loop_along_a_fourth_axis_is_read_frame_by_frame_and_answered_on_its_axes() -> None:
    frames = cine(5)
    payload = as_nifti(frames.transpose(2, 1, 0)[:, :, np.newaxis], np.diag([0.3, 0.2, 1, 1]))
    stack = frame_file.decode(payload, LIMITS)
    np.testing.assert_array_equal(read_all(stack), frames / np.float32(255))
    assert stack.grid.spacing_mm == pytest.approx((0.2, 0.3))
    assert stack.grid.step_mm is None  # moments, not places
    mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(stack.nifti_mask(PackedMasks.of(frames))))
    assert mask.shape == (64, 48, 1, 5)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PixelSpacing": [0.4, 0.2]}, 2.0),
        ({"PixelSpacing": [0.2, 0.20001]}, 1.0),  # rounding
        ({"PixelAspectRatio": [2, 1]}, 2.0),
        ({"PixelSpacing": [0.3, 0.3], "PixelAspectRatio": [2, 1]}, 1.0),
        ({}, 1.0),
    ],
)
def test_the_shape_of_a_pixel_is_what_lengths_say_else_its_stated_ratio(
    elements: dict[str, Any], expected: float
) -> None:
    grid = frame_file.decode(saved(ultrasound(cine(2), **elements)), LIMITS).grid
    assert grid.aspect == expected


def test_a_calibration_holds_where_its_region_lies() -> None:
    inset = region((0.02, 0.02), RegionLocationMinX0=40, RegionLocationMinY0=4,
                   RegionLocationMaxX1=59, RegionLocationMaxY1=23)  # fmt: skip
    dataset = ultrasound(cine(2), SpacingBetweenSlices=2.0)
    dataset.SequenceOfUltrasoundRegions = [inset]
    grid = frame_file.decode(saved(dataset), LIMITS).grid
    inside, outside, across = (np.zeros((48, 64), np.uint8) for _ in range(3))
    inside[4:24, 40:60] = outside[30:40, 5:9] = across[10:20, 30:50] = 1
    measured = measure_frame(inside, grid)
    assert measured.area_cm2 == pytest.approx(20 * 20 * 0.02 * 0.02)
    for mask in (outside, across):
        frame = measure_frame(mask, grid)
        assert (frame.area_cm2, frame.width_mm, frame.height_mm) == (None, None, None)
        assert measure_stack([measured, frame], grid).volume_ml is None
    assert measure_stack([measured, measured], grid).volume_ml is not None


@pytest.mark.parametrize("view", list(View))
def test_masks_come_back_to_the_axes_of_their_file(view: View) -> None:
    rng = np.random.default_rng(3)
    affine = np.diag([0.3, 0.2, 2.0, 1.0]) @ np.eye(4)
    array = rng.integers(0, 255, (20, 24, 30)).astype(np.uint8)
    payload = as_nifti(array, affine)
    stack = frame_file.decode(payload, LIMITS, FrameReading(view=view))
    assert stack.view is view
    bright = read_all(stack) > 0.5
    masks = PackedMasks.of(bright.astype(np.uint8))
    back = nifti.decode(stack.nifti_mask(masks))
    np.testing.assert_array_equal(back.array, array > 127)
    np.testing.assert_array_equal(stack.on_grid(masks), array > 127)
    assert back.geometry == nifti.decode(payload).geometry


def test_planes_are_written_as_one_volume() -> None:
    frames = (cine(6) > 127).astype(np.uint8)
    grid = FrameGrid((48, 64), 6, (0.2, 0.3), 5.0)
    geometry = grid.space().geometry(grid.shape)
    volume = nifti.decode(nifti.encode_planes(frames, geometry, grid.space()))
    np.testing.assert_array_equal(volume.array, frames.transpose(2, 1, 0))
    assert volume.geometry.spacing_mm == pytest.approx((0.3, 0.2, 5.0))
    with pytest.raises(ValueError, match="expected 6 planes, got 5"):
        nifti.encode_planes(frames[:5], geometry, grid.space())
    with pytest.raises(ValueError, match="expected planes of"):
        nifti.encode_planes(frames.transpose(0, 2, 1), geometry, grid.space())


def test_a_stack_of_masks_keeps_every_pixel_in_one_bit() -> None:
    masks = np.random.default_rng(1).integers(0, 2, (9, 7, 11)).astype(np.uint8)
    stack = PackedMasks.of(masks)
    assert len(stack) == 9
    np.testing.assert_array_equal(stack.array, masks)
    np.testing.assert_array_equal(stack[4], masks[4])
    np.testing.assert_array_equal(np.stack(stack[2:5]), masks[2:5])
    with pytest.raises(ValueError, match="expected a mask of"):
        stack.append(masks[0].T)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"\x93NUMPY" + bytes(100), "NPY"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (saved(ultrasound(cine(3)))[:900], "damaged|cut short"),
        (as_nifti(np.zeros((64, 48, 3), np.float32))[:3000], "cut short|cannot hold"),
        (as_nifti(np.zeros((4, 48, 3), np.uint8)), "at least 8 x 8"),
        (as_nifti(np.zeros((64, 48, 3, 2), np.uint8)), "3 spatial axes.*one of the 2 volumes"),
    ],
    ids=["npy", "zip", "cut dicom", "cut nifti", "flat", "4D"],
)
def test_what_is_no_file_of_frames_is_refused(payload: bytes, words: str) -> None:
    with pytest.raises(InvalidImageError, match=words):
        frame_file.decode(payload, LIMITS)


def test_a_compressed_loop_that_lacks_frames_is_refused_with_counts() -> None:
    dataset = ultrasound(cine(4))
    dataset.compress(RLELossless)
    dataset.NumberOfFrames = 9
    with pytest.raises(InvalidImageError, match=r"expected 9 frames.*got pixel data of 4"):
        frame_file.decode(saved(dataset), LIMITS)


def test_a_frame_that_states_another_size_is_refused_alone() -> None:
    frames = cine(3)
    pieces = [raster_bytes(each, "JPEG", quality=95) for each in frames]
    pieces[1] = raster_bytes(scan(96, 128), "JPEG")  # a decoder would allocate what it says
    dataset = ultrasound(frames, JPEGBaseline8Bit)
    dataset.PixelData = encapsulate(pieces)
    dataset["PixelData"].is_undefined_length = True
    stack = frame_file.decode(saved(dataset), LIMITS)
    np.testing.assert_allclose(stack.read(2).array, frames[2] / np.float32(255), atol=0.1)
    with pytest.raises(InvalidImageError, match="damaged"):
        stack.read(1)


def test_limits_hold_for_every_kind() -> None:
    few = FrameLimits(LIMITS.plane, max_frames=4)
    with pytest.raises(PayloadTooLargeError, match="at most 4 frames"):
        frame_file.decode(saved(ultrasound(cine(5))), few)
    with pytest.raises(PayloadTooLargeError, match="at most"):
        frame_file.decode(as_nifti(cine(5).transpose(2, 1, 0)), few)
    with pytest.raises(PayloadTooLargeError, match="pixels"):
        frame_file.decode(raster_bytes(scan(400, 400)), LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@given(across=st.integers(40, 400), down=st.integers(40, 400), turned=st.booleans())
@settings(max_examples=6, deadline=None)
def test_a_picture_that_states_oblong_pixels_keeps_its_proportions(
    kind: str, across: int, down: int, turned: bool
) -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6 if turned else 1
    payload = raster_bytes(scan(), kind, dpi=(across, down), exif=exif)
    grid = frame_file.decode(payload, LIMITS).grid
    aspect = across / down
    wanted = None if not 0.2 <= aspect <= 5 else 1 / aspect if turned else aspect
    if wanted is None:
        assert grid.aspect == 1.0
    else:
        assert grid.aspect == pytest.approx(wanted, rel=0.02)  # PNG rounds to metres


def test_a_ratio_without_a_length_is_read_from_png_and_jfif() -> None:
    png = raster_bytes(scan(), "PNG")
    data = struct.pack(">IIB", 2, 1, 0)
    chunk = b"pHYs" + data
    png = png[:33] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    jpeg = bytearray(raster_bytes(scan(), "JPEG"))
    jpeg[13:18] = struct.pack(">BHH", 0, 2, 1)
    for payload in (png, bytes(jpeg)):
        assert frame_file.decode(payload, LIMITS).grid.pixel_aspect == 2.0


@pytest.mark.parametrize(
    ("spacings", "wanted"),
    [([(0.4, 0.2)] * 3, (0.4, 0.2)), ([(0.4, 0.2), (0.4, 0.2), (0.2, 0.2)], None)],
)
def test_lengths_of_each_frame_count_where_all_of_them_have_the_same(
    spacings: list[tuple[float, float]], wanted: tuple[float, float] | None
) -> None:
    groups = []
    for spacing in spacings:
        group, measures = Dataset(), Dataset()
        measures.PixelSpacing = list(spacing)
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    dataset = ultrasound(cine(3), PerFrameFunctionalGroupsSequence=groups)
    assert frame_file.decode(saved(dataset), LIMITS).grid.spacing_mm == wanted


@pytest.mark.parametrize("options", [{}, {"has_bot": False}, {"fragments_per_frame": 2}])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_frames_of_jpeg_are_read_in_any_order_however_they_are_stored(
    options: dict[str, Any], order: tuple[int, ...]
) -> None:
    frames = cine(4)
    items = encapsulate([raster_bytes(each, "JPEG", quality=95) for each in frames], **options)
    stack = frame_file.decode(saved(ultrasound(frames, JPEGBaseline8Bit, PixelData=items)), LIMITS)
    for index in order:
        np.testing.assert_allclose(stack.read(index).array, frames[index] / 255, atol=0.1)
    assert stack.grid.count == 4


def test_frames_of_an_extended_offset_table_are_read() -> None:
    frames = cine(3)
    dataset = ultrasound(frames, JPEGBaseline8Bit)
    items, offsets, lengths = encapsulate_extended([raster_bytes(each, "JPEG") for each in frames])
    dataset.PixelData = items
    dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    stack = frame_file.decode(saved(dataset), LIMITS)
    for index in (2, 0, 1):
        np.testing.assert_allclose(stack.read(index).array, frames[index] / 255, atol=0.2)


def test_a_basic_offset_table_that_does_not_rise_is_refused() -> None:
    frames = cine(4)
    items = bytearray(encapsulate([raster_bytes(each, "JPEG") for each in frames]))
    first, *offsets = struct.unpack_from("<4I", items, 8)
    struct.pack_into("<4I", items, 8, first, *offsets[::-1])
    dataset = ultrasound(frames, JPEGBaseline8Bit, PixelData=bytes(items))
    with pytest.raises(InvalidImageError, match="order of the frames is not known"):
        frame_file.decode(saved(dataset), LIMITS)


@pytest.mark.parametrize("delta_cm", [(2e-5, 3e-5), (20.0, 30.0)])
def test_deltas_that_no_ultrasound_image_has_are_no_lengths(delta_cm: tuple[float, float]) -> None:
    dataset = ultrasound(cine(2), SequenceOfUltrasoundRegions=[region(delta_cm)])
    assert frame_file.decode(saved(dataset), LIMITS).grid.spacing_mm is None
