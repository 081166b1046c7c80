"""Make DICOM objects that are derived from images of a patient: identity, origin and bytes.

A source's header is repeated where it conforms to PS3.5 and left empty or out where it does not:
hospitals' headers lack elements, exceed lengths and name impossible dates, and an object that
repeats such values is refused by archives. Text is written as UTF-8 (ISO_IR 192) whatever the
source's character set is. Identifiers are repeated unchanged, for references must match.

The same answer, made twice, is the same object: times are those of the source, and the object's
own identifiers are computed from all of its other bytes.
"""

from __future__ import annotations

import hashlib
import io
import logging
from datetime import datetime
from typing import Any, TypedDict

from pydicom import DataElement, Dataset
from pydicom.charset import python_encoding
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import validate_value

from medserve.errors import InvalidImageError
from medserve.tasks.result import Provenance

__all__ = [
    "MANUFACTURER",
    "Identity",
    "finished",
    "identity",
    "incomplete",
    "repeatable",
    "tracking_uid",
]

MANUFACTURER = "medserve"

# Type 1: references and the place in the archive are made of them.
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# Type 2 of the modules Patient, General Study and Frame of Reference: there, but perhaps empty.
_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "PositionReferenceIndicator",
)
_OPTIONAL = (
    "IssuerOfPatientID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyDescription",
    "BodyPartExamined",
    "DeidentificationMethod",
    "PatientIdentityRemoved",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "Modality",
    "SeriesNumber",
    "Manufacturer",
    "ManufacturerModelName",
    "ContentDate",
    "ContentTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "SeriesDate",
    "SeriesTime",
)
_UNCHANGED = (
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SliceThickness",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_TIMES = ("Content", "Acquisition", "Series", "Study")
_NO_TIME = ("19000101", "000000")  # where the source states none, as after de-identification
_SEXES = ("", "M", "F", "O")  # PS3.3 C.7.1.1
_UTF_8 = "ISO_IR 192"
_LONG_STRING = 64  # characters of VR LO, PS3.5 section 6.2
_FIRST_SERIES_NUMBER = 1000  # above the numbers that scanners give
_PLACEHOLDER_UID = "2.25.0"

_LOG = logging.getLogger(__name__)


class Identity(TypedDict):
    """The arguments by which highdicom names an object, its series and its equipment."""

    series_instance_uid: str
    series_number: int
    series_description: str
    series_date: str
    series_time: str
    sop_instance_uid: str
    instance_number: int
    content_date: str
    content_time: str
    manufacturer: str
    manufacturer_model_name: str
    software_versions: str
    device_serial_number: str
    specific_character_set: str


def repeatable(header: Dataset) -> Dataset:
    """Return what a derived object repeats or refers to, as a header that conforms.

    Nothing of it is shared with `header` but sequences, which are not to be changed.

    Raises:
        InvalidImageError: an identifier is missing that references need.
    """
    repeated, emptied = Dataset(), []
    for keyword in _IDENTIFIERS:
        if not header.get(keyword):
            raise incomplete(keyword) from None
    for keyword in (*_IDENTIFIERS, *_UNCHANGED):
        if keyword in header:
            element = header[keyword]
            repeated.add(DataElement(element.tag, element.VR, element.value))
    for keyword in (*_REQUIRED, *_OPTIONAL):
        value = header.get(keyword)
        if value is not None and not _conforms(keyword, value, header):
            emptied.append(keyword)
            value = None
        if value is not None or keyword in _REQUIRED:
            repeated.add(DataElement(Tag(keyword), dictionary_VR(keyword), _as_text(value)))
    if "DeidentificationMethod" not in repeated and "PatientIdentityRemoved" in repeated:
        del repeated.PatientIdentityRemoved  # which a method has to follow, PS3.3 C.7.1.1
    if emptied:
        _LOG.warning("left out of a DICOM answer, for the source's value does not conform: %s",
                     ", ".join(emptied))  # fmt: skip
    return repeated


def incomplete(keyword: str | None = None) -> InvalidImageError:
    """Return the error of a source whose header lacks what a derived object must repeat."""
    lacking = "some that are not" if keyword is None else f"some without {keyword}"
    return InvalidImageError(
        f"expected DICOM headers complete enough to derive an object from, got {lacking}; "
        "send the original series, or ask for NIfTI"
    )


def identity(source: Dataset, provenance: Provenance) -> Identity:
    """Return how an object is named that is derived from a `repeatable` source.

    The two identifiers are placeholders, which `finished` replaces.
    """
    date, time = _time_of(source)
    of_source = int(source.get("SeriesNumber") or 0)
    name = f"{MANUFACTURER} {provenance.model} {provenance.version} (research use)"
    return Identity(
        series_instance_uid=_PLACEHOLDER_UID,
        series_number=_FIRST_SERIES_NUMBER + max(of_source, 0),
        series_description=name[:_LONG_STRING],
        series_date=date,
        series_time=time,
        sop_instance_uid=_PLACEHOLDER_UID,
        instance_number=1,
        content_date=date,
        content_time=time,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model,
        software_versions=provenance.version,
        device_serial_number=archive_of(provenance),
        specific_character_set=_UTF_8,
    )


def archive_of(provenance: Provenance) -> str:
    """Return the digest of the archive as 64 hexadecimal digits, the most that VR LO holds."""
    return provenance.archive_digest.rpartition(":")[2][:_LONG_STRING] or "unknown"


def tracking_uid(source: Dataset, label: str, provenance: Provenance) -> str:
    """Return the identifier of one structure as one archive finds it in one image or series."""
    archive = (provenance.model, provenance.version, provenance.archive_digest)
    return generate_uid(entropy_srcs=[str(source.SOPInstanceUID), *archive, label])


def finished(dataset: Dataset) -> bytes:
    """Return a derived object as a DICOM Part 10 file, after its identifiers were computed."""
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        if name in dataset:
            delattr(dataset, name)
    for item in dataset.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    _set_dimension_uid(dataset, _PLACEHOLDER_UID)
    digest = hashlib.sha256(_encoded(dataset)).hexdigest()
    _set_dimension_uid(dataset, generate_uid(entropy_srcs=["dimensions", digest]))
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series", digest])
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["instance", digest])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return _encoded(dataset)


def _conforms(keyword: str, value: Any, header: Dataset) -> bool:
    """Tell whether a value is allowed by PS3.5 section 6.2 and can be read with certainty."""
    if isinstance(value, MultiValue):
        several = dictionary_VM(keyword) != "1"
        return several and all(_conforms(keyword, each, header) for each in value)
    vr, text = dictionary_VR(keyword), str(value)
    if not text.isprintable() or "\ufffd" in text:  # pydicom's mark of bytes it cannot decode
        return False
    if not text.isascii() and not _character_set_is_known(header):
        return False
    try:
        validate_value(vr, text, RAISE)
        if vr == "DA" and text:
            datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return keyword != "PatientSex" or text in _SEXES


def _character_set_is_known(header: Dataset) -> bool:
    """Tell whether the header states how its text is encoded (PS3.3 C.12.1.1.2)."""
    stated = header.get("SpecificCharacterSet") or ()
    terms = (stated,) if isinstance(stated, str) else tuple(stated)
    return any(terms) and all(term in python_encoding for term in terms)


def _as_text(value: Any) -> Any:
    """Return a value without the encoding that it was read in."""
    if value is None:
        return None
    if isinstance(value, MultiValue):
        return [str(each) for each in value]
    return str(value)


def _time_of(source: Dataset) -> tuple[str, str]:
    """Return the date and time of the content that an object was derived from."""
    for name in _TIMES:
        date, time = str(source.get(f"{name}Date") or ""), str(source.get(f"{name}Time") or "")
        if date and time:
            return date, time
    return _NO_TIME


def _set_dimension_uid(dataset: Dataset, uid: str) -> None:
    def change(_: Dataset, element: DataElement) -> None:
        if element.keyword == "DimensionOrganizationUID":
            element.value = uid

    dataset.walk(change)


def _encoded(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
