"""Files of synthetic images, each marked as such where its format has a place for it.

    PNG     text chunks Synthetic, Source, Settings
    NPZ     arrays images, seeds, labels, and a text `synthetic`
    NIfTI   the header's `descrip` and an extension with a comment
    DICOM   Synthetic Data YES, Conversion Type SYN, Image Type SYNTHETIC, names and comments

The same samples give the same bytes: no file states when it was written.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidRequestError
from medserve.results.sample import Sample

__all__ = ["NOTICE", "encode_dicom", "encode_nifti", "encode_npz", "encode_png", "pixels_of_png"]

NOTICE = "SYNTHETIC: made by a generative model; shows no real person; not for diagnosis"

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DESCRIPTION_BYTES = 79  # of NIfTI's descrip, which ends with a zero byte
_COMMENT = 6  # code of a NIfTI extension that holds plain text


def encode_png(sample: Sample) -> bytes:
    """One image as PNG."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    for key, text in (
        ("Synthetic", NOTICE),
        ("Source", _source(sample)),
        ("Settings", sample.settings),
    ):
        texts.add_itxt(key, text)
    buffer = io.BytesIO()
    Image.fromarray(sample.image).save(buffer, "PNG", pnginfo=texts)
    return buffer.getvalue()


def pixels_of_png(png: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of a PNG that `encode_png` wrote, uint8 (H, W) or (H, W, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        if picture.mode not in ("L", "RGB"):
            raise ValueError(f"expected 8 bits of grey or colour, got mode {picture.mode}")
        return np.asarray(picture, dtype=np.uint8)


def encode_npz(samples: Sequence[Sample]) -> bytes:
    """All images of one size as NumPy arrays, images uint8 (N, H, W) or (N, H, W, 3)."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=np.stack([each.image for each in samples]),
        seeds=np.array([each.seed for each in samples], dtype=np.int64),
        labels=np.array([each.label for each in samples], dtype=np.str_),
        synthetic=np.array(NOTICE),
        source=np.array(_source(samples[0])),
        settings=np.array([each.settings for each in samples], dtype=np.str_),
    )
    return buffer.getvalue()


def encode_nifti(samples: Sequence[Sample]) -> bytes:
    """All grey images as the slices of one stack (.nii.gz), voxels of 1 mm for want of a size.

    They are independent pictures, not neighbours in one head. Columns run to the left and rows to
    the back, as axial slices are shown.
    """
    import nibabel as nib

    stack = np.stack([each.image for each in samples])  # (N, H, W)
    if stack.ndim != 3:
        raise InvalidRequestError(
            "params: format: expected one for colour images, got nifti; ask for png, npz or dicom"
        )
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    image = nib.Nifti1Image(np.ascontiguousarray(stack.T), affine)  # type: ignore[no-untyped-call]
    header = image.header
    header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    header["descrip"] = f"SYNTHETIC {_source(samples[0])}"[:_DESCRIPTION_BYTES].encode("ascii")
    comment = "\n".join([NOTICE, _source(samples[0]), *(each.settings for each in samples)])
    header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, comment.encode("utf-8")))
    return gzip.compress(image.to_bytes(), mtime=0)


def encode_dicom(sample: Sample) -> bytes:
    """One image as DICOM Secondary Capture (PS3.3 A.8.1); its UIDs follow from its settings."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_SECONDARY_CAPTURE)
    meta.MediaStorageSOPInstanceUID = UID(_uid(sample, "instance"))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    for keyword, value in {**_about(sample), **_pixels(sample)}.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _about(sample: Sample) -> dict[str, Any]:
    """Who and what: nobody, and a synthetic image. Empty values are of type 2."""
    source = sample.provenance
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["DERIVED", "SECONDARY", "SYNTHETIC"],
        "SyntheticData": "YES",
        "SOPClassUID": _SECONDARY_CAPTURE,
        "SOPInstanceUID": _uid(sample, "instance"),
        "StudyDate": "",
        "StudyTime": "",
        "AccessionNumber": "",
        "Modality": "OT",
        "ConversionType": "SYN",
        "Manufacturer": "medserve",
        "ManufacturerModelName": source.model,
        "SoftwareVersions": source.version,
        "ReferringPhysicianName": "",
        "SeriesDescription": f"SYNTHETIC {source.model}"[:64],
        "PatientName": "SYNTHETIC",
        "PatientID": "SYNTHETIC",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": _uid(sample, "study"),
        "SeriesInstanceUID": _uid(sample, "series"),
        "StudyID": "",
        "SeriesNumber": 1,
        "InstanceNumber": 1,
        "PatientOrientation": "",
        "BurnedInAnnotation": "NO",
        "ImageComments": f"{NOTICE}. {_source(sample)}. {sample.settings}",
    }


def _pixels(sample: Sample) -> dict[str, Any]:
    rows, columns = sample.image.shape[:2]
    colour = sample.image.ndim == 3
    pixels = sample.image.tobytes()
    return {
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        **({"PlanarConfiguration": 0} if colour else {}),
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": pixels + bytes(len(pixels) % 2),  # an even number of bytes
    }


def _uid(sample: Sample, what: str) -> str:
    from pydicom.uid import generate_uid

    own = {"study": "", "series": "", "instance": sample.settings}[what]
    return str(generate_uid(entropy_srcs=["medserve synthetic", what, _source(sample), own]))


def _source(sample: Sample) -> str:
    source = sample.provenance
    return f"{source.model} {source.version} {source.archive_digest}".strip()
