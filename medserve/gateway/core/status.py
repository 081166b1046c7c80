"""How an error of medserve ends a gRPC call: code, text, and details that programs read."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from medserve.errors import MedserveError, ServerBusyError, ServerFailedError
from medserve.gateway.core.admission import QueueFullError

__all__ = ["DOMAIN", "RETRY_AFTER_S", "abort", "bug", "grpc_code", "retry_after_s", "rpc_status"]

DOMAIN = "medserve"  # of the codes in google.rpc.ErrorInfo
RETRY_AFTER_S = 1  # what a busy server asks a caller to wait
_DETAILS = "grpc-status-details-bin"  # where gRPC carries a google.rpc.Status

logger = logging.getLogger(__name__)


def grpc_code(error: MedserveError) -> grpc.StatusCode:
    """The standard code that the error maps to."""
    return grpc.StatusCode[error.grpc_status]


def rpc_status(error: MedserveError) -> status_pb2.Status:
    """The error as a google.rpc.Status: medserve's code is the reason of its ErrorInfo.

    The text starts with the code as well, for clients that read nothing else.
    """
    number: int = grpc_code(error).value[0]
    status = status_pb2.Status(code=number, message=f"{error.code}: {error.message}")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN))
    if isinstance(error, ServerBusyError):
        wait = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=retry_after_s(error)))
        status.details.add().Pack(wait)
    return status


def retry_after_s(error: ServerBusyError) -> int:
    """What the caller should wait before the next attempt, in seconds."""
    return error.retry_after_s if isinstance(error, QueueFullError) else RETRY_AFTER_S


def bug(error: Exception, request_id: str) -> ServerFailedError:
    """Log the place of a bug, and return what its caller gets: a reference into the log.

    The text of the exception is neither logged nor told; it may quote the input.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    logger.error("internal error, reference %s: %s at %s", request_id, type(error).__name__, place)
    return ServerFailedError(f"internal error, reference {request_id}")


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    error: MedserveError,
    metadata: Sequence[tuple[str, str]] = (),
) -> NoReturn:
    """End the call with the error; `metadata` goes with its details behind the answer."""
    status = rpc_status(error)
    trailing = [*metadata, (_DETAILS, status.SerializeToString())]
    if isinstance(error, ServerBusyError):
        trailing.append(("retry-after", str(retry_after_s(error))))
    await context.abort(grpc_code(error), status.message, trailing_metadata=tuple(trailing))
