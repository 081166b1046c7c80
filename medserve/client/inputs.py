"""The files of a request: read from disk when their turn comes, and packed into calls."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from medserve.client.connection import Limits
from medserve.errors import InvalidRequestError, MedserveError, PayloadTooLargeError

__all__ = ["pack", "read", "read_case", "read_each"]

_ENVELOPE_BYTES = 16 * 2**10  # of the protobuf around a file: names, keys, lengths, parameters
_FAST = 1  # zlib's level: 12-bit images in 16-bit words halve at once, more costs seconds

Contents = bytes | MedserveError  # of a file, or the reason why it cannot be sent


def pack(
    images: Iterable[bytes | Path], limits: Limits, items_per_call: int
) -> Iterator[list[Contents]]:
    """Group images in order; a file is read only when its group is being filled."""
    group: list[Contents] = []
    size = 0
    for image in read_each(images, limits, read):
        extra = len(image) if isinstance(image, bytes) else 0
        if group and (len(group) == items_per_call or size + extra > limits.bytes_per_call):
            yield group
            group, size = [], 0
        group.append(image)
        size += extra
    if group:
        yield group


def read_each(
    files: Iterable[bytes | Path],
    limits: Limits,
    read_one: Callable[[bytes | Path, Limits], bytes],
) -> Iterator[Contents]:
    """Read files one by one; a file that cannot be sent is its error."""
    for file in files:
        try:
            yield read_one(file, limits)
        except MedserveError as error:
            yield error


def read(file: bytes | Path, limits: Limits) -> bytes:
    """Return the bytes to send; refuses a file that cannot be read or is over the limit."""
    if not isinstance(file, Path):
        _check_size(len(file), limits)
        return bytes(file)
    try:
        _check_size(file.stat().st_size, limits)
        return file.read_bytes()
    except OSError as error:
        raise InvalidRequestError(
            f"expected a readable file, got {file} ({error.strerror})"
        ) from error


def read_case(case: bytes | Path, limits: Limits) -> bytes:
    """Return the bytes to send: a file as it is, the files of a folder as one zip.

    Names stay here: in the zip files are numbered.

    Raises:
        InvalidRequestError: nothing can be read there.
        PayloadTooLargeError: over the limit of one message.
    """
    if isinstance(case, Path) and case.is_dir():
        return _zipped(case, limits)
    return read(case, limits)


def _zipped(folder: Path, limits: Limits) -> bytes:
    stream = io.BytesIO()
    count = 0
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=_FAST) as archive:
        for path in _files(folder):
            archive.writestr(f"{count:05d}", read(path, limits))
            count += 1
            if stream.tell() > limits.message_bytes:
                raise PayloadTooLargeError(
                    f"expected a folder of at most {limits.message_bytes} bytes when packed, got "
                    f"more in {folder}; send one series, or raise Limits.message_bytes here and "
                    "the limit of the gateway"
                )
    if count == 0:
        raise InvalidRequestError(f"expected a folder with a DICOM series, got none in {folder}")
    return read(stream.getvalue(), limits)


def _files(folder: Path) -> Iterator[Path]:
    """Give every file below the folder, sorted; hidden ones and links are left out."""
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(current) / name
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def _check_size(size: int, limits: Limits) -> None:
    limit = max(limits.message_bytes - _ENVELOPE_BYTES, 0)
    if size > limit:
        raise PayloadTooLargeError(
            f"expected at most {limit} bytes, got {size}; send a smaller file or raise "
            "Limits.message_bytes here and the limit of the gateway"
        )
