"""A DICOM series -> Volume: zip, tar or tar.gz of files in any order, or one multi-frame file.

Slices are ordered by where they lie in the patient, never by name, number or time. The volume's
axes are: i along a row (columns of the image), j along a column (rows of the image), k across the
slices, towards row x column. The affine is made of ImageOrientationPatient, PixelSpacing and the
first and last ImagePositionPatient (PS3.3 C.7.6.2.1.1), turned from LPS to RAS.

What is refused rather than guessed: several series or orientations, several images at one
position, a gap (a slice missing at either end cannot be noticed), uneven distances, gantry tilt.
No element of a header is quoted in an error: headers carry names.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs.dicom_planes import Plane, pixels_of, planes_of, read, without_pixels
from medserve.imaging.codecs.payload import Payload, quietly
from medserve.imaging.codecs.unpack import files_in, is_tar, is_zip, peek
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits, check_shape

__all__ = ["DicomVolume", "decode", "geometry_of", "recognises"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_DIRECTION = 1e-3  # of unit vectors; headers round to 6 digits
_SAME_POSITION_MM = 1e-3
_STEP_TOLERANCE = 0.02  # of the median distance; tables move unevenly by less
_TILT_TOLERANCE_DEG = 0.3
_SIDEWAYS_TOLERANCE_MM = 0.1


@dataclass(frozen=True, eq=False)
class DicomVolume(Volume):
    """A volume that remembers the headers it came from, for an answer in DICOM.

    Attributes:
        sources: Headers without pixels: one for each slice in the order of axis k, or a single
            one of a multi-frame image. They identify the patient and belong into no log.
        frames: For each slice, its frame number (from 0) in its source.
    """

    sources: tuple[Dataset, ...] = field(repr=False)
    frames: tuple[int, ...]


def recognises(payload: Payload) -> bool:
    """Whether the bytes begin as a DICOM file, a zip or a tar does; nothing else is checked."""
    start = peek(payload)
    return start[128:132] == b"DICM" or is_zip(start) or is_tar(start)


def decode(
    payload: Payload, limits: VolumeLimits | None = None, modalities: Collection[str] = ()
) -> DicomVolume:
    """One series as a volume of rescaled values (Hounsfield units in CT).

    Args:
        payload: A DICOM file, or a zip, tar or tar.gz of them; other files in it are passed over.
        limits: What is refused for its size.
        modalities: Values of Modality (0008,0060) that are accepted; all are where it is empty.

    Raises:
        InvalidImageError: no DICOM images, damaged ones, or images that are not one volume.
        PayloadTooLargeError: above `limits`; known from headers, before pixels are decoded.
    """
    try:
        with quietly():
            return _decode(payload, limits or VolumeLimits(), modalities)
    except MedserveError:
        raise
    except MemoryError:
        raise PayloadTooLargeError(
            "expected a series that fits into memory, got a larger one; send a part of it"
        ) from None
    except Exception:  # pydicom quotes values in what it raises
        raise InvalidImageError(
            "expected whole DICOM files, got some that are damaged; export the series again"
        ) from None


def geometry_of(headers: Sequence[Dataset]) -> Geometry:
    """Return the grid of the images of one series, given by headers without pixels.

    Raises:
        InvalidImageError: they are not one volume, or a slice within them is missing.
    """
    try:
        with quietly():
            planes = [plane for n, each in enumerate(headers) for plane in planes_of(each, n)]
            _check_alike(planes)
            normal = planes[0].normal
            planes.sort(key=lambda plane: float(normal @ plane.position))
            return _geometry(planes)
    except MedserveError:
        raise
    except Exception:  # pydicom quotes values in what it raises
        raise InvalidImageError(
            "expected whole DICOM files, got some whose headers are damaged; export the series "
            "again"
        ) from None


def _decode(payload: Payload, limits: VolumeLimits, modalities: Collection[str]) -> DicomVolume:
    datasets = _datasets(payload, limits)
    _refuse_modality(datasets, modalities)
    _refuse_mixture(
        Counter(str(each.get("SeriesInstanceUID")) for each in datasets), "series", "images"
    )
    planes = [plane for n, each in enumerate(datasets) for plane in planes_of(each, n)]
    rows, columns = _check_alike(planes)
    check_shape((columns, rows, len(planes)), limits)
    normal = planes[0].normal
    planes.sort(key=lambda plane: float(normal @ plane.position))
    geometry = _geometry(planes)
    array = _stack(planes, datasets)
    return DicomVolume(
        array,
        geometry,
        sources=tuple(_sources(planes, datasets)),
        frames=tuple(plane.frame for plane in planes),
    )


def _datasets(payload: Payload, limits: VolumeLimits) -> list[Dataset]:
    if not payload:
        raise InvalidImageError("expected a DICOM series, got no bytes")
    if bytes(payload[128:132]) == b"DICM":
        files = iter((bytes(payload),))
    elif is_zip(payload) or is_tar(peek(payload)):
        files = files_in(payload, limits)
    else:
        raise InvalidImageError(
            "expected a DICOM series as zip, tar or one multi-frame file, got another kind of "
            "file; pack the series into a zip"
        )
    count, datasets = 0, []
    for content in files:
        count += 1
        dataset = read(content)
        if dataset is not None:
            datasets.append(dataset)
    if not datasets:
        raise InvalidImageError(
            f"expected DICOM images, got {count} files without one; pack the series into a zip"
        )
    return datasets


def _refuse_modality(datasets: Sequence[Dataset], accepted: Collection[str]) -> None:
    if accepted and any(each.get("Modality") not in accepted for each in datasets):
        raise InvalidImageError(
            f"expected a series of modality {' or '.join(sorted(accepted))}, got another one; "
            "send it to a model for its kind"
        )


def _refuse_mixture(counts: Counter[Any], kind: str, members: str) -> None:
    if len(counts) > 1:
        listed = ", ".join(str(count) for _, count in counts.most_common(8))
        more = ", ..." if len(counts) > 8 else ""
        raise InvalidImageError(
            f"expected one {kind}, got {len(counts)} (of {listed}{more} {members}); send one alone"
        )


def _check_alike(planes: Sequence[Plane]) -> tuple[int, int]:
    """One size, orientation and pixel spacing; rows and columns."""
    sizes = Counter(plane.size for plane in planes)
    _refuse_mixture(sizes, "size of slices", "slices")
    directions: list[npt.NDArray[np.float64]] = []
    groups: Counter[int] = Counter()
    for plane in planes:
        both = np.concatenate((plane.row, plane.column))
        near = (n for n, d in enumerate(directions) if np.abs(d - both).max() < _SAME_DIRECTION)
        group = next(near, len(directions))
        if group == len(directions):
            directions.append(both)
        groups[group] += 1
    _refuse_mixture(groups, "orientation of slices", "slices")
    spacings = Counter(tuple(round(mm, 4) for mm in plane.spacing) for plane in planes)
    _refuse_mixture(spacings, "pixel spacing", "slices")
    return planes[0].size


def _geometry(planes: Sequence[Plane]) -> Geometry:
    """The grid of planes that are sorted along their normal."""
    first = planes[0]
    lps = np.eye(4)
    lps[:3, 0] = first.row * first.spacing[1]
    lps[:3, 1] = first.column * first.spacing[0]
    lps[:3, 2] = _step(planes)
    lps[:3, 3] = first.position
    rows, columns = first.size
    return Geometry((columns, rows, len(planes)), _LPS_TO_RAS @ lps)


def _step(planes: Sequence[Plane]) -> npt.NDArray[np.float64]:
    """From one slice to the next, LPS mm; InvalidImageError where that is not one vector."""
    normal = planes[0].normal
    if len(planes) == 1:
        return normal * (planes[0].thickness or 1.0)  # its thickness is all that is known
    positions = np.array([plane.position for plane in planes])
    heights = (positions - positions[0]) @ normal
    _check_steps(np.diff(heights))
    across = positions - positions[0] - np.outer(heights, normal)
    tilt = math.degrees(math.atan2(float(np.linalg.norm(across[-1])), float(heights[-1])))
    if tilt > _TILT_TOLERANCE_DEG:
        raise InvalidImageError(
            f"expected slices stacked at a right angle, got a gantry tilt of {tilt:.1f} degrees; "
            "correct the tilt first, for example with dcm2niix"
        )
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    sideways = (
        positions - positions[0] - np.outer(heights / heights[-1], positions[-1] - positions[0])
    )
    if np.linalg.norm(sideways, axis=1).max() > _SIDEWAYS_TOLERANCE_MM:
        raise InvalidImageError(
            "expected slices in one straight stack, got slices that are shifted sideways; "
            "send one acquisition"
        )
    return np.asarray(step)


def _check_steps(steps: npt.NDArray[np.float64]) -> None:
    """Refuse several images at one place, gaps and uneven distances."""
    slices, places = len(steps) + 1, int(np.count_nonzero(steps > _SAME_POSITION_MM)) + 1
    if places < slices:
        raise InvalidImageError(
            f"expected one slice at each position, got {slices} slices at {places} positions "
            "(copies, echoes or phases); send one of each"
        )
    usual = float(np.median(steps))
    times = np.round(steps / usual)
    if np.abs(steps - times * usual).max() <= _STEP_TOLERANCE * usual * max(times.max(), 1):
        missing = int(times.sum()) - len(steps)
        if missing == 0:
            return
        raise InvalidImageError(
            f"expected slices {usual:.2f} mm apart, got {int((times > 1).sum())} gaps where "
            f"{missing} slices are missing; send the whole series"
        )
    raise InvalidImageError(
        f"expected slices at even distances, got {steps.min():.2f} to {steps.max():.2f} mm; "
        "send one series as it was acquired, or resample it"
    )


def _stack(planes: Sequence[Plane], datasets: Sequence[Dataset]) -> npt.NDArray[Any]:
    """Rescaled values (I, J, K), a view on slices in memory order (K, rows, columns)."""
    is_identity = all((plane.slope, plane.intercept) == (1.0, 0.0) for plane in planes)
    by_source: dict[int, list[tuple[int, Plane]]] = {}
    for k, plane in enumerate(planes):
        by_source.setdefault(plane.source, []).append((k, plane))
    slices: npt.NDArray[Any] | None = None
    for source, members in by_source.items():
        frames = pixels_of(datasets[source])
        without_pixels(datasets[source])  # two copies of one series may not fit
        if slices is None:
            dtype = frames.dtype if is_identity else np.dtype(np.float32)
            slices = np.empty((len(planes), *planes[0].size), dtype=dtype)
        if is_identity and not np.can_cast(frames.dtype, slices.dtype):
            slices = slices.astype(np.result_type(frames.dtype, slices.dtype))
        for k, plane in members:
            values = frames[plane.frame]
            slices[k] = values if is_identity else values * plane.slope + plane.intercept
    assert slices is not None  # there is at least one plane
    return slices.transpose(2, 1, 0)


def _sources(planes: Sequence[Plane], datasets: Sequence[Dataset]) -> Sequence[Dataset]:
    """One header per slice in the order of k, or the only one of a multi-frame image."""
    if len(datasets) == 1:
        return datasets
    return [datasets[plane.source] for plane in planes]
