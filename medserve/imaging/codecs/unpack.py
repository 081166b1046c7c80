"""Open gzip, zip and tar in memory, never past a stated number of bytes, never onto the disk.

Names inside an archive are neither trusted nor used: a member called `../../etc/passwd` is a
stretch of bytes like any other.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import NoReturn

from medserve.errors import InvalidImageError, PayloadTooLargeError
from medserve.imaging.codecs.payload import Payload
from medserve.imaging.volume import VolumeLimits

__all__ = ["files_in", "gunzip", "is_gzip", "is_tar", "is_zip", "peek"]

_GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952 section 2.3.1
_ZIP_MAGIC = b"PK\x03\x04"  # APPNOTE.TXT section 4.3.7
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257  # POSIX.1-2017, pax "ustar Interchange Format"
_TAR_BLOCK = 512
_BLOCK = 2**20


def is_gzip(payload: Payload) -> bool:
    """Whether the bytes begin as gzip does."""
    return bytes(payload[:2]) == _GZIP_MAGIC


def is_zip(payload: Payload) -> bool:
    """Whether the bytes begin as a zip with at least one member does."""
    return bytes(payload[:4]) == _ZIP_MAGIC


def is_tar(payload: Payload) -> bool:
    """Whether the bytes begin as a tar of POSIX or GNU flavour does."""
    return bytes(payload[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5]) == _TAR_MAGIC


def peek(payload: Payload, count: int = 512) -> bytes:
    """The first bytes of what gzip holds, fewer where it is damaged; others as they are."""
    if not is_gzip(payload):
        return bytes(payload[:count])
    try:
        return zlib.decompressobj(wbits=31).decompress(bytes(payload[: 2**16]), count)
    except zlib.error:
        return b""


def gunzip(payload: Payload, max_bytes: int) -> bytes:
    """Everything that gzip holds, several members included, checked by its CRC.

    Raises:
        PayloadTooLargeError: more than `max_bytes`; no more than that is ever expanded.
        InvalidImageError: damaged or cut short.
    """
    expanded = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(payload)) as stream:
            while block := stream.read(_BLOCK):
                if expanded.tell() + len(block) > max_bytes:
                    _refuse_size(max_bytes)
                expanded.write(block)
    except (OSError, EOFError, zlib.error):
        raise InvalidImageError(
            "expected whole gzip data, got data that are damaged or cut short; send them again"
        ) from None
    return expanded.getvalue()


def files_in(payload: Payload, limits: VolumeLimits) -> Iterator[bytes]:
    """The regular files of a zip, tar or tar.gz, in stored order; links and folders do not count.

    Raises:
        PayloadTooLargeError: more files or bytes than the limits allow; known from the directory
            of the archive, before anything is expanded.
        InvalidImageError: damaged, cut short, or protected by a password.
    """
    if is_zip(payload):
        return _zip_files(payload, limits)
    if is_gzip(payload):
        payload = gunzip(payload, limits.max_expanded_bytes)
    return _tar_files(payload, limits)


def _zip_files(payload: Payload, limits: VolumeLimits) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if members and min(member.header_offset for member in archive.infolist()) > 0:
                _refuse_several("zip")
            _check_total([member.file_size for member in members], limits)
            for member in members:
                _check_member(member)
                with archive.open(member) as stream:
                    # Not read to its end: what a lying directory calls small may be gigabytes.
                    content = stream.read(member.file_size)
                if len(content) != member.file_size:
                    _refuse_damage("zip")
                yield content
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError):
        _refuse_damage("zip")


def _check_member(member: zipfile.ZipInfo) -> None:
    if member.flag_bits & 0x1:  # APPNOTE.TXT section 4.4.4
        raise InvalidImageError("expected a zip without password, got an encrypted one")
    # zipfile expands other methods without a bound.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidImageError(
            "expected a zip that is stored or deflated, got another compression; "
            "pack it again with the usual settings"
        )


def _tar_files(payload: Payload, limits: VolumeLimits) -> Iterator[bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(payload), mode="r:") as archive:
            everything = archive.getmembers()
            members = [member for member in everything if member.isreg()]
            _check_tar_end(payload, everything)
            _check_total([member.size for member in members], limits)
            for member in members:
                source = archive.extractfile(member)
                content = b"" if source is None else source.read()
                if len(content) != member.size:
                    _refuse_damage("tar")
                yield content
    except (tarfile.TarError, EOFError, OSError, ValueError, IndexError):
        _refuse_damage("tar")


def _check_tar_end(payload: Payload, members: list[tarfile.TarInfo]) -> None:
    """A tar ends with blocks of zeros (POSIX.1-2017, pax); tarfile takes a cut for the end."""
    last = members[-1]
    end = last.offset_data + (-(-last.size // _TAR_BLOCK) * _TAR_BLOCK if last.isreg() else 0)
    if bytes(payload[end : end + _TAR_BLOCK]) != bytes(_TAR_BLOCK):
        _refuse_damage("tar")
    if bytes(payload[end:]).strip(b"\0"):
        _refuse_several("tar")


def _check_total(sizes: list[int], limits: VolumeLimits) -> None:
    if len(sizes) > limits.max_files:
        raise PayloadTooLargeError(
            f"expected at most {limits.max_files} files in an archive, got {len(sizes)}; "
            "send one series"
        )
    if sum(sizes) > limits.max_expanded_bytes:
        _refuse_size(limits.max_expanded_bytes)


def _refuse_size(max_bytes: int) -> NoReturn:
    raise PayloadTooLargeError(
        f"expected data of at most {max_bytes} bytes when expanded, got more; send a part of them"
    )


def _refuse_several(kind: str) -> NoReturn:
    """Several archives in one file: readers see the files of one of them alone."""
    raise InvalidImageError(
        f"expected one {kind} archive, got one with other data before or behind it, as where "
        "several were joined; pack all files into one"
    )


def _refuse_damage(kind: str) -> NoReturn:
    raise InvalidImageError(
        f"expected a whole {kind} archive, got one that is damaged or cut short; pack it again"
    ) from None
