"""`medserve sort`: copy a folder's images into one folder per class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medserve.cli.connection import Address, CaFile, Timeout, TokenFile, connect
from medserve.cli.inputs import shown, walk
from medserve.cli.manifest import Manifest
from medserve.cli.progress import counted
from medserve.cli.records import console_for_people
from medserve.cli.sorting import Outcome, Sorter
from medserve.errors import ConfigError
from medserve.results.sorted_folders import ERRORS, REVIEW

__all__ = ["sort"]


def sort(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="What to sort.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", file_okay=False, help="Where copies go.")],
    model: Annotated[str, typer.Option(help="Name of the model.")] = "mednist",
    review_below: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Probability for _review/.", show_default="the model card's"
        ),
    ] = None,
    version: Annotated[str | None, typer.Option(help="Version of the model.")] = None,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = 30.0,
) -> None:
    """Copy every image to OUT/<class>/; the originals stay as they are.

    What a person should look at goes to OUT/_review/.
    What is no usable image goes to OUT/_errors/.
    OUT/manifest.csv tells it for each file.
    Nothing is overwritten; a second run goes on where the first one stopped.

    Exit code: 0 all sorted, 1 some failed, 2 no server or wrong usage.
    """
    if folder.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"expected --out outside the sorted folder or below it, got {shown(str(out))}"
        )
    files = list(walk(folder, without=out))
    try:
        with connect(address, token_file, ca_file, timeout) as client, Manifest(out, model) as done:
            sorter = Sorter(folder, out, done, model, version, review_below)
            outcomes = list(counted(sorter.run(client, files), len(files), model))
    except OSError as error:  # the copies so far are in place and in the manifest
        raise ConfigError(f"--out {shown(str(out))}: {error.strerror}") from error
    console_for_people().print(_summary(outcomes))
    console_for_people().print(Text(f"manifest: {shown(str(done.path))}"))
    for reason, count in Counter(each.reason for each in outcomes if each.reason).most_common(3):
        Console(stderr=True, soft_wrap=True).print(Text(f"{count} x {shown(reason)}"))
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def _summary(outcomes: list[Outcome]) -> Table:
    counts = Counter(outcome.place for outcome in outcomes)
    shape = Table("folder", "files", box=None, padding=(0, 2, 0, 0))
    shape.columns[1].justify = "right"
    last = (REVIEW, ERRORS)
    for place in sorted(counts, key=lambda place: (place.startswith("("), place in last, place)):
        shape.add_row(Text(shown(place)), str(counts[place]))
    shape.add_section()
    shape.add_row("all", str(len(outcomes)))
    return shape
