"""What a gRPC call says beside its message, and how it ends when something goes wrong."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

import grpc.aio

from medserve.errors import MedserveError
from medserve.gateway.core.calls import Caller, Face, network_address, new_request_id
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.requests import TaskRequest
from medserve.gateway.core.status import abort, bug
from medserve.tracing import TRACEPARENT

__all__ = [
    "CASE",
    "REQUEST_ID",
    "CallContext",
    "Context",
    "answering",
    "identified",
    "identify",
    "peer_address",
]

Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID = "x-request-id"  # metadata and HTTP header, in and out
CASE = "x-medserve-case"  # the same: what a case is called, so that it meets one version
_SCHEME = "bearer "
_PEERS = 1024  # connections whose address is kept: a connection has many calls
_identified: ContextVar[CallContext | None] = ContextVar("identified", default=None)


@dataclass
class StreamMemory:
    """How the messages of a stream are counted.

    Attributes:
        reserved: The face has reserved memory for all that is still to come.
    """

    reserved: bool = False


@dataclass(frozen=True)
class CallContext:
    """Who calls, until when they wait, and under which id the call is logged."""

    caller: Caller
    request_id: str
    deadline: float | None  # time.monotonic()
    chose_id: bool = False  # the caller gave the id in the metadata
    memory: StreamMemory = field(default_factory=StreamMemory, compare=False)

    def task_request(
        self, model: str, version: str, face: Face, params: Mapping[str, Any] | None = None
    ) -> TaskRequest:
        """Return what this call asks of a model."""
        return TaskRequest(
            model=model,
            version=version,
            caller=self.caller,
            request_id=self.request_id,
            face=face,
            deadline=self.deadline,
            params=params or {},
        )


def identify(context: Context, gateway: Gateway) -> CallContext:
    """Authenticate the caller of a gRPC call, for all that the task of this call does.

    Raises:
        AuthenticationError: tokens are in use, and the call has none that counts.
    """
    metadata = dict(context.invocation_metadata() or ())
    token = _bearer_token(_text(metadata.get("authorization")))
    left_s = context.time_remaining()
    given_id = _text(metadata.get(REQUEST_ID))
    name = "" if gateway.asks_for_tokens else _certificate_name(context)
    traceparent = _text(metadata.get(TRACEPARENT))
    caller = gateway.authenticate(token, name, peer_address(context), traceparent)
    case = _text(metadata.get(CASE))
    known = CallContext(
        replace(caller, case=case) if case else caller,
        new_request_id(given_id),
        None if left_s is None else time.monotonic() + left_s,
        bool(given_id),
    )
    _identified.set(known)
    return known


def identified() -> CallContext:
    """Return who calls, as the guard of this call has found out."""
    known = _identified.get()
    assert known is not None
    return known


@contextlib.asynccontextmanager
async def answering(context: Context, gateway: Gateway) -> AsyncIterator[CallContext]:
    """Let an authenticated caller in; an error inside the block ends the call with its status."""
    request_id = ""
    try:
        incoming = _identified.get() or identify(context, gateway)
        request_id = incoming.request_id
        await context.send_initial_metadata(((REQUEST_ID, request_id),))
        yield incoming
    except MedserveError as error:
        await abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        await abort(context, bug(error, request_id or new_request_id()))


def peer_address(context: Context) -> str:
    """Return the network address of the caller, without the port: `ipv4:127.0.0.1:40510`."""
    return _address_in(context.peer())


@functools.lru_cache(_PEERS)
def _address_in(peer: str) -> str:
    host = unquote(peer).rpartition(":")[0].partition(":")[2]
    return network_address(host.strip("[]"))


def _bearer_token(header: str) -> str | None:
    """Return the token in an `authorization` header."""
    if header[: len(_SCHEME)].lower() != _SCHEME:
        return None
    return header[len(_SCHEME) :].strip() or None


def _text(value: str | bytes | None) -> str:
    return value if isinstance(value, str) else ""


def _certificate_name(context: Context) -> str:
    """Return whom the client's certificate names, "" without one."""
    names = (context.auth_context() or {}).get("x509_common_name") or ()
    return next((bytes(name).decode("utf-8", "replace") for name in names), "")
