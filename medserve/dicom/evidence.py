"""Patient and study of an image, and objects of a node that repeat them: reports and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medserve.results.files.dicom_derived import MANUFACTURER, repeatable
from medserve.tasks.result import Provenance

__all__ = ["evidence_of", "new_object", "references"]

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


def new_object(evidence: Dataset, sop_class: str, provenance: Provenance) -> Dataset:
    """Return an object of the same patient and study, made now by a model; it has no identifier."""
    dataset = Dataset()
    for name in ("SpecificCharacterSet", "StudyInstanceUID", *_REPEATED):
        dataset[name] = evidence[name]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = provenance.model
    dataset.SoftwareVersions = provenance.version
    now = datetime.now(UTC)
    dataset.ContentDate, dataset.ContentTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    return dataset


def references(evidence: Sequence[Dataset]) -> Dataset:
    """Return an item that refers to objects of one study, by their series (PS3.3 table 10-4)."""
    by_series: dict[str, list[Dataset]] = {}
    for each in evidence:
        item = Dataset()
        item.ReferencedSOPClassUID = each.SOPClassUID
        item.ReferencedSOPInstanceUID = each.SOPInstanceUID
        by_series.setdefault(str(each.SeriesInstanceUID), []).append(item)
    study = Dataset()
    study.StudyInstanceUID, series = evidence[0].StudyInstanceUID, []
    for uid, items in by_series.items():
        of_series = Dataset()
        of_series.SeriesInstanceUID, of_series.ReferencedSOPSequence = uid, items
        series.append(of_series)
    study.ReferencedSeriesSequence = series
    return study
