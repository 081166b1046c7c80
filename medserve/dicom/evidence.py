"""Patient and study of an image, and what refers to it, for the reports and pictures of a node."""

from __future__ import annotations

from pydicom import Dataset

from medserve.results.files.dicom_derived import repeatable

__all__ = ["evidence_of"]

# Type 2 elements of the modules Patient and General Study (PS3.3 C.7.1.1, C.7.2.1).
_REPEATED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
_REFERRED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "FrameOfReferenceUID", "NumberOfFrames", "Rows", "Columns", "BurnedInAnnotation",
)  # fmt: skip


def evidence_of(header: Dataset) -> Dataset:
    """Return what an object of the same study repeats of a header, and what refers to the image.

    Elements that do not conform to PS3.5 are left empty; text is written in UTF-8 (ISO_IR 192).

    Raises:
        InvalidImageError: an identifier is missing that references need.
    """
    conformant = repeatable(header)
    found = Dataset()
    found.SpecificCharacterSet = "ISO_IR 192"
    for name in _REFERRED:
        if name in header:
            found[name] = header[name]
    for name in _REPEATED:
        setattr(found, name, str(conformant.get(name) or ""))
    return found
