"""A table of what is known of images: a row for each, a column for each answer of a model."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medserve.errors import ConfigError

__all__ = ["Reference", "read_references"]


@dataclass(frozen=True)
class Reference:
    """What is known of one image.

    Attributes:
        answers: In the order of the columns that were asked for.
        subject: Whose image it is; its own name where the table has no column `subject`.
    """

    answers: tuple[float, ...]
    subject: str


def read_references(
    table: Path, columns: Sequence[str], read: Callable[[str], float], expected: str
) -> dict[Path, Reference]:
    """Return for each image what a table says of it.

    Args:
        table: A CSV with the columns `name`, the path of an image below the table's folder, those
            asked for, and perhaps `subject`.
        columns: One for each answer.
        read: Turns the text of a cell, without blanks around it, into an answer, or raises
            ValueError.
        expected: What a cell may hold, for errors.

    Raises:
        ConfigError: no table, one without these columns, a value that is no answer, or an image
            that is not there.
    """
    folder = table.parent
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            given, rows = set(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{table}: expected a table with the columns {', '.join(('name', *columns))} ({error})"
        ) from error
    if lacking := [each for each in ("name", *columns) if each not in given]:
        raise ConfigError(f"{table}: expected a column {lacking[0]!r}, got {sorted(given)}")
    found: dict[Path, Reference] = {}
    for number, row in enumerate(rows, start=2):
        path = folder / (row["name"] or "")
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise ConfigError(f"{table}: line {number}: expected an image below {folder}")
        if path in found:
            raise ConfigError(f"{table}: line {number}: expected each image once, got one again")
        try:
            answers = tuple(read((row[each] or "").strip()) for each in columns)
        except ValueError:
            raise ConfigError(
                f"{table}: line {number}: expected {expected}, got another value"
            ) from None
        found[path] = Reference(answers, row.get("subject") or row["name"])
    if not found:
        raise ConfigError(f"{table}: expected images, got none")
    return found
