"""Classes of images: a line of JSON, a row of a table and files for each input."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from medserve.cli.show.console import shown
from medserve.cli.show.files import STDIN, free_name, write_csv
from medserve.client import Classification, FileResult
from medserve.tasks.classification import Explanation

__all__ = ["Record", "table", "write_folder"]

_CSV_FIELDS = (
    *("path", "status", "label", "label_id", "probability", "review", "unlike_training"),
    *("novelty", "model", "version", "archive_digest", "error", "json"),
)


@dataclass(frozen=True)
class Record:
    """What became of one input."""

    path: str
    result: FileResult[Classification]
    top_k: int = 1

    @property
    def failed(self) -> bool:
        """Whether there is an error instead of an answer."""
        return self.result.error is not None

    @property
    def explanation(self) -> Explanation | None:
        """What the class rests on, where that was asked for and answered."""
        answer = self.result.result
        return None if answer is None else answer.explanation

    def to_json(self) -> dict[str, Any]:
        """The same members for every input; null where there is no answer.

        `explanation` is there only where a class was explained, without its picture; `present` only
        where labels are independent, of which no single one is the class.
        """
        answer, error = self.result.result, self.result.error
        explained: dict[str, Any] = {}
        present = {} if answer is None or answer.present is None else {"present": answer.present}
        named = None if present else answer
        if self.explanation is not None:
            explained = {"explanation": self.explanation.to_json()}
            del explained["explanation"]["heatmap_png"]
        return {
            "path": self.path,
            "status": "error" if error else "ok",
            "label": named and named.label,
            "label_id": named and named.label_id,
            "probability": named and named.probability,
            **present,
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
        """The record as a row of results.csv."""
        content = self.to_json()
        if (answer := self.result.result) is not None and answer.present is not None:
            content |= {"present": answer.finding, **_shares(answer)}
        if (error := self.result.error) is not None:
            content["error"] = f"{error.code}: {error.message}"
        return content


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
    answer, error = record.result.result, record.result.error
    path = Text(shown(record.path))
    if answer is None:
        note = f"{error.code}: {error.message}" if error else ""
        return path, Text("-"), Text("-"), Text(shown(note), style="red")
    best: Iterable[tuple[str, float]] = answer.top(max(record.top_k, 1))
    if answer.present is not None:
        best = sorted(answer.found, key=lambda each: -each[1])
    notes = ["review"] if answer.review else []
    notes += ["unlike the training data"] if answer.unlike_training else []
    if (explanation := answer.explanation) is not None:
        notes.append(f"{explanation.without_warmest:.4f} without its warmest quarter")
    return (
        path,
        Text("\n".join(shown(label) for label, _ in best) or answer.finding),
        Text("\n".join(f"{probability:.4f}" for _, probability in best)),
        Text(", ".join(notes), style="yellow"),
    )


def write_folder(records: Iterable[Record], folder: Path) -> None:
    """`<stem>.json` per input, a number behind the stem where two share one, and results.csv.

    Where a class was explained, `<stem>_heatmap.png` lies beside it. Of independent labels the
    table has what is present and the probability of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    rows: list[dict[str, Any]] = []
    further: dict[str, None] = {}
    for record in records:
        own = "stdin" if record.path == str(STDIN) else Path(record.path).stem
        stem = free_name(own, taken)
        (folder / f"{stem}.json").write_text(record.to_line() + "\n", encoding="utf-8")
        if (explanation := record.explanation) is not None:
            (folder / f"{stem}_heatmap.png").write_bytes(explanation.heatmap_png)
        rows.append({**record.to_row(), "json": f"{stem}.json"})
        if (answer := record.result.result) is not None and answer.present is not None:
            further |= dict.fromkeys(("present", *_shares(answer)))
    write_csv(folder / "results.csv", (*_CSV_FIELDS, *further), rows)


def _shares(answer: Classification) -> dict[str, float]:
    """Return the probability of each label, by the name of its column."""
    found = zip(answer.labels, answer.probabilities, strict=True)
    return {f"p_{label}": share for label, share in found}
