"""Inputs behind URLs: objects of a store through fsspec, and studies of a DICOMweb archive.

Credentials are those of the store's own client (for S3 the variables and files of AWS, for Google
Cloud Storage those of Google) or of the configuration of fsspec; none stands in a manifest, which
receipts and tables repeat.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from email.message import Message
from typing import Any, ClassVar

from medserve.client import Limits
from medserve.client.inputs import read, zip_contents
from medserve.errors import ConfigError, MedserveError, PayloadTooLargeError

__all__ = ["UnreadableInputError", "read_url", "stamp_of_url", "unreadable"]

# What WADO-RS calls a study, a series or an instance (PS3.18, 10.4).
_UID = r"[0-9]+(?:\.[0-9]+)*"
_DICOMWEB = re.compile(rf"https?://[^?#]+/studies/{_UID}(/series/{_UID}(/instances/{_UID})?)?/?")
_ACCEPT = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
_TAGS = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created")
_BLOCK = 2**20
_AZURE = ("abfs", "abfss", "adl", "az", "wasb", "wasbs")  # schemes of URLs
_PACKAGES = {"gs": "medserve[gcs]", "gcs": "medserve[gcs]", "s3": "s3fs", "s3a": "s3fs"}
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")


class UnreadableInputError(MedserveError):
    """The input cannot be read now; it may be there again at the next run."""

    code: ClassVar[str] = "UNREADABLE"
    grpc_status: ClassVar[str] = "NOT_FOUND"
    http_status: ClassVar[int] = 404


def unreadable(reason: str) -> UnreadableInputError:
    """Return the error of an input that cannot be read now."""
    return UnreadableInputError(
        f"expected a readable input, got one that {reason}; run the same command again when it "
        "is there"
    )


def stamp_of_url(url: str) -> str:
    """Return size and tag or time of change of an object.

    It is empty where nobody tells them: an archive does not say when a study was changed, so that
    it is read at each run.

    Raises:
        ConfigError: there are no credentials for the store, or a package is missing.
        UnreadableInputError: the object is not there or may not be looked at.
    """
    if _DICOMWEB.fullmatch(url):
        return ""
    with _errors():
        system, path = _open_store(url)
        found: dict[str, Any] = system.info(path)
    told = [str(found[key]) for key in _TAGS if found.get(key) is not None]
    return " ".join([str(found.get("size")), *told]) if told else ""


def read_url(url: str, limits: Limits) -> bytes:
    """Return an object, or the objects of a study or a series of an archive as one zip.

    Raises:
        ConfigError: there are no credentials for the store, or a package is missing.
        PayloadTooLargeError: over the limit of one message.
        UnreadableInputError: it is not there, may not be read, or is no set of DICOM objects.
    """
    if _DICOMWEB.fullmatch(url):
        return _read_study(url, limits)
    with _errors():
        system, path = _open_store(url)
        with system.open(path, "rb") as file:
            return read(_whole(file, limits), limits)


def _read_study(url: str, limits: Limits) -> bytes:
    with _errors():
        system, path = _open_store(url)
        # As a stream of unknown size: there is no HEAD for a study, and no range of it.
        with system.open(path, "rb", block_size=0, size=1, headers=_ACCEPT) as file:
            kind, content = str(file.r.headers.get("Content-Type", "")), _whole(file, limits)
    objects = sorted(_parts(kind, content))  # an archive may give them in any order
    if not objects:
        raise unreadable("the archive does not have")
    return objects[0] if len(objects) == 1 else zip_contents(objects, limits)


def _parts(content_type: str, body: bytes) -> Iterator[bytes]:
    """Give the bodies of a multipart answer (RFC 2046, 5.1.1)."""
    if not body:
        return
    head = Message()
    head["Content-Type"] = content_type
    boundary = head.get_boundary()
    if head.get_content_type() != "multipart/related" or not boundary:
        raise unreadable("is no study of a DICOMweb archive, by the type of the answer")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if not parts or not parts[-1].startswith(b"--"):
        raise unreadable("breaks off before its end")
    for part in parts[:-1]:
        _, blank, content = part.partition(b"\r\n\r\n")
        if not blank:
            raise unreadable("has a part without an object")
        yield content


def _whole(file: Any, limits: Limits) -> bytes:
    """Read to the end: a stream gives what has arrived, however much is asked for.

    Raises:
        PayloadTooLargeError: it is over the limit.
    """
    content = bytearray()
    while block := file.read(_BLOCK):
        content += block
        if len(content) > limits.message_bytes:
            raise PayloadTooLargeError(
                f"expected at most {limits.message_bytes} bytes, got more; send a smaller file"
            )
    return bytes(content)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn what a store raises into our own words; each has errors of its own."""
    try:
        yield
    except MedserveError:
        raise
    except FileNotFoundError as error:
        raise unreadable("is not there") from error
    except Exception as error:
        name = type(error).__name__
        if name in _NO_CREDENTIALS:
            raise ConfigError(
                "expected credentials for the store of the manifest's URLs, found none "
                f"({name}); set them as its own client wants them, such as AWS_PROFILE for s3://"
            ) from error
        if _is_refusal(error):
            raise unreadable("may not be read with the credentials of this machine") from error
        raise unreadable(f"cannot be read ({name})") from error


def _is_refusal(error: Exception) -> bool:
    """Tell whether a store has refused the credentials, by what each client raises then."""
    status = getattr(error, "status", None) or getattr(error, "code", None)  # aiohttp; gcsfs
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden: ")  # gcsfs
    return isinstance(error, PermissionError) or status in (401, 403) or forbidden


def _open_store(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise ConfigError(
            "reading from a URL needs fsspec; pip install 'medserve[batch]'"
        ) from None
    scheme = url.partition("://")[0].lower()
    if scheme in _AZURE:
        raise unreadable("lies in a store of Azure, which is not read; copy it to another place")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        if package is None:
            raise unreadable(f"fsspec cannot open ({error})") from error
        raise ConfigError(
            f"reading {scheme}:// needs a package that is not installed; pip install '{package}'"
        ) from error
    except ValueError as error:
        raise unreadable(f"fsspec cannot open ({error})") from error
    _need_google_credentials(system)
    return system, str(path)


def _need_google_credentials(system: Any) -> None:
    """Raise ConfigError where gcsfs found no credentials: it would go on as a stranger, unasked."""
    if system.protocol != ("gs", "gcs"):
        return
    used = system.credentials
    if used.token is None and used.credentials is None:
        raise ConfigError(
            "expected credentials for gs://, found none; set GOOGLE_APPLICATION_CREDENTIALS, or "
            "FSSPEC_GS_TOKEN=anon for buckets that everybody may read"
        )
