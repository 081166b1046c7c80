"""A DICOM series -> Volume: zip, tar or tar.gz of files in any order, or one multi-frame file.

Slices are ordered by where they lie in the patient, never by name, number or time. The volume's
axes are: i along a row (columns of the image), j along a column (rows of the image), k across the
slices, towards row x column. The affine is made of ImageOrientationPatient, PixelSpacing and the
first and last ImagePositionPatient (PS3.3 C.7.6.2.1.1), turned from LPS to RAS. What the numbers
mean is told in `medserve.imaging.codecs.dicom_pixels`.

What is refused rather than guessed: any file that is no readable image (a DICOMDIR does not
count), several series or acquisitions of which none is chosen (`dicom_choice`), several
orientations, several images at one position, a gap (a slice missing at either end cannot be
noticed), uneven distances, gantry tilt.
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
from medserve.imaging.codecs import sniff
from medserve.imaging.codecs.dicom_choice import (
    Choice,
    one_acquisition,
    one_phase,
    one_series,
)
from medserve.imaging.codecs.dicom_file import (
    PIXEL_DATA,
    frame_count,
    is_dicom,
    is_directory,
    kind_without_pixels,
    read,
    stored_frames,
    surplus_frames,
    without_pixels,
)
from medserve.imaging.codecs.dicom_pixels import values_of
from medserve.imaging.codecs.dicom_planes import Plane, planes_of
from medserve.imaging.codecs.payload import Payload, quietly
from medserve.imaging.codecs.unpack import files_in, is_tar, is_zip, peek
from medserve.imaging.geometry import Geometry
from medserve.imaging.intensity import without_background
from medserve.imaging.volume import Volume, VolumeLimits, check_shape

__all__ = ["DicomVolume", "decode", "geometry_of", "recognises"]

# AppleDouble and .DS_Store of macOS, Thumbs.db of Windows: by content, names play no part.
_COMPANIONS = (b"\0\5\x16\7", b"\0\0\0\1Bud1", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
_CUT = "damaged or cut short"
_SURPLUS = "with more frames than stated"
_OF_ONE_PATIENT = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
)
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
    payload: Payload,
    limits: VolumeLimits | None = None,
    modalities: Collection[str] = (),
    select: str | None = None,
) -> DicomVolume:
    """One series as a volume of rescaled values (Hounsfield units in CT).

    Args:
        payload: A DICOM file, or a zip, tar or tar.gz of them and nothing else.
        limits: What is refused for its size.
        modalities: Values of Modality (0008,0060) that are accepted; all are where it is empty.
        select: Which of several series and acquisitions, as `dicom_choice.Choice` reads it.

    Raises:
        InvalidImageError: no DICOM images, damaged ones, or images that are not one volume.
        InvalidRequestError: a choice that cannot be read, or that takes no image.
        PayloadTooLargeError: above `limits`; known from headers, before pixels are decoded.
    """
    try:
        with quietly():
            choice = Choice.parse(select)
            return _decode(payload, limits or VolumeLimits(), modalities, choice)
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


def geometry_of(headers: Sequence[Dataset], select: str | None = None) -> Geometry:
    """Return the grid of the images of one series, given by headers without pixels.

    Args:
        headers: Of the images.
        select: Which of several acquisitions, as in `decode`.

    Raises:
        InvalidImageError: they are not one volume, or a slice within them is missing.
        InvalidRequestError: a choice that cannot be read, or that takes no image.
    """
    try:
        with quietly():
            _refuse_missing_parts(headers)
            return _geometry(_chosen_planes(headers, Choice.parse(select)))
    except MedserveError:
        raise
    except Exception:  # pydicom quotes values in what it raises
        raise InvalidImageError(
            "expected whole DICOM files, got some whose headers are damaged; export the series "
            "again"
        ) from None


def _decode(
    payload: Payload, limits: VolumeLimits, modalities: Collection[str], choice: Choice
) -> DicomVolume:
    datasets = _datasets(payload, limits, choice)
    _refuse_modality(datasets, modalities)
    planes = _chosen_planes(datasets, choice)
    rows, columns = planes[0].size
    check_shape((columns, rows, len(planes)), limits)
    used = {plane.source for plane in planes}
    unread = Counter(filter(None, (_miscounted(datasets[source]) for source in used)))
    _refuse_unread(unread, len(used) - unread.total())
    geometry = _geometry(planes)
    _refuse_foreign([datasets[source] for source in used])
    _refuse_missing_parts(datasets)
    array = _stack(planes, datasets)
    return DicomVolume(
        array,
        geometry,
        sources=tuple(_sources(planes, datasets)),
        frames=tuple(plane.frame for plane in planes),
    )


def _chosen_planes(headers: Sequence[Dataset], choice: Choice) -> list[Plane]:
    """Return the planes of one acquisition, sorted along their normal."""
    planes = one_acquisition(
        [plane for n, each in enumerate(headers) for plane in planes_of(each, n)], choice
    )
    _check_alike(planes)
    normal = planes[0].normal
    planes.sort(key=lambda plane: float(normal @ plane.position))
    return one_phase(planes, choice)


def _datasets(payload: Payload, limits: VolumeLimits, choice: Choice) -> list[Dataset]:
    """Return the images of one series; objects of series that were not chosen do not count.

    Raises:
        InvalidRequestError: none of several series was chosen.
        InvalidImageError: one file could not be read as an image, or there are several series.
    """
    if not payload:
        raise InvalidImageError("expected a DICOM series, got no bytes")
    if is_dicom(payload):
        files = iter((bytes(payload),))
    elif is_zip(payload) or is_tar(peek(payload)):
        files = files_in(payload, limits)
    else:
        raise InvalidImageError(
            "expected a DICOM series as zip, tar or one multi-frame file, got another kind of "
            "file; pack the series into a zip"
        )
    unread: Counter[str] = Counter()
    datasets: list[Dataset] = []
    others: list[Dataset] = []
    for content in files:
        if is_directory(content) or content.startswith(_COMPANIONS):
            continue  # a list of the images, and what desktops leave in folders
        dataset = _object(content)
        if isinstance(dataset, str):
            unread[dataset] += 1
        elif not choice.takes_series_of(dataset):
            others.append(without_pixels(dataset))
        elif reason := _why_no_image(dataset):
            unread[reason] += 1
        else:
            datasets.append(dataset)
    _refuse_unread(unread, len(datasets) + len(others))
    one_series(datasets, others)
    if not datasets:
        raise InvalidImageError(
            "expected DICOM images, got an archive without one; pack the series into a zip"
        )
    return datasets


def _refuse_unread(unread: Counter[str], images: int) -> None:
    """Files that were passed over would leave a hole, or a shorter volume."""
    if unread:
        listed = ", ".join(f"{count} {reason}" for reason, count in unread.most_common())
        raise InvalidImageError(
            f"expected the images of one DICOM series and nothing else, got {unread.total()} of "
            f"{unread.total() + images} files that are no readable image ({listed}); "
            "send the whole series again, without other files"
        )


def _object(content: bytes) -> Dataset | str:
    """The data set of a file, or why it cannot be read."""
    if not is_dicom(content):
        found = sniff.kind(content)
        return f"of another kind: {found.name}" if content else "empty"
    try:
        return read(content)
    except MedserveError:
        raise
    except Exception:  # a parser of hostile bytes may raise anything, and quote the header
        return _CUT


def _why_no_image(dataset: Dataset) -> str:
    """Tell why an object has no pixels; empty where it has."""
    if any(name in dataset for name in PIXEL_DATA):
        return ""
    return kind_without_pixels(dataset)


def _miscounted(dataset: Dataset) -> str:
    """Tell how pixel data hold fewer or more frames than stated; empty where they do not."""
    found = stored_frames(dataset)
    if found is not None and found < frame_count(dataset):
        return _CUT
    return _SURPLUS if surplus_frames(dataset) else ""


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


def _refuse_foreign(datasets: Sequence[Dataset]) -> None:
    """Refuse images of several patients or modalities, and several images of one identity."""
    for keyword in _OF_ONE_PATIENT:
        values = {str(each.get(keyword, "")) for each in datasets}
        if len(values) > 1:
            raise InvalidImageError(
                "expected images of one patient, study and frame of reference, got "
                f"{len(values)} values of {keyword}; send the images of one alone"
            )
    modalities = Counter(str(each.get("Modality", "")) for each in datasets)
    _refuse_mixture(modalities, "modality", "images")
    whites = Counter(str(each.get("PhotometricInterpretation", "")) for each in datasets)
    _refuse_mixture(whites, "photometric interpretation", "images")
    uids = {each.get("SOPInstanceUID", number) for number, each in enumerate(datasets)}
    if len(uids) < len(datasets):
        raise InvalidImageError(
            f"expected a SOP Instance UID of its own for each image, got {len(uids)} for "
            f"{len(datasets)} images; send each image once, as the scanner wrote it"
        )


def _refuse_missing_parts(datasets: Sequence[Dataset]) -> None:
    """Refuse a multi-frame image that was stored in parts, of which some are missing (C.7.6.16)."""
    parts: dict[str, set[int]] = {}
    stated: dict[str, int] = {}
    for each in datasets:
        if uid := str(each.get("ConcatenationUID") or ""):
            parts.setdefault(uid, set()).add(int(each.get("InConcatenationNumber") or 0))
            stated[uid] = int(each.get("InConcatenationTotalNumber") or 0)
    for uid, found in parts.items():
        if len(found) < stated[uid]:
            raise InvalidImageError(
                f"expected all {stated[uid]} parts of a concatenated image, got {len(found)}; "
                "send the whole series"
            )


def _check_alike(planes: Sequence[Plane]) -> None:
    """Refuse several sizes, orientations and pixel spacings."""
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
    rescaled = Counter(plane.is_rescaled for plane in planes)
    _refuse_mixture(rescaled, "unit, by a rescale in all slices or in none", "slices")


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
        if not planes[0].thickness:  # which is all that is known of a single slice
            raise InvalidImageError(
                "expected a slice that states its thickness, got one that does not, so that its "
                "volume is not known; send the whole series"
            )
        return normal * planes[0].thickness
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
    """Values (I, J, K) in the modality's unit, a view on slices in memory order (K, rows, columns).

    MONOCHROME1 is inverted, as a network knows it; background takes the smallest other value.
    """
    by_source: dict[int, list[tuple[int, Plane]]] = {}
    for k, plane in enumerate(planes):
        by_source.setdefault(plane.source, []).append((k, plane))
    shape = (len(planes), *planes[0].size)
    slices: npt.NDArray[Any] | None = None
    background: npt.NDArray[np.bool_] | None = None
    for source, members in by_source.items():
        dataset = datasets[source]
        is_inverted = str(dataset.PhotometricInterpretation) == "MONOCHROME1"
        for k, plane in members:
            values = values_of(dataset, plane.frame)
            array = values.inverted() if is_inverted else values.array
            slices = _holding(slices, array, shape)
            slices[k] = array
            if values.background is not None:
                background = np.zeros(shape, np.bool_) if background is None else background
                background[k] = values.background
        without_pixels(dataset)  # two copies of one series may not fit
    assert slices is not None  # there is at least one plane
    return without_background(slices, background).transpose(2, 1, 0)


def _holding(
    slices: npt.NDArray[Any] | None, array: npt.NDArray[Any], shape: tuple[int, int, int]
) -> npt.NDArray[Any]:
    """The slices in a type that holds the next one as well; float32 where one was rescaled."""
    if slices is None:
        return np.empty(shape, array.dtype)
    if np.can_cast(array.dtype, slices.dtype) or slices.dtype == np.float32:
        return slices
    is_rescaled = array.dtype == np.float32
    return slices.astype(np.float32 if is_rescaled else np.result_type(array, slices))


def _sources(planes: Sequence[Plane], datasets: Sequence[Dataset]) -> Sequence[Dataset]:
    """One header per slice in the order of k, or the only one of a multi-frame image."""
    if len(datasets) == 1:
        return datasets
    return [datasets[plane.source] for plane in planes]
