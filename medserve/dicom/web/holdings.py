"""What a node holds, as QIDO-RS finds it (PS3.18 10.6): read from the headers of stored objects."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.tag import Tag

from medserve.dicom.headers import read_header
from medserve.dicom.spool import Spool, Stored
from medserve.errors import InvalidImageError, InvalidRequestError

__all__ = ["Level", "Query", "header_json", "search"]

_STUDY = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName",
    "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
)  # fmt: skip
_SERIES = ("Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber")
_INSTANCE = (
    "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated",
    "NumberOfFrames",
)  # fmt: skip
_MATCHED = frozenset((*_STUDY, *_SERIES, *_INSTANCE))
_DATES = frozenset(("StudyDate", "PatientBirthDate"))
_OWN = frozenset(("limit", "offset", "fuzzymatching", "includefield"))
_MOST = 1000  # of one answer
_BULK = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))


class Level(enum.StrEnum):
    """What a search finds; the column of the spool that tells one from another."""

    STUDY = "study"
    SERIES = "series"
    INSTANCE = "sop_uid"


_SHOWN = {
    Level.STUDY: _STUDY,
    Level.SERIES: (*_STUDY[:1], "StudyInstanceUID", *_SERIES),
    Level.INSTANCE: ("StudyInstanceUID", "SeriesInstanceUID", *_INSTANCE),
}


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Attributes:
        keys: Value by keyword; `*` and `?` are wildcards, dates may be a range.
        included: Keywords to show beside those of the level.
        limit: The most results, of which `offset` are passed over.
    """

    keys: Mapping[str, str]
    included: Sequence[str] = ()
    limit: int = 100
    offset: int = 0

    @classmethod
    def read(cls, parameters: Sequence[tuple[str, str]]) -> Query:
        """Read the query of a URL.

        A key that is not known is refused: were it ignored, the images of others would be found.

        Raises:
            InvalidRequestError: names what is known.
        """
        keys, included, numbers = {}, [], {"limit": 100, "offset": 0}
        for name, value in parameters:
            if name in numbers:
                numbers[name] = _number(name, value)
            elif name == "includefield":
                included += [each for part in value.split(",") if (each := _keyword(part))]
            elif name not in _OWN:
                keyword = _keyword(name)
                if keyword == "ModalitiesInStudy":
                    keyword = "Modality"
                if keyword not in _MATCHED:
                    known = ", ".join(sorted(_MATCHED))
                    raise InvalidRequestError(f"expected keys out of {known}; got another one")
                if value:
                    keys[keyword] = value
        return cls(keys, tuple(included), min(numbers["limit"], _MOST), numbers["offset"])

    def fits(self, header: Dataset, modalities: Sequence[str]) -> bool:
        """Tell whether an object has the values; of modalities it may have several."""
        return all(
            any(
                _matches(name, each, value)
                for each in (modalities if name == "Modality" else [header.get(name)])
            )
            for name, value in self.keys.items()
        )


def search(
    spool: Spool, level: Level, within: Mapping[str, str], query: Query
) -> list[dict[str, Any]]:
    """Return what is found, in the JSON model of DICOM (PS3.18 annex F)."""
    found = _found(spool, level, within, query)
    return list(islice(found, query.offset, query.offset + query.limit))


def header_json(header: Dataset) -> dict[str, Any]:
    """Return a header in the JSON model, without pixels and other bulk data."""
    for element in list(header):
        if element.VR in _BULK:
            del header[element.tag]
    return _json(header)


def _found(
    spool: Spool, level: Level, within: Mapping[str, str], query: Query
) -> Iterator[dict[str, Any]]:
    for group in spool.stored(level, within):
        try:
            header = read_header(group.path)
        except (OSError, InvalidImageError):
            continue  # deleted meanwhile
        modalities = [str(header.get("Modality", ""))]
        if level is Level.STUDY and group.series > 1:
            modalities = _modalities(spool, str(header.StudyInstanceUID))
        if query.fits(header, modalities):
            yield _described(header, level, group, query.included, modalities)


def _modalities(spool: Spool, study: str) -> list[str]:
    found = set()
    for series in spool.stored(Level.SERIES, {Level.STUDY: study}):
        with contextlib.suppress(OSError, InvalidImageError):
            found.add(str(read_header(series.path).get("Modality", "")))
    return sorted(found)


def _described(
    header: Dataset,
    level: Level,
    group: Stored,
    included: Sequence[str],
    modalities: Sequence[str],
) -> dict[str, Any]:
    shown = Dataset()
    for name in (*_SHOWN[level], *included):
        if name in header and header[name].VR not in _BULK:
            shown[name] = header[name]
    shown.InstanceAvailability = "ONLINE"
    if level is Level.STUDY:
        shown.NumberOfStudyRelatedSeries = group.series
        shown.NumberOfStudyRelatedInstances = group.objects
        shown.ModalitiesInStudy = list(modalities)
    if level is Level.SERIES:
        shown.NumberOfSeriesRelatedInstances = group.objects
    return _json(shown)


def _json(dataset: Dataset) -> dict[str, Any]:
    dataset.pop("SpecificCharacterSet", None)  # JSON is UTF-8
    content: dict[str, Any] = dataset.to_json_dict(suppress_invalid_tags=True)
    return content


def _matches(name: str, found: Any, wanted: str) -> bool:
    if name.endswith("UID"):
        return str(found or "") in wanted.replace("\\", ",").split(",")
    text = str(found or "").strip()
    if name in _DATES and "-" in wanted:
        first, _, last = wanted.partition("-")
        return bool(text) and first <= text <= (last or "9")
    return fnmatchcase(text.lower(), wanted.lower().replace("[", "[[]"))


def _keyword(name: str) -> str:
    """Return the keyword of an element that is given by it or by its tag, "" of no other."""
    if tag_for_keyword(name) is not None:
        return name
    try:
        return keyword_for_tag(Tag(int(name, 16)))
    except (ValueError, OverflowError):
        return ""


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise InvalidRequestError(f"{name}: expected a number from 0, got something else")
    return int(value)
