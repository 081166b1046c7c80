"""The part of `medserve predict` that segments volumes: files, a table with millilitres, JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from medserve.cli.cases import Case, find_cases, refuse_existing, replace_file
from medserve.cli.inputs import STDIN, shown
from medserve.cli.masks import MaskFormat
from medserve.cli.progress import counted
from medserve.cli.records import console_for_people
from medserve.client import Client, Provenance, SegmentationOptions, VolumeResult
from medserve.errors import ConfigError, MedserveError
from medserve.results.sorted_folders import csv_cell, csv_path
from medserve.tasks.volumes import LabelMeasure

__all__ = ["VolumeOutput", "segment_volumes"]

_CSV = "volumes.csv"
_CSV_FIELDS = (
    *("path", "status", "label", "volume_ml", "voxels", "x_mm", "y_mm", "z_mm"),
    *("touches_border", "model", "version", "archive_digest", "error"),
)


@dataclass(frozen=True)
class VolumeOutput:
    """Where answers go.

    Attributes:
        folder: None: they are only shown.
        form: How masks are written.
        as_json: One JSON object per case on standard output instead of a table.
        overwrite: Whether files may be replaced.
    """

    folder: Path | None = None
    form: MaskFormat = MaskFormat.NIFTI
    as_json: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class _Outcome:
    """What became of one case; light, for there may be thousands.

    Attributes:
        case: What was sent.
        measures: Of each label; None where there is no answer.
        provenance: Which archive answered.
        error: Why there is no answer.
        files: What was written.
    """

    case: Case
    measures: tuple[LabelMeasure, ...] | None = None
    provenance: Provenance | None = None
    error: MedserveError | None = None
    files: tuple[Path, ...] = ()

    def to_rows(self) -> Iterator[dict[str, Any]]:
        """One row for each label, or one with the error."""
        first = {"path": csv_path(str(self.case.path))}
        if self.error is not None:
            text = csv_cell(f"{self.error.code}: {self.error.message}")
            yield first | {"status": "error", "error": text}
        for each in self.measures or ():
            x, y, z = each.centroid_mm or ("", "", "")
            source = {} if self.provenance is None else self.provenance.to_json()
            yield {
                **first,
                **{key: csv_cell(value) for key, value in source.items()},
                "status": "ok",
                "label": csv_cell(each.label),
                "volume_ml": each.volume_ml,
                "voxels": each.voxels,
                "x_mm": x,
                "y_mm": y,
                "z_mm": z,
                "touches_border": each.touches_border,
            }


def _record(case: Case, answer: VolumeResult, files: Sequence[Path]) -> dict[str, Any]:
    """The members of a JSON line: measurements, no mask."""
    result, error = answer.result, answer.error
    content: dict[str, Any] = {"path": str(case.path), "status": "error" if error else "ok"}
    if result is not None:
        content |= result.provenance.to_json()
        content |= result.segmentation.to_result().without_files()
    return content | {
        "files": [str(path) for path in files],
        "error": error and {"code": error.code, "message": error.message},
    }


def segment_volumes(
    client: Client,
    model: str,
    paths: Sequence[Path],
    options: SegmentationOptions,
    output: VolumeOutput,
    *,
    version: str | None = None,
) -> bool:
    """Segment, write and show; whether every case got its mask.

    Raises:
        ConfigError: an input does not exist, or an answer would replace a file.
    """
    cases = find_cases(paths)
    if not output.overwrite:
        refuse_existing(list(_targets(cases, options, output)))
    wanted = _with_files(options, output)
    answers = client.segment_each(model, _contents(cases), options=wanted, version=version)
    names = _names(options, output.form)
    outcomes = []
    for case, answer in zip(cases, counted(answers, len(cases), model), strict=True):
        files, result = _write(case, answer, output, names), answer.result
        if output.as_json:
            print(json.dumps(_record(case, answer, files)), flush=True)
        if result is None:
            outcomes.append(_Outcome(case, error=answer.error))
        else:
            measures = result.segmentation.measures
            outcomes.append(_Outcome(case, measures, result.provenance, None, files))
    if output.folder is not None:
        _write_table(outcomes, output.folder / _CSV)
    if not output.as_json:
        console_for_people().print(_table(outcomes))
    return all(outcome.error is None for outcome in outcomes)


def _contents(cases: Iterable[Case]) -> Iterator[bytes | Path]:
    for case in cases:
        yield sys.stdin.buffer.read() if case.path == STDIN else case.path


def _with_files(options: SegmentationOptions, output: VolumeOutput) -> SegmentationOptions:
    """Ask for what will be written, and for nothing else."""
    writes = output.folder is not None
    return replace(
        options,
        overlay=writes and output.form is not MaskFormat.JSON,
        uncertainty=writes and options.uncertainty,
        dicom_seg=writes and output.form is MaskFormat.DICOM_SEG,
    )


def _names(options: SegmentationOptions, form: MaskFormat) -> tuple[str, ...]:
    """What is put behind a case's stem."""
    own = {
        MaskFormat.NIFTI: ("_mask.nii.gz", "_overlay.png"),
        MaskFormat.DICOM_SEG: ("_mask.dcm", "_overlay.png"),
        MaskFormat.PNG: ("_overlay.png",),
        MaskFormat.JSON: (".json",),
    }[form]
    return (*own, "_uncertainty.nii.gz") if options.uncertainty else own


def _targets(
    cases: Iterable[Case], options: SegmentationOptions, output: VolumeOutput
) -> Iterator[Path]:
    if output.folder is None:
        return
    yield output.folder / _CSV
    for case in cases:
        for name in _names(options, output.form):
            yield output.folder / f"{case.stem}{name}"


def _write(
    case: Case, answer: VolumeResult, output: VolumeOutput, names: Sequence[str]
) -> tuple[Path, ...]:
    """Every file of one answer; none where it failed."""
    folder, result = output.folder, answer.result
    if folder is None or result is None:
        return ()
    record = json.dumps(_record(case, answer, ()), indent=2)
    contents: dict[str, bytes | None] = {
        "_mask.nii.gz": result.mask_nifti,
        "_mask.dcm": result.dicom_seg,
        "_overlay.png": result.overlay_png,
        "_uncertainty.nii.gz": result.entropy_nifti,
        ".json": (record + "\n").encode(),
    }
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (content := contents[name]) is not None:
                written.append(folder / f"{case.stem}{name}")
                replace_file(written[-1], content)
    except OSError as error:
        raise ConfigError(f"--out {shown(str(folder))}: {error.strerror}") from error
    return tuple(written)


def _write_table(outcomes: Sequence[_Outcome], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.DictWriter(file, _CSV_FIELDS)
            rows.writeheader()
            for outcome in outcomes:
                rows.writerows(outcome.to_rows())
    except OSError as error:
        raise ConfigError(f"--out {shown(str(path.parent))}: {error.strerror}") from error


def _table(outcomes: Sequence[_Outcome]) -> Table:
    measured = [each.label for outcome in outcomes for each in outcome.measures or ()]
    labels = list(dict.fromkeys(measured))
    shape = Table("input", box=None, padding=(0, 2, 0, 0))
    for label in labels:
        shape.add_column(Text(f"{shown(label)} ml"), justify="right")
    shape.add_column("note")
    for column in shape.columns:
        column.overflow = "fold"
    for outcome in outcomes:
        shape.add_row(Text(shown(str(outcome.case.path))), *_cells(outcome, labels))
    return shape


def _cells(outcome: _Outcome, labels: Sequence[str]) -> Iterator[Text]:
    measures, error = outcome.measures or (), outcome.error
    volumes = {each.label: f"{each.volume_ml:.3f}" for each in measures}
    for label in labels:
        yield Text(volumes.get(label, "-"))
    if error is not None:
        yield Text(shown(f"{error.code}: {error.message}"), style="red")
    else:
        cut = [each.label for each in measures if each.touches_border]
        note = f"reaches the edge: {', '.join(cut)}" if cut else ""
        yield Text(shown(note), style="yellow")
