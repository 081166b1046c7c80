"""Every error a user of medserve can meet; each says what was expected, what came, what to do.

    MedserveError
    ├── InvalidRequestError         the request itself is wrong (unknown parameter, no data)
    │   └── InvalidImageError       the bytes are not the image or volume the model wants
    ├── PayloadTooLargeError        more bytes or pixels than the model accepts
    ├── UnknownModelError           no such model or version on this server
    ├── AuthenticationError         token missing, wrong or expired
    │   └── ForbiddenError          the token is good, but not for this
    ├── ServerBusyError             queue full or worker lost; the same request may be sent again
    ├── DeadlineError               no answer within the caller's time
    ├── ServerUnreachableError      nobody answers at that address
    ├── ServerFailedError           a bug on the server's side; sending again will not help
    ├── ModelNotReadyError          a model did not prove itself in time
    ├── ArchiveError                a .mar is damaged, incomplete or altered
    └── ConfigError                 a setting has a value that cannot work

`code` is what travels in an answer (`{"error": {"code": …, "message": …}}`); `grpc_status` and
`http_status` are the standard codes it maps to.
"""

from __future__ import annotations

import re
from typing import ClassVar

__all__ = [
    "ArchiveError",
    "AuthenticationError",
    "ConfigError",
    "DeadlineError",
    "ForbiddenError",
    "InvalidImageError",
    "InvalidRequestError",
    "MedserveError",
    "ModelNotReadyError",
    "PayloadTooLargeError",
    "ServerBusyError",
    "ServerFailedError",
    "ServerUnreachableError",
    "UnknownModelError",
    "error_from_code",
    "error_from_text",
]


class MedserveError(Exception):
    """Root of all errors that medserve raises on purpose."""

    code: ClassVar[str] = "INTERNAL"
    grpc_status: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500

    @property
    def message(self) -> str:
        """The sentence for the user: what was expected, what came, what to do."""
        return str(self)


class InvalidRequestError(MedserveError):
    """The request cannot be understood: unknown parameter, missing data, wrong type."""

    code = "INVALID_REQUEST"
    grpc_status = "INVALID_ARGUMENT"
    http_status = 400


class InvalidImageError(InvalidRequestError):
    """The bytes are not an image or volume that the model can work on."""

    code = "INVALID_IMAGE"


class PayloadTooLargeError(MedserveError):
    """The input or the answer is larger than the stated limit."""

    code = "PAYLOAD_TOO_LARGE"
    # Not RESOURCE_EXHAUSTED, which invites a retry: the same bytes will never fit.
    grpc_status = "INVALID_ARGUMENT"
    http_status = 413


class UnknownModelError(MedserveError):
    """The server has no model of that name or version."""

    code = "UNKNOWN_MODEL"
    grpc_status = "NOT_FOUND"
    http_status = 404


class AuthenticationError(MedserveError):
    """The token is missing, wrong or expired."""

    code = "UNAUTHENTICATED"
    grpc_status = "UNAUTHENTICATED"
    http_status = 401


class ForbiddenError(AuthenticationError):
    """The caller is known, but may not use this model or do this."""

    code = "FORBIDDEN"
    grpc_status = "PERMISSION_DENIED"
    http_status = 403


class ServerBusyError(MedserveError):
    """The queue is full or the worker was lost; the request may be sent again."""

    code = "BUSY"
    grpc_status = "RESOURCE_EXHAUSTED"
    http_status = 503


class DeadlineError(MedserveError):
    """No answer came within the time that the caller allowed."""

    code = "DEADLINE_EXCEEDED"
    grpc_status = "DEADLINE_EXCEEDED"
    http_status = 504


class ServerUnreachableError(MedserveError):
    """Nobody answers at the given address."""

    code = "UNREACHABLE"
    grpc_status = "UNAVAILABLE"
    http_status = 502


class ServerFailedError(MedserveError):
    """The server failed on a request that looks valid: a bug there, not in the request."""


class ModelNotReadyError(MedserveError):
    """A model did not reproduce its golden answer in time, so it must not serve."""

    code = "NOT_READY"
    grpc_status = "FAILED_PRECONDITION"
    http_status = 503


class ArchiveError(MedserveError):
    """A model archive is damaged, incomplete or was altered after it was built."""

    code = "BAD_ARCHIVE"
    grpc_status = "FAILED_PRECONDITION"


class ConfigError(MedserveError):
    """A setting has a value that cannot work."""

    code = "BAD_CONFIG"
    grpc_status = "FAILED_PRECONDITION"


# TorchServe puts the name of a Java class on a line of its own behind what a handler raises.
_CODE_AND_MESSAGE = re.compile(r"(?P<code>[A-Z][A-Z_]+): (?P<message>.+?)(\n[\w.]+)?", re.DOTALL)

_BY_CODE: dict[str, type[MedserveError]] = {
    error.code: error
    for error in (
        InvalidRequestError,
        InvalidImageError,
        PayloadTooLargeError,
        UnknownModelError,
        AuthenticationError,
        ForbiddenError,
        ServerBusyError,
        DeadlineError,
        ServerUnreachableError,
        ServerFailedError,
        ModelNotReadyError,
        ArchiveError,
        ConfigError,
    )
}


def error_from_code(code: str, message: str) -> MedserveError:
    """The exception that `code` stands for; an unknown code is a ServerFailedError."""
    return _BY_CODE.get(code, ServerFailedError)(message)


def error_from_text(text: str) -> MedserveError | None:
    """The exception that a handler raised as "CODE: message"; None where none did."""
    if (match := _CODE_AND_MESSAGE.fullmatch(text)) is None:
        return None
    kind = _BY_CODE.get(match["code"])
    return kind(match["message"]) if kind else None
