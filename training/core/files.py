"""Folders and tables on disk: what every command reads and writes alike."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medserve.errors import ConfigError

__all__ = [
    "files_below",
    "require_folder",
    "write_csv",
    "write_json",
    "write_rows",
]


def require_folder(path: Path, flag: str) -> Path:
    """Return the folder itself, or raise a ConfigError that names the flag."""
    if not path.is_dir():
        raise ConfigError(f"expected {flag} to be a folder, but there is none at {path}")
    return path


def files_below(folder: Path) -> list[Path]:
    """Return every file below a folder that is not hidden, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Write a JSON file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=indent, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table whose columns are the keys of the first row."""
    columns = list(rows[0])
    write_rows(path, columns, ([row.get(name, "") for name in columns] for row in rows))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table below the names of its columns, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
