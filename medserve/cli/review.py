"""`medserve review`: the most doubtful files of a sorted folder first, and the classes of a person.

No file is moved or changed: what a person says goes to `corrections.csv` beside the manifest, and
`training` reads it there.
"""

from __future__ import annotations

import csv
import getpass
import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from medserve.cli.show.console import console_for_people, nearest, shown
from medserve.errors import ConfigError, InvalidRequestError
from medserve.results.sorted_folders import (
    CORRECTIONS,
    ERRORS,
    MANIFEST,
    NONE,
    REVIEW,
    SEVERAL,
    Correction,
    correction_rows,
    doubt_first,
    read_corrections,
    read_manifest,
)
from medserve.tasks.classification import as_finding, read_finding

__all__ = ["review"]


def review(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="A sorted folder.")
    ],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE", help="As the table names them.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="The right class of FILE…; of independent labels 'A; B', or 'none'.",
        ),
    ] = None,
    first: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    by: Annotated[
        str | None, typer.Option(help="Who says so.", show_default="your account's name")
    ] = None,
) -> None:
    """List the most doubtful files of a sorted folder, or say the class of some.

    DIR was made by `medserve sort` or is the page's zip, unpacked.
    Classes go to DIR/corrections.csv; no file is moved.
    Files that somebody judged are not listed again.

    Exit code: 0 done or nothing left, 2 wrong usage.

    Example:
    medserve review SORTED --first 50
    medserve review SORTED --class Hand _review/b.png _review/c.png
    """
    rows = {row["stored"]: row for row in read_manifest(folder) if row["stored"]}
    if not rows:
        raise ConfigError(
            f"expected {MANIFEST} in {shown(str(folder))}, found none with files; give the folder "
            "that `medserve sort` or the page's zip made"
        )
    if (label is None) != (not files):
        raise ConfigError("expected --class CLASS and FILE… together, got one without the other")
    if label is None:
        _list(folder, rows, first)
    else:
        _correct(folder, rows, files or [], label, _account() if by is None else by)


def _list(folder: Path, rows: dict[str, dict[str, str]], first: int) -> None:
    judged = read_corrections(folder)
    open_ = [
        row
        for row in rows.values()
        if row["class"] and row["sha256"] not in judged and (folder / row["stored"]).is_file()
    ]
    shape = Table("file", "class", "probability", "status", box=None, padding=(0, 2, 0, 0))
    shape.columns[2].justify = "right"
    for row in sorted(open_, key=doubt_first)[:first]:
        cells = (row["stored"], row["class"], row["probability"], row["status"])
        shape.add_row(*(Text(shown(cell)) for cell in cells))
    if open_:
        console_for_people().print(shape)
    console_for_people().print(f"{len(open_)} files, {len(judged)} judged by a person")


def _correct(
    folder: Path, rows: dict[str, dict[str, str]], files: list[str], label: str, by: str
) -> None:
    label = _known(folder, rows, label)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    corrections = [
        Correction(
            row["sha256"], label, row.get("predicted_class") or row["class"], row["probability"],
            by, now, row["model"], row["version"], row["archive_digest"],
        )
        for row in (_row(folder, rows, each) for each in files)
    ]  # fmt: skip
    read_corrections(folder)  # what is there is such a table, or nothing is added to it
    path = folder / CORRECTIONS
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(correction_rows(corrections)[bool(file.tell()) :])
    except OSError as error:
        raise ConfigError(f"{shown(str(path))}: cannot be written ({error.strerror})") from error
    console_for_people().print(Text(f"{len(corrections)} files: {shown(label)}"))


def _known(folder: Path, rows: dict[str, dict[str, str]], label: str) -> str:
    """Return the class, or independent labels as one text; refuse what the folder does not name."""
    folders = _folders(folder)
    known = sorted({row["class"] for row in rows.values() if row["class"]} | folders)
    if (folder / NONE).is_dir():  # of labels that do not exclude each other
        known = sorted(folders)
        with suppress(InvalidRequestError):
            return as_finding(read_finding(label, known))
    elif label in known:
        return label
    raise ConfigError(
        f"There is no class {shown(label)}{nearest(label, known)}. Known are "
        f"{shown(', '.join(known))}; make a folder of that name where it is a new one."
    )


def _row(folder: Path, rows: dict[str, dict[str, str]], given: str) -> dict[str, str]:
    """Return the row of a file that is named as in the table, or by a path; it is unchanged."""
    path = Path(given)
    if given not in rows and path.resolve().is_relative_to(folder.resolve()):
        given = path.resolve().relative_to(folder.resolve()).as_posix()
    if given not in rows:
        raise ConfigError(f"There is no file {shown(given)}{nearest(given, rows)} in {MANIFEST}.")
    row = rows[given]
    try:
        found = hashlib.sha256((folder / given).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{shown(given)}: cannot be read ({error.strerror})") from error
    if found != row["sha256"]:
        raise ConfigError(f"{shown(given)}: is another file than the one that was sorted")
    return row


def _folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()} - {
        *(REVIEW, ERRORS, NONE, SEVERAL)
    }


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without such a user
        return ""
