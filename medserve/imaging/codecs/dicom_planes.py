"""The planes of DICOM images: where each lies in the patient, and what its numbers mean.

Classic images state one plane in their header (PS3.3 C.7.6.2); enhanced multi-frame images state
one for each frame in functional groups (PS3.3 C.7.6.16.2). Both become the same `Plane`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut

from medserve.errors import InvalidImageError
from medserve.imaging.codecs.jpeg_headers import check_codestreams

__all__ = ["Plane", "pixels_of", "planes_of", "read", "without_pixels"]

_PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PREAMBLE, _MAGIC = 128, b"DICM"  # PS3.10 section 7.1
_IMAGE_CLASS = "Image Storage"  # how the names of all classes with pixels end (PS3.6 annex A)
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # would expand to any size before its header is known


@dataclass(frozen=True)
class Plane:
    """One slice. Directions and positions are in the patient's LPS millimetres.

    Attributes:
        source: Which dataset it comes from.
        frame: Which of the frames there, from 0.
        size: Rows and columns.
        row: Unit vector along a row, towards rising column index.
        column: Unit vector along a column, towards rising row index.
        position: Centre of the first pixel.
        spacing: Distance between rows, distance between columns.
        thickness: Distance to the next slice as the header states it; 0 where it does not.
        slope: Of the rescale transformation, with `intercept`.
    """

    source: int
    frame: int
    size: tuple[int, int]
    row: npt.NDArray[np.float64]
    column: npt.NDArray[np.float64]
    position: npt.NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float
    slope: float
    intercept: float

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Unit vector across the plane; row, column and normal are right-handed."""
        return np.cross(self.row, self.column)


def read(payload: bytes) -> Dataset | None:
    """The dataset of a DICOM file with pixels; None for files of another kind.

    Raises:
        InvalidImageError: it begins as DICOM does, and is damaged, deflated or an image that has
            lost its pixels.
    """
    if payload[_PREAMBLE : _PREAMBLE + 4] != _MAGIC:
        return None
    if _DEFLATED in payload:
        raise InvalidImageError(
            "expected an uncompressed DICOM header, got a deflated one; "
            "convert it to Explicit VR Little Endian"
        )
    try:
        dataset = dcmread(io.BytesIO(payload))
        has_pixels = any(name in dataset for name in _PIXEL_DATA)
        is_image = str(dataset.file_meta.MediaStorageSOPClassUID.name).endswith(_IMAGE_CLASS)
    except Exception:  # a parser of hostile bytes may raise anything, and quote the header
        raise InvalidImageError(
            "expected whole DICOM files, got one whose header is damaged or cut short; "
            "export the series again"
        ) from None
    if is_image and not has_pixels:  # passed over, it would leave a hole or a shorter volume
        raise InvalidImageError(
            "expected whole DICOM files, got an image without its pixels; export the series again"
        )
    return dataset if has_pixels else None


def without_pixels(dataset: Dataset) -> Dataset:
    """The same dataset, lighter: headers are what an answer in DICOM needs of its source."""
    for name in _PIXEL_DATA:
        if name in dataset:
            delattr(dataset, name)
    return dataset


def planes_of(dataset: Dataset, source: int) -> list[Plane]:
    """Every plane of a grey image, in stored order.

    Raises:
        InvalidImageError: colour, or position, orientation or pixel spacing missing or unusable.
    """
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise InvalidImageError(
            "expected grey slices, got colour ones; send the original series, no screen captures"
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    groups: Sequence[Dataset] = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if frames > 1 and len(groups) != frames:
        raise InvalidImageError(
            f"expected a position for each of {frames} frames, got {len(groups)}; "
            "a cine loop is no volume"
        )
    try:
        if not groups:
            return [_plane(dataset, dataset, source, 0)]
        return [_plane(dataset, group, source, frame) for frame, group in enumerate(groups)]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise InvalidImageError(
            "expected slices that state their position, orientation and pixel spacing, got one "
            "that does not; send the original series"
        ) from None


def pixels_of(dataset: Dataset) -> npt.NDArray[Any]:
    """Stored values (frames, rows, columns), through the modality table where there is one.

    Raises:
        InvalidImageError: damaged, or compressed in a way that is not supported.
    """
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        raise InvalidImageError(
            "expected DICOM files that state their transfer syntax, got one that does not; "
            "save it as a DICOM Part 10 file"
        )
    try:
        decoder = get_decoder(syntax)
        is_readable = decoder.is_available
    except NotImplementedError:
        is_readable = False
    if not is_readable:
        raise InvalidImageError(
            "expected pixel data that are uncompressed, RLE, JPEG or JPEG 2000, got another "
            "compression; decompress the series first, for example with gdcmconv --raw"
        )
    try:
        check_codestreams(dataset, syntax)
        stored = decoder.as_array(dataset)[0]
        if "ModalityLUTSequence" in dataset:
            stored = apply_modality_lut(stored, dataset)
        return stored.reshape(-1, int(dataset.Rows), int(dataset.Columns))
    except Exception:  # a parser of hostile bytes may raise anything, and quote the header
        raise InvalidImageError(
            "expected whole DICOM files, got one whose pixel data are damaged or cut short; "
            "export the series again"
        ) from None


def _plane(dataset: Dataset, group: Dataset, source: int, frame: int) -> Plane:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]

    def element(name: str, macro: str) -> Any:
        for place in (group, shared):
            if place.get(macro):
                return place[macro][0].get(name)
        return dataset.get(name)

    orientation = _numbers(element("ImageOrientationPatient", "PlaneOrientationSequence"), 6)
    row, column = orientation[:3], orientation[3:]
    if not np.allclose((row @ row, column @ column, row @ column), (1, 1, 0), atol=1e-2):
        raise ValueError("directions are not perpendicular unit vectors")
    spacing = _numbers(element("PixelSpacing", "PixelMeasuresSequence"), 2)
    slope = element("RescaleSlope", "PixelValueTransformationSequence")
    intercept = element("RescaleIntercept", "PixelValueTransformationSequence")
    thickness = element("SpacingBetweenSlices", "PixelMeasuresSequence") or element(
        "SliceThickness", "PixelMeasuresSequence"
    )
    return Plane(
        source=source,
        frame=frame,
        size=(int(dataset.Rows), int(dataset.Columns)),
        row=row / np.linalg.norm(row),
        column=column / np.linalg.norm(column),
        position=_numbers(element("ImagePositionPatient", "PlanePositionSequence"), 3),
        spacing=(float(spacing[0]), float(spacing[1])),
        thickness=_number(thickness, 0.0),
        slope=_number(slope, 1.0),
        intercept=_number(intercept, 0.0),
    )


def _numbers(value: Any, count: int) -> npt.NDArray[np.float64]:
    numbers = np.array([float(each) for each in value], dtype=np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"expected {count} finite numbers")
    return numbers


def _number(value: Any, default: float) -> float:
    number = default if value in (None, "") else float(value)
    if not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number
