"""Tables of a batch, made from its receipts at any time: a row a study, the same in every run.

Times and attempts stand in the receipts alone, so that the table of a batch that was interrupted is
the table of one that was not.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medserve.batch.receipts import BatchFolder, Receipt
from medserve.results.sorted_folders import csv_cell
from medserve.tasks.classification import as_finding

__all__ = ["columns_of", "doubts_of", "measures_of", "row_of", "write_tables"]

_ROWS = 8192  # of a Parquet file that are held at a time
_HEAD = ("id", "source", "status", "code", "message", "review", "unlike_training", "doubts")
_TAIL = ("sha256", "size_bytes", "model", "version", "archive_digest", "files")
_STACK = ("area_cm2", "width_mm", "height_mm", "length_mm", "volume_ml", "ellipsoid_ml")
_TEXT = frozenset(
    (*("id", "source", "status", "code", "message", "doubts", "label", "present"), *_TAIL)
)
_FLAGS = frozenset(("review", "unlike_training"))


def write_tables(folder: BatchFolder, columns: Iterable[str]) -> tuple[Path, ...]:
    """Write results.csv, and results.parquet where pyarrow is installed; returns their paths.

    Raises:
        OSError: the disk is full or read-only.
    """
    names = (*_HEAD, *columns, *_TAIL)
    paths = [folder.path / "results.csv"]
    with folder.partial(paths[0].name) as part:
        _write_csv(part, names, map(row_of, folder.receipts()))
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return tuple(paths)
    paths.append(folder.path / "results.parquet")
    with folder.partial(paths[1].name) as part:
        _write_parquet(part, names, map(row_of, folder.receipts()))
    return tuple(paths)


def row_of(receipt: Receipt) -> dict[str, Any]:
    """Return the row of a study."""
    answer = receipt.answer
    place = f"answers/{receipt.key[:3]}/{receipt.key}"
    return {
        "id": receipt.id,
        "source": receipt.source,
        "status": receipt.status,
        "code": receipt.code,
        "message": receipt.message,
        "review": answer.get("review", False) if answer else None,
        "unlike_training": answer.get("unlike_training", False) if answer else None,
        "doubts": "; ".join(doubts_of(answer)),
        "sha256": receipt.sha256,
        "size_bytes": receipt.size_bytes,
        "model": receipt.model,
        "version": receipt.version,
        "archive_digest": receipt.archive_digest,
        "files": " ".join(f"{place}/{name}" for name in sorted(receipt.files)),
        **measures_of(answer),
    }


def doubts_of(answer: Mapping[str, Any]) -> list[str]:
    """Return why a person should look at a mask, or at numbers."""
    doubts = [f"{each['reason']}: {each['message']}" for each in answer.get("doubts", ())]
    return doubts + [each["doubt"] for each in answer.get("values", ()) if each["doubt"]]


def measures_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model of any task measured: class and probabilities, numbers, or sizes."""
    if "values" in answer:
        return {f"{each['name']} ({each['unit']})": each["value"] for each in answer["values"]}
    if "probabilities" in answer:
        each = {f"p_{label}": p for label, p in answer["probabilities"].items()}
        if "present" in answer:  # labels that do not exclude each other
            told = {"present": as_finding(answer["present"]), "novelty": answer.get("novelty")}
            return told | each
        names = ("label", "probability", "novelty")
        return {name: answer.get(name) for name in names} | each
    if "stack" in answer:
        measured, structures = ("frames_found", *_STACK), answer.get("structures", ())
        own = {f"{each['label']}_{name}": each["stack"].get(name)
               for each in structures for name in measured}  # fmt: skip
        return {name: answer["stack"].get(name) for name in measured} | own
    return {f"{label}_ml": volume for label, volume in answer.get("volumes_ml", {}).items()}


def columns_of(found: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of measures, in the order of their first appearance."""
    return tuple(name for name in dict.fromkeys(found) if name not in (*_HEAD, *_TAIL))


def _write_csv(path: Path, names: tuple[str, ...], rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names, extrasaction="ignore")
        table.writeheader()
        for row in rows:
            table.writerow({name: csv_cell(value) for name, value in row.items()})


def _write_parquet(path: Path, names: tuple[str, ...], rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    schema = arrow.schema([(name, _arrow_type(arrow, name)) for name in names])
    with parquet.ParquetWriter(path, schema) as file:
        held: list[dict[str, Any]] = []
        for row in rows:
            held.append({name: row.get(name) for name in names})
            if len(held) == _ROWS:
                file.write_table(arrow.Table.from_pylist(held, schema))
                held.clear()
        file.write_table(arrow.Table.from_pylist(held, schema))


def _arrow_type(arrow: Any, name: str) -> Any:
    if name in ("size_bytes", "frames_found"):
        return arrow.int64()
    if name in _TEXT:
        return arrow.string()
    return arrow.bool_() if name in _FLAGS else arrow.float64()
