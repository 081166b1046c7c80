"""Fetch a study from a DICOMweb archive (WADO-RS, PS3.18 10.4), and send it to a node.

For archives that cannot send by themselves. The objects travel as they are stored there; the node
takes them as it takes any others, so the same contract holds.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from medserve.dicom.headers import is_uid
from medserve.errors import (
    AuthenticationError,
    ConfigError,
    InvalidRequestError,
    ServerFailedError,
    ServerUnreachableError,
)

__all__ = ["fetch"]

_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_BLOCK = 256 * 1024
_TIMEOUT_S = 60.0
_HEAD_BYTES = 8 * 1024  # of one part; its own headers are a few lines


def fetch(
    service: str,
    study: str,
    series: str | None,
    folder: Path,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> list[Path]:
    """Fetch every object of a study, or of one of its series, into a folder.

    Args:
        service: URL of the DICOMweb service, to which `/studies/…` is added.
        study: Its Study Instance UID.
        series: A Series Instance UID; None for all of the study.
        folder: Where the files are written; they are named by their place in the answer.
        token: Bearer token of the service.
        tls: For `https`; None trusts the authorities of this system.

    Raises:
        ConfigError: the URL cannot work.
        InvalidRequestError: a UID is none, or the archive does not have it.
        AuthenticationError: the token is missing or wrong.
        ServerUnreachableError: nobody answers.
        ServerFailedError: the answer is no set of DICOM objects, or breaks off.
    """
    parts = urlsplit(service)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("expected the URL of a DICOMweb service, such as https://pacs/dicom-web")
    for uid in filter(None, (study, series)):
        if not is_uid(uid):
            raise InvalidRequestError("expected identifiers of a study and a series, got another")
    path = f"{parts.path.rstrip('/')}/studies/{study}" + (f"/series/{series}" if series else "")
    headers = {"Accept": _ACCEPT} | ({"Authorization": f"Bearer {token}"} if token else {})
    host, port = parts.hostname, parts.port
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=tls)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        _refuse(answer.status)
        return list(_parts(answer, _boundary(answer.headers), folder))
    except http.client.HTTPException as error:
        raise ServerFailedError(
            f"the archive's answer broke off ({type(error).__name__}); try again"
        ) from error
    except OSError as error:
        raise ServerUnreachableError(f"the archive does not answer: {error}") from error
    finally:
        connection.close()


def _refuse(status: int) -> None:
    if status in (401, 403):
        raise AuthenticationError(
            f"the archive answers {status}; give its token in MEDSERVE_DICOM_TOKEN"
        )
    if status in (204, 404):
        raise InvalidRequestError("the archive has no such study or series")
    if status not in (200, 206):
        raise ServerFailedError(f"the archive answers {status}, expected 200")


def _boundary(headers: Message) -> bytes:
    boundary = headers.get_boundary()
    if headers.get_content_type() != "multipart/related" or not boundary:
        raise ServerFailedError(
            f"expected multipart/related from the archive, got {headers.get_content_type()}"
        )
    return boundary.encode()


def _parts(stream: http.client.HTTPResponse, boundary: bytes, folder: Path) -> Iterator[Path]:
    """Write each part to a file as it comes in; nothing of an object is kept in memory."""
    mark = b"\r\n--" + boundary
    held = b"\r\n" + stream.read(_BLOCK)  # so that the first mark looks like the others
    while (at := held.find(mark)) < 0:
        held = held[-len(mark) :] + _more(stream)
    held = held[at + len(mark) :]
    number = 0
    while True:
        while len(held) < 2:
            held += _more(stream)
        if held.startswith(b"--"):  # the end of the last part
            return
        while (end := held.find(b"\r\n\r\n")) < 0:
            if len(held) > _HEAD_BYTES:
                raise ServerFailedError("expected parts with headers from the archive, got others")
            held += _more(stream)
        held = held[end + 4 :]
        path = folder / f"{number:06d}.dcm"
        with path.open("wb") as file:
            while (at := held.find(mark)) < 0:
                safe = max(len(held) - len(mark), 0)
                file.write(held[:safe])
                held = held[safe:] + _more(stream)
            file.write(held[:at])
        held = held[at + len(mark) :]
        yield path
        number += 1


def _more(stream: http.client.HTTPResponse) -> bytes:
    block = stream.read(_BLOCK)
    if not block:
        raise ServerFailedError("the archive's answer breaks off; try again")
    return block
