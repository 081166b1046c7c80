"""The bytes of a study, and the stamp by which an unchanged one is known without reading it."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medserve.batch.stores import read_url, stamp_of_url, unreadable
from medserve.batch.studies import Study, is_remote
from medserve.client import Limits
from medserve.client.inputs import files_below, read, zip_files
from medserve.errors import InvalidImageError, InvalidRequestError, PayloadTooLargeError

__all__ = ["Content", "Input", "read_input", "stamp_of"]

_WILD = frozenset("*?[")


# The bytes of a file or the zip of a series; of a case of several images, each by its name.
Content = bytes | Mapping[str, bytes]


@dataclass(frozen=True)
class Input:
    """What is sent of a study.

    Attributes:
        content: Its bytes.
        stamp: Sizes and times of its files when they were read.
    """

    content: Content = field(repr=False)
    stamp: str

    @property
    def size_bytes(self) -> int:
        """The number of its bytes."""
        return (
            len(self.content)
            if isinstance(self.content, bytes)
            else sum(map(len, self.content.values()))
        )

    @property
    def sha256(self) -> str:
        """The digest of its bytes; of several images that of their names and digests."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        each = {name: hashlib.sha256(image).hexdigest() for name, image in self.content.items()}
        return hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest()


def read_input(study: Study, limits: Limits, *, has_series: bool = True) -> Input:
    """Read each image of a study: a file, a folder with one series, files of a glob, or a URL.

    Args:
        study: The study.
        limits: The largest input.
        has_series: Whether the model takes a series of files as one input.

    Raises:
        InvalidImageError: a series for a model that takes none.
        UnreadableInputError: it is not there, cannot be read, or changed meanwhile.
        PayloadTooLargeError: over the limit of one message.
    """
    stamp = stamp_of(study)
    if not study.images:
        found = Input(_read_one(study.source, limits, has_series=has_series), stamp)
    else:
        images = {name: _read_one(source, limits) for name, source in study.images.items()}
        found = Input(images, stamp)
    if found.size_bytes > limits.message_bytes:
        raise PayloadTooLargeError(
            f"expected images of at most {limits.message_bytes} bytes together, got "
            f"{found.size_bytes}; send smaller ones"
        )
    if stamp_of(study) != stamp:
        raise unreadable("was written to while it was read")
    return found


def _read_one(source: str, limits: Limits, *, has_series: bool = True) -> bytes:
    try:
        if is_remote(source):
            return read_url(source, limits)
        if not (os.path.isdir(source) or _is_glob(source)):
            return read(Path(source), limits)
        if has_series:
            return zip_files(_files(source), limits)
    except InvalidRequestError as error:  # the file vanished, or belongs to somebody else
        raise unreadable("cannot be opened, or the folder holds no file") from error
    raise InvalidImageError(
        "expected one image in a row of the manifest, got a folder or a pattern of names; give "
        "each image a row of its own, or the folder in the place of the manifest"
    )


def stamp_of(study: Study) -> str:
    """Return size, newest time of change and number of the files of a study, for each image.

    Raises:
        UnreadableInputError: it is not there or may not be looked at.
    """
    stamps = [_stamp_of_one(source) for source in study.images.values() or (study.source,)]
    return " ".join(stamps) if all(stamps) else ""


def _stamp_of_one(source: str) -> str:
    if is_remote(source):
        return stamp_of_url(source)
    try:
        found = [path.stat() for path in _files(source)]
    except InvalidRequestError as error:
        raise unreadable("holds a link out of its folder") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no path"
        raise unreadable(f"cannot be looked at ({reason})") from error
    if not all(stat.S_ISREG(each.st_mode) for each in found):
        raise InvalidRequestError("expected a file or a folder, got a device, a pipe or a socket")
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
