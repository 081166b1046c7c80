"""Who asked which model when, and with what outcome: a log that shows if it was altered.

One JSON object a line. Each holds the SHA-256 of the line before it (`previous`) and of itself
(`hash`), so that a changed, removed or inserted line breaks the chain; `verify` finds where. Cut
off at its end a log looks whole: compare its last hash with one that was written down elsewhere.

No line holds a pixel, a file's name, a tag, a parameter or an error's text: only what this module
names, with the caller's name from the operator's own tokens file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medserve.errors import ArchiveError, ConfigError, ServerFailedError

__all__ = ["AuditLog", "AuditRecord", "ChangeRecord", "Verdict", "verify"]

_START = "0" * 64  # what the first line names as its predecessor
_TAIL_BYTES = 64 * 1024  # more than the longest line


@dataclass(frozen=True)
class AuditRecord:
    """One call.

    Attributes:
        who: The caller's name, "" where nobody has to say.
        face: Over which contract it came.
        request_id: As in the answer's metadata.
        model: As asked; only names that are served appear.
        version: The version that answered.
        archive: Digest of the archive that answered.
        request_bytes: Size of what came.
        response_bytes: Size of what went.
        status: "OK" or the code of the error; "STREAMING" before the first part of a stream.
        took_ms: From arrival to answer.
        trace_id: Of the spans of the call; "" where it was not sampled.
    """

    who: str
    face: str
    request_id: str
    model: str
    version: str
    archive: str
    request_bytes: int
    response_bytes: int
    status: str
    took_ms: float
    trace_id: str = ""


@dataclass(frozen=True)
class ChangeRecord:
    """One change of what is served.

    Attributes:
        who: The caller's name, "" where nobody has to say.
        request_id: As in the answer's metadata.
        change: add, remove, default, rollback, scale, route or promote.
        model: The name of the model, "" where an archive could not be read.
        version: The version that the change is about.
        archive: Digest of an archive that was added.
        status: "OK" or the code of the error.
        took_ms: From the request to its end.
        evidence: Figures on which the change rests.
    """

    who: str
    request_id: str
    change: str
    model: str
    version: str
    archive: str
    status: str
    took_ms: float
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A log whose chain holds."""

    lines: int
    last_hash: str


class AuditLog:
    """Appends records to one file, which no other process may write at the same time."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"audit log {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise ConfigError(f"audit log {path}: another gateway writes it") from None
        self._previous = _last_hash(self._file, path)

    def write(self, record: AuditRecord | ChangeRecord) -> None:
        """Append one line.

        Raises:
            ServerFailedError: it cannot be written; the caller must not get an unlogged answer.
        """
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = {"at": at, **vars(record), "previous": self._previous}
        digest = _digest(content)
        line = _compact(content | {"hash": digest}) + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise ServerFailedError(f"the audit log cannot be written: {error.strerror}") from error
        if written != len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise ServerFailedError("the audit log cannot be written: no space left")
        self._previous = digest

    def close(self) -> None:
        """Write everything to the disk and let go of the file."""
        os.fsync(self._file)
        os.close(self._file)


def verify(path: Path, expected_hash: str = "") -> Verdict:
    """Follow the chain from the first line to the last.

    Args:
        path: The log.
        expected_hash: The hash of a line that must be in it, written down at an earlier time.

    Raises:
        ArchiveError: a line was changed, removed or inserted; the message names it.
    """
    previous, number, found = _START, 0, not expected_hash
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                previous = _follow(line, previous, f"{path}:{number}")
                found = found or previous == expected_hash
    except OSError as error:
        raise ConfigError(f"audit log {path}: {error.strerror}") from error
    if not found:
        raise ArchiveError(f"{path}: no line has the expected hash; its end was cut off")
    return Verdict(number, previous)


def _follow(line: bytes, previous: str, place: str) -> str:
    """The hash of an intact line."""
    try:
        content = json.loads(line)
        digest = content.pop("hash")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ArchiveError(f"{place}: expected a line of the audit log, got another text") from None
    if content.get("previous") != previous:
        raise ArchiveError(f"{place}: does not follow the line before it; one was taken or added")
    if digest != _digest(content):
        raise ArchiveError(f"{place}: was altered after it was written")
    return str(digest)


def _last_hash(file: int, path: Path) -> str:
    """Where the chain goes on; a line that a crash cut off goes: nobody got its answer."""
    size = os.fstat(file).st_size
    if size == 0:
        return _START
    tail = os.pread(file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
    end = tail.rfind(b"\n") + 1
    if end != len(tail):
        os.ftruncate(file, size - len(tail) + end)
    lines = tail[:end].splitlines()
    if not lines:
        if size > len(tail):
            raise ConfigError(f"audit log {path}: expected lines, got something else")
        return _START
    try:
        return str(json.loads(lines[-1])["hash"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"audit log {path}: its last line is no line of an audit log") from None


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(_compact(content)).hexdigest()


def _compact(content: dict[str, object]) -> bytes:
    return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
