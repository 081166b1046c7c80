"""What a visitor takes home: a table, the same as JSON, and the files sorted into folders.

The folders are those of `medserve sort`: one per class, `_none/` and `_several/` where labels are
independent, `_review/` for what a person should look at, `_errors/` for what is no usable image. A
class that a person chose wins. The zip is written while it is sent; nothing is compressed, for
images are already.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import time
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import msgspec

from medserve.errors import MedserveError, ServerFailedError
from medserve.gateway.faces.page.jobs import Item, Job, Status
from medserve.results.sorted_folders import (
    CORRECTIONS,
    ERRORS,
    MANIFEST,
    NONE,
    REVIEW,
    SEVERAL,
    Correction,
    correction_rows,
    csv_cell,
    csv_path,
    folder_name,
    folder_of_labels,
    found_cells,
)
from medserve.tasks.classification import Classification, read_finding
from medserve.tasks.regression import Regression

__all__ = [
    "bundle",
    "places",
    "plain_name",
    "time_said",
    "title",
    "to_corrections",
    "to_csv",
    "to_json",
    "zipped",
]

_TAIL = ("model", "version", "archive_digest", "error")
_FIELDS = (
    *("source", "stored", "sha256", "class", "class_id", "probability", "status"),
    *("predicted_class", "predicted_class_id", "corrected", "corrected_by", "corrected_at"),
    *_TAIL,
)
_VALUE_HEAD = ("source", "sha256", "status", "doubts")
_CHUNK_BYTES = 2**18
_LONGEST_NAME = 200  # bytes; file systems take 255
_RESERVED_ON_WINDOWS = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))]
)
_UNUSABLE = frozenset('<>:"/\\|?*')
_TOP = "medserve-results"  # every export's name, and the one folder of the zip
_UNFINISHED = "_UNFINISHED.txt"
_FIRST_YEAR, _LAST_YEAR = 1980, 2107  # that the zip format can state


def to_csv(job: Job) -> bytes:
    """The table for a spreadsheet: UTF-8 with the mark that makes Excel read it as such."""
    stream = io.StringIO(newline="")
    columns = [f"{each.name} ({each.unit})" for each in job.values]
    writer = csv.DictWriter(stream, (*_VALUE_HEAD, *columns, *_TAIL) if job.values else _FIELDS)
    writer.writeheader()
    stored = places(job)
    for item in job.files:
        if job.values:
            row = _row_of_values(job, item, columns)
        else:
            row = _row(job, item, stored.get(item.number, ""))
        text = {key: "" if value is None else str(value) for key, value in row.items()}
        text["source"] = csv_path(text["source"])
        writer.writerow({key: csv_cell(value) for key, value in text.items()})
    return b"\xef\xbb\xbf" + stream.getvalue().encode("utf-8")


def to_json(job: Job) -> bytes:
    """Everything that is known of the job."""
    stored = places(job)
    content = {
        "model": job.model,
        "version": job.version,
        "labels": list(job.labels),
        "values": msgspec.to_builtins(job.values),
        "files": [
            item.described()
            | {
                "stored": stored.get(item.number),
                "corrected_by": item.corrected_by or None,
                "corrected_at": item.corrected_at or None,
                "archive_digest": item.provenance.archive_digest if item.provenance else None,
            }
            for item in job.files
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8")


def to_corrections(job: Job, names: bool = False) -> bytes:
    """Return `corrections.csv`: what a person corrected, and with `names` of which files."""
    stream = io.StringIO(newline="")
    rows = (_correction(job, item) for item in job.files if item.correction)
    csv.writer(stream).writerows(correction_rows(rows, names))
    return stream.getvalue().encode("utf-8")


def _correction(job: Job, item: Item) -> Correction:
    row = {key: str(value or "") for key, value in _row(job, item, "").items()}
    return Correction(
        row["sha256"], row["class"], row["predicted_class"], row["probability"],
        item.corrected_by, item.corrected_at,
        job.model, row["version"], row["archive_digest"], csv_path(item.name),
    )  # fmt: skip


def time_said() -> str:
    """Return the time in UTC, to the second, as `2026-01-31T12:00:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def title(job: Job) -> str:
    """Return the name of a download without its suffix; of an unfinished job it says so."""
    if not job.unanswered:
        return _TOP
    total = len(job.files)
    return f"{_TOP}-unfinished-{total - len(job.unanswered)}-of-{total}"


def places(job: Job) -> dict[int, str]:
    """Where each answered file goes in the zip; two files of one name lie side by side."""
    taken: set[str] = set()
    found: dict[int, str] = {}
    for item in () if job.values else job.files:
        folder = _folder(job, item)
        if folder is not None:
            found[item.number] = _free_name(folder, plain_name(item.name), taken)
    return found


def bundle(job: Job) -> Iterator[bytes]:
    """The zip, piece by piece: the files of `places` and manifest.csv, in one folder.

    A model that tells numbers sorts nothing into folders, and `places` has none of its files.

    Where a person corrected classes, corrections.csv says so without names of files.

    The zip of an unfinished job names the files without an answer in a text file.
    """
    pieces = _Pieces()
    unfinished = _unfinished(job)
    table = to_csv(job)
    now = time.time()
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:
        if unfinished:
            archive.writestr(_entry(_UNFINISHED, now), unfinished)
        for label in job.labels:  # also one that no file has, so that files can be moved to it
            with contextlib.suppress(ServerFailedError):  # told with the first file of that class
                archive.writestr(_entry(f"{folder_name(label)}/", now), b"")
        for special in (NONE, SEVERAL) if job.independent else ():
            archive.writestr(_entry(f"{special}/", now), b"")
        for number, name in places(job).items():
            item = job.items[number]
            entry = _entry(name, now if item.modified_s is None else item.modified_s)
            with archive.open(entry, "w") as member, job.path(item).open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    member.write(chunk)
                    yield from pieces.taken()
            yield from pieces.taken()
        archive.writestr(_entry(MANIFEST, now), table)
        if any(item.correction for item in job.files):
            archive.writestr(_entry(CORRECTIONS, now), to_corrections(job))
    yield from pieces.taken()


def zipped(members: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """A zip of members (path, content), piece by piece; they are taken as it is sent."""
    pieces = _Pieces()
    now = datetime.now().timetuple()[:6]
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, now), content)
            yield from pieces.taken()
    yield from pieces.taken()


class _Pieces(io.RawIOBase):
    """What `zipfile` writes, to be taken away piece by piece."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._waiting.append(piece)
        return len(piece)

    def taken(self) -> Iterator[bytes]:
        """What was written since the last time, as one piece."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            yield b"".join(waiting)


def _unfinished(job: Job) -> str:
    """Return which files of a job have no answer; empty where all have one."""
    names = [each.name for each in job.unanswered]
    if not names:
        return ""
    total = len(job.files)
    return (
        f"These results are not complete: {total - len(names)} of {total} files are answered.\n"
        "Open the job again, send the files that are missing, and download it once more.\n"
        "Without an answer:\n"
    ) + "".join(f"{name}\n" for name in names)


def _entry(name: str, changed_s: float) -> zipfile.ZipInfo:
    """Return the head of a member, with the time of its file on this machine's clock."""
    try:
        changed = datetime.fromtimestamp(changed_s)
    except (ValueError, OverflowError, OSError):
        changed = datetime.now()
    year = min(max(changed.year, _FIRST_YEAR), _LAST_YEAR)
    date = (year, changed.month, changed.day, changed.hour, changed.minute, changed.second)
    entry = zipfile.ZipInfo(f"{_TOP}/{name}", date)
    entry.external_attr = (0o40755 if name.endswith("/") else 0o100644) << 16
    return entry


def _row(job: Job, item: Item, stored: str) -> dict[str, Any]:
    outcome = item.outcome
    answer = outcome if isinstance(outcome, Classification) else None
    found = {} if answer is None else found_cells(answer)
    chosen = item.correction or (None if answer is None else answer.finding)
    return {
        "source": item.name,
        "stored": stored,
        "sha256": item.sha256,
        "class": chosen,
        "class_id": _ids(job, chosen),
        "probability": found.get("probability"),
        "status": item.status,
        "predicted_class": found.get("class"),
        "predicted_class_id": found.get("class_id"),
        "corrected": "yes" if item.correction else "no",
        "corrected_by": item.corrected_by,
        "corrected_at": item.corrected_at,
        **_tail(job, item),
    }


def _row_of_values(job: Job, item: Item, columns: Sequence[str]) -> dict[str, Any]:
    """Return the row of a file whose numbers are told, of which each has a column."""
    answer = item.outcome if isinstance(item.outcome, Regression) else None
    values = () if answer is None else (each.value for each in answer.values)
    return {
        "source": item.name,
        "sha256": item.sha256,
        "status": item.status,
        "doubts": "; ".join(answer.doubts if answer else ()),
        **dict(zip(columns, values, strict=False)),
        **_tail(job, item),
    }


def _tail(job: Job, item: Item) -> dict[str, Any]:
    """Return which archive answered, or why there is no answer."""
    error = item.outcome if isinstance(item.outcome, MedserveError) else None
    return {
        "model": job.model,
        "version": item.provenance.version if item.provenance else job.version,
        "archive_digest": item.provenance and item.provenance.archive_digest,
        "error": error and f"{error.code}: {error.message}",
    }


def _ids(job: Job, chosen: str | None) -> str | None:
    """Return the number of a class, or of each of several labels; None of a class that is none."""
    if chosen is None:
        return None
    labels = read_finding(chosen, job.labels) if job.independent else (chosen,)
    return "; ".join(str(job.labels.index(each)) for each in labels if each in job.labels) or None


def _folder(job: Job, item: Item) -> str | None:
    """The folder of a file; None for one that the service has not answered."""
    if item.correction is not None:
        if job.independent:
            return folder_of_labels(read_finding(item.correction, job.labels))
        return folder_name(item.correction)
    match item.status:
        case Status.OK:
            assert isinstance(item.outcome, Classification)
            if item.outcome.present is not None:
                return folder_of_labels(item.outcome.present)
            return folder_name(item.outcome.label)
        case Status.REVIEW | Status.UNLIKE:
            return REVIEW
        case Status.ERROR:
            return ERRORS
    return None


def plain_name(name: str) -> str:
    """The last part of what a browser calls the file, as a name that any system can store."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    last = unicodedata.normalize("NFC", last)
    plain = "".join(
        "_" if letter in _UNUSABLE or not letter.isprintable() else letter for letter in last
    ).strip(" .")
    stem, dot, suffix = plain.rpartition(".") if "." in plain else (plain, "", "")
    while len(stem.encode()) + len(suffix.encode()) > _LONGEST_NAME:
        stem, suffix = (stem[:-1], suffix) if stem else (stem, suffix[:-1])
    plain = f"{stem}{dot}{suffix}" or "file"
    return f"_{plain}" if plain.partition(".")[0].lower() in _RESERVED_ON_WINDOWS else plain


def _free_name(folder: str, name: str, taken: set[str]) -> str:
    """The name or, where that is taken, a numbered one; as on a disk that ignores case."""
    pure = PurePosixPath(name)
    number = 1
    while True:
        twin = "" if number == 1 else f"-{number}"
        path = f"{folder}/{pure.stem}{twin}{pure.suffix}"
        if (key := path.casefold()) not in taken:
            taken.add(key)
            return path
        number += 1
