"""`medserve sort`: copy a folder's images into one folder per class.

Nothing is ever overwritten and no original is touched. A file is done when its row stands in the
manifest, which is written right after the copy is in place; so a run may end at any moment and the
next one goes on there.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medserve.cli.connection import Address, CaFile, Timeout, TokenFile, connect
from medserve.cli.show.console import console_for_people, counted, shown
from medserve.cli.show.files import walk, writing_to
from medserve.client import Classification, Client, FileResult, Limits, ModelStatus
from medserve.errors import (
    ConfigError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerFailedError,
)
from medserve.results.sorted_folders import (
    ERRORS,
    NONE,
    REVIEW,
    SEVERAL,
    csv_cell,
    csv_path,
    folder_name,
    folder_of_labels,
    found_cells,
)
from medserve.spec import Task

__all__ = ["sort"]

_LARGEST_BYTES = Limits().message_bytes
# The file itself is at fault; any other error says nothing about the file.
_OF_THE_FILE = (InvalidRequestError, PayloadTooLargeError)
_FIELDS = (
    *("source", "stored", "sha256", "class", "class_id", "probability", "status"),
    *("model", "version", "archive_digest", "error"),
)


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

    There is a folder for each class of the model, also an empty one.
    Of labels that do not exclude each other an image goes to that of the only one that is present,
    to OUT/_none/ or to OUT/_several/.
    What a person should look at goes to OUT/_review/.
    What is no usable image goes to OUT/_errors/.
    OUT/manifest.csv tells it for each file.
    Nothing is overwritten; a second run goes on where the first one stopped.

    Exit code: 0 all sorted or nothing to do, 1 some failed, 2 no server or wrong usage.

    Example:
    medserve sort IMAGES --out SORTED --model mednist --review-below 0.9
    """
    if folder.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"expected --out outside the sorted folder or below it, got {shown(str(out))}"
        )
    files = list(walk(folder, without=out))
    with (
        writing_to(out),  # the copies so far are in place and in the manifest
        connect(address, token_file, ca_file, timeout) as client,
        _Manifest(out, model) as done,
    ):
        if files:
            _refuse_other(client.models(), model, version)
        sorter = _Sorter(folder, out, done, model, version, review_below)
        outcomes = list(counted(sorter.run(client, files), len(files), model))
    console_for_people().print(_summary(outcomes))
    console_for_people().print(Text(f"manifest: {shown(str(done.path))}"))
    for reason, count in Counter(each.reason for each in outcomes if each.reason).most_common(3):
        Console(stderr=True, soft_wrap=True).print(Text(f"{count} x {shown(reason)}"))
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


def _refuse_other(found: Iterable[ModelStatus], model: str, version: str | None) -> None:
    """Refuse a model that tells no classes, before a file is sent; others are the gateway's."""
    for each in found:
        is_wanted = each.version == version if version else each.default
        if each.name == model and is_wanted and each.task is not Task.CLASSIFICATION:
            raise ConfigError(
                f"--model: expected a model that classifies images, got {shown(model)}, whose task "
                f"is {each.task}; `medserve predict` asks it"
            )


def _summary(outcomes: list[_Outcome]) -> Table:
    counts = Counter(outcome.place for outcome in outcomes)
    shape = Table("folder", "files", box=None, padding=(0, 2, 0, 0))
    shape.columns[1].justify = "right"
    last = (NONE, SEVERAL, REVIEW, ERRORS)
    for place in sorted(counts, key=lambda place: (place.startswith("("), place in last, place)):
        shape.add_row(Text(shown(place)), str(counts[place]))
    shape.add_section()
    shape.add_row("all", str(len(outcomes)))
    return shape


@dataclass(frozen=True)
class _Outcome:
    """What became of one file: the folder it lies in, or a word on why it lies in none."""

    place: str
    failed: bool = False
    reason: str = ""  # of a file that lies in none: what went wrong


@dataclass(frozen=True)
class _Source:
    """One file as it was read; these very bytes are classified and stored."""

    path: Path
    name: str  # relative to the sorted folder, as it stands in the manifest
    content: bytes
    sha256: str


@dataclass(frozen=True)
class _Sorter:
    """Sends the files of a folder to a model and copies each to where its answer says.

    Attributes:
        review_below: Probability under which a person shall look; None leaves it to the model.
    """

    folder: Path
    out: Path
    manifest: _Manifest
    model: str
    version: str | None = None
    review_below: float | None = None

    def run(self, client: Client, files: Iterable[Path]) -> Iterator[_Outcome]:
        """Sort all files; one outcome each, as they become known."""
        waiting: deque[_Source] = deque()
        known: list[_Outcome] = []

        def contents() -> Iterator[bytes]:
            for path in files:
                source = self._read(path)
                if isinstance(source, _Outcome):
                    known.append(source)
                else:
                    waiting.append(source)
                    yield source.content

        has_folders = False
        for result in client.classify_each(self.model, contents(), version=self.version):
            if result.result is not None and not has_folders:
                self._make_folders(result.result)
                has_folders = True
            yield self._store(waiting.popleft(), result)
            while known:
                yield known.pop()
        yield from known

    def _make_folders(self, answer: Classification) -> None:
        """Make a folder for every class, so that a person can move a file to one that is empty."""
        for label in answer.labels:
            with suppress(ServerFailedError):  # told with the first file of that class
                (self.out / folder_name(label)).mkdir(parents=True, exist_ok=True)
        for special in () if answer.present is None else (NONE, SEVERAL):
            (self.out / special).mkdir(parents=True, exist_ok=True)

    def _read(self, path: Path) -> _Source | _Outcome:
        """The file, or what is known of it without asking the model."""
        try:
            if path.stat().st_size > _LARGEST_BYTES:  # a film, an archive: not worth the memory
                return _Outcome("(too large, left alone)", failed=True)
            content = path.read_bytes()
        except OSError as error:
            return _Outcome("(unreadable, left alone)", failed=True, reason=error.strerror or "")
        name = csv_path(path.relative_to(self.folder).as_posix())
        source = _Source(path, name, content, hashlib.sha256(content).hexdigest())
        row = self.manifest.row(name, source.sha256)
        if row is not None and self._still_there(row["stored"], len(content)):
            return _Outcome("(sorted before)", failed=row["status"] == "error")
        return source

    def _still_there(self, stored: str, size: int) -> bool:
        try:
            return (self.out / stored).stat().st_size == size
        except (OSError, ValueError):
            return False

    def _store(self, source: _Source, result: FileResult[Classification]) -> _Outcome:
        try:
            folder, status = self._destination(result)
        except MedserveError as reason:
            return _Outcome("(no answer, run again)", failed=True, reason=reason.message)
        stored = f"{folder}/{_copy_new(source, self.out / folder)}"
        answer, error = result.result, result.error
        self.manifest.append(
            {
                "source": source.name,
                "stored": stored,
                "sha256": source.sha256,
                **({} if answer is None else found_cells(answer)),
                "status": status,
                "model": self.model,
                "version": result.provenance.version,
                "archive_digest": result.provenance.archive_digest,
                "error": error and f"{error.code}: {error.message}",
            }
        )
        return _Outcome(folder, failed=error is not None)

    def _destination(self, result: FileResult[Classification]) -> tuple[str, str]:
        """Folder and status; raises where the file is to stay for a later run."""
        if isinstance(result.error, _OF_THE_FILE):
            return ERRORS, "error"
        answer = result.unwrap()
        present = answer.present
        folder = folder_name(answer.label) if present is None else folder_of_labels(present)
        return (REVIEW, "review") if self._needs_a_person(answer) else (folder, "ok")

    def _needs_a_person(self, answer: Classification) -> bool:
        limit = self.review_below
        unsure = answer.review if limit is None else answer.is_unsure(limit)
        return unsure or answer.unlike_training


def _copy_new(source: _Source, folder: Path) -> str:
    """Store the bytes under the file's name or, where that is taken, a numbered one.

    A file that already has the same content under one of these names is taken as the copy: it is
    a twin, or an earlier run ended between copy and manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        twin = "" if number == 1 else f"-{number}"
        target = folder / f"{source.path.stem}{twin}{source.path.suffix}"
        if _same_content(target, source) or _write_new(target, source):
            return target.name
        number += 1


def _same_content(target: Path, source: _Source) -> bool:
    try:
        if target.is_symlink() or target.stat().st_size != len(source.content):
            return False
        return hashlib.sha256(target.read_bytes()).hexdigest() == source.sha256
    except OSError:
        return False


def _write_new(target: Path, source: _Source) -> bool:
    """Whether the file was written: all of it under that name, or nothing."""
    if os.path.lexists(target):
        return False
    # Named by its content: a rerun after a crash finds and replaces it.
    part = target.with_name(f".{source.sha256[:16]}.part")
    try:
        part.write_bytes(source.content)
        with suppress(OSError):  # the time of the original is welcome, not needed
            stat = source.path.stat()
            os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return _publish(part, target)
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, target: Path) -> bool:
    """Give the finished file its name unless another took it meanwhile."""
    try:
        os.link(part, target)  # unlike a rename it never replaces
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        try:  # a file system without hard links: reserve the name, then replace the reservation
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(part, target)
    return True


class _Manifest:
    """The table of finished files; rows are appended and flushed one by one."""

    def __init__(self, out: Path, model: str) -> None:
        self.path = out / "manifest.csv"
        self._model = model
        self._rows: dict[tuple[str, str], dict[str, str]] = {}  # by source and sha256
        for row in self._read():
            self._rows[row["source"], row["sha256"]] = row

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        self._file = self.path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
        self._writer = csv.DictWriter(self._file, _FIELDS)
        if self._file.tell() == 0:
            self._writer.writeheader()
        elif torn:
            self._file.write("\r\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def row(self, source: str, sha256: str) -> dict[str, str] | None:
        """The row of a finished file, None while it is not finished."""
        return self._rows.get((source, sha256))

    def append(self, row: dict[str, Any]) -> None:
        """Add one finished file; on return the row is in the file."""
        text = {key: "" if value is None else str(value) for key, value in row.items()}
        self._writer.writerow({key: csv_cell(value) for key, value in text.items()})
        self._file.flush()

    def _read(self) -> Iterator[dict[str, str]]:
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames is not None and tuple(rows.fieldnames) != _FIELDS:
                raise ConfigError(
                    f"{self.path}: expected a manifest of this program, got other columns; "
                    "give another --out"
                )
            for row in rows:
                if None in row or None in row.values():
                    continue  # torn by a crash: its file counts as not done
                if row["model"] != self._model:
                    raise ConfigError(
                        f"{self.path}: expected files sorted by {self._model}, got some sorted "
                        f"by {row['model']}; give another --out"
                    )
                yield row
