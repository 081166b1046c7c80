"""Sorting files into folders by their class: what is copied where, and how a rerun goes on.

Nothing is ever overwritten and no original is touched. A file is done when its row stands in the
manifest, which is written right after the copy is in place; so a run may end at any moment.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medserve.cli.manifest import Manifest
from medserve.client import Classification, Client, ItemResult, Limits
from medserve.errors import (
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
)
from medserve.results.sorted_folders import ERRORS, REVIEW, csv_path, folder_name

__all__ = ["Outcome", "Sorter"]

_LARGEST_BYTES = Limits().message_bytes
# The file itself is at fault; any other error says nothing about the file.
_OF_THE_FILE = (InvalidRequestError, PayloadTooLargeError)


@dataclass(frozen=True)
class Outcome:
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
class Sorter:
    """Sends the files of a folder to a model and copies each to where its answer says.

    Attributes:
        review_below: Probability under which a person shall look; None leaves it to the model.
    """

    folder: Path
    out: Path
    manifest: Manifest
    model: str
    version: str | None = None
    review_below: float | None = None

    def run(self, client: Client, files: Iterable[Path]) -> Iterator[Outcome]:
        """Sort all files; one outcome each, as they become known."""
        waiting: deque[_Source] = deque()
        known: list[Outcome] = []

        def contents() -> Iterator[bytes]:
            for path in files:
                source = self._read(path)
                if isinstance(source, Outcome):
                    known.append(source)
                else:
                    waiting.append(source)
                    yield source.content

        for result in client.classify_each(self.model, contents(), version=self.version):
            yield self._store(waiting.popleft(), result)
            while known:
                yield known.pop()
        yield from known

    def _read(self, path: Path) -> _Source | Outcome:
        """The file, or what is known of it without asking the model."""
        try:
            if path.stat().st_size > _LARGEST_BYTES:  # a film, an archive: not worth the memory
                return Outcome("(too large, left alone)", failed=True)
            content = path.read_bytes()
        except OSError as error:
            return Outcome("(unreadable, left alone)", failed=True, reason=error.strerror or "")
        name = csv_path(path.relative_to(self.folder).as_posix())
        source = _Source(path, name, content, hashlib.sha256(content).hexdigest())
        row = self.manifest.row(name, source.sha256)
        if row is not None and self._still_there(row["stored"], len(content)):
            return Outcome("(sorted before)", failed=row["status"] == "error")
        return source

    def _still_there(self, stored: str, size: int) -> bool:
        try:
            return (self.out / stored).stat().st_size == size
        except (OSError, ValueError):
            return False

    def _store(self, source: _Source, result: ItemResult) -> Outcome:
        try:
            folder, status = self._destination(result)
        except MedserveError as reason:
            return Outcome("(no answer, run again)", failed=True, reason=reason.message)
        stored = f"{folder}/{copy_new(source, self.out / folder)}"
        answer, error = result.classification, result.error
        self.manifest.append(
            {
                "source": source.name,
                "stored": stored,
                "sha256": source.sha256,
                "class": answer and answer.label,
                "class_id": answer and answer.label_id,
                "probability": answer and f"{answer.probability:.6f}",
                "status": status,
                "model": self.model,
                "version": result.provenance.version,
                "archive_digest": result.provenance.archive_digest,
                "error": error and f"{error.code}: {error.message}",
            }
        )
        return Outcome(folder, failed=error is not None)

    def _destination(self, result: ItemResult) -> tuple[str, str]:
        """Folder and status; raises where the file is to stay for a later run."""
        if isinstance(result.error, _OF_THE_FILE):
            return ERRORS, "error"
        answer = result.unwrap()
        folder = folder_name(answer.label)
        return (REVIEW, "review") if self._needs_a_person(answer) else (folder, "ok")

    def _needs_a_person(self, answer: Classification) -> bool:
        limit = self.review_below
        unsure = answer.review if limit is None else answer.probability < limit
        return unsure or answer.unlike_training


def copy_new(source: _Source, folder: Path) -> str:
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
