"""Patient and study of an image, as an object that is derived from it may repeat them.

Headers come with elements that are missing, too long or of another format than PS3.5 allows. An
object that repeated them would be refused or misread; what is conformant is repeated, and the rest
is empty. Text is written in UTF-8 (ISO_IR 192) whatever it came in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pydicom import Dataset

__all__ = ["evidence_of"]

_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")


def _date(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return len(text) == 8


def _text(length: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= length and text.isprintable() and "\\" not in text


def _name(text: str) -> bool:
    groups = text.split("=")
    return len(groups) <= 3 and all(
        len(group) <= 64 and group.count("^") <= 4 and group.isprintable() for group in groups
    )


# Type 2 elements of the modules Patient and General Study (PS3.3 C.7.1.1, C.7.2.1).
_REPEATED: dict[str, Callable[[str], bool]] = {
    "PatientName": _name,
    "PatientID": _text(64),
    "PatientBirthDate": _date,
    "PatientSex": lambda text: text in ("M", "F", "O"),
    "StudyDate": _date,
    "StudyTime": lambda text: _TIME.fullmatch(text) is not None,
    "ReferringPhysicianName": lambda text: False,  # nothing needs it
    "StudyID": _text(16),
    "AccessionNumber": _text(16),
}
_REFERRED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "FrameOfReferenceUID", "NumberOfFrames", "Rows", "Columns", "BurnedInAnnotation",
)  # fmt: skip


def evidence_of(header: Dataset) -> Dataset:
    """Return what an object of the same study repeats of a header, and what refers to the image."""
    header.decode()
    found = Dataset()
    found.SpecificCharacterSet = "ISO_IR 192"
    for name in _REFERRED:
        if name in header:
            found[name] = header[name]
    for name, is_conformant in _REPEATED.items():
        value = _read(header, name)
        setattr(found, name, value if is_conformant(value) else "")
    return found


def _read(header: Dataset, name: str) -> str:
    try:
        value: Any = header.get(name)
    except Exception:  # bytes that are no text in the character set that is stated
        return ""
    return "" if value is None or "�" in str(value) else str(value).strip()
