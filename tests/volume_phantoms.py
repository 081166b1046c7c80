"""Computed volumes with known answers: anisotropic, asymmetric and, on request, oblique.

The same volumes as DICOM: `dicom_slices` and `enhanced_dicom` write what `dicom_series` reads.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume

SHAPE = (14, 11, 9)  # three different sides, so that a swapped axis cannot go unnoticed
SPACING_MM = (0.8, 1.1, 2.3)


def rotation(angles: Sequence[float]) -> npt.NDArray[np.float64]:
    """Rotation matrix (3, 3) by `angles` (radians) about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
        matrix = turn @ matrix
    return matrix


def oblique(shape: Sequence[int] = SHAPE, spacing_mm: Sequence[float] = SPACING_MM) -> Geometry:
    """A rotated, mirrored, shifted grid: nothing about it is a default."""
    affine = np.eye(4)
    affine[:3, :3] = rotation((0.3, -0.2, 0.5)) @ np.diag((-1, 1, 1)) @ np.diag(spacing_mm)
    affine[:3, 3] = (-31.5, 12.25, 87.0)
    return Geometry((shape[0], shape[1], shape[2]), affine)


def world_grid(geometry: Geometry) -> npt.NDArray[np.float64]:
    """World position of every voxel, (I, J, K, 3)."""
    return geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))


def ball(geometry: Geometry, centre_mm: npt.ArrayLike, radius_mm: float) -> Volume:
    """float32 1 inside the ball, falling to 0 over one millimetre at its surface, 0 outside."""
    distance = np.linalg.norm(world_grid(geometry) - np.asarray(centre_mm), axis=-1)
    inside = np.clip(radius_mm - distance + 0.5, 0.0, 1.0)
    return Volume(inside.astype(np.float32), geometry)


def ramp(geometry: Geometry, dtype: npt.DTypeLike = np.int16) -> Volume:
    """Every voxel has a value of its own: its position in C order."""
    size = int(np.prod(geometry.shape))
    return Volume(np.arange(size).reshape(geometry.shape).astype(dtype), geometry)


def centre_of_mass_mm(
    array: npt.NDArray[np.generic], geometry: Geometry
) -> npt.NDArray[np.float64]:
    """World position of the weighted mean of all voxels."""
    weights = np.asarray(array, dtype=np.float64)
    return np.asarray(np.tensordot(weights, world_grid(geometry), axes=3) / weights.sum())


@st.composite
def geometries(
    draw: st.DrawFn,
    smallest: int = 3,
    largest: int = 12,
    spacing_mm: tuple[float, float] = (0.3, 4.0),
) -> Geometry:
    """Grids of any axis order, mirroring, rotation, spacing and position."""
    shape = [draw(st.integers(smallest, largest)) for _ in range(3)]
    spacing = [draw(st.floats(*spacing_mm)) for _ in range(3)]
    angles = [draw(st.floats(-0.4, 0.4)) for _ in range(3)]
    axes = draw(st.sampled_from(list(itertools.permutations(range(3)))))
    signs = [draw(st.sampled_from((-1.0, 1.0))) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) @ np.eye(3)[:, axes] @ np.diag(np.multiply(spacing, signs))
    affine[:3, 3] = [draw(st.floats(-200.0, 200.0)) for _ in range(3)]
    return Geometry((shape[0], shape[1], shape[2]), affine)


def lps_affine(geometry: Geometry) -> npt.NDArray[np.float64]:
    """The affine in DICOM's patient axes."""
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine)


def dicom_slices(volume: Volume, series: str = "1", **elements: object) -> list[Dataset]:
    """One MR image for each k of an int16 volume: i runs along a row, j along a column."""
    return [_slice(volume, k, series, elements) for k in range(volume.geometry.shape[2])]


def enhanced_dicom(volume: Volume, order: Sequence[int]) -> Dataset:
    """One enhanced multi-frame MR image, its frames stored in the given order of k."""
    first = _slice(volume, 0, "1", {})
    shared = Dataset()
    shared.PlaneOrientationSequence = [_only(first, "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [_only(first, "PixelSpacing", "SliceThickness")]
    frames = []
    for k in order:
        group, content = Dataset(), Dataset()
        group.PlanePositionSequence = [_only(_slice(volume, k, "1", {}), "ImagePositionPatient")]
        rescale = Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = "2", "-10", "US"
        group.PixelValueTransformationSequence = [rescale]
        content.DimensionIndexValues = [k + 1]
        group.FrameContentSequence = [content]
        frames.append(group)
    for name in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        delattr(first, name)
    first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    first.SharedFunctionalGroupsSequence = [shared]
    first.PerFrameFunctionalGroupsSequence = frames
    first.NumberOfFrames = len(frames)
    first.PixelData = b"".join(volume.array[:, :, k].T.astype("<i2").tobytes() for k in order)
    return first


def two_echoes(volume: Volume, order: Sequence[int]) -> Dataset:
    """The volume twice in one enhanced image: echo time 30, and 500 brighter echo time 60.

    Args:
        volume: Slices (I, J, K) of the first echo.
        order: Stored order of the frames 0 to 2K - 1; those of the second echo follow the first.
    """
    count = volume.geometry.shape[2]
    both = np.concatenate([volume.array, volume.array + 500], axis=2)
    dataset = enhanced_dicom(Volume(both, Geometry(both.shape, volume.geometry.affine)), order)
    for k, item in zip(order, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        place, echo = _slice(volume, k % count, "1", {}), Dataset()
        item.PlanePositionSequence[0].ImagePositionPatient = place.ImagePositionPatient
        echo.EffectiveEchoTime = 30.0 if k < count else 60.0
        item.MREchoSequence = [echo]
    return dataset


def as_bytes(dataset: Dataset) -> bytes:
    """A DICOM Part 10 file."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def zipped(files: Iterable[bytes], names: Sequence[str] = ()) -> bytes:
    """A zip of files, by default named against their order."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for n, content in enumerate(files):
            archive.writestr(names[n] if names else f"IM{999 - n}", content)
    return stream.getvalue()


def _only(dataset: Dataset, *names: str) -> Dataset:
    part = Dataset()
    for name in names:
        setattr(part, name, dataset[name].value)
    return part


def _slice(volume: Volume, k: int, series: str, elements: dict[str, object]) -> Dataset:
    geometry, affine = volume.geometry, lps_affine(volume.geometry)
    directions = affine[:3, :3] / geometry.spacing_mm
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    uid = generate_uid(entropy_srcs=[series, str(k)])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", series])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Secret^Name", "S1", ""
    dataset.PatientSex, dataset.StudyID, dataset.AccessionNumber = "", "1", ""
    dataset.StudyDate = dataset.StudyTime = dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "MR", 1, 100 - k
    dataset.PositionReferenceIndicator = None
    dataset.Manufacturer = ""
    dataset.ImageOrientationPatient = [f"{v:.13f}" for v in directions[:, :2].T.ravel()]
    dataset.ImagePositionPatient = [f"{v:.9f}" for v in affine[:3] @ (0, 0, k, 1)]
    dataset.PixelSpacing = [geometry.spacing_mm[1], geometry.spacing_mm[0]]
    dataset.SliceThickness = geometry.spacing_mm[2]
    dataset.Columns, dataset.Rows = geometry.shape[0], geometry.shape[1]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = volume.array[:, :, k].T.astype("<i2").tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    # Through bytes, as every reader gets it: decimal strings are rounded to what a file can hold.
    return dcmread(io.BytesIO(as_bytes(dataset)))
