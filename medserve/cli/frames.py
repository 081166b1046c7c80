"""The part of `medserve predict` that segments frames: files, tables with areas, JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from medserve.cli.cases import Case, find_frame_cases, refuse_existing, replace_file
from medserve.cli.inputs import STDIN, shown
from medserve.cli.masks import MaskFormat
from medserve.cli.progress import counted
from medserve.cli.records import console_for_people
from medserve.client import Client, FrameAnswer, FrameOptions, FrameResult, FrameSegmentation
from medserve.errors import ConfigError
from medserve.results.sorted_folders import csv_cell, csv_path
from medserve.tasks.frames import StackMeasure

__all__ = ["FrameOutput", "segment_frames"]

_FILES_CSV, _FRAMES_CSV = "files.csv", "frames.csv"
_LENGTHS = (
    *("area_cm2", "width_mm", "height_mm", "length_mm", "volume_ml", "ellipsoid_ml"),
)  # of a file, in the order of the tables
_FILE_FIELDS = (
    *("path", "status", "frames", "frames_found", "frames_failed", "unlike_ultrasound"),
    *("largest_frame", *_LENGTHS, "model", "version", "archive_digest", "error"),
)
_FRAME_FIELDS = (
    *("path", "frame", "status", "pixels", "area_cm2", "width_mm", "height_mm"),
    *("touches_border", "unlike_ultrasound", "error"),
)


@dataclass(frozen=True)
class FrameOutput:
    """Where answers go.

    Attributes:
        folder: None: they are only shown.
        form: How masks are written; None: PNG of single frames, NIfTI of stacks.
        as_json: One JSON object per file on standard output instead of a table.
        overwrite: Whether files may be replaced.
    """

    folder: Path | None = None
    form: MaskFormat | None = None
    as_json: bool = False
    overwrite: bool = False


def segment_frames(
    client: Client,
    model: str,
    paths: Sequence[Path],
    options: FrameOptions,
    output: FrameOutput,
    *,
    version: str | None = None,
) -> bool:
    """Segment, write and show; whether every file and every frame in it got its mask.

    Raises:
        ConfigError: an input does not exist, or an answer would replace a file.
    """
    cases = find_frame_cases(paths)
    if output.folder is not None and not output.overwrite:
        refuse_existing(list(_targets(cases, output.folder)))
    wanted = _with_files(options, output)
    answers = client.segment_frames(model, _contents(cases), options=wanted, version=version)
    rows: list[dict[str, Any]] = []
    frame_rows: list[dict[str, Any]] = []
    for case, answer in zip(cases, counted(answers, len(cases), model), strict=True):
        files = _write(case, answer, output)
        if output.as_json:
            print(json.dumps(_record(case, answer, files)), flush=True)
        rows.append(_row(case, answer))
        frame_rows += _frame_rows(case, answer)
    if output.folder is not None:
        _write_csv(output.folder / _FILES_CSV, _FILE_FIELDS, rows)
        _write_csv(output.folder / _FRAMES_CSV, _FRAME_FIELDS, frame_rows)
    if not output.as_json:
        console_for_people().print(_table(rows))
    return all(row["status"] == "ok" and not row["frames_failed"] for row in rows)


def _contents(cases: Iterable[Case]) -> Iterator[bytes | Path]:
    for case in cases:
        yield sys.stdin.buffer.read() if case.path == STDIN else case.path


def _with_files(options: FrameOptions, output: FrameOutput) -> FrameOptions:
    """Ask for what will be written, and for nothing else."""
    writes = output.folder is not None
    return replace(
        options,
        overlay=writes and output.form is not MaskFormat.JSON,
        dicom_seg=writes and output.form is MaskFormat.DICOM_SEG,
    )


def _targets(cases: Iterable[Case], folder: Path) -> Iterator[Path]:
    """Every name that an answer may take; which of them depends on what is in the file."""
    yield folder / _FILES_CSV
    yield folder / _FRAMES_CSV
    for case in cases:
        for name in ("_mask.png", "_mask.nii.gz", "_mask.dcm", "_overlay.png", "_masks", ".json"):
            yield folder / f"{case.stem}{name}"


def _write(case: Case, answer: FrameResult, output: FrameOutput) -> tuple[Path, ...]:
    """Every file of one answer; none where it failed."""
    folder, result = output.folder, answer.result
    if folder is None or result is None:
        return ()
    contents = dict(_files(case, answer, result, output.form))
    try:
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            replace_file(folder / name, content)
    except OSError as error:
        raise ConfigError(f"--out {shown(str(folder))}: {error.strerror}") from error
    return tuple(folder / name for name in contents)


def _files(
    case: Case, answer: FrameResult, result: FrameAnswer, form: MaskFormat | None
) -> Iterator[tuple[str, bytes]]:
    """Name -> content, in the form that was asked for."""
    stem = case.stem
    if form is MaskFormat.JSON:
        record = json.dumps(_record(case, answer, ()), indent=2)
        yield f"{stem}.json", (record + "\n").encode()
        return
    if form is MaskFormat.DICOM_SEG:
        yield f"{stem}_mask.dcm", result.dicom_seg or b""
    elif result.mask_png is not None and form is not MaskFormat.NIFTI:
        yield f"{stem}_mask.png", result.mask_png
    elif form is MaskFormat.PNG:
        yield from _frame_by_frame(stem, result.segmentation)
    else:
        yield f"{stem}_mask.nii.gz", result.mask_nifti
    if result.overlay_png is not None:
        yield f"{stem}_overlay.png", result.overlay_png


def _frame_by_frame(stem: str, found: FrameSegmentation) -> Iterator[tuple[str, bytes]]:
    from medserve.results.frame_segmentation import mask_png

    for index, mask in enumerate(found.masks):
        yield f"{stem}_masks/{index:04d}.png", mask_png(mask)


def _record(case: Case, answer: FrameResult, files: Sequence[Path]) -> dict[str, Any]:
    """The members of a JSON line: measurements, no mask."""
    result, error = answer.result, answer.error
    content: dict[str, Any] = {"path": str(case.path), "status": "error" if error else "ok"}
    if result is not None:
        found = result.segmentation
        content |= result.provenance.to_json()
        content |= {
            "labels": list(found.labels),
            "stack": found.stack.to_json(),
            "frames": [each.entry(index).to_json() for index, each in enumerate(found.frames)],
        }
    return content | {
        "files": [str(path) for path in files],
        "error": error and {"code": error.code, "message": error.message},
    }


def _row(case: Case, answer: FrameResult) -> dict[str, Any]:
    """One file, flat and light: there may be thousands."""
    row: dict[str, Any] = {"path": str(case.path), "status": "ok", "frames_failed": 0}
    if answer.error is not None:
        return row | {"status": "error", "error": f"{answer.error.code}: {answer.error.message}"}
    result = answer.unwrap()
    found, stack = result.segmentation, result.stack
    return {
        **row,
        **result.provenance.to_json(),
        **_lengths(stack),
        "frames": found.grid.count,
        "frames_found": stack.frames_found,
        "frames_failed": found.failed,
        "unlike_ultrasound": found.unlike_ultrasound,
        "largest_frame": stack.largest_frame,
        "touches_border": sum(
            each.measure is not None and each.measure.touches_border for each in found.frames
        ),
    }


def _lengths(stack: StackMeasure) -> dict[str, float | None]:
    return {name: getattr(stack, name) for name in _LENGTHS}


def _frame_rows(case: Case, answer: FrameResult) -> Iterator[dict[str, Any]]:
    if answer.result is None:
        return
    for index, each in enumerate(answer.result.segmentation.frames):
        row = each.entry(index).to_json()
        error = f"{each.error.code}: {each.error.message}" if each.error is not None else None
        yield row | {"path": str(case.path), "frame": index, "error": error}


def _write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.DictWriter(file, fields, extrasaction="ignore")
            table.writeheader()
            for row in rows:
                safe = {key: csv_cell(value) for key, value in row.items()}
                table.writerow({**safe, "path": csv_path(str(row["path"]))})
    except OSError as error:
        raise ConfigError(f"--out {shown(str(path.parent))}: {error.strerror}") from error


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    shape = Table("input", "found in", box=None, padding=(0, 2, 0, 0))
    for title in ("area cm2", "w x h x l mm", "volume ml", "ellipsoid ml"):
        shape.add_column(title, justify="right")
    shape.add_column("note")
    for column in shape.columns:
        column.overflow = "fold"
    for row in rows:
        shape.add_row(Text(shown(row["path"])), *_cells(row))
    return shape


def _cells(row: Mapping[str, Any]) -> Iterator[Text]:
    if row["status"] != "ok":
        yield from (Text("-") for _ in range(5))
        yield Text(shown(row["error"]), style="red")
        return
    yield Text(f"{row['frames_found']}/{row['frames']}")
    yield Text(_number(row["area_cm2"], 2))
    sides = [_number(row[name], 1) for name in ("width_mm", "height_mm", "length_mm")]
    yield Text(" x ".join(sides) if any(side != "-" for side in sides) else "-")
    yield Text(_number(row["volume_ml"], 2))
    yield Text(_number(row["ellipsoid_ml"], 2))
    notes = {
        "without an answer": row["frames_failed"],
        "unlike ultrasound": row["unlike_ultrasound"],
        "at the edge": row["touches_border"],
    }
    told = [f"{count} {note}" for note, count in notes.items() if count]
    yield Text("frames: " + ", ".join(told) if told else "", style="yellow")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
