"""`medserve sample`: draw synthetic images, with a progress bar and a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from medserve.cli.connection import Address, CaFile, Timeout, TokenFile, connect
from medserve.cli.inputs import shown
from medserve.cli.records import console_for_people
from medserve.cli.samples import contact_sheet, sample_record
from medserve.client import Client, SampleOptions, SampleProgress, SampleSet
from medserve.errors import ConfigError, ServerFailedError
from medserve.spec.generation import SamplerKind

__all__ = ["sample"]

_SHEET, _RECORDS = "contact_sheet.png", "samples.json"


def sample(
    count: Annotated[int, typer.Argument(metavar="N", help="How many images.")] = 1,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the model.")
    ] = "diffusion_sampler",
    label: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Class to draw.", show_default="by chance"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of the first image; the next count up.", show_default="by chance"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Network calls an image.", show_default="the model's")
    ] = None,
    sampler: Annotated[
        SamplerKind | None, typer.Option(help="From noise to image.", show_default="the model's")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Side of the images.", show_default="the model's"),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Weight of the class.", show_default="the model's")
    ] = None,
    form: Annotated[
        Literal["png", "npz", "nifti", "dicom"],
        typer.Option("--format", help="What to write beside the PNGs."),
    ] = "png",
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
) -> None:
    """Draw synthetic images. They show nobody, and every file says so.

    The same seed and settings give the same image again, from the same archive.
    In --out: sample_<seed>.png, contact_sheet.png, samples.json.

    Exit code: 0 all drawn, 2 refused, no server or wrong usage.
    """
    if form != "png" and out is None:
        raise ConfigError(f"--format {form}: expected --out DIR to write to, got none")
    if out is not None and not overwrite:
        _refuse_existing(out)
    wishes = SampleOptions(
        count=count,
        label=label,
        seed=seed,
        steps=steps,
        sampler=None if sampler is None else sampler.value,
        size=size,
        guidance=guidance,
        file=None if form == "png" else form,
    )
    with connect(address, token_file, ca_file, timeout) as client:
        drawn = _draw(client, model, wishes, version)
    files = [] if out is None else _write(drawn, out)
    if as_json:
        for image in drawn.images:
            print(json.dumps(sample_record(image)), flush=True)
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


def _draw(client: Client, model: str, wishes: SampleOptions, version: str | None) -> SampleSet:
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
        task = bar.add_task(model, total=None, image=1, images=wishes.count)
        for part in client.sample(model, wishes, version=version):
            if isinstance(part, SampleSet):
                return part
            _advance(bar, task, part, wishes.count)
    raise ServerFailedError("expected images at the end of the stream, got none")


def _advance(bar: Progress, task: Any, part: SampleProgress, count: int) -> None:
    bar.update(
        task,
        total=count * part.steps,
        completed=part.image * part.steps + part.step,
        image=part.image + 1,
    )


def _refuse_existing(out: Path) -> None:
    """Nothing that was drawn before is replaced unasked."""
    if not out.is_dir():
        return
    taken = [path for path in out.iterdir() if path.name in (_SHEET, _RECORDS)]
    taken += sorted(out.glob("sample_*"))
    if taken:
        raise ConfigError(
            f"--out {shown(str(out))}: expected a folder without samples, got one with "
            f"{shown(taken[0].name)}; name another one, or --overwrite"
        )


def _write(drawn: SampleSet, out: Path) -> list[Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = []
        for name, content in _files(drawn):
            _replace(out / name, content)
            written.append(out / name)
        contact_sheet(drawn.images, out / _SHEET)
    except OSError as error:
        raise ConfigError(f"--out {shown(str(out))}: {error.strerror}") from error
    return [*written, out / _SHEET]


def _files(drawn: SampleSet) -> Iterator[tuple[str, bytes]]:
    for image in drawn.images:
        stem = f"sample_{image.sample.seed:010d}"
        yield f"{stem}.png", image.png
        if image.dicom is not None:
            yield f"{stem}.dcm", image.dicom
    if drawn.npz is not None:
        yield "samples.npz", drawn.npz
    if drawn.nifti is not None:
        yield "samples.nii.gz", drawn.nifti
    records = {
        "withheld": drawn.withheld,
        "images": [sample_record(image) for image in drawn.images],
    }
    yield _RECORDS, (json.dumps(records, indent=2) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    """All of the file under its name, or nothing."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _table(drawn: SampleSet) -> Table:
    shape = Table("seed", "class", "sampler", "steps", "guidance", "pixels", box=None)
    for column in (0, 3, 4):
        shape.columns[column].justify = "right"
    for image in drawn.images:
        each = image.sample
        height, width = each.image.shape[:2]
        shape.add_row(
            str(each.seed),
            Text(shown(each.label or "-")),
            Text(shown(each.sampler)),
            str(each.steps),
            f"{each.guidance:g}",
            f"{width} x {height}",
        )
    return shape
