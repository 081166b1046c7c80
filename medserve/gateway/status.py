"""How an error of medserve ends a gRPC call: code, text, and details that programs read."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from medserve.errors import MedserveError, ServerBusyError

__all__ = ["DOMAIN", "RETRY_AFTER_S", "abort", "grpc_code", "rpc_status"]

DOMAIN = "medserve"  # of the codes in google.rpc.ErrorInfo
RETRY_AFTER_S = 1  # what a busy server asks a caller to wait
_DETAILS = "grpc-status-details-bin"  # where gRPC carries a google.rpc.Status


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
        wait = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_S))
        status.details.add().Pack(wait)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: MedserveError) -> NoReturn:
    """End the call with the error."""
    status = rpc_status(error)
    details = ((_DETAILS, status.SerializeToString()),)
    await context.abort(grpc_code(error), status.message, trailing_metadata=details)
