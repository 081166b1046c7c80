"""`medserve predict`: classify images, tell their numbers, segment volumes and frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from medserve.cli.connection import Address, CaFile, TokenFile, connect
from medserve.cli.options import add_options, read_options, task_options
from medserve.cli.show.classes import ClassRecord
from medserve.cli.show.console import console_for_people, counted, nearest, shown
from medserve.cli.show.estimates import EstimateRecord
from medserve.cli.show.files import (
    STDIN,
    contents,
    find_cases,
    find_files,
    find_frame_cases,
    images,
    named_case,
    writing_to,
)
from medserve.cli.show.frames import FRAMES
from medserve.cli.show.images import ImageRecord, table, write_folder
from medserve.cli.show.masks import MaskFormat, MaskOutput, show_masks
from medserve.cli.show.volumes import VOLUMES
from medserve.client import (
    ClassificationOptions,
    Client,
    FileResult,
    FrameOptions,
    ModelStatus,
    VolumeOptions,
)
from medserve.errors import ConfigError, UnknownModelError
from medserve.spec import Task
from medserve.tasks.regression import RegressionOptions

__all__ = ["predict"]

_IMAGES_TIMEOUT_S = 30.0  # a packed call of 32
_MASKS_TIMEOUT_S = 300.0  # one volume or cine loop, and the one before it


@dataclass(frozen=True)
class _Asked:
    """What a call of the command asks of which model.

    Attributes:
        version: None: the default one.
        inputs: The files of one case as CHANNEL=FILE, in the place of paths.
        given: Flags of the task's options.
    """

    client: Client
    model: str
    version: str | None
    paths: Sequence[Path]
    inputs: Sequence[str]
    given: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The model for the terminal."""
        return shown(self.model)


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.")],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Files and folders; - reads one from stdin."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="CHANNEL=FILE",
            help="One file of a case of several images; give one for each channel.",
        ),
    ] = None,
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
    """Ask a model: classes or numbers of images, masks of volumes or frames; one per input.

    Answers come in the order of the inputs.

    Folders are walked in sorted order, hidden files left out.
    For a model of volumes, a folder with DICOM files is one series.
    For one that sees several images, NAME_0000, NAME_0001 and so on are one case.
    A broken input is reported in its place and costs no other.

    Exit code: 0 all answered or nothing to do, 1 some failed, 2 no server or wrong usage.

    Examples:
    medserve predict mednist IMAGES --json
    medserve predict mednist IMAGES --explain --out ANSWERS
    medserve predict segmentation_3d SERIES brain.nii.gz --out MASKS
    medserve predict tumour --input t1=a.nii.gz --input flair=b.nii.gz
    """
    if not paths and not inputs:
        raise ConfigError("Missing argument PATH: name files and folders, or an --input a channel")
    if paths and inputs:
        raise ConfigError("expected PATH or --input, got both; ask about each case on its own")
    if given["explain"] and out is None:
        raise ConfigError("--explain: expected --out DIR for the heat maps, got none; name one")
    if out is None:
        given["uncertainty"] = None  # a map to write, and nowhere to write it
    with connect(address, token_file, ca_file, timeout or _IMAGES_TIMEOUT_S) as client:
        status = _status(client, model, version)
        task = _task(status)
        asked = _Asked(client, model, version, paths or (), inputs or (), given)
        if inputs and task is not Task.VOLUMES:
            raise ConfigError(f"--input: {shown(model)} sees a single image; give its file as PATH")
        if task is Task.CLASSIFICATION:
            every_one = _classify(asked, as_json, out)
        elif task is Task.REGRESSION:
            every_one = _estimate(asked, as_json, out)
        else:
            client.timeout_s = timeout or _MASKS_TIMEOUT_S
            output = MaskOutput(out, mask_format, as_json, overwrite)
            if task is Task.VOLUMES:
                every_one = _segment_volumes(asked, status.channels, output)
            else:
                every_one = _segment_frames(asked, output)
    if not every_one:
        raise typer.Exit(1)


add_options(
    predict,
    task_options(
        *(Task.CLASSIFICATION, Task.REGRESSION, Task.VOLUMES, Task.FRAMES),
        without=("output", "format", "overlay"),  # follow from what is written
    ),
)


def _status(client: Client, model: str, version: str | None) -> ModelStatus:
    """What the gateway says of the model."""
    found = client.models()
    known = [each.name for each in found]
    for each in found:
        if each.name == model and (each.version == version if version else each.default):
            return each
    wanted = f"{model} {version}" if version else model
    raise UnknownModelError(
        f"the gateway has no model {shown(wanted)}{nearest(model, known)}; `medserve models` lists "
        "what it has"
    )


def _task(status: ModelStatus) -> Task:
    """The kind of work that the model does; refuses what this command cannot ask for."""
    if status.task is None or status.task is Task.GENERATION:
        hint = "medserve sample draws images" if status.task else "install a newer medserve"
        raise ConfigError(f"{shown(status.name)} answers no images; {hint}")
    return status.task


def _classify(asked: _Asked, as_json: bool, out: Path | None) -> bool:
    """Whether every image got its class."""
    options = read_options(ClassificationOptions, asked.given, asked.title)
    groups = partial(asked.client.classify_groups, options=options)
    return _show_images(asked, groups, partial(ClassRecord, top_k=options.top_k or 1), as_json, out)


def _estimate(asked: _Asked, as_json: bool, out: Path | None) -> bool:
    """Whether every image got its numbers."""
    read_options(RegressionOptions, asked.given, asked.title)
    return _show_images(asked, asked.client.estimate_groups, EstimateRecord, as_json, out)


def _show_images(
    asked: _Asked,
    groups: Callable[..., Iterable[Sequence[FileResult[Any]]]],
    record_of: Callable[[str, FileResult[Any]], ImageRecord[Any]],
    as_json: bool,
    out: Path | None,
) -> bool:
    """Ask about each file by itself, show and write what comes; whether all were answered."""
    files = find_files(asked.paths)
    if not files:
        return _nothing()
    if files.count(STDIN) > 1:
        raise ConfigError("expected - (standard input) once at most")
    if out is not None:
        with writing_to(out):
            out.mkdir(parents=True, exist_ok=True)
    results = chain.from_iterable(groups(asked.model, contents(files), version=asked.version))
    records = (
        record_of(str(path), result)
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


def _printed(records: Iterable[ImageRecord[Any]]) -> Iterator[ImageRecord[Any]]:
    for record in records:
        print(record.to_line(), flush=True)
        yield record


def _segment_volumes(asked: _Asked, channels: Sequence[str], output: MaskOutput) -> bool:
    """Whether every volume got its mask."""
    client, model, version = asked.client, asked.model, asked.version
    if asked.inputs:
        cases = [named_case(asked.inputs, channels)]
    else:
        cases = find_cases(asked.paths, channels)
    if not cases:
        return _nothing()
    options = read_options(VolumeOptions, asked.given, asked.title, **output.params)
    return show_masks(
        lambda: client.segment_each(model, images(cases), options=options, version=version),
        *(cases, output, VOLUMES, model),
    )


def _segment_frames(asked: _Asked, output: MaskOutput) -> bool:
    """Whether every file and every frame in it got its mask."""
    client, model, version = asked.client, asked.model, asked.version
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
