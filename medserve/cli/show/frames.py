"""The masks of frames: one row a file and one a frame, with areas and diameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from medserve.cli.show.console import shown
from medserve.cli.show.masks import MaskFormat, MaskTables, Row
from medserve.client import FrameResult, FrameSegmentation
from medserve.tasks.frames import FailedFrame, MeasuredFrame

__all__ = ["FRAMES"]

_FILES_CSV, _FRAMES_CSV = "files.csv", "frames.csv"
_LENGTHS = (
    *("area_cm2", "width_mm", "height_mm", "length_mm", "volume_ml", "ellipsoid_ml"),
)  # of a file, in the order of the tables
_FILE_FIELDS = (
    *("path", "status", "frames", "frames_found", "frames_failed", "unlike_ultrasound"),
    *(
        "review",
        "doubts",
        "largest_frame",
        *_LENGTHS,
        "model",
        "version",
        "archive_digest",
        "error",
    ),
)
_FRAME_FIELDS = (
    *("path", "frame", "status", "label", "pixels", "area_cm2", "width_mm", "height_mm"),
    *("touches_border", "predicted_dice", "unlike_ultrasound", "error"),
)


def _members(result: FrameResult) -> Row:
    return {
        "labels": list(result.labels),
        "review": result.review,
        "unlike_training": result.unlike_training,
        "doubts": [each.to_json() for each in result.doubts],
        "stack": result.stack.to_json(),
        "frames": [each.to_json() for each in result.frames],
        "structures": [each.to_json() for each in result.structures],
    }


def _files(result: FrameResult, mask_format: MaskFormat | None) -> Iterator[tuple[str, bytes]]:
    """What stands behind the stem, and the content."""
    if mask_format is MaskFormat.DICOM_SEG:
        yield "_mask.dcm", result.dicom_seg or b""
    elif mask_format is MaskFormat.JSON:
        return
    elif result.mask_png is not None and mask_format is not MaskFormat.NIFTI:
        yield "_mask.png", result.mask_png
    elif mask_format is MaskFormat.PNG:
        yield from _frame_by_frame(result)
    else:
        yield "_mask.nii.gz", result.mask_nifti
    if result.overlay_png is not None:
        yield "_overlay.png", result.overlay_png


def _frame_by_frame(result: FrameResult) -> Iterator[tuple[str, bytes]]:
    from medserve.results.frame_segmentation import mask_png

    for index, mask in enumerate(FrameSegmentation.from_result(result).masks):
        yield f"_masks/{index:04d}.png", mask_png(mask, len(result.labels))


def _rows(result: FrameResult) -> Mapping[str, Sequence[Row]]:
    """One row for the file, light for there may be thousands, and one a frame and structure."""
    measured = [each for each in result.frames if isinstance(each, MeasuredFrame)]
    file: Row = {
        "status": "ok",
        "frames": result.grid.frames,
        "frames_found": result.stack.frames_found,
        "frames_failed": len(result.frames) - len(measured),
        "unlike_ultrasound": sum(each.unlike_ultrasound for each in measured),
        "review": result.review,
        "doubts": "; ".join(f"{each.reason}: {each.message}" for each in result.doubts),
        "largest_frame": result.stack.largest_frame,
        "touches_border": sum(each.touches_border for each in measured),
        **{name: getattr(result.stack, name) for name in _LENGTHS},
    }
    rows = [row for place in range(len(result.frames)) for row in _frame_rows(result, place)]
    return {_FILES_CSV: [file], _FRAMES_CSV: rows}


def _frame_rows(result: FrameResult, place: int) -> Iterator[Row]:
    frame = result.frames[place]
    row = frame.to_json() | {"frame": frame.index}
    if isinstance(frame, FailedFrame):
        yield row | {"error": f"{frame.error.get('code')}: {frame.error.get('message')}"}
        return
    if not result.structures:
        yield row | {"label": result.labels[1]}
    for each in result.structures:
        own = each.frames[place]
        assert own is not None  # the frame has not failed
        yield row | own.to_json() | {"label": each.label}


def _table(rows: Sequence[Sequence[Row]]) -> Table:
    shape = Table("input", "found in", box=None, padding=(0, 2, 0, 0))
    for title in ("area cm2", "w x h x l mm", "volume ml", "ellipsoid ml"):
        shape.add_column(title, justify="right")
    shape.add_column("note")
    for column in shape.columns:
        column.overflow = "fold"
    for [row] in rows:
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
    parts = ["frames: " + ", ".join(told)] if told else []
    parts += [f"review, {row['doubts']}"] if row["review"] else []
    yield Text(shown("; ".join(parts)), style="yellow")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


FRAMES = MaskTables[FrameResult](
    csv_fields={_FILES_CSV: _FILE_FIELDS, _FRAMES_CSV: _FRAME_FIELDS},
    endings=("_mask.png", "_mask.nii.gz", "_mask.dcm", "_overlay.png", "_masks", ".json"),
    members=_members,
    files=_files,
    rows=_rows,
    table=_table,
    complete=lambda result: not any(isinstance(each, FailedFrame) for each in result.frames),
)
