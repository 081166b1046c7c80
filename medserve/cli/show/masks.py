"""Masks of volumes and frames: a line of JSON, rows of tables and files for each input."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.table import Table

from medserve.cli.show.console import console_for_people, counted
from medserve.cli.show.files import (
    Case,
    OutFolder,
    write_csv,
    writing_to,
)
from medserve.client import FileResult, FrameResult, VolumeResult

__all__ = ["SEGMENTATIONS", "MaskFormat", "MaskOutput", "MaskTables", "show_masks"]

Answer = TypeVar("Answer", VolumeResult, FrameResult)
Row = dict[str, Any]


class MaskFormat(enum.StrEnum):
    """How masks are written."""

    NIFTI = "nifti"  # <stem>_mask.nii.gz and <stem>_overlay.png
    DICOM_SEG = "dicom-seg"  # <stem>_mask.dcm and <stem>_overlay.png
    DICOM_LABELMAP = "dicom-labelmap"  # the same, of volumes
    PNG = "png"  # <stem>_overlay.png, of frames <stem>_mask.png, too
    JSON = "json"  # <stem>.json: measurements alone


SEGMENTATIONS = (MaskFormat.DICOM_SEG, MaskFormat.DICOM_LABELMAP)


@dataclass(frozen=True)
class MaskOutput:
    """Where answers go.

    Attributes:
        folder: None: they are only shown.
        mask_format: How masks are written; None: PNG of single frames, NIfTI of all others.
        as_json: One JSON object per input on standard output instead of a table.
        overwrite: Whether files may be replaced.
    """

    folder: Path | None = None
    mask_format: MaskFormat | None = None
    as_json: bool = False
    overwrite: bool = False

    @property
    def params(self) -> dict[str, Any]:
        """What to ask of the model: what will be written, and nothing else."""
        params: dict[str, Any] = {"output": "json"}
        if self.folder is not None and self.mask_format is not MaskFormat.JSON:
            params["overlay"] = True
        if self.folder is not None and self.mask_format in SEGMENTATIONS:
            params["format"] = str(self.mask_format)
        return params


@dataclass(frozen=True)
class MaskTables(Generic[Answer]):
    """How the answers of one task are told.

    Attributes:
        csv_fields: Columns of each CSV file, by its name.
        endings: What may stand behind an input's stem in the name of a file.
        members: The members of the JSON line of an answer, without its files.
        files: The files of an answer: what stands behind the stem, and the content. The record
            of the format JSON comes by itself.
        rows: The rows of an answer in each CSV file, without its path.
        table: The rows of the first CSV file, grouped by input, for a person.
        complete: Whether an answer lacks nothing.
    """

    csv_fields: Mapping[str, Sequence[str]]
    endings: Sequence[str]
    members: Callable[[Answer], Row]
    files: Callable[[Answer, MaskFormat | None], Iterator[tuple[str, bytes]]]
    rows: Callable[[Answer], Mapping[str, Sequence[Row]]]
    table: Callable[[Sequence[Sequence[Row]]], Table]
    complete: Callable[[Answer], bool] = lambda answer: True


def show_masks(
    ask: Callable[[], Iterable[FileResult[Answer]]],
    cases: Sequence[Case],
    output: MaskOutput,
    tables: MaskTables[Answer],
    title: str,
) -> bool:
    """Write and show the answer to each case; whether every case got all of its masks.

    Raises:
        ConfigError: an answer would replace a file.
    """
    if output.folder is None:
        return _show(ask, cases, output, None, tables, title)
    with OutFolder(output.folder, overwrite=output.overwrite) as out:
        out.refuse_existing(_targets(cases, tables))
        return _show(ask, cases, output, out, tables, title)


def _show(
    ask: Callable[[], Iterable[FileResult[Answer]]],
    cases: Sequence[Case],
    output: MaskOutput,
    out: OutFolder | None,
    tables: MaskTables[Answer],
    title: str,
) -> bool:
    rows: dict[str, list[list[Row]]] = {name: [] for name in tables.csv_fields}
    complete = True
    for case, answer in zip(cases, counted(ask(), len(cases), title), strict=True):
        files = () if out is None else _write(case, answer, output.mask_format, out, tables)
        if output.as_json:
            print(json.dumps(_record(case, answer, files, tables)), flush=True)
        for name, found in _rows(case, answer, tables).items():
            rows[name].append(found)
        complete &= answer.result is not None and tables.complete(answer.result)
    if out is not None:
        for name, fields in tables.csv_fields.items():
            with writing_to(out.path):
                write_csv(out.note(name), fields, chain.from_iterable(rows[name]))
    if not output.as_json:
        console_for_people().print(tables.table(rows[next(iter(rows))]))
    return complete


def _targets(cases: Iterable[Case], tables: MaskTables[Answer]) -> Iterator[str]:
    """Every name that an answer may take; which of them depends on the file."""
    yield from tables.csv_fields
    for case in cases:
        for ending in tables.endings:
            yield f"{case.stem}{ending}"


def _write(
    case: Case,
    answer: FileResult[Answer],
    mask_format: MaskFormat | None,
    out: OutFolder,
    tables: MaskTables[Answer],
) -> tuple[Path, ...]:
    """Every file of one answer; none where it failed."""
    if answer.result is None:
        return ()
    files = dict(tables.files(answer.result, mask_format))
    if mask_format is MaskFormat.JSON:
        record = json.dumps(_record(case, answer, (), tables), indent=2)
        files[".json"] = (record + "\n").encode()
    return tuple(out.write(f"{case.stem}{ending}", each) for ending, each in files.items())


def _rows(
    case: Case, answer: FileResult[Answer], tables: MaskTables[Answer]
) -> dict[str, list[Row]]:
    """The rows of one input in each CSV file; one with the error in the first where it failed."""
    head: Row = {"path": str(case.path)}
    names = list(tables.csv_fields)
    if answer.error is not None:
        text = f"{answer.error.code}: {answer.error.message}"
        return {names[0]: [head | {"status": "error", "error": text}]} | {
            name: [] for name in names[1:]
        }
    source = answer.unwrap().provenance.to_json()
    return {
        name: [head | source | row for row in rows]
        for name, rows in tables.rows(answer.unwrap()).items()
    }


def _record(
    case: Case, answer: FileResult[Answer], files: Sequence[Path], tables: MaskTables[Answer]
) -> Row:
    """The members of a JSON line: measurements, no mask."""
    result, error = answer.result, answer.error
    content: Row = {"path": str(case.path), "status": "error" if error else "ok"}
    if result is not None:
        content |= result.provenance.to_json() | tables.members(result)
    return content | {
        "files": [str(path) for path in files],
        "error": error and {"code": error.code, "message": error.message},
    }
