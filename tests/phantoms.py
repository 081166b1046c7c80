"""Computed test data: uneven sides and no symmetry, so that a swapped axis or a flip is seen."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

__all__ = [
    "PATIENT",
    "dicom_bytes",
    "dicom_dataset",
    "disc",
    "encoded",
    "ramp",
    "raster_bytes",
    "saved",
    "wedge",
]

PATIENT = "Doe^Jane"  # must never be seen in an error or a log line


def disc(height: int = 24, width: int = 40, value: int = 200) -> npt.NDArray[np.uint8]:
    """A bright disc (H, W) left of and above the centre, on a dark ground of 10."""
    rows, columns = np.mgrid[:height, :width]
    radius = min(height, width) / 4
    inside = (rows - height * 0.4) ** 2 + (columns - width * 0.3) ** 2 <= radius**2
    return np.where(inside, value, 10).astype(np.uint8)


def wedge(height: int = 24, width: int = 40) -> npt.NDArray[np.uint8]:
    """Grey (H, W) that no flip, rotation or transposition maps onto itself."""
    rows, columns = np.mgrid[:height, :width]
    return ((rows * 7 + columns * 3) % 256).astype(np.uint8)


def ramp(height: int = 24, width: int = 40, top: int = 4000) -> npt.NDArray[np.uint16]:
    """16-bit grey (H, W): 0 at the upper left to `top` at the lower right, row by row."""
    steps = np.linspace(0, top, height * width).round().reshape(height, width)
    return steps.astype(np.uint16)


def encoded(picture: pillow.Image, kind: str, **options: Any) -> bytes:
    """A Pillow picture as the bytes of a PNG, JPEG, TIFF, GIF …."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def raster_bytes(array: npt.NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """An array (H, W) or (H, W, 3|4) as the bytes of a picture file."""
    return encoded(pillow.fromarray(array), kind, **options)


def dicom_dataset(
    pixels: npt.NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **elements: Any
) -> Dataset:
    """A single-frame secondary capture of `pixels` (H, W) or (H, W, 3); `elements` override."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientName = PATIENT
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def dicom_bytes(
    pixels: npt.NDArray[Any], syntax: UID = ExplicitVRLittleEndian, **elements: Any
) -> bytes:
    """The same as a DICOM Part 10 file."""
    return saved(dicom_dataset(pixels, syntax, **elements))


def saved(dataset: Dataset) -> bytes:
    """A data set as the bytes of a DICOM Part 10 file."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
