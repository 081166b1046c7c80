"""What became of images that were asked about one by one: for a person, for a program, as files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from rich.table import Table
from rich.text import Text

from medserve.cli.show.console import shown
from medserve.cli.show.files import STDIN, free_name, write_csv
from medserve.client import FileResult

__all__ = ["ImageRecord", "table", "write_folder"]

Answer = TypeVar("Answer")

_TAIL = ("model", "version", "archive_digest", "error", "json")


@dataclass(frozen=True)
class ImageRecord(ABC, Generic[Answer]):
    """What became of one input.

    Attributes:
        heading: Of the two columns that tell the answer to a person.
        columns: Of results.csv, between those that every record has.
    """

    heading: ClassVar[tuple[str, str]]
    columns: ClassVar[tuple[str, ...]]

    path: str
    result: FileResult[Answer]

    @property
    def failed(self) -> bool:
        """Whether there is an error instead of an answer."""
        return self.result.error is not None

    @abstractmethod
    def members(self) -> dict[str, Any]:
        """Return what is told of the answer; null where there is none."""

    @abstractmethod
    def told(self, answer: Answer) -> tuple[list[tuple[str, str]], list[str]]:
        """Return the lines of the two columns for a person, and notes."""

    def row(self) -> dict[str, Any]:
        """Return further cells of results.csv; their columns follow the others."""
        return {}

    def pictures(self) -> Mapping[str, bytes]:
        """Return pictures of the answer as PNG, by the end of their names."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """The same members for every input; null where there is no answer."""
        error = self.result.error
        return {
            "path": self.path,
            "status": "error" if error else "ok",
            **self.members(),
            **self.result.provenance.to_json(),
            "error": error and {"code": error.code, "message": error.message},
        }

    def to_line(self) -> str:
        """The record as one line of JSON, in ASCII so that every terminal can take it."""
        return json.dumps(self.to_json())

    def to_row(self) -> dict[str, Any]:
        """The record as a row of results.csv."""
        content = self.to_json() | self.row()
        if (error := self.result.error) is not None:
            content["error"] = f"{error.code}: {error.message}"
        return content


def table(records: Sequence[ImageRecord[Any]]) -> Table:
    """The records for a person."""
    heading = records[0].heading if records else ("", "")
    shape = Table("input", *heading, "note", box=None, padding=(0, 2, 0, 0))
    for column in shape.columns:
        column.overflow = "fold"
    shape.columns[2].justify = "right"
    for record in records:
        shape.add_row(*_cells(record))
    return shape


def _cells(record: ImageRecord[Any]) -> tuple[Text, Text, Text, Text]:
    answer, error = record.result.result, record.result.error
    path = Text(shown(record.path))
    if answer is None:
        note = f"{error.code}: {error.message}" if error else ""
        return path, Text("-"), Text("-"), Text(shown(note), style="red")
    lines, notes = record.told(answer)
    return (
        path,
        Text("\n".join(shown(name) for name, _ in lines)),
        Text("\n".join(shown(number) for _, number in lines)),
        Text(shown(", ".join(notes)), style="yellow"),
    )


def write_folder(records: Sequence[ImageRecord[Any]], folder: Path) -> None:
    """`<stem>.json` per input, a number behind the stem where two share one, and results.csv.

    Pictures of an answer lie beside its file, as `<stem>_heatmap.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    rows: list[dict[str, Any]] = []
    for record in records:
        own = "stdin" if record.path == str(STDIN) else Path(record.path).stem
        stem = free_name(own, taken)
        (folder / f"{stem}.json").write_text(record.to_line() + "\n", encoding="utf-8")
        for name, content in record.pictures().items():
            (folder / f"{stem}_{name}").write_bytes(content)
        rows.append({**record.to_row(), "json": f"{stem}.json"})
    columns = records[0].columns if records else ()
    every = dict.fromkeys(column for record in records for column in record.row())
    further = [column for column in every if column not in columns]
    write_csv(folder / "results.csv", ("path", "status", *columns, *_TAIL, *further), rows)
