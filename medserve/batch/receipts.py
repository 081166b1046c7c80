"""The folder of a batch: answers of studies, and for each study the receipt that says it is done.

    OUT/batch.json                 which model the batch is for
    OUT/receipts/abc/KEY.json      one a study; it is put in place last, as a whole
    OUT/answers/abc/KEY/mask.nii.gz
    OUT/partial/                   files that are being written
    OUT/running/                   which runs are alive; see `medserve.batch.turns`

A key is the digest of a study's id, and `abc` its beginning: no id, whatever its text, becomes a
path, and 4096 folders share the entries. Runs on several hosts may write into one folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from medserve.errors import ConfigError
from medserve.spec import Task

__all__ = ["BatchFolder", "BatchHead", "Receipt", "text_of"]

_FORMAT = 1
_FOLDER_DIGITS = 3
_LEFT_BEHIND_S = 86_400  # an older partial file belongs to no run that lives
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BatchHead(msgspec.Struct, frozen=True, kw_only=True):
    """What all studies of a batch have in common."""

    format: int = _FORMAT
    model: str
    task: Task


class Receipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one study.

    Attributes:
        key: The digest of its id.
        id: Its id; characters that are no text are written as escapes.
        source: Where it was read.
        sha256: Of the bytes that were sent; empty where they could not be read.
        size_bytes: Their number.
        stamp: Sizes and times of the input's files; see `medserve.batch.inputs`.
        model: Which archive answered, with its version and digest.
        options: What was asked for, as the JSON object `params`.
        code: Of the error; empty where there is an answer.
        message: Of the error.
        can_pass: Whether the error says nothing about the study, so that the next run asks again.
        attempt: How many times the study was asked about, this one included.
        started_at: Seconds since 1970.
        seconds: From asking to the answer; of images that were asked together, a part of it each.
        answer: Members of the answer, without its files.
        files: Name -> size in bytes of each file of the answer.
    """

    format: int = _FORMAT
    key: str
    id: str
    source: str = ""
    status: Literal["ok", "error"] = "ok"
    sha256: str = ""
    size_bytes: int = 0
    stamp: str = ""
    model: str = ""
    version: str = ""
    archive_digest: str = ""
    options: dict[str, Any] = {}
    code: str = ""
    message: str = ""
    can_pass: bool = False
    attempt: int = 1
    started_at: float = 0.0
    seconds: float = 0.0
    answer: dict[str, Any] = {}
    files: dict[str, int] = {}


def text_of(raw: str) -> str:
    """Return an id or path as text that every file can hold."""
    return raw.encode("utf-8", "backslashreplace").decode()


class BatchFolder:
    """Reads and writes the folder of a batch.

    Every method may be called from several threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path / "partial"
        self._decoder = msgspec.json.Decoder(Receipt)

    def open(self, head: BatchHead) -> None:
        """Make the folder, or check that it is one of the same model.

        Raises:
            ConfigError: it belongs to another model, or nothing can be written there.
        """
        with self._writing():
            self._partial.mkdir(parents=True, exist_ok=True)
            if not (self.path / "batch.json").exists():
                self.publish("batch.json", msgspec.json.encode(head))
            self._sweep()
        found = self.head()
        if found.model != head.model:
            raise ConfigError(
                f"--out {self.path}: expected a batch of {head.model}, got one of {found.model}; "
                "name another folder"
            )

    def head(self) -> BatchHead:
        """Return what the batch is for; ConfigError where the folder is none of a batch."""
        try:
            content = (self.path / "batch.json").read_bytes()
            return msgspec.json.decode(content, type=BatchHead)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{self.path}: expected a folder that `medserve batch` has written, got another"
            ) from error

    def receipt(self, key: str) -> Receipt | None:
        """Return the receipt of a study; None where there is none, or no whole one."""
        return self._read(self.path / _receipt(key))

    def receipts(self) -> Iterator[Receipt]:
        """Give every receipt, in the order of keys: the same in every run."""
        for folder in sorted(_names(self.path / "receipts")):
            for name in sorted(_names(self.path / "receipts" / folder)):
                found = self._read(self.path / "receipts" / folder / name)
                if found is not None:
                    yield found

    def answers(self, key: str) -> Path:
        """Return the folder of a study's files."""
        return self.path / "answers" / key[:_FOLDER_DIGITS] / key

    def holds_files(self, receipt: Receipt) -> bool:
        """Tell whether every file of an answer is there in its full size."""
        folder = self.answers(receipt.key)
        try:
            return all(
                (folder / name).stat().st_size == size for name, size in receipt.files.items()
            )
        except OSError:
            return False

    def store(self, receipt: Receipt, files: Mapping[str, bytes]) -> None:
        """Put the files of an answer in place, and then its receipt.

        A run that ends at any moment leaves the old receipt with its files, no receipt, or the new
        one with all of its files.

        Raises:
            ConfigError: the disk is full or read-only.
        """
        with self._writing():
            folder = self.answers(receipt.key)
            if folder.is_dir():
                (self.path / _receipt(receipt.key)).unlink(missing_ok=True)
                shutil.rmtree(folder)
            place = folder.relative_to(self.path)
            for name, content in files.items():
                self.publish(place / name, content)
            self.publish(_receipt(receipt.key), msgspec.json.encode(receipt))

    def publish(self, name: str | Path, content: bytes) -> None:
        """Write all of a file under its name, on the disk and not in its cache alone, or nothing.

        Raises:
            OSError: it cannot be written.
        """
        with self.partial(name) as part:
            part.write_bytes(content)

    @contextlib.contextmanager
    def partial(self, name: str | Path) -> Iterator[Path]:
        """Give a path to write to, and put the file in its place once it is whole."""
        target, part = self.path / name, self._partial / uuid.uuid4().hex
        try:
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            try:
                part.replace(target)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                part.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _read(self, path: Path) -> Receipt | None:
        try:
            found = self._decoder.decode(path.read_bytes())
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return found if found.format == _FORMAT else None

    def _sweep(self) -> None:
        """Remove what killed runs have left half written."""
        oldest = time.time() - _LEFT_BEHIND_S
        for name in _names(self._partial):
            with contextlib.suppress(OSError):
                if (self._partial / name).stat().st_mtime < oldest:
                    (self._partial / name).unlink()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = "free some space" if error.errno in _FULL else "mend that"
            raise ConfigError(
                f"--out {self.path}: {error.strerror}; {what} and run the same command again, "
                "which goes on there"
            ) from error


def _receipt(key: str) -> Path:
    return Path("receipts", key[:_FOLDER_DIGITS], f"{key}.json")


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
