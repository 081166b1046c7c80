"""`medserve predict`: classify files and folders."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from medserve.cli.connection import Address, CaFile, Timeout, TokenFile, connect
from medserve.cli.inputs import STDIN, find_files, shown
from medserve.cli.progress import counted
from medserve.cli.records import CSV_FIELDS, Record, console_for_people, table
from medserve.errors import ConfigError

__all__ = ["predict"]


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Files and folders; - reads one from stdin."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per input and line.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Write a JSON file per input here."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to show per input.")] = 1,
    version: Annotated[str | None, typer.Option(help="Version of the model.")] = None,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = 30.0,
) -> None:
    """Classify images: one answer per input, in the order of the inputs.

    Folders are walked in sorted order, hidden files left out.
    A broken file is reported in its place and costs no other.

    Exit code: 0 all answered, 1 some failed, 2 no server or wrong usage.
    """
    files = find_files(paths)
    if files.count(STDIN) > 1:
        raise ConfigError("expected - (standard input) once at most")
    with connect(address, token_file, ca_file, timeout) as client:
        results = client.classify_each(model, _contents(files), version=version)
        records = (
            Record(str(path), result, top_k)
            for path, result in zip(files, counted(results, len(files), model), strict=True)
        )
        seen = list(_printed(records) if as_json else records)
    if not as_json:
        console_for_people().print(table(seen))
    if out is not None:
        try:
            write_folder(seen, out)
        except OSError as error:
            raise ConfigError(f"--out {shown(str(out))}: {error.strerror}") from error
    if any(record.failed for record in seen):
        raise typer.Exit(1)


def _contents(files: Iterable[Path]) -> Iterator[bytes | Path]:
    for path in files:
        yield sys.stdin.buffer.read() if path == STDIN else path


def _printed(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        print(record.to_line(), flush=True)
        yield record


def write_folder(records: Iterable[Record], folder: Path) -> None:
    """`<stem>.json` per input, a number behind the stem where two share one, and results.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    with (folder / "results.csv").open(
        "w", newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        rows = csv.DictWriter(file, (*CSV_FIELDS, "json"))
        rows.writeheader()
        for record in records:
            name = _free_name(
                "stdin" if record.path == str(STDIN) else Path(record.path).stem, taken
            )
            (folder / name).write_text(record.to_line() + "\n", encoding="utf-8")
            rows.writerow({**record.to_row(), "json": name})


def _free_name(stem: str, taken: set[str]) -> str:
    number = 1
    name = f"{stem}.json"
    while name.casefold() in taken:  # some file systems see no difference in case
        number += 1
        name = f"{stem}-{number}.json"
    taken.add(name.casefold())
    return name
