"""The planes of DICOM images: where each lies in the patient, and what its numbers mean.

Classic images state one plane in their header (PS3.3 C.7.6.2); enhanced multi-frame images state
one for each frame in functional groups (PS3.3 C.7.6.16.2). Both become the same `Plane`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medserve.errors import InvalidImageError
from medserve.imaging.codecs.dicom_file import frame_count
from medserve.imaging.codecs.dicom_pixels import group
from medserve.imaging.codecs.dicom_traits import moments_of, traits_of

__all__ = ["Plane", "planes_of"]

_GREY = ("MONOCHROME1", "MONOCHROME2")


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
        is_rescaled: Whether the header states how stored numbers become the modality's unit.
        traits: What tells it from other acquisitions of its series, as text, in the order of
            `dicom_traits.TRAITS`; empty where the header does not say.
        moments: When it was taken, in the order of `dicom_traits.MOMENTS`; NaN where it is not
            stated.
    """

    source: int
    frame: int
    size: tuple[int, int]
    row: npt.NDArray[np.float64]
    column: npt.NDArray[np.float64]
    position: npt.NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float
    is_rescaled: bool
    traits: tuple[str, ...]
    moments: tuple[float, ...]

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Unit vector across the plane; row, column and normal are right-handed."""
        return np.cross(self.row, self.column)


def planes_of(dataset: Dataset, source: int) -> list[Plane]:
    """Every plane of a grey image, in stored order.

    Raises:
        InvalidImageError: colour, a mosaic, or position, orientation or pixel spacing missing or
            unusable.
    """
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise InvalidImageError(
            "expected grey slices, got colour ones; send the original series, no screen captures"
        )
    if str(dataset.get("PhotometricInterpretation")) not in _GREY:
        raise InvalidImageError(
            "expected grey slices (MONOCHROME1 or MONOCHROME2), got another photometric "
            "interpretation; send the original series"
        )
    if "MOSAIC" in (dataset.get("ImageType") or ()):
        raise InvalidImageError(
            "expected one slice an image, got a mosaic, which shows many side by side; unpack it "
            "first, for example with dcm2niix"
        )
    frames = frame_count(dataset)
    groups: Sequence[Dataset] = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if frames > 1 and len(groups) != frames:
        raise InvalidImageError(
            f"expected a position for each of {frames} frames, got {len(groups)}; "
            "a cine loop is no volume"
        )
    try:
        return [_plane(dataset, source, frame) for frame in range(frames)]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise InvalidImageError(
            "expected slices that state their position, orientation and pixel spacing, got one "
            "that does not; send the original series"
        ) from None


def _plane(dataset: Dataset, source: int, frame: int) -> Plane:
    def element(name: str, macro: str) -> Any:
        return group(dataset, frame, macro, name).get(name)

    orientation = _numbers(element("ImageOrientationPatient", "PlaneOrientationSequence"), 6)
    row, column = orientation[:3], orientation[3:]
    if not np.allclose((row @ row, column @ column, row @ column), (1, 1, 0), atol=1e-2):
        raise ValueError("directions are not perpendicular unit vectors")
    spacing = _numbers(element("PixelSpacing", "PixelMeasuresSequence"), 2)
    if min(spacing) < 0:
        raise ValueError("distances are negative")
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
        thickness=abs(_number(thickness, 0.0)),  # negative ones state a direction of counting
        is_rescaled=element("RescaleSlope", "PixelValueTransformationSequence") is not None
        or "ModalityLUTSequence" in dataset,
        traits=traits_of(dataset, frame),
        moments=moments_of(dataset, frame),
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
