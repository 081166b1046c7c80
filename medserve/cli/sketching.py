"""`medserve sketch`: from a batch of held-out inputs to that against which drift is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from medserve.archive.build import pack_with_reference
from medserve.archive.read import NETWORK, intact_archive
from medserve.archive.reference import FEWEST_OF_A_CLASS, REFERENCE, Observed, Reference
from medserve.batch.receipts import BatchFolder
from medserve.errors import ConfigError

__all__ = ["sketch"]

_FEWEST = 30  # inputs; the test tolerates what so many leave open, and tells less of fewer


def sketch(
    batch: Annotated[
        Path, typer.Argument(metavar="BATCH", help="Folder that `medserve batch` wrote.")
    ],
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The archive that answered.")],
    out: Annotated[
        Path, typer.Option(help="File to write; in the folder weights of a room it is packaged.")
    ] = Path(REFERENCE),
    version: Annotated[
        str | None,
        typer.Option(
            help="Pack it instead: a copy of the archive, as this version beside it. For archives "
            "that no room builds, such as imported ones."
        ),
    ] = None,
) -> None:
    """Sketch the answers to held-out inputs, so that the gateway tells when inputs drift from them.

    Take inputs of the kind that will be sent, none that the model was trained on. The file holds
    quantiles of each signal, without names; of fewer than 200 inputs these are the values.
    """
    info = intact_archive(archive)
    answers: list[Observed] = []
    for receipt in BatchFolder(batch).receipts():
        if receipt.status != "ok":
            continue
        if receipt.archive_digest != info.digest:
            raise ConfigError(
                f"{batch}: expected answers of {archive}, got some of another archive; run the "
                "batch again into a new folder"
            )
        answers.append(msgspec.convert(receipt.answer, Observed))
    if len(answers) < _FEWEST:
        raise ConfigError(
            f"{batch}: expected at least {_FEWEST} answered inputs, got {len(answers)}"
        )
    network = next(each.sha256 for each in info.members if each.path == NETWORK)
    found = Reference.of(network, answers)
    if not found.signals:
        raise ConfigError(
            f"{batch}: expected a class with at least {FEWEST_OF_A_CLASS} inputs, got none; answer "
            "more of each"
        )
    if version is None:
        out.write_bytes(found.encode())
    else:
        out = pack_with_reference(info, found, version)
    signals = ", ".join(f"{name} ({len(classes)})" for name, classes in found.signals.items())
    typer.echo(f"{out}  {found.inputs} inputs, {signals}")
