"""The bytes of a study, and the stamp by which an unchanged one is known without reading it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medserve.batch.stores import read_url, stamp_of_url, unreadable
from medserve.batch.studies import is_remote
from medserve.client import Limits
from medserve.client.inputs import files_below, read, zip_files
from medserve.errors import InvalidRequestError

__all__ = ["Input", "read_input", "stamp_of"]

_WILD = frozenset("*?[")


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
        content = read_url(source, limits) if is_remote(source) else _read(source, limits)
    except InvalidRequestError as error:  # the file vanished, or belongs to somebody else
        raise unreadable("cannot be opened, or the folder holds no file") from error
    if stamp_of(source) != stamp:
        raise unreadable("was written to while it was read")
    return Input(content, stamp)


def stamp_of(source: str) -> str:
    """Return size, newest time of change and number of the files of a study.

    Raises:
        UnreadableInputError: it is not there or may not be looked at.
    """
    if is_remote(source):
        return stamp_of_url(source)
    try:
        found = [path.stat() for path in _files(source)]
    except (OSError, ValueError, InvalidRequestError) as error:
        reason = getattr(error, "strerror", None) or "no path"
        raise unreadable(f"cannot be looked at ({reason})") from error
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
