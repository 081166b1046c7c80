"""`medserve sample`: draw synthetic images, with a progress bar and a contact sheet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from medserve.cli.connection import Address, CaFile, Timeout, TokenFile, connect
from medserve.cli.options import add_options, read_options, task_options
from medserve.cli.show.console import console_for_people, shown
from medserve.cli.show.files import OutFolder, writing_to
from medserve.cli.show.sheet import contact_sheet, sample_record
from medserve.client import (
    Client,
    GenerationOptions,
    GenerationResult,
    SampleFormat,
    SampleProgress,
)
from medserve.errors import ConfigError, ServerFailedError
from medserve.spec import Task

__all__ = ["sample"]

_SHEET, _RECORDS = "contact_sheet.png", "samples.json"


def sample(
    count: Annotated[int, typer.Argument(metavar="N", help="How many images.")] = 1,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the model.")
    ] = "diffusion_sampler",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Write the images here."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist in --out.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per image and line.")
    ] = False,
    version: Annotated[str | None, typer.Option(help="Version of the model.")] = None,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = 300.0,
    **given: Any,
) -> None:
    """Draw synthetic images. They show nobody, and every file says so.

    The same seed and settings give the same image again, from the same archive.
    In --out: sample_<seed>.png, contact_sheet.png, samples.json.

    Exit code: 0 all drawn, 2 refused, no server or wrong usage.

    Example:
    medserve sample 8 --seed 1 --class NonDemented --out SAMPLES
    """
    options = read_options(GenerationOptions, {"count": count, **given})
    if options.format is not SampleFormat.PNG and out is None:
        raise ConfigError(f"--format {options.format}: expected --out DIR to write to, got none")
    files: list[Path] = []
    with contextlib.ExitStack() as stack:
        folder = out and stack.enter_context(OutFolder(out, overwrite=overwrite))
        if folder:
            folder.refuse_existing(_taken(folder.path))
        client = stack.enter_context(connect(address, token_file, ca_file, timeout))
        drawn = _draw(client, model, options, version)
        if folder:
            files = _write(drawn, folder)
    if as_json:
        for image in drawn.images:
            print(json.dumps(sample_record(image, drawn)), flush=True)
        return
    console = console_for_people()
    console.print(_table(drawn))
    if drawn.withheld:
        console.print(
            f"[yellow]{drawn.withheld} more came too near to a training image: withheld and "
            "replaced[/]"
        )
    if files:
        console.print(Text(f"wrote {len(files)} files to {shown(str(out))}"))


add_options(sample, task_options(Task.GENERATION, without=("count",)))


def _draw(
    client: Client, model: str, options: GenerationOptions, version: str | None
) -> GenerationResult:
    """The images, with a bar on standard error while they form."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("image {task.fields[image]} of {task.fields[images]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(model, total=None, image=1, images=options.count)
        for part in client.sample(model, options, version=version):
            if isinstance(part, GenerationResult):
                return part
            _advance(bar, task, part, options.count)
    raise ServerFailedError("expected images at the end of the stream, got none")


def _advance(bar: Progress, task: Any, part: SampleProgress, count: int) -> None:
    bar.update(
        task,
        total=count * part.steps,
        completed=part.image * part.steps + part.step,
        image=part.image + 1,
    )


def _taken(out: Path) -> Iterator[str]:
    """What was drawn before, and must not be replaced unasked."""
    for path in sorted(out.iterdir()):
        if path.name in (_SHEET, _RECORDS) or path.name.startswith("sample_"):
            yield path.name


def _write(drawn: GenerationResult, out: OutFolder) -> list[Path]:
    written = [out.write(name, content) for name, content in _files(drawn)]
    with writing_to(out.path):
        contact_sheet(drawn.images, out.note(_SHEET))
    return [*written, out.path / _SHEET]


def _files(drawn: GenerationResult) -> Iterator[tuple[str, bytes]]:
    for image in drawn.images:
        stem = f"sample_{image.seed:010d}"
        yield f"{stem}.png", image.png
        if image.dicom is not None:
            yield f"{stem}.dcm", image.dicom
    if drawn.npz is not None:
        yield "samples.npz", drawn.npz
    if drawn.nifti is not None:
        yield "samples.nii.gz", drawn.nifti
    records = {
        "withheld": drawn.withheld,
        "images": [sample_record(image, drawn) for image in drawn.images],
    }
    yield _RECORDS, (json.dumps(records, indent=2) + "\n").encode()


def _table(drawn: GenerationResult) -> Table:
    shape = Table("seed", "class", "sampler", "steps", "guidance", "pixels", box=None)
    for column in (0, 3, 4):
        shape.columns[column].justify = "right"
    for image in drawn.images:
        shape.add_row(
            str(image.seed),
            Text(shown(image.label or "-")),
            Text(shown(image.sampler)),
            str(image.steps),
            f"{image.guidance:g}",
            f"{image.size} x {image.size}",
        )
    return shape
