"""Computed ultrasound frames: a grainy fan with a bright ellipse off the middle, and its files."""

from __future__ import annotations

import io
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from tests.phantoms import PATIENT

__all__ = [
    "as_nifti",
    "cine",
    "ellipse",
    "region",
    "saved",
    "scan",
    "ultrasound",
]

_DARK, _BRIGHT = 70.0, 190.0
_GRAIN = 9.0  # standard deviation in grey levels; frames stay on their side of 127.5


def ellipse(height: int = 48, width: int = 64, scale: float = 1.0) -> npt.NDArray[np.uint8]:
    """Mask (H, W): an ellipse left of and above the middle, with semi-axes 0.2 of each side."""
    rows, columns = np.mgrid[:height, :width]
    if scale <= 0:
        return np.zeros((height, width), dtype=np.uint8)
    y = (rows - 0.45 * (height - 1)) / (0.25 * scale * height)
    x = (columns - 0.4 * (width - 1)) / (0.2 * scale * width)
    return (x**2 + y**2 <= 1.0).astype(np.uint8)


def scan(
    height: int = 48, width: int = 64, scale: float = 1.0, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """A grainy frame (H, W): the ellipse is above 127.5 everywhere, the rest below."""
    grain = np.random.default_rng(seed).normal(0.0, _GRAIN, (height, width))
    grain = np.clip(grain, -4.0 * _GRAIN, 4.0 * _GRAIN)
    level = np.where(ellipse(height, width, scale) > 0, _BRIGHT, _DARK)
    return np.asarray(np.rint(level + grain), dtype=np.uint8)


def cine(frames: int = 7, height: int = 48, width: int = 64) -> npt.NDArray[np.uint8]:
    """Frames (N, H, W): the ellipse grows, is largest before the end, and is gone at both ends."""
    scales = np.sin(np.linspace(0.0, np.pi, frames) ** 1.2 / np.pi**0.2)
    scales[[0, -1]] = 0.0
    return np.stack([scan(height, width, scale, seed) for seed, scale in enumerate(scales)])


def region(delta_cm: tuple[float, float] = (0.02, 0.03), kind: int = 1, **elements: Any) -> Dataset:
    """A calibrated ultrasound region: centimetres a row, centimetres a column."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = 1, kind
    item.RegionFlags = 0
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3
    item.PhysicalDeltaY, item.PhysicalDeltaX = delta_cm
    item.RegionLocationMinX0 = item.RegionLocationMinY0 = 0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = 63, 47
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def ultrasound(
    pixels: npt.NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **elements: Any
) -> Dataset:
    """An ultrasound image of frames (N, H, W) or (N, H, W, 3), one or several."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    several = len(pixels) > 1
    kind = UltrasoundMultiFrameImageStorage if several else UltrasoundImageStorage
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["instance", str(len(pixels))])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    dataset.Modality = "US"
    dataset.PatientName, dataset.PatientID = PATIENT, "4711"
    dataset.StudyDate, dataset.StudyTime = "20200102", "030405"
    for name in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(dataset, name, "")
    dataset.ReferringPhysicianName = ""
    dataset.Rows, dataset.Columns = pixels.shape[1:3]
    colour = pixels.ndim == 4
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if several:
        dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def saved(dataset: Dataset) -> bytes:
    """As the bytes of a DICOM Part 10 file."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def as_nifti(array: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None = None) -> bytes:
    """A .nii of an array (I, J, K), by nibabel alone."""
    kind: Any = nibabel.Nifti1Image
    image = kind(array, np.eye(4) if affine is None else affine)
    content: bytes = image.to_bytes()
    return content
