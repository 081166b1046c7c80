"""The masks of volumes: one row a label, with millilitres."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from medserve.cli.show.console import shown
from medserve.cli.show.masks import SEGMENTATIONS, MaskFormat, MaskTables, Row
from medserve.client import VolumeResult

__all__ = ["VOLUMES"]

_CSV = "volumes.csv"
_CSV_FIELDS = (
    *("path", "status", "label", "volume_ml", "voxels", "x_mm", "y_mm", "z_mm"),
    *("touches_border", "predicted_dice", "volume_low_ml", "volume_high_ml"),
    *("review", "doubts", "model", "version", "archive_digest", "error"),
)


def _rows(result: VolumeResult) -> Mapping[str, Sequence[Row]]:
    rows = []
    doubts = "; ".join(f"{each.reason}: {each.message}" for each in result.doubts)
    for each in result.measures:
        x, y, z = each.centroid_mm or ("", "", "")
        low, high = each.volume_interval_ml or ("", "")
        rows.append(
            {
                "status": "ok",
                "label": each.label,
                "volume_ml": each.volume_ml,
                "voxels": each.voxels,
                "x_mm": x,
                "y_mm": y,
                "z_mm": z,
                "touches_border": each.touches_border,
                "predicted_dice": each.predicted_dice,
                "volume_low_ml": low,
                "volume_high_ml": high,
                "review": result.review,
                "doubts": doubts,
            }
        )
    return {_CSV: rows}


def _files(result: VolumeResult, mask_format: MaskFormat | None) -> Iterator[tuple[str, bytes]]:
    """What stands behind the stem, and the content."""
    if mask_format in SEGMENTATIONS:
        yield "_mask.dcm", result.dicom_seg or b""
    elif mask_format in (None, MaskFormat.NIFTI):
        yield "_mask.nii.gz", result.mask_nifti
    if result.overlay_png is not None:
        yield "_overlay.png", result.overlay_png
    if result.entropy_nifti is not None:
        yield "_uncertainty.nii.gz", result.entropy_nifti


def _table(rows: Sequence[Sequence[Row]]) -> Table:
    labels = list(dict.fromkeys(row["label"] for each in rows for row in each if "label" in row))
    shape = Table("input", box=None, padding=(0, 2, 0, 0))
    for label in labels:
        shape.add_column(Text(f"{shown(label)} ml"), justify="right")
    shape.add_column("note")
    for column in shape.columns:
        column.overflow = "fold"
    for each in rows:
        path = each[0]["path"] if each else ""
        shape.add_row(Text(shown(path)), *_cells(each, labels))
    return shape


def _cells(rows: Sequence[Row], labels: Sequence[str]) -> Iterator[Text]:
    volumes = {row["label"]: f"{row['volume_ml']:.3f}" for row in rows if "label" in row}
    for label in labels:
        yield Text(volumes.get(label, "-"))
    if rows and rows[0]["status"] != "ok":
        yield Text(shown(rows[0]["error"]), style="red")
        return
    cut = [row["label"] for row in rows if row["touches_border"]]
    notes = [f"reaches the edge: {', '.join(cut)}"] if cut else []
    notes += [f"review, {rows[0]['doubts']}"] if rows and rows[0]["review"] else []
    yield Text(shown("; ".join(notes)), style="yellow")


VOLUMES = MaskTables[VolumeResult](
    csv_fields={_CSV: _CSV_FIELDS},
    endings=("_mask.nii.gz", "_mask.dcm", "_overlay.png", "_uncertainty.nii.gz", ".json"),
    members=VolumeResult.without_files,
    files=_files,
    rows=_rows,
    table=_table,
)
