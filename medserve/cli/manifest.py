"""The table of what `medserve sort` has finished; the memory by which a second run goes on."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medserve.errors import ConfigError
from medserve.results.sorted_folders import csv_cell

__all__ = ["Manifest"]

_FIELDS = (
    *("source", "stored", "sha256", "class", "class_id", "probability", "status"),
    *("model", "version", "archive_digest", "error"),
)


class Manifest:
    """The table of finished files; rows are appended and flushed one by one."""

    def __init__(self, out: Path, model: str) -> None:
        self.path = out / "manifest.csv"
        self._model = model
        self._rows: dict[tuple[str, str], dict[str, str]] = {}  # by source and sha256
        for row in self._read():
            self._rows[row["source"], row["sha256"]] = row

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        self._file = self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
        self._writer = csv.DictWriter(self._file, _FIELDS)
        if self._file.tell() == 0:
            self._writer.writeheader()
        elif torn:
            self._file.write("\r\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def row(self, source: str, sha256: str) -> dict[str, str] | None:
        """The row of a finished file, None while it is not finished."""
        return self._rows.get((source, sha256))

    def append(self, row: dict[str, Any]) -> None:
        """Add one finished file; on return the row is in the file."""
        text = {key: "" if value is None else str(value) for key, value in row.items()}
        self._writer.writerow({key: csv_cell(value) for key, value in text.items()})
        self._file.flush()

    def _read(self) -> Iterator[dict[str, str]]:
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames is not None and tuple(rows.fieldnames) != _FIELDS:
                raise ConfigError(
                    f"{self.path}: expected a manifest of this program, got other columns; "
                    "give another --out"
                )
            for row in rows:
                if None in row or None in row.values():
                    continue  # torn by a crash: its file counts as not done
                if row["model"] != self._model:
                    raise ConfigError(
                        f"{self.path}: expected files sorted by {self._model}, got some sorted "
                        f"by {row['model']}; give another --out"
                    )
                yield row
