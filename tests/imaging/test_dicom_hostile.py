"""Series that contradict themselves: read right, or refused by the name of what is wrong."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import compress
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless, RLELossless

from medserve.errors import InvalidImageError
from medserve.imaging.codecs import dicom_series
from medserve.imaging.volume import Volume
from tests.volume_phantoms import as_bytes, dicom_slices, enhanced_dicom, oblique, ramp, zipped

VOLUME = ramp(oblique((40, 36, 4)))

Change = Callable[[list[Dataset]], None]


def _read(datasets: list[Dataset]) -> dicom_series.DicomVolume:
    return dicom_series.decode(zipped([as_bytes(each) for each in datasets]))


def _of_one(name: str, value: Any) -> Change:
    return lambda datasets: setattr(datasets[2], name, value)


def _of_all(name: str, value: Any) -> Change:
    def change(datasets: list[Dataset]) -> None:
        for dataset in datasets:
            setattr(dataset, name, value)

    return change


def _same_uid(datasets: list[Dataset]) -> None:
    datasets[2].SOPInstanceUID = datasets[1].SOPInstanceUID


def _rescale_of_some(datasets: list[Dataset]) -> None:
    for dataset in datasets[1:]:
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"


def _turned(datasets: list[Dataset]) -> None:
    for dataset in datasets[::2]:
        dataset.ImageOrientationPatient = [-float(n) for n in dataset.ImageOrientationPatient]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_same_uid, "got 3 for 4 images"),
        (_rescale_of_some, r"in all slices or in none, got 2 \(of 3, 1 slices\)"),
        (_turned, "one orientation of slices, got 2"),
        (_of_one("Modality", "CT"), r"one modality, got 2 \(of 3, 1 images\)"),
        (
            _of_one("PhotometricInterpretation", "MONOCHROME1"),
            r"one photometric interpretation, got 2 \(of 3, 1 images\)",
        ),
        (_of_one("FrameOfReferenceUID", "1.2.3"), "2 values of FrameOfReferenceUID"),
        (_of_one("PatientBirthDate", "19700101"), "2 values of PatientBirthDate"),
        (_of_all("PixelSpacing", [-1.0, 1.0]), "pixel spacing"),
        (_of_all("RescaleSlope", "1e400"), "NaN or infinity"),
    ],
)
def test_slices_that_contradict_each_other_are_refused(change: Change, words: str) -> None:
    datasets = dicom_slices(VOLUME)
    change(datasets)
    with pytest.raises(InvalidImageError, match=words) as raised:
        _read(datasets)
    assert "Secret" not in str(raised.value)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
def test_a_frame_that_ends_too_early_is_refused(
    syntax: Any, keep: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "pydicom")  # whose tracebacks take seconds to format
    datasets = dicom_slices(VOLUME)
    for dataset in datasets:
        compress(dataset, syntax, generate_instance_uid=False)
    last = datasets[-1]
    [frame] = generate_frames(last.PixelData, number_of_frames=1)
    last.PixelData = encapsulate([frame[: int(len(frame) * keep)]])
    last["PixelData"].is_undefined_length = True
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        _read(datasets)


@pytest.mark.parametrize(
    "content",
    [zipped([b"a"]), gzip.compress(b"DICM" * 99), b"\0" * 400],
    ids=["zip", "gz", "zeros"],
)
def test_packed_and_empty_files_within_an_archive_are_counted(content: bytes) -> None:
    files = [as_bytes(each) for each in dicom_slices(VOLUME)]
    with pytest.raises(InvalidImageError, match="got 1 of 5 files that are no readable image"):
        dicom_series.decode(zipped([*files, content]))


def test_a_slice_of_padding_alone_is_background() -> None:
    datasets = dicom_slices(VOLUME, PixelPaddingValue=-2000)
    for k, dataset in enumerate(datasets):
        plane = (VOLUME.array[:, :, k] + 10).T.copy()
        plane[: None if k == 1 else 2] = -2000
        dataset.PixelData = plane.astype("<i2").tobytes()
    found = _read(datasets).array[:, :, ::-1]
    assert (found[:, :, 1] == found.min()).all()
    assert found.min() == (VOLUME.array[:, 2:, [0, 2, 3]] + 10).min()
    for dataset in datasets:
        dataset.PixelData = np.full(dataset.Rows * dataset.Columns, -2000, "<i2").tobytes()
    with pytest.raises(InvalidImageError, match="padding"):
        _read(datasets)


def test_a_range_of_padding_is_compared_by_bits_whatever_its_type() -> None:
    datasets = dicom_slices(VOLUME)
    for k, dataset in enumerate(datasets):
        dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)
        dataset.add_new("PixelPaddingRangeLimit", "US", 2**16 - 1998)
        plane = (VOLUME.array[:, :, k] + 10).T.copy()
        plane[:3] = [[-2000], [-1999], [-1998]]
        dataset.PixelData = plane.astype("<i2").tobytes()
    assert _read(datasets).array.min() == (VOLUME.array[:, 3:] + 10).min()


def test_frames_of_monochrome1_are_inverted_after_their_rescale() -> None:
    order = [2, 0, 3, 1]
    images = [enhanced_dicom(VOLUME, order) for _ in range(2)]
    images[1].PhotometricInterpretation = "MONOCHROME1"
    plain, inverted = (dicom_series.decode(as_bytes(each)).array for each in images)
    lowest, highest = -(2**15) * 2 - 10, (2**15 - 1) * 2 - 10
    np.testing.assert_array_equal(inverted, lowest + highest - plain)


def test_signed_and_unsigned_slices_become_one_volume() -> None:
    signed = Volume(VOLUME.array - 700, VOLUME.geometry)
    datasets = dicom_slices(signed)
    datasets[1].PixelRepresentation = 0
    datasets[1].PixelData = signed.array[:, :, 1].T.clip(0).astype("<u2").tobytes()
    expected = signed.array.copy()
    expected[:, :, 1] = expected[:, :, 1].clip(0)
    np.testing.assert_array_equal(_read(datasets).array, expected[:, :, ::-1])


def test_a_negative_distance_of_a_single_slice_turns_nothing_round() -> None:
    found = [_read(dicom_slices(VOLUME, SpacingBetweenSlices=mm)[:1]).geometry for mm in (-3, 3)]
    np.testing.assert_array_equal(found[0].affine, found[1].affine)


@pytest.mark.parametrize("count", [1, 4])
def test_a_mosaic_is_no_slice(count: int) -> None:
    datasets = dicom_slices(VOLUME, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    with pytest.raises(InvalidImageError, match="got a mosaic"):
        _read(datasets[:count])


@pytest.mark.parametrize("thickness", ["", "0", None])
def test_a_single_slice_of_unknown_thickness_has_no_volume(thickness: str | None) -> None:
    [slice_] = dicom_slices(VOLUME)[:1]
    for name in ("SliceThickness", "SpacingBetweenSlices"):
        if name in slice_:
            delattr(slice_, name)
    if thickness is not None:
        slice_.SliceThickness = thickness
    with pytest.raises(InvalidImageError, match="states its thickness"):
        _read([slice_])
    slice_.SliceThickness = "2.5"
    assert _read([slice_]).geometry.spacing_mm[2] == pytest.approx(2.5)


def _parts(numbers: list[int], total: int) -> list[Dataset]:
    made = []
    for number in numbers:
        part = enhanced_dicom(VOLUME, range(2 * number - 2, 2 * number))
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number}")
        part.ConcatenationUID, part.InConcatenationNumber = "1.2.4", number
        part.InConcatenationTotalNumber = total
        made.append(part)
    return made


def test_a_concatenated_image_is_read_whole_or_refused() -> None:
    whole = _read([enhanced_dicom(VOLUME, range(4))])
    np.testing.assert_array_equal(_read(_parts([2, 1], 2)).array, whole.array)
    for numbers, total in (([1], 2), ([2], 2), ([1, 2], 3)):
        with pytest.raises(InvalidImageError, match=f"all {total} parts .* got {len(numbers)}"):
            _read(_parts(numbers, total))
        with pytest.raises(InvalidImageError, match=f"all {total} parts"):
            dicom_series.geometry_of(_parts(numbers, total))
