"""One input's outcome as a flat record: the JSON line, the CSV row and the table row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medserve.cli.inputs import shown
from medserve.client import ItemResult
from medserve.results.sorted_folders import csv_cell, csv_path
from medserve.tasks.classification import Explanation

__all__ = ["CSV_FIELDS", "Record", "console_for_people", "table"]

CSV_FIELDS = (
    *("path", "status", "label", "label_id", "probability", "review", "unlike_training"),
    *("novelty", "model", "version", "archive_digest", "error"),
)


@dataclass(frozen=True)
class Record:
    """What became of one input."""

    path: str
    result: ItemResult
    top_k: int = 1

    @property
    def failed(self) -> bool:
        """Whether there is an error instead of an answer."""
        return self.result.error is not None

    @property
    def explanation(self) -> Explanation | None:
        """What the class rests on, where that was asked for and answered."""
        answer = self.result.classification
        return None if answer is None else answer.explanation

    def to_json(self) -> dict[str, Any]:
        """The same members for every input; null where there is no answer.

        `explanation` is there only where a class was explained, without its picture.
        """
        answer, error = self.result.classification, self.result.error
        explained: dict[str, Any] = {}
        if self.explanation is not None:
            explained = {"explanation": self.explanation.to_json()}
            del explained["explanation"]["heatmap_png"]
        return {
            "path": self.path,
            "status": "error" if error else "ok",
            "label": answer and answer.label,
            "label_id": answer and answer.label_id,
            "probability": answer and answer.probability,
            "probabilities": answer and dict(zip(answer.labels, answer.probabilities, strict=True)),
            "top": answer
            and [{"label": label, "probability": p} for label, p in answer.top(self.top_k)],
            "review": answer and answer.review,
            "unlike_training": answer and answer.unlike_training,
            "novelty": answer and answer.novelty,
            **explained,
            **self.result.provenance.to_json(),
            "error": error and {"code": error.code, "message": error.message},
        }

    def to_line(self) -> str:
        """The record as one line of JSON, in ASCII so that every terminal can take it."""
        return json.dumps(self.to_json())

    def to_row(self) -> dict[str, Any]:
        """The record as a row with `CSV_FIELDS`."""
        content = self.to_json()
        if (error := self.result.error) is not None:
            content["error"] = f"{error.code}: {error.message}"
        content["path"] = csv_path(self.path)
        return {name: csv_cell(content[name]) for name in CSV_FIELDS}


def table(records: Iterable[Record]) -> Table:
    """The records for a person."""
    shape = Table("input", "class", "probability", "note", box=None, padding=(0, 2, 0, 0))
    for column in shape.columns:
        column.overflow = "fold"
    shape.columns[2].justify = "right"
    for record in records:
        shape.add_row(*_cells(record))
    return shape


def _cells(record: Record) -> tuple[Text, Text, Text, Text]:
    answer, error = record.result.classification, record.result.error
    path = Text(shown(record.path))
    if answer is None:
        note = f"{error.code}: {error.message}" if error else ""
        return path, Text("-"), Text("-"), Text(shown(note), style="red")
    best = answer.top(max(record.top_k, 1))
    notes = ["review"] if answer.review else []
    notes += ["unlike the training data"] if answer.unlike_training else []
    if (explanation := answer.explanation) is not None:
        notes.append(f"{explanation.without_warmest:.4f} without its warmest quarter")
    return (
        path,
        Text("\n".join(shown(label) for label, _ in best)),
        Text("\n".join(f"{probability:.4f}" for _, probability in best)),
        Text(", ".join(notes), style="yellow"),
    )


def console_for_people() -> Console:
    """Standard output; wide where it is a file or a pipe, so that nothing is cut off."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)
