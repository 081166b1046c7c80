"""From volumes on disk to the bytes of a request; a folder is a DICOM series."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from medserve.client._connection import Limits
from medserve.client._requests import read
from medserve.errors import InvalidRequestError, PayloadTooLargeError

__all__ = ["VOLUMES_IN_FLIGHT", "read_case"]

VOLUMES_IN_FLIGHT = 2  # one is worked on, one waits; more would only take memory on both sides

_FAST = 1  # zlib's level: 12-bit images in 16-bit words halve at once, more costs seconds


def read_case(case: bytes | Path, limits: Limits) -> bytes:
    """The bytes to send: a file as it is, the files of a folder as one zip.

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
            try:
                archive.writestr(f"{count:05d}", path.read_bytes())
            except OSError as error:
                raise InvalidRequestError(
                    f"expected a readable file, got {path} ({error.strerror})"
                ) from error
            count += 1
            if stream.tell() > limits.message_bytes:
                raise PayloadTooLargeError(
                    f"expected a folder of at most {limits.message_bytes} bytes when packed, got "
                    f"more in {folder}; send one series, or raise Limits.message_bytes here and "
                    "the limit of the server"
                )
    if count == 0:
        raise InvalidRequestError(f"expected a folder with a DICOM series, got none in {folder}")
    return read(stream.getvalue(), limits)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below the folder, sorted; hidden ones, and links to others of them, are left out.

    Raises:
        InvalidRequestError: a link out of the folder, without which slices would be missing.
    """
    root = folder.resolve()
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(current) / name
            if name.startswith("."):
                continue
            if path.is_symlink():
                if not path.resolve().is_relative_to(root):
                    raise InvalidRequestError(
                        f"expected files, got {path}, a link out of the folder; send the files "
                        "themselves"
                    )
            elif path.is_file():
                yield path
