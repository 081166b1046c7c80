"""`medserve predict`: classify images, segment volumes and frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from medserve.cli.connection import Address, CaFile, TokenFile, connect
from medserve.cli.options import add_options, read_options, task_options
from medserve.cli.show.classes import Record, table, write_folder
from medserve.cli.show.console import console_for_people, counted, nearest, shown
from medserve.cli.show.files import (
    STDIN,
    contents,
    find_cases,
    find_files,
    find_frame_cases,
    writing_to,
)
from medserve.cli.show.frames import FRAMES
from medserve.cli.show.masks import MaskFormat, MaskOutput, show_masks
from medserve.cli.show.volumes import VOLUMES
from medserve.client import ClassificationOptions, Client, FrameOptions, VolumeOptions
from medserve.errors import ConfigError, UnknownModelError
from medserve.spec import Task

__all__ = ["predict"]

_IMAGES_TIMEOUT_S = 30.0  # a packed call of 32
_MASKS_TIMEOUT_S = 300.0  # one volume or cine loop, and the one before it


@dataclass(frozen=True)
class _Asked:
    """What a call of the command asks of which model."""

    client: Client
    model: str
    version: str | None
    paths: Sequence[Path]
    given: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The model for the terminal."""
        return shown(self.model)


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
    mask_format: Annotated[
        MaskFormat | None,
        typer.Option(
            "--format", help="How masks are written.", show_default="nifti, of single frames png"
        ),
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
    **given: Any,
) -> None:
    """Ask a model: classify images, segment volumes or frames; one answer per input, in order.

    Folders are walked in sorted order, hidden files left out.
    For a model of volumes, a folder with DICOM files is one series.
    A broken input is reported in its place and costs no other.

    Exit code: 0 all answered or nothing to do, 1 some failed, 2 no server or wrong usage.

    Examples:
    medserve predict mednist IMAGES --json
    medserve predict mednist IMAGES --explain --out ANSWERS
    medserve predict segmentation_3d SERIES brain.nii.gz --out MASKS
    """
    if given["explain"] and out is None:
        raise ConfigError("--explain: expected --out DIR for the heat maps, got none; name one")
    if out is None:
        given["uncertainty"] = None  # a map to write, and nowhere to write it
    with connect(address, token_file, ca_file, timeout or _IMAGES_TIMEOUT_S) as client:
        task = _task(client, model, version)
        asked = _Asked(client, model, version, paths, given)
        if task is Task.CLASSIFICATION:
            every_one = _classify(asked, as_json, out)
        else:
            client.timeout_s = timeout or _MASKS_TIMEOUT_S
            every_one = _segment(asked, task, MaskOutput(out, mask_format, as_json, overwrite))
    if not every_one:
        raise typer.Exit(1)


add_options(
    predict,
    task_options(
        *(Task.CLASSIFICATION, Task.VOLUMES, Task.FRAMES),
        without=("output", "format", "overlay"),  # follow from what is written
    ),
)


def _task(client: Client, model: str, version: str | None) -> Task:
    """The kind of work that the model does."""
    found = client.models()
    known = [each.name for each in found]
    for each in found:
        if each.name == model and (each.version == version if version else each.default):
            if each.task is None or each.task is Task.GENERATION:
                hint = "medserve sample draws images" if each.task else "install a newer medserve"
                raise ConfigError(
                    f"{shown(model)} neither classifies images nor segments them; {hint}"
                )
            return each.task
    wanted = f"{model} {version}" if version else model
    raise UnknownModelError(
        f"the gateway has no model {shown(wanted)}{nearest(model, known)}; `medserve models` lists "
        "what it has"
    )


def _classify(asked: _Asked, as_json: bool, out: Path | None) -> bool:
    """Whether every image got its class."""
    files = find_files(asked.paths)
    if not files:
        return _nothing()
    if files.count(STDIN) > 1:
        raise ConfigError("expected - (standard input) once at most")
    options = read_options(ClassificationOptions, asked.given, asked.title)
    if out is not None:
        with writing_to(out):
            out.mkdir(parents=True, exist_ok=True)
    results = asked.client.classify_each(
        asked.model, contents(files), options=options, version=asked.version
    )
    records = (
        Record(str(path), result, options.top_k or 1)
        for path, result in zip(files, counted(results, len(files), asked.model), strict=True)
    )
    seen = list(_printed(records) if as_json else records)
    if not as_json:
        console_for_people().print(table(seen))
    if out is not None:
        with writing_to(out):
            write_folder(seen, out)
    return not any(record.failed for record in seen)


def _nothing() -> bool:
    """Say that there is nothing to do, which is no failure."""
    Console(stderr=True).print("nothing to do: the given folders hold no file")
    return True


def _printed(records: Iterable[Record]) -> Iterator[Record]:
    for record in records:
        print(record.to_line(), flush=True)
        yield record


def _segment(asked: _Asked, task: Task, output: MaskOutput) -> bool:
    """Whether every volume, or every file and every frame in it, got its mask."""
    client, model, version = asked.client, asked.model, asked.version
    if task is Task.VOLUMES:
        cases = find_cases(asked.paths)
        if not cases:
            return _nothing()
        wanted = read_options(VolumeOptions, asked.given, asked.title, **output.params)
        return show_masks(
            lambda: client.segment_each(
                model, contents(each.path for each in cases), options=wanted, version=version
            ),
            *(cases, output, VOLUMES, model),
        )
    cases = find_frame_cases(asked.paths)
    if not cases:
        return _nothing()
    options = read_options(FrameOptions, asked.given, asked.title, **output.params)
    return show_masks(
        lambda: client.segment_frames(
            model, contents(each.path for each in cases), options=options, version=version
        ),
        *(cases, output, FRAMES, model),
    )
