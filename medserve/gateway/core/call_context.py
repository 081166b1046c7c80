"""What a gRPC call says beside its message, and how it ends when something goes wrong."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from medserve.errors import MedserveError, ServerFailedError
from medserve.gateway.core.calls import Caller, Face
from medserve.gateway.core.gateway import Gateway, new_request_id
from medserve.gateway.core.requests import TaskRequest
from medserve.gateway.core.status import abort

__all__ = [
    "REQUEST_ID",
    "CallContext",
    "Context",
    "answering",
    "bearer_token",
    "bug",
    "certificate_name",
]

Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID = "x-request-id"  # metadata and HTTP header, in and out
_SCHEME = "bearer "

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CallContext:
    """Who calls, until when they wait, and under which id the call is logged."""

    caller: Caller
    request_id: str
    deadline: float | None  # time.monotonic()

    def order(
        self, model: str, version: str, face: Face, params: Mapping[str, Any] | None = None
    ) -> TaskRequest:
        """What this call asks of a model."""
        return TaskRequest(
            model=model,
            version=version,
            caller=self.caller,
            request_id=self.request_id,
            face=face,
            deadline=self.deadline,
            params=params or {},
        )


@contextlib.asynccontextmanager
async def answering(context: Context, gateway: Gateway) -> AsyncIterator[CallContext]:
    """Let an authenticated caller in; an error inside the block ends the call with its status."""
    metadata = dict(context.invocation_metadata() or ())
    request_id = new_request_id(_text(metadata.get(REQUEST_ID)))
    try:
        await context.send_initial_metadata(((REQUEST_ID, request_id),))
        caller = gateway.authenticate(
            bearer_token(_text(metadata.get("authorization"))), certificate_name(context)
        )
        left_s = context.time_remaining()
        deadline = None if left_s is None else time.monotonic() + left_s
        yield CallContext(caller, request_id, deadline)
    except MedserveError as error:
        await abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        await abort(context, bug(error, request_id))


def bearer_token(header: str) -> str | None:
    """The token in an `authorization` header."""
    if header[: len(_SCHEME)].lower() != _SCHEME:
        return None
    return header[len(_SCHEME) :].strip() or None


def bug(error: Exception, request_id: str) -> ServerFailedError:
    """A bug: the caller gets a reference, the log the place. Its text may quote the input."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    logger.error("internal error, request %s: %s at %s", request_id, type(error).__name__, place)
    return ServerFailedError(f"internal error, reference {request_id}")


def _text(value: str | bytes | None) -> str:
    return value if isinstance(value, str) else ""


def certificate_name(context: Context) -> str:
    """Whom the client's certificate names, "" without one."""
    names = (context.auth_context() or {}).get("x509_common_name") or ()
    return next((bytes(name).decode("utf-8", "replace") for name in names), "")
