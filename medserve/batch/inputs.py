"""The bytes of a study, and the stamp by which an unchanged one is known without reading it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from medserve.batch.studies import is_remote
from medserve.client import Limits
from medserve.client.inputs import files_below, read, zip_files
from medserve.errors import ConfigError, InvalidRequestError, MedserveError, PayloadTooLargeError

__all__ = ["Input", "UnreadableInputError", "read_input", "stamp_of"]

_WILD = frozenset("*?[")


class UnreadableInputError(MedserveError):
    """The input cannot be read now; it may be there again at the next run."""

    code: ClassVar[str] = "UNREADABLE"
    grpc_status: ClassVar[str] = "NOT_FOUND"
    http_status: ClassVar[int] = 404


@dataclass(frozen=True)
class Input:
    """What is sent of a study.

    Attributes:
        content: The bytes of a file, or the zip of a series.
        stamp: Sizes and times of its files when they were read.
    """

    content: bytes = field(repr=False)
    stamp: str


def read_input(source: str, limits: Limits) -> Input:
    """Read a file, a folder with one series, the files of a glob, or a URL.

    Raises:
        UnreadableInputError: it is not there, cannot be read, or changed meanwhile.
        PayloadTooLargeError: over the limit of one message.
    """
    stamp = stamp_of(source)
    try:
        content = _read_url(source, limits) if is_remote(source) else _read(source, limits)
    except InvalidRequestError as error:  # the file vanished, or belongs to somebody else
        raise _unreadable("cannot be opened, or the folder holds no file") from error
    if stamp_of(source) != stamp:
        raise _unreadable("was written to while it was read")
    return Input(content, stamp)


def stamp_of(source: str) -> str:
    """Return size, newest time of change and number of the files of a study.

    Raises:
        UnreadableInputError: it is not there or may not be looked at.
    """
    if is_remote(source):
        return _remote_stamp(source)
    try:
        found = [path.stat() for path in _files(source)]
    except (OSError, ValueError, InvalidRequestError) as error:
        reason = getattr(error, "strerror", None) or "no path"
        raise _unreadable(f"cannot be looked at ({reason})") from error
    size = sum(each.st_size for each in found)
    return f"{size} {max((each.st_mtime_ns for each in found), default=0)} {len(found)}"


def _files(source: str) -> Iterator[Path]:
    if os.path.isdir(source):
        yield from files_below(Path(source))
    elif _is_glob(source):
        yield from (Path(each) for each in sorted(glob.iglob(source)) if os.path.isfile(each))
    else:
        yield Path(source)


def _is_glob(source: str) -> bool:
    return not _WILD.isdisjoint(source) and not os.path.lexists(source)


def _read(source: str, limits: Limits) -> bytes:
    if os.path.isdir(source) or _is_glob(source):
        return zip_files(_files(source), limits)
    return read(Path(source), limits)


def _remote_stamp(url: str) -> str:
    """Return size and tag or time of change of an object; empty where the store tells neither."""
    system, path = _open_store(url)
    try:
        found: dict[str, Any] = system.info(path)
    except Exception as error:  # each store has errors of its own
        raise _unreadable(f"is not there ({type(error).__name__})") from error
    tags = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
    told = [str(found[key]) for key in tags if found.get(key) is not None]
    return " ".join([str(found.get("size")), *told]) if told else ""


def _read_url(url: str, limits: Limits) -> bytes:
    system, path = _open_store(url)
    try:
        with system.open(path, "rb") as file:
            content: bytes = file.read(limits.message_bytes + 1)
    except Exception as error:
        raise _unreadable(f"cannot be read ({type(error).__name__})") from error
    if len(content) > limits.message_bytes:
        raise PayloadTooLargeError(
            f"expected at most {limits.message_bytes} bytes, got more; send a smaller file"
        )
    return read(content, limits)


def _open_store(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise ConfigError(
            "reading from a URL needs fsspec; pip install 'medserve[batch]'"
        ) from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # s3:// needs s3fs, gs:// needs gcsfs
        raise _unreadable(f"fsspec cannot open ({error})") from error
    return system, str(path)


def _unreadable(reason: str) -> UnreadableInputError:
    return UnreadableInputError(
        f"expected a readable input, got one that {reason}; run the same command again when it "
        "is there"
    )
