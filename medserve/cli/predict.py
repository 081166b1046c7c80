"""`medserve predict`: classify images, segment volumes and frames."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from medserve.cli.connection import Address, CaFile, TokenFile, connect
from medserve.cli.frames import FrameOutput, segment_frames
from medserve.cli.inputs import STDIN, find_files, shown
from medserve.cli.masks import MaskFormat, Segments, segments_what
from medserve.cli.progress import counted
from medserve.cli.records import CSV_FIELDS, Record, console_for_people, table
from medserve.cli.volumes import VolumeOutput, segment_volumes
from medserve.client import Client, FrameOptions, SegmentationOptions, View
from medserve.errors import ConfigError

__all__ = ["predict"]

_IMAGES_TIMEOUT_S = 30.0  # a packed call of 32
_MASKS_TIMEOUT_S = 300.0  # one volume or cine loop, and the one before it


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
        typer.Option(metavar="DIR", file_okay=False, help="Write the answers here."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to show per image.")] = 1,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also write a heat map of what each class rests on.")
    ] = False,
    form: Annotated[
        MaskFormat | None,
        typer.Option(
            "--format", help="How masks are written.", show_default="nifti, of single frames png"
        ),
    ] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write where a mask is uncertain.")
    ] = False,
    flips: Annotated[
        bool | None,
        typer.Option(help="Average over mirror images.", show_default="the model's"),
    ] = None,
    channel: Annotated[
        int | None, typer.Option(min=0, help="Which volume of a 4D NIfTI file.")
    ] = None,
    spacing: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="MM MM MM", help="Spacing of an NPY array.", show_default="1 1 1"),
    ] = None,
    view: Annotated[
        View | None, typer.Option(help="How frames lie in a NIfTI array.", show_default="stored")
    ] = None,
    pixel_spacing: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="MM MM", help="Between rows and columns of frames."),
    ] = None,
    step: Annotated[
        float | None, typer.Option(metavar="MM", help="From one frame of a stack to the next.")
    ] = None,
    length: Annotated[
        float | None, typer.Option(metavar="MM", help="Third diameter, for the ellipsoid.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace masks that exist in --out.")
    ] = False,
    version: Annotated[str | None, typer.Option(help="Version of the model.")] = None,
    address: Address = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0.001, help="Time for each call.", show_default="30, masks 300"
        ),
    ] = None,
) -> None:
    """Ask a model: classify images, segment volumes or frames; one answer per input, in order.

    Folders are walked in sorted order, hidden files left out.
    For a model of volumes, a folder with DICOM files is one series.
    A broken input is reported in its place and costs no other.

    Exit code: 0 all answered, 1 some failed, 2 no server or wrong usage.
    """
    if explain and out is None:
        raise ConfigError("--explain: expected --out DIR for the heat maps, got none; name one")
    for_images = timeout or _IMAGES_TIMEOUT_S
    with connect(address, token_file, ca_file, for_images) as client:
        kind = segments_what(client, model, version)
        if kind is Segments.NOTHING:
            how = _Shown(as_json, out, top_k, explain)
            every_one = _classify(client, model, paths, how, version)
    if explain and kind is not Segments.NOTHING:
        raise ConfigError(f"--explain: expected a model that classifies, got {shown(model)}")
    if kind is not Segments.NOTHING:
        with connect(address, token_file, ca_file, timeout or _MASKS_TIMEOUT_S) as client:
            if kind is Segments.VOLUMES:
                wanted = SegmentationOptions(
                    channel=channel, spacing_mm=spacing, flips=flips, uncertainty=uncertainty
                )
                volumes = VolumeOutput(out, form or MaskFormat.NIFTI, as_json, overwrite)
                every_one = segment_volumes(client, model, paths, wanted, volumes, version=version)
            else:
                asked = FrameOptions(
                    view=view, spacing_mm=pixel_spacing, step_mm=step, length_mm=length, flips=flips
                )
                frames = FrameOutput(out, form, as_json, overwrite)
                every_one = segment_frames(client, model, paths, asked, frames, version=version)
    if not every_one:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Shown:
    """How classes are shown."""

    as_json: bool
    out: Path | None
    top_k: int
    explain: bool


def _classify(
    client: Client, model: str, paths: Sequence[Path], how: _Shown, version: str | None
) -> bool:
    """Whether every image got its class."""
    files = find_files(paths)
    if files.count(STDIN) > 1:
        raise ConfigError("expected - (standard input) once at most")
    results = client.classify_each(model, _contents(files), version=version, explain=how.explain)
    records = (
        Record(str(path), result, how.top_k)
        for path, result in zip(files, counted(results, len(files), model), strict=True)
    )
    seen = list(_printed(records) if how.as_json else records)
    if not how.as_json:
        console_for_people().print(table(seen))
    if how.out is not None:
        try:
            write_folder(seen, how.out)
        except OSError as error:
            raise ConfigError(f"--out {shown(str(how.out))}: {error.strerror}") from error
    return not any(record.failed for record in seen)


def _contents(files: Iterable[Path]) -> Iterator[bytes | Path]:
    for path in files:
        yield sys.stdin.buffer.read() if path == STDIN else path


def _printed(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        print(record.to_line(), flush=True)
        yield record


def write_folder(records: Iterable[Record], folder: Path) -> None:
    """`<stem>.json` per input, a number behind the stem where two share one, and results.csv.

    Where a class was explained, `<stem>_heatmap.png` lies beside it.
    """
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
            if (explanation := record.explanation) is not None:
                picture = folder / f"{name.removesuffix('.json')}_heatmap.png"
                picture.write_bytes(explanation.heatmap_png)
            rows.writerow({**record.to_row(), "json": name})


def _free_name(stem: str, taken: set[str]) -> str:
    number = 1
    name = f"{stem}.json"
    while name.casefold() in taken:  # some file systems see no difference in case
        number += 1
        name = f"{stem}-{number}.json"
    taken.add(name.casefold())
    return name
