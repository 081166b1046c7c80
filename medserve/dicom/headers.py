"""What a node reads of a DICOM header, and what it may repeat in objects of its own."""

from __future__ import annotations

import logging
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from pydicom import Dataset, dcmread

from medserve.dicom.classes import is_result_class
from medserve.errors import InvalidImageError

__all__ = ["Facts", "is_uid", "quiet_libraries", "read_facts", "read_header"]

_READ = [
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("SeriesDescription", "ProtocolName", "BodyPartExamined", "ImageType", "Manufacturer"),
    *("PatientID", "PatientName", "PatientBirthDate", "SpecificCharacterSet"),
]
_IDENTITY = ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
_UID_LENGTH = 64


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What rules and ledger need to know of an object; it stays on the node's disk.

    Attributes:
        identity: Digest of patient and study: all images of a series have the same.
        is_result: Whether it is no image to work on: it comes from a model server, or is a
            segmentation, a report or a presentation state of anybody.
    """

    sop_uid: str
    sop_class: str
    study_uid: str
    series_uid: str
    identity: str
    modality: str = ""
    series_description: str = ""
    protocol: str = ""
    body_part: str = ""
    image_type: tuple[str, ...] = ()
    is_result: bool = False


def is_uid(text: str) -> bool:
    """Tell whether a text can be a unique identifier (PS3.5 9.1)."""
    return 0 < len(text) <= _UID_LENGTH and set(text) <= set("0123456789.")


def quiet_libraries() -> None:
    """Silence the logs and warnings of libraries: they name studies and quote headers."""
    for name in ("highdicom", "pydicom", "pynetdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")


def read_facts(path: Path) -> Facts:
    """Read a file's header up to its pixels.

    Raises:
        InvalidImageError: it is no DICOM, or lacks an identifier.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = dcmread(path, stop_before_pixels=True, specific_tags=list(_READ))
            return _facts(header)
    except OSError:
        raise
    except Exception:  # a parser of foreign bytes may raise anything, and quote the header
        raise InvalidImageError(
            "expected a whole DICOM object with its identifiers, got one that cannot be read; "
            "export it again"
        ) from None


def read_header(path: Path) -> Dataset:
    """Read all of a file's header but the pixels.

    Raises:
        InvalidImageError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dcmread(path, stop_before_pixels=True)
    except OSError:
        raise
    except Exception:
        raise InvalidImageError("expected a whole DICOM object, got a damaged one") from None


def _facts(header: Dataset) -> Facts:
    sop_class = _uid(header, "SOPClassUID")
    return Facts(
        sop_uid=_uid(header, "SOPInstanceUID"),
        sop_class=sop_class,
        study_uid=_uid(header, "StudyInstanceUID"),
        series_uid=_uid(header, "SeriesInstanceUID"),
        identity=_digest(header),
        modality=_text(header, "Modality"),
        series_description=_text(header, "SeriesDescription"),
        protocol=_text(header, "ProtocolName"),
        body_part=_text(header, "BodyPartExamined"),
        image_type=tuple(str(each) for each in _several(header.get("ImageType"))),
        is_result=is_result_class(sop_class) or _text(header, "Manufacturer") == "medserve",
    )


def _uid(header: Dataset, name: str) -> str:
    text = str(header[name].value).strip()
    if not is_uid(text):
        raise ValueError(name)
    return text


def _text(header: Dataset, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value).strip()


def _several(value: Any) -> tuple[Any, ...]:
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _digest(header: Dataset) -> str:
    return sha256("\n".join(_text(header, name) for name in _IDENTITY).encode()).hexdigest()[:16]
