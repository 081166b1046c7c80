"""Which cases a command sends to a model that segments, and what their answers are called."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from medserve.cli.inputs import STDIN, find_files, shown, walk
from medserve.errors import ConfigError
from medserve.imaging.codecs.dicom_file import is_dicom, is_directory

__all__ = ["Case", "find_cases", "find_frame_cases", "refuse_existing", "replace_file"]

_SUFFIXES = (
    *(".gz", ".nii", ".tar", ".tgz", ".zip", ".npy", ".dcm", ".dicom"),
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff"),
)
_START = 4096  # bytes that hold the file meta information of a DICOM file


@dataclass(frozen=True)
class Case:
    """One file or series to send.

    Attributes:
        path: A file, `-` for standard input, or the folder of a DICOM series.
        stem: What its answers are called; no two cases of a call share one.
    """

    path: Path
    stem: str


def find_cases(paths: Iterable[Path]) -> list[Case]:
    """Named files as they are; folders with DICOM files are one case, others are walked.

    Raises:
        ConfigError: a path does not exist, or there is no case at all.
    """
    found: list[Path] = []
    for path in paths:
        if path == STDIN or path.is_file():
            found.append(path)
        elif path.is_dir():
            found += _in_folder(path)
        else:
            raise ConfigError(f"expected an existing file or folder, got {shown(str(path))}")
    if not found:
        raise ConfigError("expected at least one volume, the given folders hold none")
    return _named(found)


def find_frame_cases(paths: Iterable[Path]) -> list[Case]:
    """Named files as they are, folders walked: each file is a case of its own.

    Raises:
        ConfigError: a path does not exist, or there is no case at all.
    """
    return _named(find_files(paths))


def _named(found: Sequence[Path]) -> list[Case]:
    """Cases with names that differ."""
    if found.count(STDIN) > 1:
        raise ConfigError("expected - (standard input) once at most")
    taken: set[str] = set()
    return [Case(path, _free_stem(path, taken)) for path in found]


def refuse_existing(files: Sequence[Path]) -> None:
    """Raise where an answer would replace a file: before any work, not after it."""
    existing = [path for path in files if os.path.lexists(path)]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ConfigError(
            f"{shown(str(existing[0]))}{more} exists; choose another --out, or allow it to be "
            "replaced with --overwrite"
        )


def replace_file(path: Path, content: bytes) -> None:
    """All of the file under its name, or nothing."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _in_folder(folder: Path) -> Iterator[Path]:
    """Folders that hold DICOM images, each with all below it, and the files of the others.

    A DICOMDIR, which lists the images of a medium, is neither.
    """
    series: set[Path] = set()
    for parent, paths in groupby(walk(folder), key=lambda path: path.parent):  # from the top
        if not series.isdisjoint(parent.parents):
            continue  # what lies below a series is sent with it
        starts = {path: _start(path) for path in paths}
        others = [path for path, start in starts.items() if not is_directory(start)]
        if any(is_dicom(starts[path]) for path in others):
            series.add(parent)
            yield parent
        else:
            yield from others


def _start(path: Path) -> bytes:
    """The first bytes of a file, which tell DICOM; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError:
        return b""


def _free_stem(path: Path, taken: set[str]) -> str:
    stem = "stdin" if path == STDIN else path.resolve().name
    while stem.lower().endswith(_SUFFIXES):
        stem = stem[: stem.rindex(".")]
    stem = stem or "volume"
    number, free = 1, stem
    while free.casefold() in taken:  # some file systems see no difference in case
        number += 1
        free = f"{stem}-{number}"
    taken.add(free.casefold())
    return free
