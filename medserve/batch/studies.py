"""The studies of a batch, listed one by one: the rows of a manifest, or what lies in a folder.

Neither is ever held as a whole, and a study belongs to a shard by the digest of its id alone, so
that shards agree without talking to each other.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medserve.errors import ConfigError
from medserve.imaging.codecs.dicom_file import is_dicom, is_directory
from medserve.spec import Task
from medserve.tasks.volumes import case_and_number

__all__ = ["Shard", "Study", "is_remote", "list_studies", "study_key"]

_NO_SLICE = (".nii", ".nii.gz", ".npy", ".zip", ".tar", ".tgz", ".tar.gz")  # not worth a look
_START_BYTES = 4096  # hold the file meta information of a DICOM file
_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_COLUMNS = ("path", "id", "options")
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]|^\xff\xfe|^\xfe\xff")  # UTF-16, zip, gzip, …
_ROWS = 4096  # of a Parquet file that are read at a time


@dataclass(frozen=True, slots=True)
class Study:
    """One study to answer.

    Attributes:
        id: Its name in the batch; two studies of a batch never share one.
        source: Path of a file or folder, glob of the files of a series, or URL; all of them in a
            line where there are several.
        images: Sources of the images of one case by their names or numbers, for a model that sees
            several; empty where `source` is the only one.
        options: What the manifest asks for this study, over what is asked for all.
        problem: Why the row of the manifest cannot be used; empty where it can.
    """

    id: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    images: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_images(
        cls, study_id: str, images: Mapping[str, str], options: Mapping[str, Any], problem: str = ""
    ) -> Study:
        """Return a study of several images of one case."""
        return cls(study_id, ", ".join(images.values()), options, problem, images)

    @property
    def key(self) -> str:
        """The digest of the id, by which the study's files are called."""
        return study_key(self.id)


@dataclass(frozen=True)
class Shard:
    """One of `count` equal parts of a batch, by number from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`; ConfigError where it is something else."""
        found = _SHARD.fullmatch(text)
        if found is None or int(found[1]) >= int(found[2]):
            raise ConfigError(
                f"--shard: expected i/n with i from 0 to n - 1, such as 0/4, got {text[:30]!r}"
            )
        return cls(int(found[1]), int(found[2]))

    def has(self, key: str) -> bool:
        """Tell whether the study of this key belongs to the shard."""
        return self.count == 1 or int(key[:16], 16) % self.count == self.index

    def meets(self, other: Shard) -> bool:
        """Tell whether a study can belong to both."""
        return (self.index - other.index) % math.gcd(self.count, other.count) == 0


def study_key(study_id: str) -> str:
    """Return 32 hexadecimal digits for any id, also one that is no valid text."""
    return hashlib.sha256(study_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_remote(source: str) -> bool:
    """Tell whether a source is a URL, such as s3://bucket/study.nii.gz."""
    return "://" in source


def list_studies(
    batch: Path, task: Task, *, channels: Sequence[str] = (), without: Path | None = None
) -> Iterator[Study]:
    """Give the studies of a manifest or a folder, in no particular order.

    Args:
        batch: A manifest (.csv, .jsonl or .parquet, with a column `path` and optionally `id` and
            `options`), or a folder: every file in and below it is a study, but for a model of
            volumes a folder with DICOM images is one.
        task: The model's.
        channels: Names of the images of a case, where the model sees several: columns of a
            manifest, in the place of `path`. In a folder `case_0000.nii.gz`, `case_0001.nii.gz`
            and so on are one study.
        without: A folder that is left out, where the answers go.

    Raises:
        ConfigError: there is nothing of these, the manifest has no column `path`, or a folder
            cannot be read.
    """
    if batch.is_dir():
        excluded = None if without is None else without.resolve()
        return _in_folder(_Folder(batch, batch.resolve(), task, bool(channels), excluded))
    if not batch.is_file():
        raise ConfigError(f"expected a manifest or a folder, got {batch}, which does not exist")
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    if batch.suffix.lower() not in readers:
        raise ConfigError(
            f"expected a manifest that ends in {', '.join(readers)}, or a folder, got {batch}"
        )
    rows = readers[batch.suffix.lower()](batch, channels)
    folder = str(batch.parent)
    return (_study(number, row, folder, channels) for number, row in enumerate(rows, 1))


def _study(
    number: int, row: Mapping[str, Any] | str, folder: str, channels: Sequence[str]
) -> Study:
    """Return the study of a row; a row that cannot be used is one with a problem."""
    if isinstance(row, str):
        return Study(f"row {number}", "", problem=row)
    source, given = row.get("path"), row.get("id")
    if not _is_name(given):
        problem = "expected text or a number as `id` in this row of the manifest, got another value"
        return Study(f"row {number}", "", problem=problem)
    images = {name: row[name] for name in channels if row.get(name) not in (None, "")}
    sources = images if source in (None, "") else {**images, "": source}
    fits = len(sources) == (len(channels) if images else 1)
    if not fits or not all(isinstance(each, str) and "\0" not in each for each in sources.values()):
        name = f"row {number}" if given in (None, "") else str(given)
        wanted = "a path" if not images else f"a path for each of {', '.join(channels)} alone"
        problem = f"expected {wanted} in this row of the manifest, got something else"
        return Study(name, "", problem=problem)
    name = next(iter(sources.values())) if given in (None, "") else str(given)
    options, problem = _options(row.get("options"))
    found = {
        each: path if is_remote(path) else os.path.join(folder, path)
        for each, path in sources.items()
    }
    if images:
        return Study.of_images(name, found, options, problem)
    return Study(name, found[""], options, problem)


def _is_name(given: object) -> bool:
    """Tell whether a value can be an id; those of a table may be numbers or dates."""
    no_number = isinstance(given, float) and not math.isfinite(given)
    return not (no_number or isinstance(given, bool | bytes | dict | list))


def _options(value: object) -> tuple[Mapping[str, Any], str]:
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = False
    if value is None or value == "":
        return {}, ""
    if not isinstance(value, dict):
        return {}, 'expected options as a JSON object such as {"top_k": 3}, got something else'
    return {key: each for key, each in value.items() if each is not None}, ""


def _csv_rows(manifest: Path, channels: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
    _need_text(manifest)
    with manifest.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        table = csv.DictReader(file, restval="", strict=True)
        try:
            _need_columns(table.fieldnames or (), manifest, channels)
            for row in table:
                if any(row.pop(None, ())):
                    yield (
                        "expected no more cells in this row than the manifest has columns; put "
                        "quotes around a cell with a comma"
                    )
                elif any(row.values()):  # a spreadsheet may end with rows of commas
                    yield row
        except csv.Error as error:
            raise ConfigError(
                f"{manifest}: the row after line {table.line_num} cannot be read ({error}); mend "
                "its quotes"
            ) from error


def _json_rows(manifest: Path, channels: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
    _need_text(manifest)
    with manifest.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                yield "expected a JSON object in this line, got none"
            elif misspelt := _misspelt(row, channels):
                yield f"expected the key `{_meant(misspelt)}` in this line, got {misspelt!r}"
            else:
                yield row


def _parquet_rows(manifest: Path, channels: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ConfigError(
            f"{manifest}: reading Parquet needs pyarrow; pip install 'medserve[batch]', or give "
            "the manifest as .csv or .jsonl"
        ) from None
    try:
        with parquet.ParquetFile(manifest) as file:
            _need_columns(file.schema_arrow.names, manifest, channels)
            wanted = (*_COLUMNS, *channels)
            columns = [name for name in wanted if name in file.schema_arrow.names]
            for rows in file.iter_batches(_ROWS, columns=columns):
                yield from rows.to_pylist()
    except (arrow.ArrowException, OSError) as error:  # OSError: its pages cannot be unpacked
        raise ConfigError(f"{manifest}: expected a Parquet file, cannot read it as one") from error


def _need_text(manifest: Path) -> None:
    """Raise ConfigError where the first line is none of a text, such as one in UTF-16."""
    with manifest.open("rb") as file:
        if _NO_TEXT.search(file.readline(_START_BYTES)):
            raise ConfigError(
                f"{manifest}: expected text in UTF-8, got another encoding or a packed file; save "
                "it as UTF-8 (`CSV UTF-8` in a spreadsheet)"
            )


def _need_columns(names: Sequence[str], manifest: Path, channels: Sequence[str]) -> None:
    twice = [name for name in (*_COLUMNS, *channels) if names.count(name) > 1]
    if twice:
        raise ConfigError(
            f"{manifest}: expected one column `{twice[0]}`, got {names.count(twice[0])}"
        )
    if misspelt := _misspelt(names, channels):
        raise ConfigError(
            f"{manifest}: expected the column `{_meant(misspelt)}`, got {misspelt!r}; name it "
            "exactly so"
        )
    if "path" not in names and not (channels and set(channels) <= set(names)):
        other = f" (or the columns {', '.join(channels)})" if channels else ""
        raise ConfigError(
            f"{manifest}: expected a column `path`{other}, and optionally `id` and `options`, with "
            f"commas between the columns of a CSV; got {', '.join(names) or 'nothing'}"
        )


def _misspelt(names: Iterable[str], channels: Sequence[str]) -> str:
    """Return a name that would be one of ours in small letters and without blanks, or ""."""
    known = (*_COLUMNS, *channels)
    return next((name for name in names if name not in known and _meant(name) in _COLUMNS), "")


def _meant(name: str) -> str:
    return name.strip().casefold()


@dataclass(frozen=True)
class _Folder:
    """A folder that is walked; see `list_studies`."""

    root: Path
    real: Path
    task: Task
    grouped: bool
    without: Path | None


def _in_folder(walk: _Folder) -> Iterator[Study]:
    """Walk depth first; only the folders that are open at a time are held."""
    waiting = [str(walk.root)]
    while waiting:
        folder = waiting.pop()
        if walk.task is Task.VOLUMES and _is_series(folder):
            name = os.path.relpath(folder, walk.root)
            yield Study(walk.real.name if name == "." else name, folder)
            continue
        cases: dict[str, dict[str, str]] = {}  # the images of each, by number
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                if walk.without is None or Path(entry.path).resolve() != walk.without:
                    waiting.append(entry.path)
            elif _is_ours(entry, walk.real):
                if walk.grouped and (numbered := case_and_number(entry.name)) is not None:
                    case, number = numbered
                    cases.setdefault(case, {})[str(number)] = entry.path
                else:
                    yield Study(os.path.relpath(entry.path, walk.root), entry.path)
        for case, images in cases.items():
            name = os.path.relpath(os.path.join(folder, case), walk.root)
            yield Study.of_images(name, dict(sorted(images.items())), {})


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (each for each in entries if not each.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}, so that studies would be missed") from error


def _is_ours(entry: os.DirEntry[str], root: Path) -> bool:
    """Tell a file from pipes, devices, broken links and links out of the folder."""
    if not entry.is_symlink():
        return entry.is_file()
    inside = Path(os.path.realpath(entry.path)).is_relative_to(root)
    return inside and os.path.isfile(entry.path)  # also of a link to itself


def _is_series(folder: str) -> bool:
    """Tell whether a file in this very folder is a DICOM image; a DICOMDIR is none."""
    named = (each for each in _entries(folder) if not each.name.lower().endswith(_NO_SLICE))
    starts = (_start(each.path) for each in named if os.path.isfile(each.path))
    return any(is_dicom(start) and not is_directory(start) for start in starts)


def _start(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_START_BYTES)
    except OSError:
        return b""
