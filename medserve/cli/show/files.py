"""Which files a command works on, what their answers are called, and how those are written."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medserve.cli.show.console import shown
from medserve.client import Case as Images
from medserve.errors import ConfigError
from medserve.imaging.codecs.dicom_file import is_dicom, is_directory
from medserve.results.sorted_folders import csv_cell, csv_path
from medserve.tasks.volumes import case_and_number

__all__ = [
    "STDIN",
    "Case",
    "OutFolder",
    "contents",
    "find_cases",
    "find_files",
    "find_frame_cases",
    "free_name",
    "images",
    "named_case",
    "replace_file",
    "walk",
    "write_csv",
    "writing_to",
]

_SUFFIXES = (
    *(".gz", ".nii", ".tar", ".tgz", ".zip", ".npy", ".dcm", ".dicom"),
    *(".nrrd", ".mha", ".mgz", ".mgh", ".png", ".jpg", ".jpeg", ".tif", ".tiff"),
)
_START = 4096  # bytes that hold the file meta information of a DICOM file
STDIN = Path("-")


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Named files (and `-`) as they are, folders walked; in the order given.

    Raises:
        ConfigError: a path does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += walk(path)
        elif path == STDIN or path.exists():
            found.append(path)
        else:
            raise _no_path(path)
    return found


def walk(folder: Path, *, without: Path | None = None) -> Iterator[Path]:
    """All files under a folder, sorted, without hidden ones and without the folder `without`.

    A link counts if it leads to a file inside the folder; links to folders are not followed.

    Raises:
        ConfigError: a folder cannot be read, so that files would be missed.
    """
    root = folder.resolve()
    excluded = None if without is None else without.resolve()
    for current, folders, names in os.walk(folder, onerror=_refuse):
        here = Path(current)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() != excluded
        )
        for name in sorted(names):
            path = here / name
            if not name.startswith(".") and _is_ours(path, root):
                yield path


def _refuse(error: OSError) -> None:
    raise ConfigError(f"{shown(str(error.filename))}: {error.strerror}") from error


def _is_ours(path: Path, root: Path) -> bool:
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
        return False
    return path.is_file()  # neither pipe nor device nor broken link


@dataclass(frozen=True)
class Case:
    """One file or series to send, or one for each channel of a model.

    Attributes:
        path: A file, `-` for standard input, or the folder of a DICOM series; of several files the
            first.
        stem: What its answers are called; no two cases of a call share one.
        channels: Several files: named by nnU-Net's rule, or by the names of the channels.
    """

    path: Path
    stem: str
    channels: tuple[Path, ...] | Mapping[str, Path] = ()


def named_case(inputs: Iterable[str], channels: Sequence[str]) -> Case:
    """Return the case whose files are given as CHANNEL=FILE.

    Raises:
        ConfigError: the model sees one image, a channel is missing or unknown, or a path does not
            exist.
    """
    if not channels:
        raise ConfigError("--input: this model sees a single image; give its file as PATH")
    pairs = [each.partition("=")[::2] for each in inputs]
    files = {name: Path(path) for name, path in pairs}
    if sorted(name for name, _ in pairs) != sorted(channels):
        raise ConfigError(
            f"--input: expected {' '.join(f'{name}=FILE' for name in channels)}, each once, got "
            f"{shown(' '.join(name for name, _ in pairs))}"
        )
    for path in files.values():
        _require(path)
    first = files[channels[0]]
    return Case(first, _stem(first), {name: files[name] for name in channels})


def find_cases(paths: Iterable[Path], channels: Sequence[str] = ()) -> list[Case]:
    """Named files as they are; folders with DICOM files are one case, others are walked.

    Of a model with channels, files of one folder that are called `NAME_0000`, `NAME_0001` and so
    on are one case.

    Raises:
        ConfigError: a path does not exist.
    """
    found: list[Path] = []
    for path in paths:
        if path == STDIN or path.is_file():
            found.append(path)
        elif path.is_dir():
            found += _in_folder(path)
        else:
            raise _no_path(path)
    return _grouped(found) if channels else _named(found)


def _require(path: Path) -> None:
    if not path.exists():
        raise _no_path(path)


def _no_path(path: Path) -> ConfigError:
    return ConfigError(f"expected an existing file or folder, got {shown(str(path))}")


def _grouped(found: Iterable[Path]) -> list[Case]:
    """Cases of several files by the numbers behind their names, other files as they are."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in found:
        read = case_and_number(path.name)
        groups.setdefault((path.parent, read[0] if read else path.name), []).append(path)
    several = {files[0]: (name, files) for (_, name), files in groups.items() if len(files) > 1}
    taken: set[str] = set()
    cases = []
    for path in (files[0] for files in groups.values()):
        name, files = several.get(path, (_stem(path), []))
        cases.append(Case(path, free_name(name, taken), tuple(files)))
    return cases


def find_frame_cases(paths: Iterable[Path]) -> list[Case]:
    """Named files as they are, folders walked: each file is a case of its own.

    Raises:
        ConfigError: a path does not exist.
    """
    return _named(find_files(paths))


def _named(found: Sequence[Path]) -> list[Case]:
    """Cases with names that differ."""
    if found.count(STDIN) > 1:
        raise ConfigError("expected - (standard input) once at most")
    taken: set[str] = set()
    return [Case(path, free_name(_stem(path), taken)) for path in found]


class OutFolder:
    """The folder of --out, and which files a run has written there until the run has ended.

    Nothing that was there before is replaced unasked. A run that breaks off leaves a list of what
    it has written, and the next one may replace that: the same command can be run again.

    Usage:
        with OutFolder(path, overwrite=False) as out:
            out.refuse_existing(names)
            out.write(name, content)
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path = path
        self._overwrite = overwrite
        self._list = path / ".medserve-unfinished"

    def __enter__(self) -> Self:
        with writing_to(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lines = self._list.read_bytes().splitlines() if self._list.exists() else []
        self._unfinished: set[str] = set()
        for line in lines:
            with suppress(ValueError):  # torn: its file was not begun
                self._unfinished.add(json.loads(line))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._list.unlink(missing_ok=True)

    def refuse_existing(self, names: Iterable[str]) -> None:
        """Raise where one of the files would be replaced: before any work, not after it."""
        if self._overwrite:
            return
        fresh = (name for name in names if name.partition("/")[0] not in self._unfinished)
        existing = [name for name in fresh if os.path.lexists(self.path / name)]
        if existing:
            more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
            raise ConfigError(
                f"{shown(str(self.path / existing[0]))}{more} exists; choose another --out, or "
                "allow it to be replaced with --overwrite"
            )

    def write(self, name: str, content: bytes) -> Path:
        """Write all of a file or nothing; a name may have a folder before it."""
        path = self.note(name)
        with writing_to(self.path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        return path

    def note(self, name: str) -> Path:
        """Tell that the file is going to be written; returns its path."""
        line = json.dumps(name.partition("/")[0]) + "\n"
        with writing_to(self.path), self._list.open("a", encoding="utf-8") as stream:
            stream.write(line)
        return self.path / name


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
    """Give folders that hold DICOM images, each with all below it, and the files of the others.

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
    """Return the first bytes of a file, which tell DICOM; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError:
        return b""


def _stem(path: Path) -> str:
    stem = "stdin" if path == STDIN else path.resolve().name
    while stem.lower().endswith(_SUFFIXES):
        stem = stem[: stem.rindex(".")]
    return stem or "volume"


def free_name(stem: str, taken: set[str]) -> str:
    """Return the stem, with a number behind it where another input of the call has it already."""
    number, free = 1, stem
    while free.casefold() in taken:  # some file systems see no difference in case
        number += 1
        free = f"{stem}-{number}"
    taken.add(free.casefold())
    return free


def contents(paths: Iterable[Path]) -> Iterator[bytes | Path]:
    """The paths to send; the bytes in the place of `-`."""
    for path in paths:
        yield sys.stdin.buffer.read() if path == STDIN else path


def images(cases: Iterable[Case]) -> Iterator[Images]:
    """The files of each case to send; the bytes in the place of `-`."""
    for case in cases:
        yield case.channels or next(contents([case.path]))


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Tell an error of the disk within the block as one of the option --out."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out {shown(str(folder))}: {error.strerror}") from error


def write_csv(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table that a spreadsheet opens safely; a row may have more members than fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.DictWriter(file, fields, extrasaction="ignore")
        table.writeheader()
        for row in rows:
            safe = {key: csv_cell(value) for key, value in row.items()}
            table.writerow({**safe, "path": csv_path(str(row["path"]))})
